"""One part of `accelerator.py`, in a process of its own: it prepares, waits for the device, measures, writes records.

    python -m benchmarks.accelerator_parts PART OUT.jsonl [--toy]

It says `ready` on standard output when only the device is missing, and begins with a line on standard input. Programs
that XLA does not tune are compiled before, which needs processors alone; those that it tunes, after.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_programs as programs
from benchmarks.accelerator_programs import Case, Program

Record = Callable[..., None]
BATCHES = {"ddpmpp": 256, "adm": 64, "edm2": 64, "dit_b": 256, "dit_xl": 64}
STEPS = ("ect", "denoising", "scm", "meanflow")


UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""cuDNN's and cuBLAS' own choice of kernels. Trying them all takes minutes for each U-Net."""


def wait_for_the_device() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def seconds_of(call: Callable[[], Any], *, at_least: float = 0.4, rounds: int = 3) -> float:
    """Seconds of one call: the median over rounds of so many calls in a row that they take `at_least` seconds."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, round(at_least / (time.perf_counter() - start)))
    measured = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        measured.append((time.perf_counter() - start) / calls)
    return statistics.median(measured)


def compiled_together(cases: list[Case]) -> list[Program | Exception]:
    """The programs, compiled in threads; or why one was not."""
    start = time.perf_counter()
    lowered = [programs.lower(case) for case in cases]
    print(f"traced after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    tuned = any("xla_gpu_autotune_level" not in case.options for case in cases)
    if tuned:
        wait_for_the_device()

    def compiled(compile_it: Callable[[], Program]) -> Program | Exception:
        try:
            return compile_it()
        except Exception as error:  # an option that this XLA does not know, or no memory
            return error

    with ThreadPoolExecutor(len(lowered)) as pool:
        done = list(pool.map(compiled, lowered))
    print(f"compiled after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if not tuned:
        wait_for_the_device()
    return done


def measure_all(cases: list[Case], record: Record, *, toy: bool, tuned: bool = False) -> list[Program | Exception]:
    """Compile and measure the programs, or small ones of their kind where `toy`; a record of each."""
    cases = programs.with_toys(cases, toy)
    if jax.default_backend() == "gpu" and not tuned:
        cases = [replace(case, options={**UNTUNED, **case.options}) for case in cases]
    compiled = compiled_together(cases)
    for case, program in zip(cases, compiled, strict=True):
        if isinstance(program, Program):
            measure(program, record)
        else:
            record("program", **described(case), error=one_line(program))
    return compiled


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


def yardstick(toy: bool, record: Record) -> None:
    """The rates of matrix products of random numbers, and of copying."""
    wait_for_the_device()
    n = 256 if toy else 8192
    a32 = jax.random.normal(jax.random.key(0), (n, n))
    for name, dtype, precision in (("bfloat16", jnp.bfloat16, None), ("float32", jnp.float32, None),
                                   ("float32_highest", jnp.float32, "highest")):  # fmt: skip
        a = a32.astype(dtype)
        product = jax.jit(lambda a, precision=precision: jnp.matmul(a, a, precision=precision))
        record("rate", name=name, flops=2 * n**3 / seconds_of(lambda product=product, a=a: product(a)))
    copy, big = jax.jit(lambda x: x + 1), jnp.ones((1 if toy else 512, 2**20))
    record("rate", name="copy_bytes", flops=2 * big.nbytes / seconds_of(lambda: copy(big)))


def _net(net: str, methods: tuple[str, ...] = STEPS, dtype: str = "bfloat16", batch: int = 0) -> Callable[..., None]:
    def part(toy: bool, record: Record) -> None:
        cases = [Case(net, method, batch or BATCHES[net], dtype) for method in (*methods, "forward")]
        measure_all(cases, record, toy=toy)

    return part


def ddpmpp(toy: bool, record: Record) -> None:
    """All steps of DDPM++, where their time goes, the loop around the step, and the cache."""
    cases = [Case("ddpmpp", method, BATCHES["ddpmpp"]) for method in (*STEPS, "forward")]
    ect = measure_all(cases, record, toy=toy)[0]
    if isinstance(ect, Exception):
        return
    ect.prepare()
    record("kernels", of="ect", **kernels(ect))
    _loop(ect, record)
    ect.release()
    start = time.perf_counter()
    again = programs.lower(ect.case)()
    record("cache", seconds=again.seconds, cold=ect.seconds, whole=time.perf_counter() - start)


def tuned(toy: bool, record: Record) -> None:
    """The ECT step of DDPM++ with the kernels that XLA chooses by trying them, as the trainer compiles it."""
    cases = [Case("ddpmpp", "ect", BATCHES["ddpmpp"], label="tuned")]
    for program in measure_all(cases, record, toy=toy, tuned=True):
        if isinstance(program, Program):
            program.prepare()
            record("kernels", of="ect, tuned", **kernels(program))


def _loop(ect: Program, record: Record) -> None:
    """The loop with its batches, metrics and records, over the bare step."""
    from cmjax.data.base import ArraySource
    from cmjax.data.batches import Batches
    from cmjax.machine.mesh import batch_sharding, make_mesh
    from cmjax.training.loop import run_loop
    from cmjax.training.speed import speed_on

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
            draw_samples=lambda state, step: None, sample_every=0, update_progress=lambda step, text: None,
        )  # fmt: skip
        ect.args = (state, *ect.args[1:])
        jax.block_until_ready(state.step)

    def bare() -> None:
        for _ in range(steps):
            loss = ect()
        jax.block_until_ready(loss)

    times = {name: seconds_of(call, at_least=0) / steps for name, call in (("bare", bare), ("loop", loop))}
    record("loop", **{f"{name}_ms": 1e3 * value for name, value in times.items()}, share=times["bare"] / times["loop"])


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


def sampling(toy: bool, record: Record) -> None:
    """The latency of one sample and the throughput of 256, in one, two and four evaluations."""
    cases = [Case("ddpmpp", "sample", batch, nfe=nfe) for batch in (1, 256) for nfe in (1, 2, 4)]
    measure_all(cases, record, toy=toy)


def torch_step(toy: bool, record: Record) -> None:
    """PyTorch's ECT step of the same network, eager and compiled."""
    import torch

    from benchmarks import torch_ddpmpp

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 4 if toy else BATCHES["ddpmpp"]
    sizes = {"channels": 8, "mult": (1, 2), "blocks": 1, "size": 8, "attention": (4,)} if toy else {}
    wait_for_the_device()
    for compiled in (False,) if toy else (False, True):
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


