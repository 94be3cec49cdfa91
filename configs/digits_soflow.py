"""SoFlow: the solution of the flow by two evaluations a short step apart, without a derivative.   [Luo et al. 2025]

python -m cmjax.main --config=configs/digits_soflow.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "soflow",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "gap": "falling(start=0.1, end=0.002)",
            "distance": "l2",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    return config
