"""Reads how samples are made: solvers and noise levels, from a configuration or from flags."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.model import ModelSpec, NetworkModel
from cmjax.core import paths, solvers
from cmjax.core.paths import Path
from cmjax.core.typing import Solver
from cmjax.ranges import Fraction
from cmjax.system.libraries import how_to_install, is_installed

DECODE_DTYPES = ("float32", "bfloat16")  # float16 overflows in SDXL's autoencoder and others
LABELS = ("balanced", "random")  # of many samples: every class in turn, or each at random
AS_BEFORE = {"autoencoder": "", "decode_dtype": "float32", "decode_tile": 0}
"""The fields, with the values of runs that did not record them."""


@dataclass(frozen=True)
class Decoding:
    """Says how latents are decoded. autoencoder: the decoder's folder; "" for the one that encoded the latents,
    "none" for none. dtype: that it computes in. tile: the side of the squares of latents in which an image is decoded,
    0 for all of it at once.
    """

    autoencoder: str = ""
    dtype: str = "float32"
    tile: int = 0


AS_ENCODED = Decoding()
"""Decodes by the autoencoder that encoded the latents, in float32, whole images."""


@dataclass(frozen=True)
class SolverRow:
    """A solver of `core.solvers`.

    evaluations: of the network in each step; the last, to time 0, is one. None where a tolerance decides.
    by_level: whether it moves between noise levels b/a. library: what it needs beside jax.
    """

    solve: Callable
    evaluations: int | None = 1
    by_level: bool = False
    library: str = ""


SOLVERS: dict[str, SolverRow] = {
    "ddim": SolverRow(solvers.ddim),
    "euler": SolverRow(solvers.euler),
    "heun": SolverRow(solvers.heun, evaluations=2),
    "midpoint": SolverRow(solvers.midpoint, evaluations=2),
    "dpmpp_2m": SolverRow(solvers.dpmpp_2m, by_level=True),
    "dpmpp_3m": SolverRow(solvers.dpmpp_3m, by_level=True),
    "churn": SolverRow(solvers.churn, evaluations=2, by_level=True),
    "ancestral": SolverRow(solvers.ancestral, by_level=True),
    "tsit5": SolverRow(solvers.tsit5, evaluations=None, library="diffrax"),
}


def multistep() -> None:
    """Multistep consistency sampling: noise is added to the estimate of the clean data, see `sample_fn`."""


def chain(*, gamma: Fraction = 0.0) -> float:
    """γ-sampling of a flow map, see `sample_chain`; with γ = 0 it goes from time to time without new noise."""
    return float(gamma)


SAMPLERS: dict[str, Callable[..., float | None]] = {"multistep": multistep, "chain": chain}
"""The samplers of consistency models and flow maps; each gives `SamplingOptions.gamma`."""
_PLACES = re.compile(r"idx:(\d+(?:,\d+)*)/(\d+)")


EDIT_STEPS = 40  # points of the grid that an edit descends, unless --times names others
OF_MULTISTEP = ("full_noise", "clip")  # fields that a chain has not: it makes no estimates of the clean data on its way
CHOICES = ("full_noise", "unit_start", "clip", "guidance_interval", "guidance_channels", "autoguidance")
"""Fields of `SamplingOptions` that are recorded where they are not the default."""


@dataclass(frozen=True)
class SamplingOptions:
    """Holds how a run makes its samples. The defaults are for weights that no run here trained.

    every: steps between grids; 0: at the end only. num: how many. guidance: scale of classifier-free guidance; 1: none.
    solver, solver_name, solver_steps: of a denoiser. times: descending; None: a denoiser's grid of `solver_steps`, and
    a consistency model's one evaluation. gamma: of a flow map's chain; None: multistep consistency sampling.
    full_noise, clip: as in `sample_fn`. unit_start: samples start from a unit Gaussian, and not from b(T) times one.
    guidance_interval: times between which samples are guided, see `limited`; None: everywhere. guidance_channels: how
    many of the first channels are guided, see `mix`; 0: all. autoguidance: the name of the weaker model that guides
    them, "" for none. prompts: in turn, of a network that sees prompts; () for the first captions of its data.
    """

    every: int = 0
    num: int = 64
    guidance: float = 1.0
    solver: Solver = solvers.heun
    solver_name: str = "heun"
    solver_steps: int = 18
    times: tuple[float, ...] | None = None
    gamma: float | None = None
    full_noise: bool = False
    unit_start: bool = False
    clip: bool = False
    guidance_interval: tuple[float, float] | None = None
    guidance_channels: int = 0
    autoguidance: str = ""
    prompts: tuple[str, ...] = ()

    def levels(self, model: NetworkModel) -> tuple[float, ...]:
        """Gives the descending times. A grid is computed here, on a device."""
        if self.times is not None:
            return self.times
        if model.kind == "denoiser":
            return tuple(model.grid(self.solver_steps)[::-1].tolist())
        return (model.constants["t_max"],)

    def name(self, kind: str, count: int) -> str:
        """Names samples of `kind` along so many times: heun-18, 2-step, 2-step-chain, 2-step-chain-0.5."""
        if kind == "denoiser":
            return f"{self.solver_name}-{count}"
        return f"{count}-step" + ("" if self.gamma is None else f"-chain-{self.gamma}" if self.gamma else "-chain")

    def evaluations(self, kind: str, count: int) -> int | None:
        """Counts the network evaluations along so many times; None where a tolerance decides it."""
        per_step = SOLVERS[self.solver_name.partition("(")[0]].evaluations if kind == "denoiser" else 1
        # the last step, to time 0, takes one evaluation of any solver
        return per_step and per_step * (count - 1) + 1

    @property
    def choices(self) -> dict[str, Any]:
        """The settings to record beside the sampler's name, its times and the scale of guidance: those that are not the
        defaults."""
        fields = {name: getattr(self, name) for name in CHOICES}
        return {name: value for name, value in fields.items() if value}


def read_samples(fields: Fields, spec: ModelSpec) -> SamplingOptions:
    """Reads the section `samples` of a configuration."""
    t_min, t_max = spec.constants["t_min"], spec.constants["t_max"]
    samples = SamplingOptions(
        every=fields.integer("every", at_least=0),
        num=fields.integer("num", at_least=1, at_most=10_000),
        guidance=fields.number("guidance", at_least=0, absent=1.0),
    )
    prompted = spec.net.get("prompted", False)
    if samples.guidance != 1 and not spec.net["class_conditional"] and not prompted:
        raise fields.error("guidance", "is by labels: set config.net.class_conditional=True, or leave it at 1")
    interval = read_interval(fields, t_min, t_max)
    if interval and samples.guidance == 1:
        raise fields.error("guidance_interval", "has nothing to limit where config.samples.guidance=1")
    channels = fields.integer("guidance_channels", at_least=0, absent=0)
    if channels and (samples.guidance == 1 or spec.net.get("guided")):
        why = "config.samples.guidance=1" if samples.guidance == 1 else "the network takes the scale"
        raise fields.error("guidance_channels", f"has nothing to limit where {why}")
    samples = replace(samples, guidance_interval=interval, guidance_channels=channels)
    if fields.has("prompts"):
        samples = replace(samples, prompts=fields.texts("prompts"))
    if samples.prompts and not prompted:
        raise fields.error("prompts", "is of networks that see prompts: leave it empty")
    samples = replace(samples, clip=fields.boolean("clip", absent=False))
    if spec.kind == "denoiser":
        name, solver = read_solver(fields, spec.path, t_max)
        samples = replace(samples, solver=solver, solver_name=name)
        if not fields.has("times"):
            return replace(samples, solver_steps=fields.integer("solver_steps", at_least=2, at_most=10**5))
    times = fields.numbers("times")
    if problem := times_problem(times, t_min, t_max):
        raise fields.error("times", problem)
    noise = {name: fields.boolean(name, absent=False) for name in ("full_noise", "unit_start")}
    samples = replace(samples, times=times, gamma=read_sampler(fields, spec.kind), **noise)
    for name in OF_MULTISTEP:
        if getattr(samples, name) and samples.gamma is not None:
            raise fields.error(name, "is of multistep sampling: set config.samples.sampler='multistep'")
    return samples


def read_interval(fields: Fields, t_min: float, t_max: float) -> tuple[float, float] | None:
    """Reads the field `guidance_interval`, two times; None where it is empty or missing."""
    if not fields.has("guidance_interval") or fields.value("guidance_interval") in ((), []):
        return None
    numbers = fields.numbers("guidance_interval")
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] or numbers[1] <= t_min or numbers[0] >= t_max:
        text = f"must be two times, the lower first, that enclose some of [{t_min}, {t_max}]"
        raise fields.error("guidance_interval", text)
    return numbers[0], numbers[1]


def read_sampler(fields: Fields, kind: str) -> float | None:
    """Reads `sampler`, as `SamplingOptions.gamma`; where it is missing, as in older runs, multistep sampling."""
    if not fields.has("sampler"):
        return None
    if kind == "denoiser":
        raise fields.error("sampler", "is of consistency models; a diffusion model is sampled by its solver")
    gamma = fields.call("sampler", SAMPLERS)
    if gamma is not None and kind != "flow_map":
        raise fields.error("sampler", f"is of flow maps between any two times; this is a {kind} model: use multistep")
    return gamma


def read_solver(fields: Fields, path: Path, t_max: float) -> tuple[str, Solver]:
    """Reads the field `solver`: as it is written, and the solver with its parameters bound, for sampling from t_max."""
    functions = {name: row.solve for name, row in SOLVERS.items()}
    # a solver's grid ends at t_min, and its samples at time 0
    solver = fields.choice("solver", functions, path=path, to_zero=True)
    row = SOLVERS[solver.name]
    if row.by_level and t_max >= path.signal_ends:
        raise fields.error("solver", f"steps by noise level, which has no end at t_max={t_max}: set it a little lower")
    if row.library and not is_installed(row.library):
        raise fields.error("solver", f"needs {row.library}: {how_to_install(row.library)}")
    # Traced once and not computed: a parameter out of its range is an error of this field.
    x, times = jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    with fields.naming("solver"):
        jax.eval_shape(lambda x, times: solver.make(lambda x, t: x, x, times, lambda index: x, path=paths.ve), x, times)
    return str(solver), solver.make


def times_text(times: str | float | Sequence[float] | None) -> str | None:
    """Writes times as on the command line: "80,0.8" of (80, 0.8), which Python may name; a text stays as it is."""
    return times if times is None or isinstance(times, str) else ",".join(map(str, np.atleast_1d(times).tolist()))


def parse_times(text: str, model: NetworkModel) -> tuple[float, ...]:
    """Parses --times: numbers, "80,0.8", or places on a descending grid of the model, "idx:0,22,39/40".

    The places are those of the released codes' `ts`, 0 for t_max and n − 1 for t_min, of n. A last place at t_min,
    where a consistency model is the identity, says where their samples end and costs no evaluation here.

    Raises: ConfigError with a message that starts with "--times".
    """
    if not text.startswith("idx:"):
        try:
            times = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(f"--times={text}: must be numbers, as 80,0.8, or places, as idx:0,22,39/40") from None
        if problem := times_problem(times, model.constants["t_min"], model.constants["t_max"]):
            raise ConfigError(f"--{problem}")
        return times
    match = _PLACES.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ConfigError(f"--times={text}: must be places on a grid and its size, as idx:0,22,39/40")
    places, n = [int(part) for part in match[1].split(",")], int(match[2])
    if n < 2:
        raise ConfigError(f"--times={text}: a grid has at least 2 points, not {n}")
    if max(places) >= n:
        raise ConfigError(f"--times={text}: a grid of {n} points has the places 0 to {n - 1}, not {max(places)}")
    if any(a >= b for a, b in pairwise(places)):
        raise ConfigError(f"--times={text}: places must ascend, from the largest noise level on")
    # The released codes' lists end at t_min, where the model is the identity: that step is none here.
    if len(places) > 1 and places[-1] == n - 1:
        places.pop()
    descending = model.grid(n)[::-1]
    return tuple(float(descending[place]) for place in places)


def times_problem(times: Sequence[float], t_min: float, t_max: float) -> str | None:
    """Says what is wrong with sampling times that do not descend within [t_min, t_max]; None for others."""
    if any(t <= r for t, r in pairwise(times)):
        return f"times must descend, got {', '.join(map(str, times))}"
    inside = all(t_min <= t <= t_max for t in times)
    return None if inside else f"times must lie in [{t_min}, {t_max}], got {', '.join(map(str, times))}"


def beyond_scales(scale: float, trained: tuple[float, float] | None) -> str:
    """Warns of a scale of guidance outside those of the training; "" for one within."""
    if trained is None or scale == 1 or trained[0] <= scale <= trained[1]:
        return ""
    return f"the model is trained for scales from {trained[0]:g} to {trained[1]:g}"


def scales_of(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Gives the least and the largest scale of guidance in training; None where the network takes none."""
    scales = config.get("objective", {}).get("guidance")
    takes = config["net"].get("guided") or config["net"].get("guidance_width")
    if not takes or not isinstance(scales, list | tuple) or len(scales) != 2:
        return None
    return float(scales[0]), float(scales[1])


def read_decoding(fields: Fields) -> Decoding:
    """Reads how latents are decoded, of the section `data`; earlier runs recorded none or a part of it."""
    return Decoding(
        autoencoder=fields.path("autoencoder") if fields.has("autoencoder") else "",
        dtype=fields.one_of("decode_dtype", DECODE_DTYPES) if fields.has("decode_dtype") else "float32",
        tile=fields.integer("decode_tile", at_least=0, absent=0),
    )
