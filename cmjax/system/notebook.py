"""Shows images and progress where the program runs in a notebook."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def in_notebook() -> bool:
    """Checks whether a notebook's kernel runs the program."""
    # IPython alone, in a terminal, has no kernel and shows no images
    return "ipykernel" in sys.modules and "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def changing_line() -> Callable[[str], None]:
    """Makes a function that shows a line below the cell of a notebook, in the place of the one that it showed last."""
    from IPython.display import display

    shown = None

    def show(line: str) -> None:
        nonlocal shown
        if shown is None:
            shown = display({"text/plain": line}, raw=True, display_id=True)
        else:
            shown.update({"text/plain": line}, raw=True)

    return show


def show_inline(images: Iterable[str | Path]) -> None:
    """Shows PNG files below the cell of a notebook, with their names; nothing elsewhere."""
    if not in_notebook():
        return
    from IPython.display import Image, display

    for path in images:
        print(path)
        display(Image(filename=str(path)))
