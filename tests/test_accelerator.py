"""That the accelerator's benchmark runs, and what it makes of its records."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import accelerator_parts
from benchmarks.accelerator import goals, page
from benchmarks.accelerator_programs import Case

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_part_runs_in_a_process_of_its_own_and_is_reported(tmp_path):
    out = tmp_path / "x.json"
    script = str(ROOT / "benchmarks/accelerator.py")
    command = [sys.executable, script, f"--out={out}", "--toy", "--only=yardstick", "--seconds=120"]
    subprocess.run(command, check=True, capture_output=True)
    data = json.loads(out.read_text())
    assert data["parts"]["yardstick"]["problem"] == ""
    rates = {r["name"]: r["flops"] for r in data["records"] if r["kind"] == "rate"}
    assert set(rates) == {"bfloat16", "float32", "float32_highest", "copy_bytes"}
    assert min(rates.values()) > 0
    assert "float32" in out.with_suffix(".md").read_text()


def test_programs_are_measured_and_what_cannot_be_compiled_says_why(monkeypatch):
    monkeypatch.setattr(accelerator_parts, "wait_for_the_device", lambda: None)
    records = []
    case = Case("dit_b", "forward", 2, "float32")
    stages = [[case], [replace(case, label="broken", options={"xla_no_such_option": 1})]]
    list(accelerator_parts.measure_all(stages, lambda kind, **values: records.append(values), toy=True))
    measured, broken = records
    assert measured["images_per_second"] == pytest.approx(2e3 / measured["ms"])
    tokens, width, hidden = 2 * 16, 32, 4 * 32
    assert measured["flops"] * measured["ms"] / 1e3 > 2 * tokens * width * (4 * width + 2 * hidden)
    assert "xla_no_such_option" in broken["error"]


def test_goals_compare_what_was_measured():
    step = {"kind": "program", "part": "ddpmpp", "dtype": "bfloat16", "images_per_second": 30.0, "batch": 2, "net": "a"}
    step |= {"nfe": 1, "label": "", "memory_gb": 1.0, "seconds": {"compile": 2.0}}
    records = [
        {"kind": "rate", "name": "bfloat16", "flops": 200.0},
        step | {"method": "ect", "ms": 4.0, "flops": 100.0},
        step | {"method": "denoising", "ms": 2.0, "flops": 100.0},
        step | {"method": "scm", "ms": 5.0, "flops": 100.0},
    ]
    measured = goals(records)
    assert list(measured.values()) == pytest.approx([0.5, 2.5])
    assert "| a | ect | bfloat16 | 2 | 4.00 | 30 | 0.50 | 1.0 | 2.0 |" in page(
        {"records": records, "goals": measured, "parts": {"adm": {"problem": "the time was up"}}, "date": "2026-11-26"}
    )
