"""The fields that every recipe has, with the values that most of them share."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """A recipe without a network, an objective and a length: those are what a recipe is about."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0
    config.batch_size = 0
    config.grad_accumulation = 1  # the batch is processed in this many parts
    config.init_from = ""  # a run's folder whose averaged parameters the network starts from
    config.data = ConfigDict({"name": "", "data_dir": "", "image_size": 0, "channels": 0, "horizontal_flip": False})
    config.model = ConfigDict(
        {"preconditioning": "consistency", "sigma_data": 0.5, "t_min": 0.002, "t_max": 80.0, "rho": 7.0}
    )
    config.mesh = ConfigDict({"fsdp": 1})  # devices that share one copy of the parameters
    config.checkpoint = ConfigDict({"save_every": 1000, "keep": 3, "keep_every": 0})
    config.log = ConfigDict({"every": 100, "tensorboard": True, "wandb": False})
    config.figures = ConfigDict({"num": 1500})  # samples that the figures at the end are computed from; 0: none
    return config


def mlp(*, width: int, depth: int) -> ConfigDict:
    """A network of matrix products, for the smallest images."""
    return ConfigDict(
        {"name": "mlp", "width": width, "depth": depth, "frequencies": 32, "dropout": 0.0, **_net_options()}
    )


def ddpmpp(**changes) -> ConfigDict:
    """DDPM++ as EDM trains it on CIFAR-10: 55.7 million parameters.   [Karras et al. 2022, app. F.2]"""
    net = ConfigDict(
        {
            "name": "unet",
            "channels": 128,
            "channel_mult": (2, 2, 2),
            "blocks": 4,
            "attention_resolutions": (16,),
            "embedding": "positional",
            "noise_channel_mult": 1,
            "fourier_scale": 16.0,
            "encoder": "standard",
            "decoder": "standard",
            "resample_filter": (1, 1),
            "dropout": 0.0,
            "remat": False,
            **_net_options(),
        }
    )
    net.update(changes)
    return net


def ncsnpp(**changes) -> ConfigDict:
    """NCSN++, 56.4 million parameters: what the published consistency models on CIFAR-10 use."""
    return ddpmpp(
        embedding="fourier", noise_channel_mult=2, encoder="residual", resample_filter=(1, 3, 3, 1), **changes
    )


def _net_options() -> dict:
    return {"class_conditional": False, "dtype": "float32"}


def consistency_samples(*, every: int, times: tuple[float, ...]) -> ConfigDict:
    """Grids drawn every so many steps (0: at the end only), in one evaluation and along all of `times`."""
    return ConfigDict({"every": every, "num": 64, "times": times})


def teacher_samples(*, every: int) -> ConfigDict:
    """Grids drawn by the PF-ODE."""
    return ConfigDict({"every": every, "num": 64, "solver": "heun", "solver_steps": 18})


def tiny(config: ConfigDict) -> ConfigDict:
    """The same recipe, small enough to try for a few steps on a laptop: what `:tiny` behind a config's name gives."""
    config.steps, config.batch_size = 4, 8
    config.net.channels, config.net.channel_mult, config.net.blocks = 16, (1, 2), 1
    if "distance" in config.objective and config.objective.distance.startswith("lpips"):
        config.objective.distance = "l2"  # LPIPS needs downloaded weights
    config.checkpoint.save_every, config.log.every, config.samples.every, config.samples.num = 4, 1, 0, 16
    config.figures.num = 0
    return config
