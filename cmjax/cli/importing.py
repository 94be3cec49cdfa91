"""`--mode=import`: makes a run's folder from a peer's checkpoint, to sample, edit, distil or start from.

cmjax import --source=edm-cifar10-32x32-uncond-vp.pkl --workdir=runs/edm
cmjax import --source=cd_imagenet64_lpips.pt --workdir=runs/cd64
cmjax import --source=stable-diffusion-v1-5 --workdir=runs/sd15
cmjax import --source=hf://owner/name --workdir=runs/name
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError, about
from cmjax.config.methods import read_model
from cmjax.interop.keys import Foreign, ForeignError
from cmjax.interop.pipeline import INDEX, copy_pipeline, is_pipeline, load_pipeline
from cmjax.interop.read import READERS, read_foreign
from cmjax.interop.weights import is_weights_file
from cmjax.nets import NETS
from cmjax.runs.addresses import fetch_exported
from cmjax.runs.exported import is_bundle, read_exported, write_exported
from cmjax.runs.weights import check_new, write_model
from cmjax.runs.workdir import output, writing
from cmjax.system.files import is_address, is_bucket, to_path, whole_folder
from cmjax.system.libraries import MissingLibrary

log = logging.getLogger(__name__)

FORMATS = ("auto", *READERS, "diffusers", "cmjax")
PRECONDITIONINGS = {"denoiser": "edm", "consistency": "consistency", "flow_map": "linear_ends"}
"""Kind of model -> its preconditioning, unless the reader names another."""
KINDS = ("denoiser", "consistency")
"""The kinds of model that a file may leave open."""
CONSTANTS = {"sigma_data": 0.5, "t_min": 0.002, "t_max": 80.0, "rho": 7.0}
"""The constants of all released networks, unless the file has others."""
FIXED = ("frequencies", "phases")  # numbers of a Fourier embedding, which are random and never trained


def declare(flags: Flags) -> None:
    flags.group("The checkpoint")
    flags.text("source", None, "Its file or folder, or an address, hf://owner/name.")
    flags.one_of("format", "auto", FORMATS, "Whose it is.")
    flags.group("What the file may leave open")
    flags.one_of("arch-kind", None, KINDS, "What the network is.")
    flags.integer("arch-image_size", None, "Height and width of the images.", at_least=1)
    flags.integer("arch-head_channels", None, "Width of an attention head.", at_least=1)
    flags.integer("arch-second_time_from", None, "First block that sees the second time.", at_least=1)
    flags.texts("arch-attention_resolutions", "As 32,16,8.")
    flags.texts("arch-resample_filter", "Taps, as 1,3,3,1.")
    flags.number("arch-noise_scale", None, "Factor of pMF's noise.", 1e-3, 1e3)
    flags.text("arch-average", None, "Which average of a Flax checkpoint that has several, as 1000.")


def start(options: Options) -> None:
    overrides: dict[str, Any] = {}
    for name, value in options.flags.items():
        if name.startswith("arch-") and value is not None:
            try:
                overrides[name[5:]] = tuple(map(int, value)) if isinstance(value, list) else value
            except ValueError:
                raise ConfigError(f"--{name}={','.join(value)}: must be whole numbers") from None
    run(options.source, options.workdir, format=options.format, overrides=overrides)


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
    path = fetch_exported(source)[0] if is_address(source) else to_path(source)
    if format == "auto" and _is_of_prompts(path):
        _import_pipeline(path, workdir)
        return
    if format == "cmjax" or (format == "auto" and (is_bundle(path) or is_weights_file(path))):
        _import_exported(source, path, workdir)
        return
    try:
        foreign, peer = read_foreign(path, format, overrides or {})
    except ForeignError as error:
        raise ConfigError(about("--source", source, error)) from error
    model = _config(foreign), foreign.shape, getattr(foreign.module, "num_classes", 0) or None, foreign.params
    imported = {"from": str(path), "format": peer, "licence": foreign.licence}
    # Before anything is written: a network that does not run would leave a folder that nothing can read.
    _evaluate_once(*model)
    write_model(workdir, *model, imported=imported, option="--workdir")
    print(_report(path, workdir, foreign, peer))


def _import_exported(source: str, path: Path, workdir: Path) -> None:
    """Reads what --mode=export wrote, a file of weights or a folder for model hubs."""
    try:
        exported = read_exported(path)
    except ForeignError as error:
        raise ConfigError(about("--source", source, error)) from error
    record, params = exported.record, exported.params
    licence = record.get("licence") or "of the run's owner"
    imported = record.get("imported") or {"from": source, "format": "cmjax", "licence": licence}
    _evaluate_once(record["config"], record["shape"], record["num_classes"], params)
    write_exported(exported, workdir, place=workdir, imported=imported, option="--workdir")
    print(f"{source} -> {workdir}: {_count(params):,} parameters of a cmjax run")


def _is_of_prompts(path: Path) -> bool:
    """Checks whether the folder is a pipeline from prompts to images, even one of a class that is not read."""
    return (path / INDEX).is_file() and (is_pipeline(path) or not (path / "unet").is_dir())


def _import_pipeline(path: Path, workdir: Path) -> None:
    """Copies a pipeline's parts to a new folder, the whole folder or nothing, after all were read."""
    if is_bucket(workdir):
        raise ConfigError(f"--workdir={workdir}: a pipeline is kept on a disk; name a folder there")
    try:
        pipeline = load_pipeline(path)
        with writing(workdir, "--workdir"), whole_folder(workdir) as partial:
            copy_pipeline(path, partial)
    except (ForeignError, MissingLibrary) as error:
        raise ConfigError(about("--source", str(path), error)) from error
    rows = {
        "pipeline": repr(pipeline),
        "licence": "not named by the folder: see where it was downloaded",
        "sample": f'python -m cmjax.main --mode=sample --workdir={workdir} --prompt="…"',
    }
    print("\n".join([f"{path} -> {workdir}", *(f"{name:12s}{text}" for name, text in rows.items())]))


