"""Consistency distillation on CIFAR-10 with LPIPS and Heun steps, NCSN++.   [Song et al. 2023, table 3]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_cd.py --config.data.data_dir=~/tensorflow_datasets \\
        --config.objective.distance='lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'

Cost: 800,000 updates of 512 images. Published: FID 3.55 in one evaluation, 2.93 in two. LPIPS needs two files of
weights: torchvision's vgg16-397923af.pth and the lpips package's vgg.pth. `:tiny` uses l2 and no files.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 800_000
    config.batch_size = 512
    config.init_from = "teacher"
    config.data.name = "cifar10"
    config.data.horizontal_flip = True
    config.net = common.ncsnpp(augment_dim=9)  # the teacher's, to start from; a student's images are as they are
    config.objective = common.ConfigDict(
        {
            "name": "cd",
            "teacher": "runs/cifar_edm",
            "ode_step": "heun",
            "curriculum": "constant(num_scales=18)",
            "intervals": "uniform",
            "distance": common.LPIPS,
            "weight": "uniform",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=4e-4, averages=("ema(rate=0.9999, corrected=False)",))
    config.checkpoint.save_every = 5000
    config.samples = common.consistency_samples(every=5000, times=(80.0, 0.585))
    if variant == "tiny":
        config.objective.teacher = "runs/cifar_edm-tiny"
    return common.variant(config, variant)
