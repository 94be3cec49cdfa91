"""`--mode=export`: writes a run's model for other programs.

cmjax export --workdir=runs/digits_ct
cmjax export --workdir=runs/digits_ct --format=stablehlo --times=80,0.8
cmjax export --workdir=runs/digits_ct --format=onnx --function=model
cmjax export --workdir=runs/digits_ct --format=hub --licence=apache-2.0
cmjax export --workdir=runs/cd64 --format=diffusers --out=cd64
cmjax export --workdir=runs/latents_sit --format=sit --out=sit.safetensors
cmjax export --workdir=runs/sd15 --lora=lcm-lora-sdv1-5.safetensors --out=sd15-lcm
cmjax export --workdir=runs/sd15_lcm_lora --format=lora
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.generation.bundles import DTYPES, write_bundle
from cmjax.generation.decoding import decoder_of
from cmjax.generation.programs import FUNCTIONS, ExportedProgram, described, model_program, sampler_program
from cmjax.generation.samplers import samples_from_flags
from cmjax.interop.diffusers import write_diffusers
from cmjax.interop.dit_export import write_sit
from cmjax.interop.keys import ForeignError
from cmjax.interop.weights import write_weights
from cmjax.reporting.card import check_licence, model_card
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.weights import check_new
from cmjax.runs.workdir import INDEX, output, sees_prompts, writing
from cmjax.system.files import to_path
from cmjax.system.libraries import require

LORA = "lora"
"""The format of an adapter that a run of prompts trained."""
DECODING = {"autoencoder": "named", "decode_dtype": "dtype", "decode_tile": "tile"}
"""Flags of the decoder -> arguments of `decoder_of`."""
SAMPLING = ("times", "sampler", "gamma", "solver", "steps", "clip")
GUIDANCE = ("guidance", "guidance_interval", "guidance_channels")


def declare(flags: Flags) -> None:
    flags.group("The file")
    help = "What it is written as. Default: safetensors, and diffusers of a pipeline of prompts."
    flags.one_of("format", None, (*FORMATS, LORA), help)
    flags.text("out", None, "The file or folder. Default: in <workdir>/export.")
    flags.checkpoint()
    flags.group("A program: stablehlo, onnx")
    flags.one_of("function", "sampler", FUNCTIONS, "Noise to samples, or one evaluation at any time.")
    flags.text("times", None, "Noise levels, as 80,0.8, or places, as idx:0,22,39/40. Default: the run's.")
    flags.text("sampler", None, "multistep, or of flow maps chain(gamma=0). Default: the run's.")
    flags.gamma()
    flags.text("solver", None, "Of a diffusion teacher. Default: the run's.")
    flags.integer("steps", None, "Noise levels of the solver's grid. Default: the run's.", at_most=10**5)
    flags.boolean("clip", None, "Clip every estimate of the image to [-1, 1]. Default: the run's.")
    flags.guidance(by_weaker=False)
    flags.autoencoder()
    flags.group("A folder for model hubs: hub")
    flags.text("licence", None, "Of the weights, as apache-2.0. Default: that of imported weights, or none.")
    flags.one_of("dtype", "float32", DTYPES, "Of the weights in the file.")
    flags.group("Of a pipeline of prompts")
    flags.lora()


def start(options: Options) -> None:
    whole = options.format in (None, "diffusers", LORA) or (options.workdir / INDEX).is_file()
    if sees_prompts(options.workdir) and whole:
        _start_pipeline(options)
        return
    options.refuse_prompts(("lora", "lora_scale"))
    if options.format == LORA:
        raise ConfigError(f"--format=lora: --workdir={options.workdir} is no run of a pipeline of prompts")
    flags = {name: value for name, value in options.flags.items() if options.is_set(name)}
    run(options.model, flags.pop("format", "safetensors"), flags.pop("out", None), **flags)


def _start_pipeline(options: Options) -> None:
    from cmjax.generation.pipelines import export_pipeline  # most runs have no prompts

    options.refuse_others(("workdir", "format", "out", "lora", "lora_scale"))
    if options.format == LORA:
        _write_lora(options.workdir, options.out)
        return
    if options.format not in (None, "diffusers"):
        raise ConfigError(f"--format={options.format}: a pipeline, of conditional_unet, is written as diffusers")
    export_pipeline(options.workdir, options.out, lora=options.lora, lora_scale=options.lora_scale)


def _write_lora(workdir: Path, out: str | None) -> None:
    from cmjax.interop.lora import write_lora
    from cmjax.runs.pipelines import lora_of

    path = to_path(out) if out else workdir / "export" / f"{workdir.name}.safetensors"
    if path.suffix != ".safetensors":
        raise ConfigError(f"--out={out}: must end in .safetensors")
    require("safetensors", "--format=lora")
    output(path)
    layers, pipeline = lora_of(workdir)
    with writing(path):
        write_lora(path, layers, pipeline)
    print(f"{workdir} -> {path}")


def run(workdir: str | Path, format: str = "safetensors", out: str | None = None, **options: Any) -> None:
    """Writes a checkpoint of a run to `out`: `run("runs/digits_ct", format="npz")`.

    workdir: a run's folder, or a checkpoint's. out: by default a file or folder in `workdir`/export. options: the flags
    of the formats that have some.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format={format}: must be one of {', '.join(FORMATS)}")
    chosen = FORMATS[format]
    _check_options(format, options)
    if out and chosen.suffix and to_path(out).suffix != chosen.suffix:
        raise ConfigError(f"--out={to_path(out)}: must end in {chosen.suffix}")
    for library in chosen.libraries:
        require(library, f"--format={format}")
    trained = open_trained(workdir)
    name = f"{trained.folder.name}{'-sit' * (format == 'sit')}{chosen.suffix}" if chosen.suffix else format
    path = to_path(out) if out else trained.folder / "export" / f"{trained.named}{name}"
    output(path)
    try:
        with writing(path):
            made_by = chosen.write(path, trained, **options)
    except ForeignError as error:
        raise ConfigError(f"--format={format}: {error}") from error
    print(f"{workdir} -> {path}{made_by or ''}")


