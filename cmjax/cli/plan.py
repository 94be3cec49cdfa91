"""`--mode=plan`: checks whether a recipe fits a machine, which need not be there, and how fast it can be at best.

cmjax plan --config=configs/cifar_ct.py --topology=v5e:16x16
cmjax plan --config=configs/imagenet64_ct.py --topology=v5p:4x4x4 --config.mesh.fsdp=8
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.generation import sampling
from cmjax.nets.adapter import count_parameters, parameter_shapes
from cmjax.planning.abstract import AbstractRun
from cmjax.planning.advice import Memory, advise, what_fits
from cmjax.planning.budget import bounds, page
from cmjax.runs.prompted_data import planned_conditions
from cmjax.runs.workdir import writing
from cmjax.system.chips import GIB, Chip, chip_of, topology_devices
from cmjax.system.collectives import summarize
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.mesh import parameter_shardings, shapes_on
from cmjax.system.program import DoesNotFitError, Program, compile_program, jaxpr_flops

log = logging.getLogger(__name__)


OF_RUN = ("fsdp", "batch_size", "grad_accumulation", "steps_per_call", "steps")  # fields of the run that the page says


def declare(flags: Flags) -> None:
    flags.group("The plan")
    flags.text("topology", None, "A TPU slice that need not be there, as v5e:16x16. Default: the devices here.")
    flags.boolean("samplers", True, "Compile the samplers too; --nosamplers for the train step alone.")
    flags.text("out", None, "A folder for plan.md, plan.json and the programs. Default: <workdir>/plan.")


def start(options: Options) -> None:
    folder = Path(options.out) if options.out else options.workdir / "plan"
    run(options.recipe, folder, options.topology, options.recipe_name, samplers=options.samplers)


def run(
    config: Mapping[str, Any],
    folder: str | Path,
    topology: str | None = None,
    name: str = "the recipe",
    *,
    samplers: bool = True,
) -> None:
    """Plan a configuration for a TPU slice, or for the devices here: `run(config, "plan", "v5e:16x16")`.

    Args:   folder: for plan.md and plan.json. name: the recipe's, for the page. samplers: compile the samplers too.
    Raises: ConfigError where something does not divide, is unknown or does not fit.
    """
    folder = to_path(folder)
    devices = jax.devices() if topology is None else _slice(topology)
    planned = AbstractRun.of(config, devices)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    run, kind = planned.run, devices[0].device_kind
    chip = chip_of(kind)
    report: dict[str, Any] = {
        "recipe": name,
        "machine": topology or f"{len(devices)} of {kind}",
        "device_kind": kind,
        "devices": planned.mesh.size,
        **{name: getattr(run, name) for name in OF_RUN},
        "peaks": None if chip is None else vars(chip),
        "jax": jax.__version__,
    }
    refused = _plan_training(report, planned, chip, folder)
    if samplers and not refused:
        report["samplers"] = dict(_plan_samplers(planned, chip))
    # also of a step that does not fit: the page says what would
    write_atomically(folder / "plan.json", to_json(report))
    write_atomically(folder / "plan.md", page(report))
    print(page(report))
    print(f"written to {folder}/plan.md, plan.json")
    if refused:
        raise ConfigError(refused)


def _plan_training(report: dict[str, Any], planned: AbstractRun, chip: Chip | None, folder: Path) -> str:
    """Fill in the report of the train step. Returns: why it does not fit; "" where it does."""
    run, devices = planned.run, planned.mesh.size
    report |= {"assumed": list(planned.assumed), "parameters": count_parameters(planned.state.params)}
    log.info("tracing the train step of %s parameters, for %d devices", f"{report['parameters']:,}", devices)
    operations = planned.operations
    compiled = _compiled(planned, folder)
    # all that is known where the compiler refuses the program
    step = {"operations": operations, "operations_per_device": operations / devices}
    if isinstance(compiled, Program):
        step = _of_program(compiled, operations, chip, devices, repeated=run.grad_accumulation > 1)
        if seconds := step["seconds"]:
            hours = run.steps / 3600
            report |= {"least_hours": seconds["least"] * hours, "hours_of_arithmetic": seconds["arithmetic"] * hours}
    memory = Memory.of(planned, compiled, chip)
    report["train_step"] = step | {"operations_per_image": operations / run.batch_size, "memory": memory.table()}
    report["advice"] = advise(planned, memory, operations)
    if memory.fits is not False:
        return ""
    report["fitting"] = what_fits(planned, memory)
    return (
        f"config: the train step does not fit: it takes {memory.total / GIB:.2f} GiB of a device's "
        f"{(memory.available or 0) / GIB:.2f} GiB; {report['fitting']}"
    )


def _compiled(planned: AbstractRun, folder: Path) -> Program | DoesNotFitError:
    """Compile the train step, and write its HLO to `folder`. Returns: the program, or the compiler's refusal."""
    log.info("compiling it; this may take many minutes")
    try:
        program = compile_program(planned.traced)
    except DoesNotFitError as error:
        return error
    log.info("compiled in %.0f s", program.seconds)
    write_atomically(folder / "train_step.hlo", program.text)
    return program


