"""`--mode=export`: the averaged parameters of a run, for other programs."""

from pathlib import Path

from cmjax.config.fields import ConfigError
from cmjax.config.model import read_model
from cmjax.interop.diffusers import write_diffusers
from cmjax.interop.keys import ForeignError
from cmjax.interop.own import write_own
from cmjax.machine.files import to_path
from cmjax.runs.load import load
from cmjax.runs.record import read_record

FORMATS = ("safetensors", "npz", "diffusers")


def run(workdir: Path, format: str, out: str | None) -> None:
    """Write the newest checkpoint of `workdir` to `out`, by default a file or folder in `workdir`/export."""
    if format not in FORMATS:
        raise ConfigError(f"--format={format}: must be one of {', '.join(FORMATS)}")
    name = "diffusers" if format == "diffusers" else f"{workdir.name}.{format}"
    path = to_path(out) if out else workdir / "export" / name
    if format != "diffusers" and path.suffix != f".{format}":
        raise ConfigError(f"--out={path}: must end in .{format}")
    record, flow_map = read_record(workdir), load(workdir)
    try:
        if format == "diffusers":
            _write_diffusers(path, record, flow_map)
        else:
            write_own(path, flow_map.params, record)
    except ForeignError as error:
        raise ConfigError(f"--format={format}: {error}") from error
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be written: {error.strerror}") from error
    print(f"{workdir} -> {path}")


def _write_diffusers(path: Path, record, flow_map) -> None:
    config = record["config"]
    if flow_map.kind != "consistency" or config["model"]["preconditioning"] != "consistency":
        raise ForeignError(
            f"{flow_map.kind} with model.preconditioning={config['model']['preconditioning']!r}: "
            "ConsistencyModelPipeline runs consistency models with the preconditioning 'consistency' alone"
        )
    if path.exists() and any(path.iterdir()):
        raise ForeignError(f"{path} exists and is not empty")
    model = read_model(config, record["num_classes"])
    write_diffusers(path, model.module, flow_map.params, flow_map.shape, model.constants)
