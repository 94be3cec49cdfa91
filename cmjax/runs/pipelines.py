"""Pipelines from prompts to images as runs: an imported one, and the one that a run of prompts keeps in its folder."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cmjax.config.fields import ConfigError
from cmjax.config.recorded import read_recorded
from cmjax.config.run import Run
from cmjax.core.model import BoundModel
from cmjax.core.typing import Params
from cmjax.interop import pipeline as foreign
from cmjax.interop.conditional_unet import load_unet, unet_config, unet_module, write_unet
from cmjax.interop.fields import read_config
from cmjax.interop.folders import weights_file
from cmjax.interop.keys import ForeignError
from cmjax.interop.lora import UNET, Layers, LoraLayer
from cmjax.interop.scheduler import read_schedule
from cmjax.interop.text_to_image import TextToImage
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import INDEX, PIPELINE, RECORD, writing
from cmjax.system.files import is_bucket, remove_folder, to_json, to_path, whole_folder, write_atomically
from cmjax.system.mesh import move, parameter_shardings

log = logging.getLogger(__name__)


class Imported(Trained):
    """Treats a pipeline's folder as the run of its U-Net: a teacher, or the model that a run starts from."""

    @property
    def used_step(self) -> int:
        return 0

    @property
    def newest_step(self) -> int | None:
        return 0

    def load(self, *, average: int = 0, mesh: Mesh | None = None) -> BoundModel:
        """Loads the U-Net as a denoiser, or an LCM's as a consistency function. Raises: ConfigError."""
        return self.model.bind(_unet_of(self.folder, mesh), self.shape)

    def encoders(self) -> dict[str, str]:
        """Computes the keys of its autoencoder and text encoders from their weights."""
        try:
            parts = foreign.load_pipeline(self.folder, with_unet=False)
        except ForeignError as error:
            raise ConfigError(str(error)) from error
        return {"autoencoder": parts.autoencoder.weights_key, "text_encoder": parts.text_key}


def open_pipeline(folder: Path) -> Imported:
    """Opens the folder of a pipeline, and reads no weights. Raises: ConfigError where it is not read or not trained."""
    try:
        stated = read_config(folder / "unet" / "config.json")
        module = unet_module(stated, folder / "unet" / "config.json")
        file = folder / "scheduler" / "scheduler_config.json"
        schedule = read_schedule(read_config(file), file)
    except ForeignError as error:
        raise ConfigError(str(error)) from error
    if not schedule.path.name.startswith("paths.ddpm"):
        raise ConfigError(f"{file}: trained_betas: a schedule of its own, which training does not have")
    is_lcm = schedule.is_lcm or module.guided
    path = {"path": schedule.path.name.removeprefix("paths."), "sigma_data": 0.5, "rho": 7.0}
    ends = {"t_min": 0.0 if is_lcm else 1 / schedule.steps, "t_max": (schedule.steps - 1) / schedule.steps}
    of_lcm = f"lcm(prediction={schedule.prediction!r}, scaling={schedule.scaling * schedule.steps:g})"
    kind = {"kind": "consistency", "preconditioning": of_lcm} if is_lcm else {"kind": "denoiser"}
    size = int(jnp.ravel(jnp.asarray(stated.get("sample_size") or 64))[0])
    record = {
        "config": {
            "net": {"name": "conditional_unet", **_fields(module)},
            "model": {"preconditioning": schedule.prediction, **path, **ends, **kind},
            "optimizer": {"averages": ["imported"]},
        },
        "shape": [size, size, module.in_channels],
        "num_classes": None,
        "imported": {"from": str(folder), "format": "diffusers"},
    }
    return Imported(folder, None, record, read_recorded(record["config"], None))


def _fields(module: ConditionalUNet) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name", "dtype")]
    return {**{name: getattr(module, name) for name in names}, "dtype": jnp.dtype(module.dtype).name}


def _unet_of(folder: Path, mesh: Mesh | None) -> Params:
    try:
        _, params = load_unet(folder / "unet")
    except ForeignError as error:
        raise ConfigError(str(error)) from error
    return jax.tree.map(jnp.asarray, params) if mesh is None else move(params, parameter_shardings(params, mesh))


def base_of(trained: Trained, mesh: Mesh | None) -> Params:
    """Loads the parameters that a run's adapter changes. Raises: ConfigError where they are not in its folder."""
    folder = trained.folder / PIPELINE
    if not (folder / INDEX).is_file() or weights_file(folder / "unet") is None:
        start = trained.recorded.init_from
        log.info("%s keeps no weights that its adapter changes: they are those of %s", trained.folder, start)
        return open_trained(start).load(mesh=mesh).params
    return _unet_of(folder, mesh)


