"""The documentation's sources: its reference is whole, and the tutorials show what they say."""

import re
import runpy
from pathlib import Path

import pytest

import cmjax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert [name for name in cmjax.__all__ if not re.search(rf"\b{name}\b", pages)] == []
    described = set(re.findall(r"(?m)^::: cmjax\.core\.([\w.]+)$", pages))
    losses = {f"losses.{path.stem}" for path in (ROOT / "cmjax/core/losses").glob("[!_]*.py")} | {"losses"}
    modules = {path.stem for path in (ROOT / "cmjax/core").glob("[!_]*.py")}
    assert {name.removesuffix(".BoundModel") for name in described} == modules | losses


@pytest.mark.parametrize(
    "words", ["several GPUs", "learning-rate schedule", "mixed precision", "ONNX", "notebooks", "non-square images"]
)
def test_a_heading_answers_what_is_searched_for(words):
    headings = re.findall(r"(?m)^#+ (.+)$", (DOCS / "faq.md").read_text())
    assert any(words.lower() in heading.lower() for heading in headings)


@pytest.fixture
def tutorial(monkeypatch):
    """Runs a tutorial as a script and gives its names."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    return lambda name: runpy.run_path(str(DOCS / "tutorials" / f"{name}.py"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_consistency_models_from_scratch_come_near_the_exact_map(tutorial):
    names = tutorial("from_scratch")
    assert names["errors"]["cd"] < names["errors"]["ct"] < 0.2
    assert names["errors"]["cd"] < 0.08
    assert max(names["differences"].values()) < 1e-5  # its own losses are the library's


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_network_data_and_loss_of_ones_own_draw_the_classes_asked_for(tutorial):
    names = tutorial("your_own")
    for pictures in names["drawn"].values():
        met = float((names["read"](pictures) == names["wanted"]).mean())
        assert met > 0.5  # chance is 0.1
