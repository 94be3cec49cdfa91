"""Shows images and progress where the program runs in a notebook."""

import sys
from collections.abc import Iterable
from pathlib import Path


def in_notebook() -> bool:
    """Checks whether a notebook's kernel runs the program."""
    # IPython alone, in a terminal, has no kernel and shows no images
    return "ipykernel" in sys.modules and "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def show_inline(images: Iterable[str | Path]) -> None:
    """Shows PNG files below the cell of a notebook, with their names; nothing elsewhere."""
    if not in_notebook():
        return
    from IPython.display import Image, display

    for path in images:
        print(path)
        display(Image(filename=str(path)))
