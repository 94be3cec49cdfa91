"""Programs for export: a run's sampler, or its model alone, as a function of arrays that holds everything else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.config.fields import ConfigError
from cmjax.config.samples import SamplingOptions
from cmjax.core.model import BoundModel
from cmjax.core.sampling import sample_chain, sample_denoiser, sample_fn
from cmjax.data.base import kind_of
from cmjax.generation.decoding import Decoder
from cmjax.generation.samplers import conditioned
from cmjax.runs.trained import Trained

FUNCTIONS = ("sampler", "model")
MEANINGS = {
    "noise": "unit Gaussian noise, that samples start from",
    "added": "unit Gaussian noise, that is added on the way: the first axis counts",
    "x": "the state at time t",
    "t": "the time of each",
    "s": "the time that the flow map goes to, at most t",
    "label": "the class of each, numbered from 0",
    "guidance": "the scale of guidance of each",
}
"""Inputs of programs, in their order."""


@dataclass(frozen=True)
class ExportedProgram:
    """Holds a function of arrays, to be exported.

    function: (weights, {name: input}) -> samples, a pure function. weights: a tree of host arrays.
    inputs: shape and dtype of each input, with the batch as the axis None. output: its name. about: what it is, as JSON
    has it.
    """

    function: Callable[[Any, Mapping[str, Array]], Array]
    weights: Any
    inputs: Mapping[str, tuple[tuple[int | None, ...], str]]
    output: str
    about: Mapping[str, Any]

    def specs(self, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Gives the inputs for a batch of this size, which may be symbolic."""
        sized = {
            name: tuple(batch if axis is None else axis for axis in shape) for name, (shape, _) in self.inputs.items()
        }
        return {name: jax.ShapeDtypeStruct(shape, self.inputs[name][1]) for name, shape in sized.items()}


def sampler_program(trained: Trained, samples: SamplingOptions, decoder: Decoder | None) -> ExportedProgram:
    """Makes the program noise -> samples of a run, along the times of `samples`; latents are decoded in it.

    Raises: ConfigError where a diffusion teacher is to sample in one evaluation.
    """
    model, levels = trained.model, samples.levels(trained.model)
    if model.kind == "denoiser" and len(levels) < 2:
        raise ConfigError(
            f"--times={','.join(map(str, levels))}: {trained.folder} is a diffusion teacher, whose one evaluation is a "
            "blurred mean: name more times, or --steps=18, or distil it"
        )
    bound, host, constants = _bound(trained, samples)
    sample = _sampler(bound, samples, levels)
    times = np.asarray(levels, np.float32)
    count = _noises(sample, bound, times, {**host, **constants}, of_chain=samples.gamma is not None)
    shape = (None, *trained.shape)
    inputs = {"noise": (shape, "float32"), **({"added": ((count, *shape), "float32")} if count else {}), **_specs(host)}
    autoencoder = decoder and decoder.autoencoder

    def run(weights: Any, given: Mapping[str, Array]) -> Array:
        parameters, times, autoencoder = weights
        noise, added = given["noise"], given.get("added")
        conditions = {name: given[name] for name in host} | _rows(constants, noise.shape[0])
        x = sample(parameters, times, noise, added, conditions)
        # apart, as --mode=sample decodes: what is fused over the border is rounded otherwise
        return x if decoder is None else decoder.decoded(autoencoder, jax.lax.optimization_barrier(x))

    count_of_networks = 2 if "guidance" in host and not model.guided else 1
    evaluations = samples.evaluations(model.kind, len(levels))
    about = {
        "function": "sampler",
        "sampler": samples.name(model.kind, len(levels)),
        "times": list(levels),
        "evaluations": evaluations and count_of_networks * evaluations,
        **samples.choices,
    }
    output = "images" if decoder or not trained.of_latents else "latents"
    output = trained.kind if output == "images" and decoder is None else output
    return ExportedProgram(run, (bound.params, times, autoencoder), inputs, output, about)


def model_program(trained: Trained, samples: SamplingOptions) -> ExportedProgram:
    """Makes the program of the model alone, x and t -> the estimate of the clean data; of a flow map with s."""
    bound, host, constants = _bound(trained, samples)
    shape, flow = (None, *trained.shape), trained.model.kind == "flow_map"
    times = {name: ((None,), "float32") for name in ("t", "s")[: 1 + flow]}

    def run(parameters: Any, given: Mapping[str, Array]) -> Array:
        conditions = {name: given[name] for name in host} | _rows(constants, given["x"].shape[0])
        return replace(bound, params=parameters)(given["x"], *(given[name] for name in times), **conditions)

    about = {"function": "model", "t_min": bound.t_min, "t_max": bound.t_max}
    return ExportedProgram(run, bound.params, {"x": (shape, "float32"), **times, **_specs(host)}, "estimate", about)


