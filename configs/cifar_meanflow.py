"""MeanFlow on CIFAR-10: the mean velocity between any two times, from data alone.   [Geng et al. 2025, MeanFlow]

    python -m cmjax.main --config=configs/cifar_meanflow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. Published: FID 2.92 in one evaluation, of these times (cifar10_v0 of the released
PyTorch code): t and s are sorted draws of one distribution, apart for three quarters of the batch. Network, dropout,
augmentation, whose labels the network is given, distance and optimizer are that code's too. The second time enters by
an embedding of its own, where theirs is one vector with that of t. The code's later times (cifar10_v1: times
logit_normal(mean=-0.6, std=1.6), times_s logit_normal(mean=-4.0, std=1.6), pairs capped(apart=0.75)) gave its authors
2.8 to 2.9. For a few steps on a laptop: --config=configs/cifar_meanflow.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 800_000
    config.batch_size = 1024
    config.data.name = "cifar10"
    config.data.augment = "meanflow(probability=0.12)"
    config.model = common.linear_model("linear_flow")
    config.net = common.ddpmpp(
        dropout=0.2, two_times=True, augment_dim=6, noise_channel_mult=2, resample_filter=(1, 3, 3, 1)
    )
    config.objective = common.ConfigDict(
        {
            "name": "meanflow",
            "times": "logit_normal(mean=-2.0, std=2.0)",
            "times_s": "logit_normal(mean=-2.0, std=2.0)",
            "pairs": "sorted(apart=0.75)",
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
