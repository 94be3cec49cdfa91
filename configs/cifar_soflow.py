"""SoFlow on CIFAR-10: a flow map by two evaluations a short step apart, from data alone.   [Luo et al. 2025]

    python -m cmjax.main --config=configs/cifar_soflow.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. Published, against the 50,000 training images: FID 2.86 in one evaluation, 2.28
in two. Times, gap, distance, dropout, augmentation and optimizer are the authors'; no part of the batch is flow
matching, but where s would lie above t. The second time enters by an embedding of its own, where theirs is one vector
with that of t. For a few steps on a laptop: --config=configs/cifar_soflow.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 800_000
    config.batch_size = 1024
    config.data.name = "cifar10"
    config.data.augment = "edm(probability=0.12)"
    config.model = common.linear_model("linear_flow")
    config.net = common.ddpmpp(dropout=0.3, two_times=True, augment_dim=9)
    config.objective = common.ConfigDict(
        {
            "name": "soflow",
            "times": "logit_normal(mean=-0.9, std=1.6)",
            "times_s": "logit_normal(mean=-4.0, std=1.6)",
            "pairs": "capped(apart=1.0)",
            "gap": "falling(start=1.0, end=0.0003125)",
            "distance": "adaptive(p=0.75, c=3.072)",  # .001 a value
            "guidance": 1.0,
            "blend": 0.0,
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=1e-4, averages=("ema(rate=0.9999, corrected=False)",))
    config.checkpoint.save_every = 5000
    config.samples = common.consistency_samples(every=5000, times=(1.0, 0.5))
    return common.variant(config, variant)
