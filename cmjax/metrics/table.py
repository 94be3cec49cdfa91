"""Tables of metrics as text."""

from collections.abc import Mapping


def format_table(table: Mapping[str, Mapping[str, float | None]], *, form: str = ".3f") -> str:
    """Formats a table of metrics as aligned plain text, one line a row; "-" stands for None. form: of a number.

    >>> table = {"1 step": {"fd": 12.345, "recall": 0.5}, "fitted Gaussian": {"fd": None, "recall": 1}}
    >>> print(format_table(table))
                         fd  recall
    1 step           12.345   0.500
    fitted Gaussian       -   1.000
    """
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    cells = [["", *columns]]
    for name, row in table.items():
        values = (row.get(column) for column in columns)
        cells.append([name, *("-" if value is None else format(value, form) for value in values)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
