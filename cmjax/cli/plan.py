"""`--mode=plan`: checks whether a recipe fits a machine, which need not be there, and how fast it can be at best.

cmjax plan --config=configs/cifar_ct.py --topology=v5e:16x16
cmjax plan --config=configs/imagenet64_ct.py --topology=v5p:4x4x4 --config.mesh.fsdp=8
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cmjax.cli.command_line import Options
from cmjax.cli.flags import Flags
from cmjax.config.fields import ConfigError
from cmjax.config.model import NetworkModel
from cmjax.config.run import Run, read_run
from cmjax.data.batches import batch_shapes
from cmjax.generation.sampling import (
    chunk_of,
    class_labels,
    consistency_sample,
    diffusion_sample,
    guided_by,
    trace_sampler,
)
from cmjax.nets.adapter import parameter_shapes
from cmjax.planning.abstract import DataShapes, data_shapes, frozen_shapes, teacher_shapes
from cmjax.planning.advice import Memory, advise, what_fits
from cmjax.planning.budget import bounds, page
from cmjax.runs.setup import count_parameters, mesh_of
from cmjax.runs.train_step import train_step_of
from cmjax.system.chips import Chip, chip_of, topology_devices
from cmjax.system.collectives import summarize
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.mesh import parameter_shardings, shapes_on
from cmjax.system.program import DoesNotFitError, Program, compile_program, jaxpr_flops
from cmjax.training.step import state_shapes, trace_train_step

log = logging.getLogger(__name__)


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
    run = read_run(config, data_there=False)
    mesh = mesh_of(run, devices)
    data = data_shapes(run)
    model = run.make_model(data.num_classes)
    _check_folder(folder)
    chip = chip_of(devices[0].device_kind)
    report: dict[str, Any] = {
        "recipe": name,
        "machine": topology or f"{len(devices)} of {devices[0].device_kind}",
        "device_kind": devices[0].device_kind,
        "devices": mesh.size,
        "fsdp": run.fsdp,
        "batch_size": run.batch_size,
        "grad_accumulation": run.grad_accumulation,
        "steps_per_call": run.steps_per_call,
        "steps": run.steps,
        "peaks": None if chip is None else vars(chip),
        "jax": jax.__version__,
    }
    refused = _plan_training(report, config, run, model, data, mesh, chip, folder)
    if samplers and not refused:
        report["samplers"] = {
            title: _of_program(program, operations, chip, mesh.size, repeated=True) | {"samples": samples}
            for title, samples, operations, program in _plan_samplers(run, model, data, mesh)
        }
    write_atomically(folder / "plan.json", to_json(report))
    write_atomically(folder / "plan.md", page(report))
    print(page(report))
    print(f"written to {folder}/plan.md, plan.json")
    if refused:
        raise ConfigError(refused)


def _plan_training(
    report: dict[str, Any],
    config: Mapping[str, Any],
    run: Run,
    model: NetworkModel,
    data: DataShapes,
    mesh: Mesh,
    chip: Chip | None,
    folder: Path,
) -> str:
    """Fill in the report of the train step. Returns: why it does not fit; "" where it does."""
    teacher, assumed = teacher_shapes(config, run, data)
    report["assumed"] = [text for text in (data.assumed, assumed) if text]
    shapes = {
        "state": state_shapes(parameter_shapes(model.module, data.shape), run.optimizer),
        "frozen": frozen_shapes(run, teacher),
        "batch": batch_shapes(
            data.shape, data.dtype, data.num_classes, run.batch_size, steps_per_call=run.steps_per_call
        ),
    }
    report["parameters"] = count_parameters(shapes["state"].params)
    log.info("tracing the train step of %s parameters, for %d devices", f"{report['parameters']:,}", mesh.size)
    step, state, frozen, batch = train_step_of(run, model, teacher, mesh), *shapes.values()
    traced = trace_train_step(step, state, frozen, batch, mesh, steps_per_call=run.steps_per_call)
    operations = jaxpr_flops(traced.jaxpr.jaxpr) / run.steps_per_call
    program, refusal = _compiled(traced, folder)
    if program is None:
        report["train_step"] = {"operations": operations, "operations_per_device": operations / mesh.size}
    else:
        report["train_step"] = _of_program(program, operations, chip, mesh.size, repeated=run.grad_accumulation > 1)
        seconds, hours = report["train_step"]["seconds"], run.steps / 3600
        if seconds:
            report |= {"least_hours": seconds["least"] * hours, "hours_of_arithmetic": seconds["arithmetic"] * hours}
    row = report["train_step"] | {"operations_per_image": operations / run.batch_size}
    memory = Memory.of(run, shapes, mesh, program, refusal, chip)
    report["train_step"] = row | {"memory": memory.table()}
    trace = partial(traced_operations, data=data, mesh=mesh)
    report["advice"] = advise(config, run, memory, shapes, mesh, operations, trace)
    if memory.fits is not False:
        return ""
    report["fitting"] = what_fits(run, memory, shapes, mesh)
    return (
        f"config: the train step does not fit: it takes {memory.total / 2**30:.2f} GiB of a device's "
        f"{(memory.available or 0) / 2**30:.2f} GiB; {report['fitting']}"
    )


def _compiled(traced: jax.stages.Traced, folder: Path) -> tuple[Program | None, DoesNotFitError | None]:
    """Compile the train step, and write its HLO to `folder`. Returns: the program, or the compiler's refusal."""
    log.info("compiling it; this may take many minutes")
    try:
        program = compile_program(traced)
    except DoesNotFitError as error:
        return None, error
    log.info("compiled in %.0f s", program.seconds)
    write_atomically(folder / "train_step.hlo", program.text)
    return program, None


