"""LSD: a flow map whose end moves by its own velocity, from data alone.   [Boffi et al. 2025, self-distillation]

python -m cmjax.main --config=configs/digits_lsd.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "lsd",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "distance": "l2",
            "learned_weight": False,
            "target": "stop_gradient",
        }
    )
    return config