def lora_of(folder: str | Path) -> tuple[Layers, TextToImage]:
    """Loads the adapter that a run trained, and the pipeline that it changes. Raises: ConfigError where it has none."""
    trained, parts = open_trained(folder), parts_of(to_path(folder))
    lora = trained.recorded.lora
    if lora is None or parts is None:
        raise ConfigError(
            f"--format=lora: --workdir={folder} trained no adapter (config.lora), or lacks its {PIPELINE}"
        )
    alpha = jnp.float32(lora.alpha)
    layers = {path: LoraLayer(*arrays, alpha) for path, arrays in lora.layers(jax.device_get(trained.averaged()))}
    return {UNET: layers}, foreign.load_pipeline(parts, with_unet=False)


def parts_of(folder: Path) -> Path | None:
    """Finds the folder with text encoders and autoencoder, of a pipeline or of a run; None where there is none."""
    return next((each for each in (folder, folder / PIPELINE) if (each / INDEX).is_file()), None)


def keep_pipeline(run: Run, workdir: Path, module: Any, shape: tuple[int, ...], frozen: Mapping[str, Params]) -> None:
    """Copies the pipeline that a run starts from or distils into the run's folder; does nothing where there is none.

    The run trains the U-Net: it is left out, unless an adapter changes it. Files are linked where both folders lie on
    one disk, and copied otherwise: a run's folder can be moved alone.

    Args:   frozen: of `Setup`, with the U-Net's parameters of a run with an adapter.
    Raises: ConfigError where they cannot be written.
    """
    named = to_path(run.init_from or run.method.teacher or ".")
    source, target = parts_of(named), workdir / PIPELINE
    if source is None or (target / INDEX).is_file():
        return
    if is_bucket(workdir):
        log.warning("%s is a bucket: the pipeline stays in %s, which samples of prompts need too", workdir, source)
        return
    same, base = source == named, None if run.lora is None else run.base(frozen)
    try:
        with writing(target, "--workdir"), whole_folder(target) as partial:
            foreign.copy_pipeline(source, partial, with_unet=base is not None and same, link=True)
            if base is None or (not same and jax.process_count() > 1):  # no process has all of a split network
                write_atomically(partial / "unet" / "config.json", to_json(unet_config(module, shape[0])))
            elif not same:
                write_unet(partial / "unet", module, base, sample_size=shape[0])
            # without an index it is what a kill left
            remove_folder(target)
    except ForeignError as error:
        raise ConfigError(str(error)) from error


def copy_parts(source: Path, folder: Path) -> None:
    """Puts the pipeline of a run's folder into that of its average; nothing, where it has none. Raises: ConfigError."""
    if not (source / PIPELINE / INDEX).is_file():
        return
    with writing(folder, "--out"), whole_folder(folder / PIPELINE) as partial:
        foreign.copy_pipeline(source / PIPELINE, partial, link=True)


def load_pipeline(
    folder: str | Path, *, dtype: Any = "float32", attention: str = "xla", remat: bool = False, average: int = 0
) -> TextToImage:
    """Reads a pipeline from prompts to images: a folder as diffusers saves it, or of a run that trained its U-Net.

    A folder is read as data alone: no code in it is run. Weights are .safetensors or .bin files, of half precision or
    in shards as well; parameters are float32.

    Args:   folder: one with a model_index.json, or a run's, or a checkpoint's. dtype: of computation, as "bfloat16".
            attention: "xla", or "cudnn" for the fused kernels of NVIDIA GPUs. remat: recompute the U-Net's blocks in
            the backward pass. average: of a run, which of `config.optimizer.averages`.
    Raises: ForeignError, in one line, where the pipeline is of another class, or a part is missing, damaged, or does
            not fit the others; MissingLibrary; ConfigError where a run's folder has no pipeline.
    """
    folder, fields = to_path(folder), {"dtype": dtype, "attention": attention, "remat": remat}
    run_folder = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if not (run_folder / RECORD).is_file():
        return foreign.load_pipeline(folder, **fields)
    trained = open_trained(folder)
    parts = parts_of(run_folder) or parts_of(to_path(trained.recorded.init_from or trained.recorded.teacher or "."))
    if parts is None or not trained.model.prompted:
        raise ConfigError(f"{folder}: is a run whose network sees no prompts, or it has no {PIPELINE} beside it")
    whole = foreign.load_pipeline(parts, with_unet=False, **fields)
    module: Any = trained.model.module
    module = module.clone(dtype=jnp.dtype(dtype), attention=attention, remat=remat)
    is_lcm = trained.model.kind == "consistency"
    # on no device for good, as those of a file: what is compiled over all devices takes them too
    params = jax.tree.map(jnp.asarray, jax.device_get(trained.load(average=average).params))
    return dataclasses.replace(
        whole,
        params=params,
        module=module,
        schedule=dataclasses.replace(whole.schedule, is_lcm=is_lcm),
        sample_size=trained.shape[0],
    )