def described(program: ExportedProgram, trained: Trained) -> dict[str, Any]:
    """Describes a program and its run, as JSON has it: names, shapes with "b" for the batch, times."""

    def shaped(name: str, shape: tuple[int | None, ...], dtype: str) -> dict[str, Any]:
        return {"name": name, "shape": ["b" if axis is None else axis for axis in shape], "dtype": dtype}

    inputs = [{**shaped(name, *of), "meaning": MEANINGS[name]} for name, of in program.inputs.items()]
    result = jax.eval_shape(program.function, program.weights, program.specs(2))
    classes = {"class_names": list(trained.class_names)} if trained.num_classes else {}
    image = kind_of(result.shape[1:]) == "images" and program.output != "latents"
    output = shaped(program.output, (None, *result.shape[1:]), str(result.dtype)) | (
        {"range": [-1, 1]} if image else {}
    )
    return {
        "model": trained.folder.name,
        "step": None if trained.imported else trained.used_step,
        "kind": trained.model.kind,
        "path": trained.recorded.path,
        **program.about,
        "inputs": inputs,
        "output": output,
        **classes,
    }


def _bound(
    trained: Trained, samples: SamplingOptions
) -> tuple[BoundModel, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gives the model with host parameters, the conditions that are inputs, and those that are fixed, of one sample."""
    bound, rows = conditioned(trained.load(), trained, samples, 1)
    host = {name: rows[name] for name in MEANINGS if name in rows}
    fixed = {name: value for name, value in rows.items() if name not in host}
    return replace(bound, params=jax.device_get(bound.params)), host, fixed


def _specs(host: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int | None, ...], str]]:
    return {name: ((None, *value.shape[1:]), str(value.dtype)) for name, value in host.items()}


def _rows(fixed: Mapping[str, np.ndarray], batch: Any) -> dict[str, Array]:
    return {name: jnp.broadcast_to(value, (batch, *value.shape[1:])) for name, value in fixed.items()}


def _sampler(bound: BoundModel, samples: SamplingOptions, levels: tuple[float, ...]) -> Callable[..., Array]:
    """Makes (parameters, times, noise, added noises, conditions) -> samples, as `sampling.consistency_sample` and
    `diffusion_sample` with their noise as an input."""

    def sample(parameters: Any, times: Array, noise: Array, added: Any, conditions: Mapping[str, Any]) -> Array:
        flow_map, key = replace(bound, params=parameters), jax.random.key(0)  # no noise is drawn of it
        first = times[0] if bound.kind != "denoiser" else jnp.float32(levels[0])
        start = noise if samples.unit_start else bound.path.b(first) * noise
        conditions = {**conditions, "start": start, "noises": jnp.zeros((0, *noise.shape)) if added is None else added}
        if bound.kind == "denoiser":
            choices = {"solver": samples.solver, "clip": samples.clip, "path": bound.path}
            return sample_denoiser(flow_map, key, noise.shape, times=levels, **choices, **conditions)
        if samples.gamma is not None:
            stops = jnp.append(times, bound.t_min)
            return sample_chain(flow_map, key, noise.shape, times=stops, gamma=samples.gamma, **conditions)
        choices = {"clip": samples.clip, "full_noise": samples.full_noise}
        return sample_fn(flow_map, key, noise.shape, times=times, **choices, **conditions)

    return sample


def _noises(
    sample: Callable[..., Array],
    bound: BoundModel,
    levels: np.ndarray,
    conditions: Mapping[str, np.ndarray],
    *,
    of_chain: bool,
) -> int:
    """Counts the noises that a sampler adds on its way."""
    asked: list[int] = []
    # traced in a scan, where the index has no number: every step but the last adds one, and a chain's last one too
    most = len(levels) - (not of_chain)

    def noises(index: Any) -> Array:
        asked.append(index + 1 if isinstance(index, int) else most)
        return jnp.zeros((1, *bound.shape))

    one = jax.ShapeDtypeStruct((1, *bound.shape), jnp.float32)
    given = {name: jnp.asarray(value) for name, value in conditions.items()}
    jax.eval_shape(lambda *of: sample(of[0], jnp.asarray(levels), of[1], noises, given), bound.params, one)
    return max(asked, default=0)