def _tried(net: str, method: str, variants: dict[str, dict[str, Any]]) -> Callable[..., None]:
    def part(toy: bool, record: Record) -> None:
        base = {"batch": BATCHES[net]}
        cases = [Case(net, method, label=label, **base | change) for label, change in variants.items()]
        measure_all(cases, record, toy=toy)

    return part


PARTS: dict[str, Callable[[bool, Record], None]] = {
    "yardstick": yardstick,
    "torch": torch_step,  # first, for the others compile meanwhile
    "ddpmpp": ddpmpp,
    "dit_b": _net("dit_b"),
    "sampling": sampling,
    "tuned": tuned,
    "edm2": _net("edm2"),
    "adm": _net("adm"),
    "dit_xl": _net("dit_xl"),
    "ddpmpp_f32": _net("ddpmpp", ("ect", "denoising"), "float32", 128),
    "dit_b_f32": _net("dit_b", ("ect", "denoising"), "float32", 128),
}
"""In the order of their importance."""

CUDNN = {"changes": {"attention": "cudnn"}}
TRIALS: dict[str, Callable[[bool, Record], None]] = {
    "try_ddpmpp": _tried("ddpmpp", "ect", {
        "as it is": {},
        "attention cudnn": CUDNN,
        "batch 128": {"batch": 128},
        "batch 512": {"batch": 512},
        "remat": {"changes": {"remat": True}},
        "state not donated": {"donate": False},
        "four steps in one dispatch": {"steps": 4},
        "no command buffers": {"options": {"xla_gpu_enable_command_buffer": ""}},
        "fused convolutions": {"options": {"xla_gpu_experimental_enable_conv_fusion": True}},
    }),
    "try_dropout": _tried("ddpmpp", "denoising", {
        "none": {},
        "0.13, threefry": {"changes": {"dropout": 0.13}},
        "0.13, rbg": {"changes": {"dropout": 0.13}, "rng": "rbg"},
    }),
    "try_dit_b": _tried("dit_b", "ect", {
        "as it is": {},
        "attention cudnn": CUDNN,
        "batch 512": {"batch": 512, **CUDNN},
        "remat": {"changes": {"remat": True}},
    }),
}  # fmt: skip
"""What `--try` runs beside."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[*PARTS, *TRIALS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()

    def record(kind: str, **values: Any) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps({"part": options.part, "kind": kind, **values}) + "\n")

    device = jax.devices()[0] if options.part != "torch" else None
    if device is not None:
        record("device", device=device.device_kind, jax=jax.__version__)
    (PARTS | TRIALS)[options.part](options.toy, record)


if __name__ == "__main__":
    main()
