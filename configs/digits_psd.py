"""PSD: a flow map whose steps agree with two shorter ones, from data alone.   [Boffi et al. 2025, self-distillation]

python -m cmjax.main --config=configs/digits_psd.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "psd",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "split": "uniform",
            "distance": "l2",
            "learned_weight": False,
            "target": "stop_gradient",
        }
    )
    return config
