"""Opens the weaker model of autoguidance: another run, checkpoint or average.   [Karras et al. 2024b]"""

from dataclasses import dataclass

from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.runs.trained import Trained, open_trained
from cmjax.system.mesh import make_mesh


@dataclass(frozen=True)
class WeakerModel:
    """Holds a run's folder or checkpoint, and the number of one of its averages."""

    trained: Trained
    average: int

    @property
    def name(self) -> str:
        """Gives its name in records: the checkpoint, and the average as its recipe writes it."""
        folder, step = self.trained.folder, self.trained.used_step
        return f"{folder}/checkpoints/{step} {self.trained.recorded.averages[self.average]}"

    def load(self) -> BoundModel:
        return self.trained.load(average=self.average, mesh=make_mesh())


def weaker_model(trained: Trained, folder: str | None, average: int) -> WeakerModel | None:
    """Opens the model of --autoguidance, a run's folder or one of its checkpoints; None without the flag.

    Raises: ConfigError where it cannot guide the samples of `trained`.
    """
    if folder is None:
        if average:
            raise ConfigError(f"--autoguidance_average={average}: of which run? Name it with --autoguidance")
        return None
    flag, model = f"--autoguidance={folder}", trained.model
    if model.kind != "denoiser":
        raise ConfigError(f"{flag}: is of diffusion models; --workdir={trained.folder} is a {model.kind} model")
    try:
        weak = open_trained(folder)
    except ConfigError as error:
        raise ConfigError(f"--autoguidance={error}") from error
    for what, here, there in (
        ("kind", model.kind, weak.model.kind),
        ("shape", trained.shape, weak.shape),
        ("number of classes", trained.num_classes or 0, weak.num_classes or 0),
        ("path", trained.recorded.path, weak.recorded.path),
    ):
        if here != there:
            raise ConfigError(f"{flag}: its {what} is {there}; that of --workdir={trained.folder} is {here}")
    # the weaker model is evaluated at every time of the other: its times must reach as far
    ours, other = model.constants, weak.model.constants
    if model.path != weak.model.path or ours["t_min"] < other["t_min"] or ours["t_max"] > other["t_max"]:
        raise ConfigError(f"{flag}: it was trained at other times than --workdir={trained.folder}")
    if weak.step is None and weak.newest_step is None:
        raise ConfigError(f"{flag}: it has no checkpoint yet")
    if average >= (kept := len(weak.recorded.averages)):
        raise ConfigError(f"--autoguidance_average={average}: {folder} keeps {kept} average(s), numbered from 0")
    return WeakerModel(weak, average)
