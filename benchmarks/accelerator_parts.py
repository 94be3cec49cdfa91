"""One part of `accelerator.py`, in a process of its own: it prepares, waits for the device, measures, writes records.

    python -m benchmarks.accelerator_parts PART OUT.jsonl [--toy] [--try]

It says `ready` on standard output when only the device is missing, and begins with a line on standard input.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_programs as programs
from benchmarks.accelerator_programs import Case, Program, seconds_of

Record = Callable[..., None]
BATCHES = {"ddpmpp": 256, "adm": 64, "edm2": 64, "dit_b": 256, "dit_xl": 64}
STEPS = ("ect", "denoising", "scm", "meanflow")


def wait_for_the_device() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def compiled(lowered: Callable[[], Program]) -> Program | Exception:
    try:
        return lowered()
    except Exception as error:  # an option that this XLA does not know, or no memory
        return error


def measure_all(stages: list[list[Case]], record: Record, *, toy: bool) -> Iterator[Program | Exception]:
    """Compile the programs of each stage together and measure them, a record of each; or why one could not be compiled.

    On a GPU XLA tries the kernels of each convolution and product, which takes a minute for a U-Net. The first stage
    is alone, so that the next, whose programs are traced meanwhile, may find its choices in XLA's cache.
    """
    stages = [programs.with_toys(stage, toy) for stage in stages if stage]
    with ThreadPoolExecutor(8) as pool:
        lowered = [programs.lower(case) for case in stages[0]]
        wait_for_the_device()
        for stage, following in zip(stages, [*stages[1:], []], strict=True):
            start = time.perf_counter()
            begun = [pool.submit(compiled, compile_it) for compile_it in lowered]
            lowered = [programs.lower(case) for case in following]
            done = [future.result() for future in begun]
            print(f"compiled {len(done)} after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            for case, program in zip(stage, done, strict=True):
                if isinstance(program, Program):
                    measure(program, record)
                else:
                    record("program", **described(case), error=one_line(program))
                yield program


def described(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("net", "method", "batch", "dtype", "label", "nfe")}


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def measure(program: Program, record: Record) -> None:
    """Write one record of a program: its speed, memory and times of compilation; or why it cannot run."""
    case, speed = program.case, {}
    try:
        program.prepare()
        seconds = seconds_of(program)
        speed = {"ms": 1e3 * seconds, "images_per_second": program.images / seconds, "flops": program.flops / seconds}
        if case.method in programs.METHODS:
            speed["loss"] = float(np.asarray(program()))
    except Exception as error:  # out of memory, most of all
        speed = {"error": one_line(error)}
    record("program", **described(case), **speed, memory_gb=program.memory_gb, seconds=program.seconds)
    program.release()


# The parts.


def yardstick(options: argparse.Namespace, record: Record) -> None:
    """The rates of matrix products of random numbers, and of copying."""
    wait_for_the_device()
    n = 256 if options.toy else 8192
    a32 = jax.random.normal(jax.random.key(0), (n, n))
    for name, dtype, precision in (("bfloat16", jnp.bfloat16, None), ("float32", jnp.float32, None),
                                   ("float32_highest", jnp.float32, "highest")):  # fmt: skip
        a = a32.astype(dtype)
        product = jax.jit(lambda a, precision=precision: jnp.matmul(a, a, precision=precision))
        record("rate", name=name, flops=2 * n**3 / seconds_of(lambda product=product, a=a: product(a)))
    copy, big = jax.jit(lambda x: x + 1), jnp.ones((1 if options.toy else 512, 2**20))
    record("rate", name="copy_bytes", flops=2 * big.nbytes / seconds_of(lambda: copy(big)))


def steps_of(net: str, options: argparse.Namespace, record: Record) -> None:
    """Train steps and forward pass of a network, and what is tried of it."""
    list(measure_all(_stages(net, options), record, toy=options.toy))


def _stages(net: str, options: argparse.Namespace) -> list[list[Case]]:
    """The ECT step, then the other programs, then what is tried."""
    name, _, dtype = net.partition("_f32")
    dtype, methods = ("float32", ("ect", "denoising")) if net.endswith("_f32") else ("bfloat16", STEPS)
    batch = BATCHES[name] // (2 if dtype == "float32" else 1)
    xla = UNTUNED if name.startswith("dit") and jax.default_backend() == "gpu" else {}
    cases = [Case(name, method, batch, dtype, options=xla) for method in (*methods, "forward")]
    tried = TRIALS.get(net, {}).items() if options.trials else ()
    trials = [
        replace(Case(name, method, batch, dtype, options=xla, label=label), **changes)
        for label, (method, changes) in tried
    ]
    return [cases[:1], cases[1:], trials]


def ddpmpp(options: argparse.Namespace, record: Record) -> None:
    """All steps of DDPM++, where their time goes, the loop around the step, and the cache."""
    measured = measure_all(_stages("ddpmpp", options), record, toy=options.toy)
    ect = next(measured)
    if isinstance(ect, Program):
        ect.prepare()
        record("kernels", of="ect", **kernels(ect))
        _loop(ect, record)
        ect.release()
    list(measured)
    if isinstance(ect, Program):
        start = time.perf_counter()
        again = programs.lower(ect.case)()
        record("cache", seconds=again.seconds, cold=ect.seconds, whole=time.perf_counter() - start)


def _loop(ect: Program, record: Record) -> None:
    """The loop with its batches, metrics and records, over the bare step."""
    from cmjax.data.base import ArraySource
    from cmjax.data.batches import Batches
    from cmjax.system.mesh import batch_sharding, make_mesh
    from cmjax.training.loop import run_loop, speed_on

    step, steps, mesh = ect.compiled_step(), 20, make_mesh()
    source = ArraySource(programs.image_batch(ect.case, copies=8))
    batches = Batches(source, ect.case.batch, seed=0, sharding=batch_sharding(mesh))
    speed = speed_on(mesh, step, batch_size=ect.case.batch)

    class NoCheckpoints:
        def save(self, state: Any, step: int) -> None: ...

        def wait(self) -> None: ...

    def loop() -> None:
        assert ect.args is not None
        state = run_loop(
            ect.args[0], step, {}, batches.stream(0, steps), start=0, total_steps=steps, speed=speed,
            checkpointer=NoCheckpoints(), save_every=steps, write_record=lambda step, record: None, log_every=10,
            callback=lambda state, step: None, callback_every=0, update_progress=lambda step, text: None,
        )  # fmt: skip
        ect.args = (state, *ect.args[1:])
        jax.block_until_ready(state.step)

    def bare() -> None:
        for _ in range(steps):
            loss = ect()
        jax.block_until_ready(loss)

    times = {name: seconds_of(call, at_least=0) / steps for name, call in (("bare", bare), ("loop", loop))}
    record(
        "loop", **{f"{name}_ms": 1e3 * value for name, value in times.items()}, fraction=times["bare"] / times["loop"]
    )


def kernels(program: Program, calls: int = 3, top: int = 30) -> dict[str, Any]:
    """Milliseconds of a call by the device's kernels, the longest first, and their sum."""
    with tempfile.TemporaryDirectory() as folder:
        jax.block_until_ready(program())
        with jax.profiler.trace(folder):
            for _ in range(calls):
                out = program()
            jax.block_until_ready(out)
        time_of: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines if plane.name.startswith("/device:") else ():
                    if "Stream" in line.name:
                        for event in line.events:
                            time_of[event.name] += event.duration_ns / 1e6 / calls
                            count[event.name] += 1
    rows = [[name[:90], round(ms, 3), round(count[name] / calls, 1)] for name, ms in time_of.most_common(top)]
    return {"total_ms": sum(time_of.values()), "longest": rows, "names": len(time_of)}