def _of_program(
    program: Program, operations: float, chip: Chip | None, devices: int, *, repeated: bool
) -> dict[str, Any]:
    """Make the report's entry of a program. repeated: it loops over parts of a batch or steps of a sampler."""
    exchanged = sum(one.total for one in program.collectives)
    # The compiler counts a loop's body once: what it moves is scaled as its arithmetic is.
    repeats = max(operations / devices / program.operations, 1.0) if repeated and program.operations else 1.0
    return {
        "compile_seconds": program.seconds,
        "operations": operations,
        "operations_per_device": operations / devices,
        "operations_counted_by_the_compiler": program.operations,
        "bytes_moved_per_device": program.moved * repeats,
        "collectives": summarize(list(program.collectives)),
        "bytes_exchanged_per_device": exchanged,
        "compiled_memory": {
            **{name: getattr(program, name) for name in ("arguments", "results", "code", "temporaries")},
            "compilers_peak": program.peak,
            "total": program.memory,
        },
        "seconds": bounds(chip, operations / devices, program.moved * repeats, exchanged),
    }


def _plan_samplers(planned: AbstractRun, chip: Chip | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compile each sampler of the run. Yields: its name, and the report's entry."""
    model, shape, mesh, run = planned.model, planned.data.shape, planned.mesh, planned.run
    options = run.samples
    params = planned.state.params if run.lora is None else parameter_shapes(model.module, shape)
    # shapes in place of arrays: the samplers are compiled, and never run
    flow_map = model.bind(shapes_on(params, parameter_shardings(params, mesh)), shape)
    num = sampling.chunk_of(options.num, shape, mesh.size)
    labels = sampling.class_labels(num, planned.data.num_classes if model.class_conditional else None)
    labels |= planned_conditions(model, num, guidance=options.guidance)
    flow_map, conditions = sampling.guided_by(flow_map, labels, options, model)
    rows = jax.eval_shape(lambda: (jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), num)), conditions))
    times = options.levels(model)
    if model.kind == "denoiser":
        samples = {len(times): (sampling.diffusion_sample(options, times), flow_map)}
    else:  # the times are an argument: of how many is all that the program depends on
        sample = sampling.consistency_sample(options)
        samples = {n: (sample, (flow_map, jax.ShapeDtypeStruct((n,), jnp.float32))) for n in (1, len(times))}
    for count, (sample, sampled) in samples.items():
        name = options.name(model.kind, count)
        log.info("compiling the sampler %s, %d at once", name, num)
        traced = sampling.trace_sampler(sample, sampled, rows, mesh)
        program = compile_program(traced)
        operations = jaxpr_flops(traced.jaxpr.jaxpr)
        yield name, _of_program(program, operations, chip, mesh.size, repeated=True) | {"samples": num}


def _slice(topology: str) -> list[Any]:
    try:
        return topology_devices(topology)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"--topology={topology}: {error}") from error
