"""The fields that every recipe has, with the values that most of them share."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """A recipe without a network, an objective and a length: those are what a recipe is about."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0  # optimizer updates
    config.batch_size = 0  # of all devices together
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
        {
            "name": "mlp",
            "width": width,
            "depth": depth,
            "frequencies": 32,
            "embedding_width": 64,
            "dropout": 0.0,
            **_net_options(),
        }
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


LPIPS = 'lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'
"""The published metric; the paths are of its weights (see README)."""


def _net_options() -> dict:
    return {"class_conditional": False, "dtype": "float32"}


def consistency_samples(*, every: int, times: tuple[float, ...]) -> ConfigDict:
    """Grids drawn every so many steps (0: at the end only), in one evaluation and along all of `times`."""
    return ConfigDict({"every": every, "num": 64, "times": times})


def teacher_samples(*, every: int) -> ConfigDict:
    """Grids drawn by the PF-ODE."""
    return ConfigDict({"every": every, "num": 64, "solver": "heun", "solver_steps": 18})


def optimizer(
    rule: str,
    *,
    learning_rate: float,
    averages: tuple[str, ...],
    schedule: str = "constant",
    clip_norm: float = 0.0,
    weight_decay: float = 0.0,
) -> ConfigDict:
    """`averages`: of the parameters, for sampling; the first is the one that grids and figures are drawn with."""
    return ConfigDict(
        {
            "rule": rule,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "clip_norm": clip_norm,
            "weight_decay": weight_decay,
            "averages": averages,
        }
    )


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """`:tiny` behind a recipe's name gives the same recipe, small enough to try for a few steps on a laptop."""
    if not name:
        return config
    if name != "tiny":
        raise ValueError(f"the recipe has the variant :tiny alone, not :{name}")
    config.steps, config.batch_size = 4, 8
    config.net.channels, config.net.channel_mult, config.net.blocks = 16, (1, 2), 1
    if config.objective.get("distance", "").startswith("lpips"):
        config.objective.distance = "l2"
    config.checkpoint.save_every, config.log.every = 4, 1
    config.samples.every, config.samples.num, config.figures.num = 0, 16, 0
    return config
