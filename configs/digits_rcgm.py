"""RCGM: a short step along the data, then two of the map's own average.   [Sun et al. 2025]

python -m cmjax.main --config=configs/digits_rcgm.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "rcgm",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.75)",
            "order": 2,
            "step": 0.01,
            "distance": "l2",
            "weight": "uniform",
            "target": "ema(mu=0.99)",
            "blend": 0.0,
        }
    )
    return config
