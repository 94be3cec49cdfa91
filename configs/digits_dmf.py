"""Decoupled MeanFlow with its learned weight, from data alone.   [Lee et al. 2025]

python -m cmjax.main --config=configs/digits_dmf.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.net.weight_head = 32
    config.objective = common.ConfigDict(
        {
            "name": "dmf",
            "times": "logit_normal(mean=0.0, std=1.6)",
            "times_s": "logit_normal(mean=-2.0, std=1.6)",
            "pairs": "sorted(apart=0.5)",
            "teacher": "",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    return config
