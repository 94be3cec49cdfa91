"""Consistency training on scikit-learn's 1,797 handwritten digits, 8×8: real samples in two minutes on two CPU cores.

    python -m cmjax.main --config=configs/digits_ct.py

What differs from the published CT recipe, and why. Grid, interval probabilities, weight and target are iCT's: the
weight 1/(t − r) keeps small noise levels, where strokes are decided, from being drowned by large ones (with weight 1
every sample is a smooth average, recall 0). N ends at 41: in some thousand updates a finer grid leaves the far end of
the trajectory untaught. c is far above iCT's 0.00054·√D, which on so few pixels drew samples to the median. Noise lies
near its data where the noise level is above one: with independent noise samples keep to the middle of the data (recall
.62). The network is an MLP: on a CPU its matrix products run several times faster than convolutions on images this
small.
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 5000
    config.batch_size = 128
    config.data.name = "digits"
    config.net = common.mlp(width=384, depth=3)
    config.objective = common.ConfigDict(
        {
            "name": "ct",
            "curriculum": "doubling(s0=10, s1=40)",
            "intervals": "lognormal(mean=0.0, std=2.0)",
            "coupling": "minibatch_ot(above=1.0)",
            "distance": "pseudo_huber(c=1.0)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.99)", learning_rate=1e-3, schedule="cosine", averages=("ema(rate=0.995)",)
    )
    config.samples = common.consistency_samples(every=1000, times=(80.0, 0.8))
    return config
