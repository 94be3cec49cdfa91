"""Consistency training on MNIST, 28×28: recognisable digits in some twenty minutes on two CPU cores.

    python -m cmjax.main --config=configs/mnist_ct.py --config.data.data_dir=~/tensorflow_datasets

The choices are those of digits_ct, for the same reasons, but for its coupling and its c. Sharper digits are those of
mnist_ect; better edits those of mnist_edm and mnist_cd. On an accelerator use a larger U-Net:
`config.net = common.ddpmpp(channels=64, channel_mult=(1, 2, 2), blocks=2, attention_resolutions=(7,))`.
"""

from configs import common


def get_config():
    config = common.base()
    config.steps = 6000
    config.batch_size = 128
    config.data.name = "mnist"
    config.net = common.mlp(width=1024, depth=4)
    config.objective = common.ConfigDict(
        {
            "name": "ct",
            "curriculum": "doubling(s0=10, s1=40)",
            "intervals": "lognormal(mean=0.0, std=2.0)",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer(
        "adam(b1=0.9, b2=0.99)", learning_rate=5e-4, schedule="cosine", averages=("ema(rate=0.995)",)
    )
    config.checkpoint.save_every = 500
    config.log.every = 50
    config.samples = common.consistency_samples(every=500, times=(80.0, 0.8))
    return config
