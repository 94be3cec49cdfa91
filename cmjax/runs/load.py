"""The trained model in a run's folder."""

from pathlib import Path

from jax.sharding import Mesh

from cmjax.config.fields import ConfigError
from cmjax.config.model import read_model
from cmjax.core.sampling import FlowMap
from cmjax.machine.files import to_path
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.record import read_record
from cmjax.training.checkpoint import restore_average, saved_steps


def split_checkpoint(workdir_or_checkpoint: str | Path) -> tuple[Path, int | None]:
    """`runs/x/checkpoints/400` -> (`runs/x`, 400); a run's folder -> (itself, None)."""
    path = to_path(workdir_or_checkpoint)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def newest_checkpoint(workdir: Path) -> int:
    """The step of the newest checkpoint in a run's folder; -1 where there is none."""
    return max(saved_steps(workdir / "checkpoints"), default=-1)


def load(workdir_or_checkpoint: str | Path, *, average: int = 0, mesh: Mesh | None = None) -> FlowMap:
    """The trained model of a run's folder, bound to an average of its parameters.

    Args:    workdir_or_checkpoint: `runs/digits_ct` for the newest checkpoint, or `runs/digits_ct/checkpoints/4000`.
             average: which of `config.optimizer.averages`.
             mesh: of all devices of all processes, over which the parameters are laid as in training; every process
             must call then. Without, they come to the first device of this process.
    Returns: flow_map(x, t, **conditions) with x (b, h, w, c) in [-1, 1] units and t a scalar or (b,): the estimate of
             the clean image, f(x, t) of a consistency model or D(x, t) of a teacher.
    Raises:  ConfigError where the path is no run's folder; CheckpointError where no checkpoint can be read.
    """
    path, step = split_checkpoint(workdir_or_checkpoint)
    record = read_record(path)
    model = read_model(record["config"], record["num_classes"])
    texts = record["config"]["optimizer"]["averages"]
    count = 1 if isinstance(texts, str) else len(texts)
    if not 0 <= average < count:
        raise ConfigError(f"average={average}: {path} keeps {count} average(s), numbered from 0: {texts}")
    shape = tuple(record["shape"])
    like = parameter_shapes(model.module, shape)
    params = restore_average(path / "checkpoints", like, f"ema{average}", step=step, mesh=mesh)
    return model.bind(params, shape)
