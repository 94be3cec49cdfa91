"""ECT on CIFAR-10 for a laptop: the teacher of cifar_small_edm, tuned into a consistency model.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/cifar_small_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_small_ect.py --config.data.data_dir=~/tensorflow_datasets

As in digits_ect, three stages with q = 3.
"""

from configs import cifar_small_edm, common


def get_config():
    config = cifar_small_edm.get_config()
    config.steps = 600
    config.data.label_dropout = 0.0
    config.init_from = "runs/cifar_small_edm"
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=0.0, std=1.8)",
            "stages": "equal(count=3)",
            "gap": "shrinking(q=3)",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer.learning_rate = 4e-3
    config.optimizer.averages = ("ema(rate=0.99)",)
    config.samples = common.consistency_samples(every=200, times=(80.0, 0.8))
    return config
