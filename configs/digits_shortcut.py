"""A shortcut model: steps of any dyadic length, each two of half of it.   [Frans et al. 2025]

python -m cmjax.main --config=configs/digits_shortcut.py
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "shortcut",
            "pairs": "dyadic(steps=128)",
            "share": 0.25,
            "distance": "l2",
            "target": "ema(mu=0.999)",
        }
    )
    return config
