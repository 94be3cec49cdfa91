"""α-Flow: from flow matching to MeanFlow as α falls.   [Zhang et al. 2025, α-Flow]

python -m cmjax.main --config=configs/digits_alphaflow.py

Times are digits_meanflow's, a quarter of the batch at s = t; the weight is the paper's 1/α. The target is not clipped.
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
