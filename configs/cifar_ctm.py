"""CTM without its discriminator on CIFAR-10: a flow map by several steps of a teacher.   [Kim et al. 2024]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_ctm.py --config.data.data_dir=~/tensorflow_datasets \\
        --config.objective.distance='lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'

Cost: 100,000 updates of 128 images, a length chosen here. Published: FID 1.92 in one evaluation and 1.73 in two with a
discriminator, which is not here; so these figures are not this recipe's. Grid, steps, metric, averages, batch and
learning rate are the authors'. They add the loss of a denoiser for a whole batch, half of whose levels are the grid's
highest, and scale it by the gradients of both at the last layer; here half of the batch has it, of EDM's levels and
EDM's weight. LPIPS needs two files of weights, as in cifar_cd. `:tiny` uses l2 and no files.
"""

from configs import cifar_cd, common


def get_config(variant: str = ""):
    config = cifar_cd.get_config(variant)
    config.steps = min(config.steps, 100_000)
    config.batch_size = min(config.batch_size, 128)
    config.model.preconditioning, config.net.two_times = "ctm", True
    config.objective = common.ConfigDict(
        {
            "name": "ctm",
            "teacher": config.objective.teacher,
            "ode_step": "heun",
            "num_scales": 18,
            "times": "lognormal(mean=-1.2, std=1.2)",
            "fraction": 0.5,
            "distance": config.objective.distance,
            "weight": "karras",
            "target": "ema(mu=0.999)",
        }
    )
    config.optimizer.averages = ("ema(rate=0.999, corrected=False)",)
    config.samples = common.flow_map_samples(every=config.samples.every, times=(80.0, 0.585))
    return config
