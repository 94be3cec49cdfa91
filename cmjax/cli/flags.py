"""The flags of one mode, in the groups of its help, and what the command line says by them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from cmjax.config.fields import ConfigError
from cmjax.config.recipes import recipe_name
from cmjax.system.files import ask_bucket, is_address, is_bucket, to_path
from cmjax.system.libraries import MissingLibrary

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OF_RUN = ("workdir", "config", "checkpoint")  # flags that properties of `Options` read

OF_ADDRESSES = ("sample", "edit", "gallery", "evaluate", "diagnose", "export")
"""Modes whose run may be the address of a model, hf://owner/name or cmjax://name."""


@dataclass
class Flags:
    """Declares the flags of one mode, in groups for its help. A thin layer over absl."""

    values: absl_flags.FlagValues = field(default_factory=absl_flags.FlagValues)
    groups: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for names in self.groups.values() for name in names]

    def group(self, title: str) -> None:
        """Start a group: the help lists the flags that follow under this title."""
        self.groups[title] = []

    def text(self, name: str, default: str | None, help: str) -> None:
        absl_flags.DEFINE_string(name, default, help, self._named(name))

    def checkpoint(self) -> None:
        """Declare the flag that chooses a checkpoint of the run."""
        self.text("checkpoint", "newest", "newest, or the step of an older one, as 4000.")

    def gamma(self) -> None:
        """Declare the flag that is short for a sampler of flow maps."""
        help = "Flow maps: short for --sampler='chain(gamma=…)', γ the fraction of new noise."
        self.number("gamma", None, help, 0.0, 1.0)

    def guidance(self, *, by_weaker: bool = True) -> None:
        """Declare the flags of guidance, by classes and, unless that is left out, by a weaker model."""
        of_run = "of a model with classes. Default: the run's."
        self.number("guidance", None, f"Scale of classifier-free guidance, {of_run}")
        self.texts("guidance_interval", "Times between which samples are guided, as 0.3,5. Default: the run's, or all.")
        limit = "How many of the first channels are guided, 0 for all. Default: the run's, or all."
        self.integer("guidance_channels", None, limit, at_least=0)
        if not by_weaker:
            return
        weaker = "A weaker run, or a checkpoint of one, that guides a teacher, scaled by --guidance."
        self.text("autoguidance", None, weaker)
        self.integer("autoguidance_average", 0, "Which of its averages, numbered from 0.", at_least=0)

    def prompt(self, what: str) -> None:
        """Declare the flags of pipelines from prompts to images: what an image shows, and its size."""
        self.text("prompt", None, what)
        self.text("negative-prompt", None, "What it does not show. Default: the empty prompt.")
        self.text("size", None, "Height and width in pixels, as 512x768. Default: the pipeline's, or near the image's.")
        self.lora()

    def lora(self) -> None:
        """Declare the flags of the LoRA that is merged into a pipeline's weights."""
        self.text("lora", None, "A .safetensors file that is merged into the weights.")
        self.number("lora_scale", 1.0, "How much of it.")

    def autoencoder(self) -> None:
        """Declare the flags of the autoencoder that decodes a run's latents."""
        from cmjax.config.samples import DECODE_DTYPES  # it imports jax, which not every mode does

        help = "The folder of what decodes latents; none leaves them as they are. Default: the one that encoded them."
        self.text("autoencoder", None, help)
        self.one_of("decode_dtype", None, DECODE_DTYPES, "What it computes in. Default: the run's, float32.")
        help = "Decode large images in overlapping squares of so many latents a side; 0: whole. Default: the run's."
        self.integer("decode_tile", None, help, at_least=0)

    def texts(self, name: str, help: str) -> None:
        """Declare a flag of one or more values, separated by commas."""
        absl_flags.DEFINE_list(name, None, help, self._named(name))

    def several(self, name: str, help: str) -> None:
        """Declare a flag that may be repeated; its value is the list of all values."""
        absl_flags.DEFINE_multi_string(name, None, help, self._named(name))

    def integer(
        self, name: str, default: int | None, help: str, at_least: int | None = None, at_most: int = 2**31 - 1
    ) -> None:
        absl_flags.DEFINE_integer(name, default, help, at_least, at_most, flag_values=self._named(name))

    def number(self, name: str, default: float | None, help: str, low: float | None = None, high: Any = None) -> None:
        absl_flags.DEFINE_float(name, default, help, low, high, self._named(name))

    def boolean(self, name: str, default: bool | None, help: str) -> None:
        absl_flags.DEFINE_boolean(name, default, help, flag_values=self._named(name))

    def one_of(self, name: str, default: str | None, choices: Iterable[str], help: str) -> None:
        absl_flags.DEFINE_enum(name, default, list(choices), help, flag_values=self._named(name))

    def _named(self, name: str) -> absl_flags.FlagValues:
        # a flag belongs to the group that was begun last
        next(reversed(self.groups.values())).append(name)
        return self.values


