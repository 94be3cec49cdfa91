"""MeanFlow on CIFAR-10: the mean velocity between any two times, from data alone.   [Geng et al. 2025, MeanFlow]

    python -m cmjax.main --config=configs/cifar_meanflow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. Published: FID 2.92 in one evaluation. Times are those of the authors' released
PyTorch code: t of one distribution, and for three quarters of the batch s of another, capped at t. Its images are
augmented as EDM's are, without rotations; here they are mirrored alone, so dropout may have to do more.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 800_000
    config.batch_size = 1024
    config.data.name = "cifar10"
    config.data.horizontal_flip = True
    config.model = common.linear_model("linear_flow")
    config.net = common.ddpmpp(dropout=0.2, two_times=True)
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=-0.6, std=1.6)",
            "times_s": "logit_normal(mean=-4.0, std=1.6)",
            "pairs": "capped(apart=0.75)",
            "distance": "adaptive(p=0.75, c=0.001)",
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.optimizer = common.optimizer(
        "adam",
        learning_rate=6e-4,
        schedule="constant(warmup_steps=10000)",
        averages=("ema(rate=0.99995, corrected=False)",),
    )
    config.checkpoint.save_every = 5000
    config.samples = common.flow_map_samples(every=5000, times=(1.0, 0.5))
    return common.variant(config, variant)
