"""The fields that every recipe has, with the values that most of them share."""

from typing import Any

from ml_collections import ConfigDict

from cmjax.nets import defaults
from cmjax.nets.adm import OPENAI
from cmjax.nets.dit import SIZES as DIT_SIZES
from cmjax.nets.unet import NCSNPP


def base() -> ConfigDict:
    """A recipe without a network, an objective and a length: those are what a recipe is about."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0  # optimizer updates
    config.batch_size = 0  # of all devices together
    config.grad_accumulation = 1  # the batch is processed in this many parts
    config.steps_per_call = 1  # updates that one call of the device does: more, where one takes milliseconds
    config.init_from = ""  # a run's folder whose averaged parameters the network starts from; "teacher": its own
    config.data = ConfigDict({"name": "", "data_dir": "", "image_size": 0, "channels": 0})
    config.data.image_column = config.data.label_column = config.data.caption_column = ""  # of tables; "": found
    config.data.memory_limit_gb = 4.0  # images that take less are kept once decoded
    config.data.max_corrupt = 10  # examples that cannot be read and that others stand in for; more are an error
    config.data.workers = 0  # processes that decode what is not kept in memory; 0: a thread of this one
    config.data.horizontal_flip = False
    config.data.label_dropout = 0.0  # fraction of the labels that training leaves out, for classifier-free guidance
    config.data.autoencoder = ""  # a folder that decodes latents; "": the one that encoded them; "none": no one
    config.data.decode_dtype = "float32"  # or "bfloat16", that the autoencoder computes in
    config.data.decode_tile = 0  # the side of the squares of latents that large images are decoded in; 0: whole
    config.data.augment = ""  # changes of images that the network takes as net.augment_dim numbers
    config.model = ConfigDict(
        {"path": "ve", "preconditioning": "consistency", "sigma_data": 0.5, "t_min": 0.002, "t_max": 80.0, "rho": 7.0}
    )
    config.mesh = ConfigDict({"fsdp": 1})  # devices that share one copy of the parameters
    config.checkpoint = ConfigDict({"save_every": 1000, "keep": 3, "keep_every": 0})
    config.log = ConfigDict({"every": 100, "tensorboard": True, "wandb": False})
    config.log.bins = 0  # parts of the noise levels, whose mean losses are recorded beside the whole
    config.metrics = ConfigDict({"num": 1500})  # samples that the metrics at the end are computed from; 0: none
    config.evaluate = ConfigDict({"every": 0, "num": 1000})  # steps between evaluations, 0: none; and their samples
    config.evaluate.update({"metrics": (), "features": "", "weights": "", "uint8": "round", "labels": "balanced"})
    config.report = True  # the page about the run, report.html, when training ends
    return config


def ve_model(preconditioning: str, **changes) -> ConfigDict:
    """EDM's path, whose times are noise levels, up to 80."""
    return _model("ve", preconditioning, 0.002, 80.0, changes)


def trig_model(preconditioning: str = "trig", **changes) -> ConfigDict:
    """TrigFlow: times up to arctan(80/σ_d), where the noise level is 80."""
    return _model("trig", preconditioning, 0.0, 1.56454, changes)


def linear_model(preconditioning: str, **changes) -> ConfigDict:
    """Flow matching: times from 0, data, to 1, noise."""
    return _model("linear", preconditioning, 0.0, 1.0, changes)


def ddpm_model(preconditioning: str, **changes) -> ConfigDict:
    """Discrete diffusion in Stable Diffusion's thousand steps: times from 0.001, where its samplers end, to 0.999."""
    path = 'ddpm(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)'
    return _model(path, preconditioning, 0.001, 0.999, changes)


def _model(path: str, preconditioning: str, t_min: float, t_max: float, changes: dict) -> ConfigDict:
    model = {"path": path, "preconditioning": preconditioning, "t_min": t_min, "t_max": t_max}
    return ConfigDict({**model, "sigma_data": 0.5, "rho": 7.0, **changes})


def network(name: str, **changes) -> ConfigDict:
    """The network `name` of cmjax/nets: the defaults of its module, with `changes`."""
    net = ConfigDict({"name": name, **defaults(name)})
    net.update(changes)
    return net


def mlp(**changes) -> ConfigDict:
    """A network of matrix products, for the smallest images."""
    return network("mlp", **changes)


def ddpmpp(**changes) -> ConfigDict:
    """DDPM++ as EDM trains it on CIFAR-10: 55.7 million parameters.   [Karras et al. 2022, app. F.2]"""
    return network("unet", **changes)