def sampling(options: argparse.Namespace, record: Record) -> None:
    """The latency of one sample and the throughput of 256, in one, two and four evaluations."""
    cases = [Case("ddpmpp", "sample", batch, nfe=nfe) for batch in (1, 256) for nfe in (1, 2, 4)]
    list(measure_all([cases], record, toy=options.toy))


def torch_step(options: argparse.Namespace, record: Record) -> None:
    """PyTorch's ECT step of the same network, eager and compiled."""
    import torch

    from benchmarks import torch_ddpmpp

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 4 if options.toy else BATCHES["ddpmpp"]
    sizes = {"channels": 8, "mult": (1, 2), "blocks": 1, "size": 8, "attention": (4,)} if options.toy else {}
    wait_for_the_device()
    for compiled in (False,) if options.toy else (True, False):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step, facts = torch_ddpmpp.trainer(batch, compiled=compiled, device=device, **sizes)
        float(step())
        compile_seconds = time.perf_counter() - start
        float(step())
        seconds = seconds_of(lambda step=step: [step() for _ in range(4)] and float(step())) / 5
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
        record(
            "torch", compiled=compiled, batch=batch, ms=1e3 * seconds, images_per_second=batch / seconds,
            memory_gb=memory, loss=float(step()), version=torch.__version__, first_seconds=compile_seconds, **facts,
        )  # fmt: skip


Part = Callable[[argparse.Namespace, Record], None]
PARTS: dict[str, Part] = {
    "yardstick": yardstick,
    "ddpmpp": ddpmpp,
    "dit_b": partial(steps_of, "dit_b"),
    "torch": torch_step,
    "sampling": sampling,
    "edm2": partial(steps_of, "edm2"),
    "adm": partial(steps_of, "adm"),
    "dit_xl": partial(steps_of, "dit_xl"),
    "ddpmpp_f32": partial(steps_of, "ddpmpp_f32"),
    "dit_b_f32": partial(steps_of, "dit_b_f32"),
}
"""In the order of their importance."""

UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""cuBLAS' own choice of kernels, for networks without convolutions: a U-Net's first call takes over a minute so."""

CUDNN = {"changes": {"attention": "cudnn"}}
TRIALS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "ddpmpp": {
        "attention cudnn": ("ect", CUDNN),
        "no command buffers": ("ect", {"options": {"xla_gpu_enable_command_buffer": ""}}),
        "dropout 0.13, threefry": ("denoising", {"changes": {"dropout": 0.13}}),
        "dropout 0.13, rbg": ("denoising", {"changes": {"dropout": 0.13}, "rng": "rbg"}),
    },
    "dit_b": {
        "attention cudnn": ("ect", CUDNN),
        "remat": ("ect", {"changes": {"remat": True}}),
        "state not donated": ("ect", {"donate": False}),
        "four steps in one dispatch": ("ect", {"steps": 4}),
    },
}
"""What `--try` runs beside: label -> method and what is changed of its case."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--try", action="store_true", dest="trials")
    options = parser.parse_args()

    def record(kind: str, **values: Any) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps({"part": options.part, "kind": kind, **values}) + "\n")

    device = jax.devices()[0] if options.part != "torch" else None
    if device is not None:
        record("device", device=device.device_kind, jax=jax.__version__)
    PARTS[options.part](options, record)


if __name__ == "__main__":
    main()