@dataclass(frozen=True)
class Options:
    """Holds the parsed command line: the mode's flags as attributes, the recipe and the run's folder."""

    mode: str
    declared: Flags
    config: "ConfigDict | None"
    data_dir: str | None = None  # the new folder of the data, where a run's record names another

    # only names that are neither a field nor a property come here: the mode's flags
    def __getattr__(self, name: str) -> Any:
        return self.declared.values[name].value

    @property
    def flags(self) -> dict[str, Any]:
        """The values of the mode's own flags, but for `--checkpoint`."""
        return {name: getattr(self, name) for name in self.declared.names if name not in OF_RUN}

    def is_set(self, name: str) -> bool:
        """Says whether the command line has the flag."""
        return bool(self.declared.values[name].present)

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raises ConfigError with the first of these flags that the command line has, and why it cannot be there."""
        if unfit := [name for name in names if self.is_set(name)]:
            raise ConfigError(f"--{unfit[0]}: {why}")

    def refuse_prompts(self, names: Iterable[str]) -> None:
        """Raises ConfigError where one of these flags of pipelines is there, and the run sees no prompts."""
        self.refuse(names, f"--workdir={self.workdir} is no pipeline of prompts, nor a run of one")

    def refuse_others(self, names: Iterable[str], what: str = "a pipeline of prompts") -> None:
        """Raises ConfigError where a flag is there that `what` does not take; it takes those of these names."""
        taken = tuple(names)
        others = (name for name in self.declared.names if name not in taken)
        self.refuse(others, f"{what} takes {', '.join(f'--{name}' for name in taken)}")

    @property
    def recipe(self) -> dict[str, Any]:
        """The configuration with the command line's changes. Raises: ConfigError where there is none."""
        if self.config is None:
            raise ConfigError("--config is missing: name a recipe, as --config=configs/digits_ct.py; --list shows them")
        return self.config.to_dict()

    @property
    def recipe_name(self) -> str:
        return recipe_name(self.declared.values["config"].value or "")

    @property
    def workdir(self) -> Path:
        """The run's folder. Raises: ConfigError where its bucket does not answer."""
        workdir = self.declared.values["workdir"].value
        if workdir is None:
            if self.config is None:
                raise ConfigError("--workdir is missing: name the run's folder, as --workdir=runs/digits_ct")
            return Path("runs") / self.recipe_name
        return _reached(workdir, self.mode)

    @property
    def model(self) -> Path:
        """The run's folder, or the checkpoint in it that `--checkpoint` names."""
        step = self.checkpoint
        if step in (None, "newest"):
            return self.workdir
        if not step.isdecimal():
            raise ConfigError(f"--checkpoint={step}: must be newest or a step, as 4000")
        return self.workdir / "checkpoints" / str(int(step))

    @property
    def workdirs(self) -> list[Path]:
        """The folders of `--workdir=a,b,c`, or the one folder of that name."""
        workdir = self.declared.values["workdir"].value
        # a folder whose own name has commas is one folder
        if workdir is None or (not is_address(workdir) and to_path(workdir).is_dir()):
            return [self.workdir]
        names = [name.strip() for name in workdir.split(",")]
        if "" in names:
            raise ConfigError(f"--workdir={workdir}: a folder's name is missing between the commas")
        return [_reached(name, self.mode) for name in names]


def _reached(workdir: str, mode: str) -> Path:
    """Gives the run's folder, fetched where it has an address. Raises: ConfigError where its bucket does not answer."""
    if is_address(workdir):
        if mode not in OF_ADDRESSES:
            known = ", ".join(f"--mode={name}" for name in OF_ADDRESSES)
            raise ConfigError(f"--workdir={workdir}: models with an address are for {known}; this is {mode}")
        from cmjax.runs.addresses import fetch_run

        return fetch_run(workdir)
    try:
        path = to_path(workdir)
        if is_bucket(path):
            ask_bucket(path)
    except MissingLibrary as error:
        raise ConfigError(f"--workdir={error}") from error
    except Exception as error:  # the libraries of buckets raise errors of many kinds
        raise ConfigError(f"--workdir={workdir} cannot be reached: {' '.join(repr(error).split())[:300]}") from error
    return path
