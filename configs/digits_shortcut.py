"""A shortcut model: steps of any dyadic length, each two of half of it.   [Frans et al. 2025]

python -m cmjax.main --config=configs/digits_shortcut.py

Every halving of the steps is learned from the one before through the target's average, so a short run takes few
halvings, four in place of the paper's seven, an average of ten updates in place of a thousand, and half of the batch in
place of an eighth. The target is not clipped, and there is no guidance.
"""

from configs import common, digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "shortcut",
            "pairs": "dyadic(steps=16)",
            "fraction": 0.5,
            "distance": "l2",
            "target": "ema(mu=0.9)",
        }
    )
    return config
