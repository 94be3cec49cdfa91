"""Consistency training on CIFAR-10 with LPIPS, NCSN++.   [Song et al. 2023, table 3]

    python -m cmjax.main --config=configs/cifar_ct.py --config.data.data_dir=~/tensorflow_datasets \\
        --config.objective.distance='lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'

Cost: 800,000 updates of 512 images. Published: FID 8.70 in one evaluation, 5.83 in two. The target's rate divides by
the number of intervals, as in the code of the published runs. The second time of samples, 0.821, is iCT's. LPIPS needs
two files of weights: torchvision's vgg16-397923af.pth and the lpips package's vgg.pth.
`:tiny` uses l2 and no files.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 800_000
    config.batch_size = 512
    config.data.name = "cifar10"
    config.data.horizontal_flip = True
    config.net = common.ncsnpp()
    config.objective = common.ConfigDict(
        {
            "name": "ct",
            "curriculum": "square_root_growth(s0=2, s1=150)",
            "intervals": "uniform",
            "distance": common.LPIPS,
            "weight": "uniform",
            "target": "scheduled_ema(mu0=0.9, ema_uses_intervals=True)",
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=4e-4, averages=("ema(rate=0.9999, corrected=False)",))
    config.checkpoint.save_every = 5000
    config.samples = common.consistency_samples(every=5000, times=(80.0, 0.821))
    return common.variant(config, variant)
