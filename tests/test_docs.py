"""The documentation's sources: its reference is whole, and the tutorials, also as notebooks, show what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import cmjax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.py"))


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
def notebooks(monkeypatch):
    """The module that writes notebooks."""
    pytest.importorskip("jupytext")
    monkeypatch.syspath_prepend(str(DOCS))
    import notebooks

    yield notebooks
    del sys.modules["notebooks"]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_notebook_is_what_its_tutorial_gives(notebooks, name):
    made = notebooks.notebook(DOCS / "tutorials" / f"{name}.py")
    committed = (DOCS / "tutorials" / f"{name}.ipynb").read_text()
    assert committed == made, "python docs/notebooks.py writes the notebooks anew"
    cells = json.loads(committed)["cells"]
    assert cells[0]["source"][0].startswith("# ")
    assert "%pip install" in "".join(cells[1]["source"])
    assert not any(cell.get("outputs") for cell in cells)
    for path in re.findall(rf"{notebooks.REPOSITORY}/blob/main/([^)#]+)", committed):
        assert (ROOT / path).is_file()
    assert not re.search(
        r"\]\((?!https?:)", "".join("".join(cell["source"]) for cell in cells if "outputs" not in cell)
    )


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_buttons_of_a_tutorial_lead_to_its_notebook(notebooks, name):
    colab, here = re.findall(r'href="([^"]+)"', notebooks.buttons(name))
    assert colab.startswith("https://colab.research.google.com/github/cmjax/cmjax/blob/main/")
    assert (ROOT / colab.partition("/blob/main/")[2]).is_file()
    # a page is tutorials/<name>/index.html, and the site has the notebook beside that folder
    assert (DOCS / "tutorials" / name / here).resolve() == DOCS / "tutorials" / f"{name}.ipynb"


def test_the_installing_cell_does_nothing_where_cmjax_is(notebooks):
    pytest.importorskip("IPython")
    from IPython.core.inputtransformer2 import TransformerManager

    called = []
    program = TransformerManager().transform_cell(notebooks.INSTALL)
    names = {"get_ipython": lambda: called.append("pip")}
    exec(program, names)
    assert "pip" in program
    assert called == []


def test_every_tutorial_is_executed_and_has_its_place(notebooks):
    settings = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r'include: \["tutorials/\*\.py"\]\n +execute: true\n +allow_errors: false\n', settings)
    assert sorted(re.findall(r"tutorials/(\w+)\.py", settings)) == TUTORIALS


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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_first_steps_train_a_model_better_than_a_gaussian(tutorial):
    metrics = tutorial("first_steps")["summary"]["metrics"]
    assert metrics["1-step"]["fd"] < metrics["fitted Gaussian"]["fd"] / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_student_of_the_tutorial_is_better_than_its_teacher_in_seven_evaluations(tutorial):
    names = tutorial("distil_edit_evaluate")
    (many, few), (one, two) = names["of_teacher"], names["of_student"]
    assert (many["evaluations"], few["evaluations"], one["evaluations"], two["evaluations"]) == (35, 7, 1, 2)
    assert one["metrics"]["fd"] < few["metrics"]["fd"]
    assert many["metrics"]["fd"] < few["metrics"]["fd"]
    for filled in names["filled"]:
        assert (filled[:, :4] == names["images"][:, :4]).all()  # what is known stays, to the last bit
