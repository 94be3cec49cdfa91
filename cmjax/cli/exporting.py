"""`--mode=export`: writes the averaged parameters of a run for other programs.

cmjax export --workdir=runs/digits_ct
cmjax export --workdir=runs/cd64 --format=diffusers --out=cd64
cmjax export --workdir=runs/latents_sit --format=sit --out=sit.safetensors
cmjax export --workdir=runs/sd15 --lora=lcm-lora-sdv1-5.safetensors --out=sd15-lcm
"""

from pathlib import Path

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.interop.diffusers import write_diffusers
from cmjax.interop.dit_export import write_sit
from cmjax.interop.keys import ForeignError
from cmjax.interop.weights import write_weights
from cmjax.runs.trained import Trained, open_trained
from cmjax.runs.workdir import output, writing
from cmjax.system.files import to_path
from cmjax.system.libraries import require

INDEX = "model_index.json"
"""What a pipeline's folder has, and a run's has not."""
FORMATS = ("safetensors", "npz", "diffusers", "sit")


def declare(flags: Flags) -> None:
    flags.group("The file")
    help = "What it is written as. Default: safetensors, and diffusers of an imported pipeline of prompts."
    flags.one_of("format", None, FORMATS, help)
    flags.text("out", None, "The file or folder. Default: in <workdir>/export.")
    flags.group("Of an imported pipeline of prompts")
    flags.lora()


def start(options: Options) -> None:
    if (options.workdir / INDEX).is_file():
        _start_pipeline(options)
        return
    if given := [name for name in ("lora", "lora_scale") if options.is_set(name)]:
        raise ConfigError(f"--{given[0]}: --workdir={options.workdir} is no pipeline of prompts, with a {INDEX}")
    run(options.workdir, options.format or "safetensors", options.out)


def _start_pipeline(options: Options) -> None:
    from cmjax.generation.pipelines import export_pipeline  # most runs have no prompts

    if options.format not in (None, "diffusers"):
        raise ConfigError(f"--format={options.format}: a pipeline of prompts is written as diffusers")
    export_pipeline(options.workdir, options.out, lora=options.lora, lora_scale=options.lora_scale)


def run(workdir: str | Path, format: str = "safetensors", out: str | None = None) -> None:
    """Writes the newest checkpoint of a run to `out`: `run("runs/digits_ct", format="npz")`.

    out: by default a file or folder in `workdir`/export.
    """
    workdir = to_path(workdir)
    if format not in FORMATS:
        raise ConfigError(f"--format={format}: must be one of {', '.join(FORMATS)}")
    suffix = ".safetensors" if format == "sit" else f".{format}"
    names = {"diffusers": "diffusers", "sit": f"{workdir.name}-sit.safetensors"}
    path = to_path(out) if out else workdir / "export" / names.get(format, f"{workdir.name}{suffix}")
    if format != "diffusers" and path.suffix != suffix:
        raise ConfigError(f"--out={path}: must end in {suffix}")
    if format != "npz":
        require("safetensors", f"--format={format}")
    trained = open_trained(workdir)
    output(path)
    flow_map, made_by = trained.load(), ""
    try:
        with writing(path):
            if format == "diffusers":
                _write_diffusers(path, trained, flow_map)
            elif format == "sit":
                made_by = f", for {_write_sit(path, trained, flow_map)}"
            else:
                write_weights(path, flow_map.params, dict(trained.record))
    except ForeignError as error:
        raise ConfigError(f"--format={format}: {error}") from error
    print(f"{workdir} -> {path}{made_by}")


def _write_diffusers(path: Path, trained: Trained, flow_map: BoundModel) -> None:
    preconditioning = trained.recorded.preconditioning
    if flow_map.kind != "consistency" or preconditioning != "consistency":
        raise ForeignError(
            f"{flow_map.kind} with model.preconditioning={preconditioning!r}: "
            "ConsistencyModelPipeline runs consistency models with the preconditioning 'consistency' alone"
        )
    if path.exists() and any(path.iterdir()):
        raise ForeignError(f"{path} exists and is not empty")
    write_diffusers(path, trained.model.module, flow_map.params, flow_map.shape, trained.model.constants)


def _write_sit(path: Path, trained: Trained, flow_map: BoundModel) -> str:
    recorded = trained.recorded
    model = {"kind": flow_map.kind, "path": recorded.path, "preconditioning": recorded.preconditioning}
    return write_sit(path, trained.model.module, flow_map.params, flow_map.shape, model)