def traced_operations(config: Mapping[str, Any], *, data: DataShapes, mesh: Mesh) -> float:
    """Count the operations of a configuration's train step, which is traced and not compiled."""
    run = read_run(config, data_there=False)
    model = run.make_model(data.num_classes)
    teacher, _ = teacher_shapes(config, run, data)
    state = state_shapes(parameter_shapes(model.module, data.shape), run.optimizer)
    batch = batch_shapes(data.shape, data.dtype, data.num_classes, run.batch_size)
    step = train_step_of(run, model, teacher, mesh)
    return jaxpr_flops(trace_train_step(step, state, frozen_shapes(run, teacher), batch, mesh).jaxpr.jaxpr)


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
        "compiled_memory": {"arguments": program.arguments, "results": program.results, "code": program.code,
                            "temporaries": program.temporaries, "compilers_peak": program.peak,
                            "total": program.memory},
        "seconds": bounds(chip, operations / devices, program.moved * repeats, exchanged),
    }  # fmt: skip


def _plan_samplers(run: Run, model: NetworkModel, data: DataShapes, mesh: Mesh):
    """Yield (name, samples at once, operations, program) of each sampler of the run."""
    params = parameter_shapes(model.module, data.shape)
    flow_map = model.bind(shapes_on(params, parameter_shardings(params, mesh)), data.shape)
    num = chunk_of(run.samples.num, data.shape, mesh.size)
    labels = class_labels(num, data.num_classes if model.class_conditional else None)
    options = run.samples
    flow_map, conditions = guided_by(flow_map, labels, options, model)
    rows = jax.eval_shape(lambda: (jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), num)), conditions))
    samples = {}
    times = options.levels(model)
    if model.kind == "denoiser":
        samples[options.name(model.kind, len(times))] = (diffusion_sample(options, times), flow_map)
    else:
        for levels in dict.fromkeys((times[:1], times)):
            shape = jax.ShapeDtypeStruct((len(levels),), jnp.float32)
            samples[options.name(model.kind, len(levels))] = (consistency_sample(options), (flow_map, shape))
    for name, (sample, sampled) in samples.items():
        log.info("compiling the sampler %s, %d at once", name, num)
        traced = trace_sampler(sample, sampled, rows, mesh)
        yield name, num, jaxpr_flops(traced.jaxpr.jaxpr), compile_program(traced)


def _slice(topology: str) -> list[Any]:
    try:
        return topology_devices(topology)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"--topology={topology}: {error}") from error


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={folder} cannot be written: {error.strerror}; name another") from error
