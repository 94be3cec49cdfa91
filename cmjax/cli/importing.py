"""`--mode=import`: makes a run's folder from a peer's checkpoint, to sample, edit, distil or start from.

cmjax import --source=edm-cifar10-32x32-uncond-vp.pkl --workdir=runs/edm
cmjax import --source=cd_imagenet64_lpips.pt --workdir=runs/cd64
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError, about
from cmjax.config.methods import read_model
from cmjax.interop.keys import Foreign, ForeignError
from cmjax.interop.read import READERS, read_foreign
from cmjax.interop.weights import is_weights_file, read_weights
from cmjax.nets import NETS
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.classes import recorded_classes
from cmjax.runs.weights import check_new, write_model
from cmjax.runs.workdir import output
from cmjax.system.files import to_path

log = logging.getLogger(__name__)

FORMATS = ("auto", *READERS, "diffusers", "cmjax")
PRECONDITIONINGS = {"denoiser": "edm", "consistency": "consistency", "flow_map": "linear_ends"}
"""By the kind, unless the reader names another."""
KINDS = ("denoiser", "consistency")
"""Those that a file may leave open."""
CONSTANTS = {"sigma_data": 0.5, "t_min": 0.002, "t_max": 80.0, "rho": 7.0}
"""Of all the peers' released networks, unless the file has others."""
FIXED = ("frequencies", "phases")
"""Numbers of a Fourier embedding, which are random and never trained."""


def declare(flags: Flags) -> None:
    flags.group("The checkpoint")
    flags.text("source", None, "Its file or folder.")
    flags.one_of("format", "auto", FORMATS, "Whose it is.")
    flags.group("What the file may leave open")
    flags.one_of("arch-kind", None, KINDS, "What the network is.")
    flags.integer("arch-image_size", None, "Height and width of the images.", at_least=1)
    flags.integer("arch-head_channels", None, "Width of an attention head.", at_least=1)
    flags.integer("arch-second_time_from", None, "First block that sees the second time.", at_least=1)
    flags.texts("arch-attention_resolutions", "As 32,16,8.")
    flags.texts("arch-resample_filter", "Taps, as 1,3,3,1.")
    flags.text("arch-average", None, "Which average of a Flax checkpoint that has several, as 1000.")


def start(options: Options) -> None:
    run(options.source, options.workdir, format=options.format, overrides=_architecture(options))


def _architecture(options: Options) -> dict[str, Any]:
    """The --arch- options of the command line."""
    stated: dict[str, Any] = {}
    names = ("kind", "image_size", "head_channels", "second_time_from", "attention_resolutions", "resample_filter")
    for name in (*names, "average"):
        value = getattr(options, f"arch-{name}")
        if value is not None:
            try:
                stated[name] = tuple(map(int, value)) if isinstance(value, list) else value
            except ValueError:
                raise ConfigError(f"--arch-{name}={','.join(value)}: must be whole numbers") from None
    return stated


def run(
    source: str | None, workdir: str | Path, *, format: str = "auto", overrides: Mapping[str, Any] | None = None
) -> None:
    """Reads a checkpoint into a new run's folder: `run("edm-cifar10-32x32-uncond-vp.pkl", "runs/edm")`.

    Nothing is written unless all of it was read. overrides: the --arch- flags, as {"kind": "denoiser"}.
    """
    workdir = to_path(workdir)
    if source is None:
        raise ConfigError("--source is missing: name the file or folder to import")
    if format not in FORMATS:
        raise ConfigError(f"--format={format}: must be one of {', '.join(FORMATS)}")
    check_new(workdir, "--workdir")
    output(workdir, "--workdir")
    write = partial(write_model, workdir, option="--workdir")
    path = to_path(source)
    if format == "cmjax" or (format == "auto" and is_weights_file(path)):
        record, params = _read_weights(path)
        imported = record.get("imported") or {"from": str(path), "format": "cmjax", "licence": "of the run's owner"}
        _evaluate_once(record["config"], record["shape"], record["num_classes"], params)
        kept = {"imported": imported, "classes": recorded_classes(record)}
        write(record["config"], record["shape"], record["num_classes"], params, **kept)
        print(f"{path} -> {workdir}: {_count(params):,} parameters of a cmjax run")
        return
    try:
        foreign, peer = read_foreign(path, format, overrides or {})
    except ForeignError as error:
        raise ConfigError(about("--source", source, error)) from error
    imported = {"from": str(path), "format": peer, "licence": foreign.licence}
    config, classes = _config(foreign), getattr(foreign.module, "num_classes", 0) or None
    _evaluate_once(config, foreign.shape, classes, foreign.params)
    write(config, foreign.shape, classes, foreign.params, imported=imported)
    print(_report(path, workdir, foreign, peer))