def _evaluate_once(config: Mapping[str, Any], shape: Sequence[int], num_classes: int | None, params: Any) -> None:
    """Evaluates the model on noise, as every later use of the folder does. Raises: ConfigError where it fails."""
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
    """Writes the sections of a configuration that a model is made from."""
    module, kind = foreign.module, str(foreign.kind)
    name = next(name for name, network in NETS.items() if type(module) is network)
    net = {field: value for field, (value, _) in _fields(foreign).items() if field not in ("num_classes", "dtype")}
    conditional, constants = getattr(module, "num_classes", 0) > 0, {**CONSTANTS, **foreign.constants}
    model = foreign.model or {"path": "ve", "preconditioning": PRECONDITIONINGS[kind]}
    return {
        "net": {"name": name, "class_conditional": conditional, "dtype": jnp.dtype(module.dtype).name, **net},
        # the kind is recorded, for there is no method from which it would follow
        "model": {"kind": kind, **constants, **model},
        "optimizer": {"averages": ["imported"]},
    }


def _report(path: Path, workdir: Path, foreign: Foreign, peer: str) -> str:
    fields = ", ".join(f"{name}={value!r}" for name, (value, default) in _fields(foreign).items() if value != default)
    use = "objective.teacher" if foreign.kind == "denoiser" else "init_from"
    rows = {
        "format": peer,
        "network": f"{type(foreign.module).__name__}({fields}), {_count(foreign.params):,} parameters",
        "kind": "{} of images {}x{}x{}".format(foreign.kind, *foreign.shape),
        "licence": foreign.licence,
        "sample": f"python -m cmjax.main --mode=sample --workdir={workdir}",
        "train": f"--config.{use}={workdir} in a recipe with this network",
    }
    return "\n".join([f"{path} -> {workdir}", *(f"{name:12s}{text}" for name, text in rows.items())])


def _fields(foreign: Foreign) -> dict[str, tuple[Any, Any]]:
    """Gives the fields of a foreign network's module: the value of each, and its default."""
    fields = dataclasses.fields(foreign.module)
    return {f.name: (getattr(foreign.module, f.name), f.default) for f in fields if f.name not in ("parent", "name")}


def _count(params: Any) -> int:
    """Counts the trained parameters: the fixed frequencies of a Fourier embedding are none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(np.size(leaf) for path, leaf in leaves if path[-1].key not in FIXED)
