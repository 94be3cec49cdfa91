"""What the accelerator here does with cmjax, beside what it could do: x.json, and x.md for reading.

    python benchmarks/accelerator.py --out=x.json                         # all that fits in nine minutes
    python benchmarks/accelerator.py --out=x.json --only=ddpmpp,torch     # some parts
    python benchmarks/accelerator.py --out=x.json --try                   # with variants, to see which pay
    python benchmarks/accelerator.py --out=x.json --toy                   # tiny networks, on any machine

Parts run in the order of their importance until the time is up; what did not run is named with its reason. Each is a
process of its own, which has the device for itself once its first program is traced; the next ones prepare meanwhile.

Rates are of the matrix products and convolutions in the traced program, as in `step_time.py`; the yardstick is the rate
of an 8192×8192 matrix product of random numbers in the same dtype, measured first.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.accelerator_parts import PARTS  # noqa: E402

GOALS = {"fraction of the bf16 rate, ECT step of DDPM++": 0.45, "over compiled PyTorch": 1.0, "sCM over denoising": 2.2}


@dataclass
class Worker:
    """The process of one part."""

    part: str
    records: Path
    process: subprocess.Popen[str]
    log: Path
    ready: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                self.ready.set()
        self.ready.set()  # it ended

    def run(self, seconds: float) -> str:
        """Give it the device; "" when it is done, or what went wrong."""
        end = time.monotonic() + seconds
        if not self.ready.wait(seconds):
            return self.stop(f"not compiled within {seconds:.0f} s; {self._last_line()}")
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        try:
            code = self.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return self.stop(f"the time was up; {self._last_line()}")
        return "" if code == 0 else f"failed: {self._last_line()}"

    def stop(self, why: str) -> str:
        self.process.kill()
        self.process.wait()
        return why

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit code {self.process.returncode}"


def start(part: str, folder: Path, options: argparse.Namespace) -> Worker:
    records, log = folder / f"{part}.jsonl", folder / f"{part}.log"
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the next parts are prepared beside
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if options.toy:  # what takes time is compilation
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "benchmarks.accelerator_parts", part, str(records)]
    command += ["--toy"] * options.toy + ["--try"] * options.trials
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    worker = Worker(part, records, process, log)
    threading.Thread(target=worker.listen, daemon=True).start()
    return worker


def run(parts: list[str], options: argparse.Namespace, folder: Path) -> None:
    """Run the parts in order, each prepared while those before it have the device; write what is known after each."""
    began, end = time.monotonic(), time.monotonic() + options.seconds
    ahead, waiting, report = [], list(parts), Report(options)
    while ahead or waiting:
        while waiting and len(ahead) <= options.ahead:
            ahead.append(start(waiting.pop(0), folder, options))
        worker, left = ahead.pop(0), end - time.monotonic()
        problem = worker.run(min(left, options.part_seconds)) if left > 1 else worker.stop("the time was up")
        report.add(worker, problem, time.monotonic() - began)
        print(f"{time.monotonic() - began:6.1f} s  {worker.part}: {problem or 'done'}", flush=True)


class Report:
    """Records as they come, in `--out` and beside it as a page."""

    def __init__(self, options: argparse.Namespace):
        self.path = Path(options.out)
        self.data: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "parts": {}, "records": []}

    def add(self, worker: Worker, problem: str, seconds: float) -> None:
        lines = worker.records.read_text().splitlines() if worker.records.exists() else []
        self.data["records"] += [json.loads(line) for line in lines]
        self.data["parts"][worker.part] = {"ended_after_seconds": round(seconds, 1), "problem": problem}
        self.data["goals"] = goals(self.data["records"])
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(page(self.data))


def of_kind(records: list[dict[str, Any]], kind: str, **values: Any) -> list[dict[str, Any]]:
    return [r for r in records if r["kind"] == kind and all(r.get(name) == value for name, value in values.items())]


def rates(records: list[dict[str, Any]]) -> dict[str, float]:
    """Operations a second of each yardstick; of `copy_bytes`, bytes."""
    return {r["name"]: r["flops"] for r in of_kind(records, "rate")}


def goals(records: list[dict[str, Any]]) -> dict[str, float]:
    """What was measured of each goal, where it was."""
    measured, rate = {}, rates(records)
    steps = {
        r["method"]: r for r in of_kind(records, "program", part="ddpmpp", dtype="bfloat16") if "images_per_second" in r
    }
    torch = [r["images_per_second"] for r in of_kind(records, "torch", compiled=True)]
    shares, over_torch, over_denoising = GOALS
    if "ect" in steps and "bfloat16" in rate:
        measured[shares] = steps["ect"]["flops"] / rate["bfloat16"]
    if "ect" in steps and torch:
        measured[over_torch] = steps["ect"]["images_per_second"] / torch[0]
    if {"scm", "denoising"} <= steps.keys():
        measured[over_denoising] = steps["scm"]["ms"] / steps["denoising"]["ms"]
    return measured


# The page.


def page(data: dict[str, Any]) -> str:
    records = data["records"]
    rate, device = rates(records), (of_kind(records, "device") or [{"device": "?", "jax": "?"}])[0]
    lines = [f"# {device['device']}, jax {device['jax']}, {data['date']}", ""]
    lines += [f"- {name}: {value / 1e12:.1f} T/s" for name, value in rate.items()]
    lines += [f"- {name}: {value:.3f} (goal {GOALS[name]})" for name, value in data["goals"].items()]
    lines += ["", "| network | program | dtype | batch | ms | images/s | fraction of the rate | GB | compile s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(r, rate) for r in of_kind(records, "program")]
    for r in of_kind(records, "torch"):
        name = "compiled" if r["compiled"] else "eager"
        memory = "" if r["memory_gb"] is None else f"{r['memory_gb']:.1f}"
        lines.append(
            f"| PyTorch {r['version']} | ect, {name} | bfloat16 | {r['batch']} | {r['ms']:.1f} "
            f"| {r['images_per_second']:.0f} | | {memory} | {r['first_seconds']:.1f} |"
        )
    lines += ["", *(_sentence(r) for r in records if r["kind"] in ("loop", "cache"))]
    for r in of_kind(records, "kernels"):
        lines += ["", f"Kernels of {r['of']}, {r['total_ms']:.1f} ms a step:", ""]
        lines += [f"    {ms:8.3f} ms {count:6.1f}×  {name}" for name, ms, count in r["longest"]]
    missing = {part: state["problem"] for part, state in data["parts"].items() if state["problem"]}
    return "\n".join([*lines, "", *(f"- {part}: {problem}" for part, problem in missing.items()), ""])


def _row(r: dict[str, Any], rate: dict[str, float]) -> str:
    name = r["method"] + (f" in {r['nfe']}" if r["method"] == "sample" else "") + (f", {r['label']}" * bool(r["label"]))
    start = f"| {r['net']} | {name} | {r['dtype']} | {r['batch']} "
    if "error" in r:
        return f"{start}| {r['error'][:60]} | | | | |"
    fraction = f"{r['flops'] / rate[r['dtype']]:.2f}" if r["dtype"] in rate else ""
    return (
        f"{start}| {r['ms']:.2f} | {r['images_per_second']:.0f} | {fraction} "
        f"| {r['memory_gb']:.1f} | {r['seconds']['compile']:.1f} |"
    )


def _sentence(r: dict[str, Any]) -> str:
    if r["kind"] == "loop":
        return f"- The loop: {r['loop_ms']:.1f} ms a step, the bare step {r['bare_ms']:.1f} ms: {r['fraction']:.3f}."
    cold, warm = (", ".join(f"{name} {s:.1f} s" for name, s in r[which].items()) for which in ("cold", "seconds"))
    return f"- Compilation of the ECT step, beside others: {cold}; from the cache: {warm}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--toy", action="store_true", help="tiny networks")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--part-seconds", type=float, default=300, help="of one part, at most")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--try", action="store_true", dest="trials", help="variants as well")
    ahead = 2 if (os.cpu_count() or 1) >= 8 else 0
    parser.add_argument("--ahead", type=int, default=ahead, help="parts prepared ahead")
    options = parser.parse_args()
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only={','.join(unknown)}: choose from {', '.join(PARTS)}")
    if find_spec("torch") is None:
        parts = [part for part in parts if part != "torch"]
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(parts, options, Path(folder))
    print(Path(options.out).with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
