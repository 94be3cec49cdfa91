"""α-Flow: from flow matching to MeanFlow as α falls.   [Zhang et al. 2025, α-Flow]

python -m cmjax.main --config=configs/digits_alphaflow.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "alphaflow",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.75)",
            "alpha": "sigmoid",
            "weight": "inverse",
        }
    )
    return config
