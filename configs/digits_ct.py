"""Consistency training on scikit-learn's 1,797 handwritten digits, 8×8: real samples in minutes on two CPU cores.

    python -m cmjax.main --config=configs/digits_ct.py

What differs from the published CT recipe, and why. N grows to 21 only: with some thousand updates a finer grid leaves
the far end of the trajectory untaught. Pseudo-Huber replaces LPIPS, which needs large images. The weight 1/(t − r) of
iCT keeps small noise levels, where strokes are decided, from being drowned by large ones: with weight 1 the samples are
smooth averages (recall 0). No averaged target, as in iCT. The network is an MLP: on a CPU its matrix products run
several times faster than convolutions of the same quality on images this small.
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 4000
    config.batch_size = 256
    config.data.name = "digits"
    config.net = common.mlp(width=256, depth=3)
    config.objective = common.ConfigDict(
        {
            "name": "ct",
            "curriculum": "square_root_growth(s0=2, s1=20)",
            "intervals": "uniform",
            "distance": "pseudo_huber(c=0.03)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.99)", learning_rate=1e-3, schedule="cosine", averages=("ema(rate=0.995)",)
    )
    config.samples = common.consistency_samples(every=500, times=(80.0, 0.8))
    return config