def ncsnpp(**changes) -> ConfigDict:
    """NCSN++, 56.4 million parameters: what the published consistency models on CIFAR-10 use."""
    return network("unet", **{**NCSNPP, **changes})


def adm(**changes) -> ConfigDict:
    """ADM as OpenAI trains it on ImageNet-64: 295.9 million parameters.   [Dhariwal & Nichol 2021]"""
    return network("adm", **{**OPENAI, **changes})


def edm2(**changes) -> ConfigDict:
    """EDM2-S as trained on ImageNet: 280 million parameters with its classes.   [Karras et al. 2024]"""
    return network("edm2", **changes)


def dit(**changes) -> ConfigDict:
    """DiT-B/2: 130 million parameters on 4 channels with 1000 classes.   [Peebles & Xie 2023, table 1]"""
    return network("dit", **changes)


LPIPS = 'lpips(vgg="vgg16-397923af.pth", heads="vgg.pth")'
"""The published metric on CIFAR-10; the paths are of its weights (see docs/howto/data.md)."""
LPIPS_AVERAGE = LPIPS.replace(")", ', pooling="average")')
"""The one of the published runs on ImageNet and LSUN."""


def consistency_samples(*, every: int, times: tuple[float, ...]) -> ConfigDict:
    """Grids of samples every so many steps (0: at the end only), in one evaluation and along all of `times`."""
    return _samples(every, times=times, sampler="multistep")


def flow_map_samples(*, every: int, times: tuple[float, ...]) -> ConfigDict:
    """The same of flow maps, which go from time to time without new noise, as their papers' samplers do."""
    return _samples(every, times=times, sampler="chain(gamma=0.0)")


def prompted(samples: ConfigDict, *, prompts: tuple[str, ...], guidance: float) -> ConfigDict:
    """Samples of prompts, in turn; () for the first captions of the data."""
    samples.prompts, samples.guidance = prompts, guidance
    return samples


def teacher_samples(*, every: int) -> ConfigDict:
    """Grids of samples by the PF-ODE."""
    return _samples(every, solver="heun", solver_steps=18)


def few_steps(*, every: int, times: tuple[float, ...]) -> ConfigDict:
    """Grids of samples by DDIM along `times`, of students that are denoisers."""
    return _samples(every, solver="ddim", times=times)


def _samples(every: int, **by: Any) -> ConfigDict:
    """`guidance`: scale of classifier-free guidance, 1 for none; at the times of `guidance_interval`, () for all, and
    of so many of the first channels as `guidance_channels`, 0 for all.

    `clip`: every estimate of the image to [-1, 1], as OpenAI's released code does.
    """
    guidance = {"guidance": 1.0, "guidance_interval": (), "guidance_channels": 0}
    return ConfigDict({"every": every, "num": 64, **by, **guidance, "clip": False})


def optimizer(
    rule: str,
    *,
    learning_rate: float,
    averages: tuple[str, ...],
    schedule: str = "constant",
    clip_norm: float = 0.0,
    weight_decay: float = 0.0,
) -> ConfigDict:
    """`averages`: of the parameters, for sampling; the first makes the sample grids and the metrics.

    `skip_nonfinite`: so many steps whose loss or gradient is not finite are skipped; the next one stops the run.
    """
    return ConfigDict(
        {
            "rule": rule,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "clip_norm": clip_norm,
            "weight_decay": weight_decay,
            "averages": averages,
            "skip_nonfinite": 0,
        }
    )


def of_a_sum(rule: str, *, size: int) -> str:
    """The rule as in a code whose loss is the sum over a sample's elements where ours is their mean.

    With the rule's ε divided by the number of elements, an update is that of ε = 1e-8 and the sum. RAdam's first five
    updates are plain momentum, in proportion to the gradient, and stay smaller than the sum's.
    """
    return f"{rule}(eps={1e-8 / size:.4g})"


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """`:tiny` behind a recipe's name gives the same recipe, small enough to try for a few steps on a laptop."""
    if not name:
        return config
    if name != "tiny":
        raise ValueError(f"the recipe has the variant :tiny alone, not :{name}")
    config.steps, config.batch_size = 4, 8
    config.net.channels, config.net.channel_mult, config.net.blocks = 16, (1, 2), 1
    for name in {"head_channels", "norm_groups"} & set(config.net):
        config.net[name] = 16
    if config.objective.get("distance", "").startswith("lpips"):
        config.objective.distance = "l2"
    config.checkpoint.save_every, config.log.every = 4, 1
    config.samples.every, config.samples.num, config.metrics.num = 0, 16, 0
    return config


