"""EDM's diffusion model of CIFAR-10, the teacher of cifar_cd.   [Karras et al. 2022]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets

Cost: 390,625 updates of 512 images (200 million images). Published: FID 1.97 at 35 evaluations, of the best
unconditional network. The network takes the labels of the augmentation, and samples images as they are. For a few
steps on a laptop: --config=configs/cifar_edm.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 390_625
    config.batch_size = 512
    config.data.name = "cifar10"
    config.data.augment = "edm(probability=0.12)"
    config.net = common.ncsnpp(dropout=0.13, augment_dim=9)
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-1.2, std=1.2)", "weight": "karras"}
    )
    config.optimizer = common.optimizer(
        common.of_a_sum("adam", size=32 * 32 * 3),
        learning_rate=1e-3,
        schedule="constant(warmup_steps=19531)",  # 10 million images
        averages=("half_life(mimg=0.5, ramp_up=0.05)",),
    )
    config.checkpoint.save_every = 5000
    config.samples = common.teacher_samples(every=5000)
    return common.variant(config, variant)
