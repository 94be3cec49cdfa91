"""TVM: a flow map whose end moves by the velocity of its own average, from data alone.   [Zhou et al. 2025]

python -m cmjax.main --config=configs/digits_tvm.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "tvm",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "distance": "l2",
            "target": "ema(mu=0.99)",
            "guidance": (),
        }
    )
    return config