def _evaluate_once(config: Mapping[str, Any], shape: Sequence[int], num_classes: int | None, params: Any) -> None:
    """Evaluates the model on noise, as every later use of the folder does. Raises: ConfigError where it cannot be."""
    model = read_model(config, num_classes)
    flow_map = model.bind(params, tuple(shape))
    conditions = {"label": jnp.zeros(1, int)} if model.class_conditional else {}
    conditions |= {"guidance": jnp.ones(1)} if model.guided else {}
    noise = model.path.b(jnp.asarray(flow_map.t_max)) * jax.random.normal(jax.random.key(0), (1, *shape))
    log.info("the model is evaluated once")
    out = jax.jit(lambda flow_map, x: flow_map(x, flow_map.t_max, **conditions))(flow_map, noise)
    if out.shape != noise.shape or not np.isfinite(out).all():
        raise ConfigError(f"--source: the network gives {out.shape} for images of {noise.shape}, or not finite numbers")


def _config(foreign: Foreign) -> dict[str, Any]:
    """The sections of a configuration that a model is made from."""
    module, kind = foreign.module, str(foreign.kind)
    name = next(name for name, network in NETS.items() if type(module) is network)
    hidden = {"parent", "name", "num_classes", "dtype"}
    net = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in hidden}
    conditional, constants = getattr(module, "num_classes", 0) > 0, {**CONSTANTS, **foreign.constants}
    model = foreign.model or {"path": "ve", "preconditioning": PRECONDITIONINGS[kind]}
    return {
        "net": {"name": name, "class_conditional": conditional, "dtype": jnp.dtype(module.dtype).name, **net},
        "model": {"kind": kind, **constants, **model},
        "optimizer": {"averages": ["imported"]},
    }


def _read_weights(path: Path) -> tuple[dict[str, Any], Any]:
    try:
        record, params = read_weights(path)
        module = read_model(record["config"], record["num_classes"]).module
        expected = parameter_shapes(module, tuple(record["shape"]))
    except (ForeignError, KeyError, TypeError) as error:
        raise ConfigError(about("--source", str(path), error)) from error
    if jax.tree.map(lambda leaf: leaf.shape, expected) != jax.tree.map(np.shape, params):
        raise ConfigError(f"--source={path}: its arrays are not those of the network that its record describes")
    return record, params


def _report(path: Path, workdir: Path, foreign: Foreign, peer: str) -> str:
    network = foreign.module
    fields = ", ".join(f"{f.name}={getattr(network, f.name)!r}" for f in dataclasses.fields(network)
                       if f.name not in ("parent", "name") and getattr(network, f.name) != f.default)  # fmt: skip
    height, width, channels = foreign.shape
    use = "objective.teacher" if foreign.kind == "denoiser" else "init_from"
    return "\n".join(
        (
            f"{path} -> {workdir}",
            f"format      {peer}",
            f"network     {type(network).__name__}({fields}), {_count(foreign.params):,} parameters",
            f"kind        {foreign.kind} of images {height}x{width}x{channels}",
            f"licence     {foreign.licence}",
            f"sample      python -m cmjax.main --mode=sample --workdir={workdir}",
            f"train       --config.{use}={workdir} in a recipe with this network",
        )
    )


def _count(params: Any) -> int:
    """The number of trained parameters: the fixed frequencies of a Fourier embedding are none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(np.size(leaf) for path, leaf in leaves if path[-1].key not in FIXED)
