"""ECT on MNIST, 28×28, from data and their labels, without a teacher: digits in one evaluation.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/mnist_ect.py --config.data.data_dir=~/tensorflow_datasets

The first of six stages takes the target's time far from the sample's, nearly as a diffusion model's loss does; each
later one is nearer. Noise lies near its data of the same class where the noise level is above one. The U-Net of 0.7
million parameters works on patches of 4×4 pixels, at 7×7 places. Muon learned such a network of colour images in less
than half of Adam's updates (docs/results.md).
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 3000
    config.batch_size = 128
    config.data.name = "mnist"
    config.net = common.ddpmpp(
        patch=4, channels=64, channel_mult=(1,), blocks=1, attention_resolutions=(7,), class_conditional=True
    )
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=0.0, std=2.0)",
            "stages": "equal(count=6)",
            "gap": "shrinking(q=1.75)",
            "coupling": "minibatch_ot(above=1.0)",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer(
        "muon", learning_rate=1.5e-2, schedule="cosine(warmup_steps=50)", averages=("ema(rate=0.995)",)
    )
    config.checkpoint.save_every = 500
    config.samples = common.consistency_samples(every=500, times=(80.0, 0.8))
    return config
