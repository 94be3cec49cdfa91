"""AnyFlow's pre-training: a flow map whose every sample counts as the mean of flow matching.   [AnyFlow]

python -m cmjax.main --config=configs/digits_anyflow.py

Times are shifted less than the paper's, 2 for 5: an image of the digits has 64 values. Without labels it is not guided.
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "anyflow",
            "times": "uniform(shift=2.0)",
            "times_s": "uniform(shift=2.0)",
            "pairs": "sorted(apart=0.5, exact=True, whole=0.25)",
            "weight": "towards_noise(shift=2.0)",
            "derivative": "central_difference(step=0.005)",
            "guidance": 1.0,
        }
    )
    return config