SIZES = ("B4", "B2", "L2", "XL2")
"""Of the DiTs of latents, by the letter of their width and depth and the side of a patch."""


def on_latents(config: ConfigDict, variant: str, *, sizes: tuple[str, ...] = SIZES, **net: Any) -> ConfigDict:
    """A recipe of ImageNet-256's latents, 32×32×4: a DiT of the size `variant`, XL/2 where it is "", and `net` of it.

    `:tiny` is small enough for a few steps on a laptop, and its latents may have any size.
    """
    if variant not in ("", "tiny", *sizes):
        raise ValueError(f"the recipe has the variants {', '.join(f':{size}' for size in sizes)} and :tiny")
    tiny, size = variant == "tiny", variant or "XL2"
    fields = {"width": 32, "depth": 2, "heads": 2} if tiny else DIT_SIZES[size[:-1]]
    patch = 1 if tiny else int(size[-1])
    config.net = dit(**fields, patch=patch, time_scale=1.0, class_conditional=True, **net)
    if not tiny:
        config.data.image_size, config.data.channels = 32, 4
        return config
    config.data.image_size = config.data.channels = 0
    config.steps, config.batch_size, config.checkpoint.save_every, config.log.every = 4, 8, 4, 1
    config.samples.every, config.samples.num = 0, 16
    return config


def run_of(recipe: str, variant: str) -> str:
    """The folder of a recipe's run, of the variant that this one's starts from."""
    return f"runs/{recipe}-{variant}" if variant not in ("", "XL2") else f"runs/{recipe}"


SDXL = {
    "widths": (320, 640, 1280),
    "blocks": (2, 2, 2),
    "transformers": (1, 2, 10),
    "attends": (False, True, True),
    "attends_up": (False, True, True),
    "heads": (5, 10, 20),
    "context_width": 2048,
    "pooled_width": 1280,
    "sizes": 6,
    "size_width": 256,
    "linear_projection": True,
}
"""What differs in SDXL's U-Net from Stable Diffusion 1.5's, whose fields are the defaults."""
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""The layers that LCM-LoRA changes.   [Luo et al. 2023, LCM-LoRA, diffusers' script]"""


def distilled_prompts(pipeline: str, *, guidance: tuple[float, float], lora: bool = False) -> ConfigDict:
    """Latent consistency distillation of a pipeline, as diffusers' scripts do it: 50 DDIM steps, Huber's loss.

    guidance: of the teacher, the least and the largest scale, which are those of the scripts and 1. lora: an adapter is
    trained in place of the U-Net; it takes no scale, and its target is itself.
    """
    config = base()
    config.init_from = pipeline
    config.data.name, config.data.image_size, config.data.channels = "latents", 64, 4
    config.model = ddpm_model('lcm(prediction="epsilon")', t_min=0.0)
    config.objective = ConfigDict(
        {
            "name": "lcm",
            "teacher": pipeline,
            "ode_step": "ddim",
            "pairs": "ddim_grid(steps=1000, skip=20)",
            "guidance": guidance,
            "distance": "huber(c=0.001)",
            "weight": "uniform",
            "target": "stop_gradient" if lora else "ema(mu=0.95)",
        }
    )
    if lora:
        config.lora = ConfigDict({"rank": 64, "alpha": 64.0, "targets": LORA_TARGETS})
    config.samples = prompted(
        consistency_samples(every=0, times=(0.999, 0.759, 0.499, 0.259)), prompts=(), guidance=1.0 if lora else 8.5
    )
    config.samples.full_noise = config.samples.unit_start = True
    config.samples.num, config.metrics.num = 8, 0
    return config


def tiny_prompts(config: ConfigDict, name: str, **net) -> ConfigDict:
    """`:tiny` behind a recipe's name: four updates of 8 latents of 8×8, of a network with these fields."""
    if not name:
        return config
    if name != "tiny":
        raise ValueError(f"the recipe has the variant :tiny alone, not :{name}")
    config.net.update({**net, "dtype": "float32", "remat": False})
    config.steps, config.batch_size, config.samples.num, config.data.image_size = 4, 8, 4, 8
    config.checkpoint.save_every, config.log.every = 4, 1
    config.samples.prompts = ("a cat", "a dog")
    if "lora" in config:
        config.lora.rank = 4
    return config
