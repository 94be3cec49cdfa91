"""Tutorials as notebooks, which Colab opens: `python docs/notebooks.py` writes them anew from docs/tutorials/*.py.

A tutorial is a Python file, which reviews and linters read. Its notebook has the same cells without outputs, a cell
that installs cmjax where it is missing, and links that lead to the repository.
"""

import posixpath
import re
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).parent / "tutorials"
REPOSITORY = "https://github.com/cmjax/cmjax"
COLAB = "https://colab.research.google.com/github/cmjax/cmjax/blob/main/"
INSTALL = f"""\
import importlib.util

if importlib.util.find_spec("cmjax") is None:  # as in Colab
    %pip install --quiet git+{REPOSITORY}"""
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")


def notebook(source: Path) -> str:
    """The notebook of a tutorial, as JSON."""
    read = jupytext.read(source)
    cells = [read.cells[0], nbformat.v4.new_code_cell(INSTALL), *read.cells[1:]]
    for number, cell in enumerate(cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda found: f"]({REPOSITORY}/blob/main/{_path(found[1])}", cell.source)
    python = {"kernelspec": read.metadata["kernelspec"], "language_info": {"name": "python"}}
    made = nbformat.v4.new_notebook(cells=cells, metadata=python)
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def _path(link: str) -> str:
    """The path in the repository of a link of a tutorial; of another tutorial its notebook."""
    return re.sub(r"\.py$", ".ipynb", posixpath.normpath(posixpath.join("docs/tutorials", link)))


def buttons(name: str) -> str:
    """What stands below the title of the tutorial `name`: links, and no image that a page would fetch."""
    colab = f'<a class="md-button md-button--primary" href="{COLAB}docs/tutorials/{name}.ipynb">Open in Colab</a>'
    return f'<p class="notebook">{colab} <a class="md-button" href="../{name}.ipynb" download>Download notebook</a></p>'


if __name__ == "__main__":
    for tutorial in sorted(TUTORIALS.glob("*.py")):
        tutorial.with_suffix(".ipynb").write_text(notebook(tutorial))
