"""ECT on MNIST, 28×28, from data and their labels, without a teacher: digits in one evaluation.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/mnist_ect.py --config.data.data_dir=~/tensorflow_datasets

The network is mnist_imf's. The first of three stages takes the target's time far from the sample's, nearly as a
diffusion model's loss does; each later one is three times nearer.
"""

from configs import common, mnist_imf


def get_config():
    config = mnist_imf.get_config()
    config.steps = 4300
    config.model = common.base().model
    config.model.preconditioning = "edm"
    config.net.two_times = False
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=0.0, std=2.0)",
            "stages": "equal(count=3)",
            "gap": "shrinking(q=3)",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.samples = common.consistency_samples(every=500, times=(80.0, 0.8))
    return config