def _check_options(format: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the flag, where one has no effect in this format."""
    for name in options:
        if name not in FORMATS[format].options:
            others = [other for other, row in FORMATS.items() if name in row.options]
            raise ConfigError(f"--{name}: only --format={' or '.join(others)}; this is {format}")
        if options.get("function") == "model" and name in (*SAMPLING, *DECODING):
            raise ConfigError(f"--{name}: only --function=sampler; a model is evaluated at the times that it is given")
    check_licence(options.get("licence"))


def _program(trained: Trained, function: str = "sampler", **options: Any) -> ExportedProgram:
    decoding = {DECODING[name]: options.pop(name) for name in tuple(options) if name in DECODING}
    samples = samples_from_flags(trained, **options)
    if function == "model":
        return model_program(trained, samples)
    return sampler_program(trained, samples, decoder_of(trained, **decoding))


def _write_stablehlo(path: Path, trained: Trained, **options: Any) -> str:
    from cmjax.interop.stablehlo import write_stablehlo

    program = _program(trained, **options)
    write_stablehlo(path, program.function, program.weights, program.specs, described(program, trained))
    return f" and {path.name}.json"


def _write_onnx(path: Path, trained: Trained, **options: Any) -> str:
    from cmjax.interop.onnx_file import write_onnx

    program, name = _program(trained, **options), type(trained.model.module).__name__
    about = described(program, trained)
    difference = write_onnx(path, program.function, program.weights, program.specs, about, name=name)
    return f" and {path.name}.json, within {difference:.1g} of JAX's outputs"


def _write_weights(path: Path, trained: Trained) -> None:
    write_weights(path, trained.load().params, dict(trained.record))


def _write_diffusers(path: Path, trained: Trained) -> None:
    kind, preconditioning = trained.model.kind, trained.recorded.preconditioning
    if kind != "consistency" or preconditioning != "consistency":
        raise ForeignError(
            f"{kind} with model.preconditioning={preconditioning!r}: "
            "ConsistencyModelPipeline runs consistency models with the preconditioning 'consistency' alone"
        )
    if path.exists() and any(path.iterdir()):
        raise ForeignError(f"{path} exists and is not empty")
    write_diffusers(path, trained.model.module, trained.load().params, trained.shape, trained.model.constants)


def _write_sit(path: Path, trained: Trained) -> str:
    recorded = trained.recorded
    model = {"kind": trained.model.kind, "path": recorded.path, "preconditioning": recorded.preconditioning}
    return f", for {write_sit(path, trained.model.module, trained.load().params, trained.shape, model)}"


def _write_hub(path: Path, trained: Trained, licence: str | None = None, dtype: str = "float32") -> None:
    check_new(path, "--out")
    write_bundle(path, trained, dtype=dtype, licence=licence, card=partial(model_card, trained, licence=licence))


@dataclass(frozen=True)
class Format:
    """Describes a format of exported models. suffix: of its file, "" for a folder. options: the flags that it takes."""

    suffix: str
    write: Callable[..., str | None]
    libraries: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


OF_PROGRAMS = ("function", *SAMPLING, *GUIDANCE, *DECODING)
FORMATS = {
    "safetensors": Format(".safetensors", _write_weights, ("safetensors",)),
    "npz": Format(".npz", _write_weights),
    "diffusers": Format("", _write_diffusers, ("safetensors",)),
    "sit": Format(".safetensors", _write_sit, ("safetensors",)),
    "stablehlo": Format(".stablehlo", _write_stablehlo, ("flatbuffers",), OF_PROGRAMS),
    "onnx": Format(".onnx", _write_onnx, ("jax2onnx", "onnxruntime"), OF_PROGRAMS),
    "hub": Format("", _write_hub, ("safetensors",), ("licence", "dtype")),
}
