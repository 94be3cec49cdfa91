"""Interactive plots of what runs recorded, one run's or several over each other."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST = 800  # points of a curve; where there are more records, each point is the mean of its neighbours
LONG = 22  # letters of a name that needs a line of the legend for itself
LINE = 28  # pixels of a line of the legend
BIN = re.compile(r"loss_bin_(\d+)")
FIRST = ("loss", "learning_rate", "images_per_second")
LEFT_OUT = ("step", "nimg", "step_seconds")  # fields that are another's scale

GREY = "#808890"
"""The colour of axes and words: readable over white and over black."""

COLOURS = ("#2f7ed8", "#e8710a", "#12a37f", "#c04fa3", "#8b6fe0", "#b59400", "#d0433f", "#4d9db5")

Records = Sequence[Mapping[str, Any]]


def fields_of(runs: Mapping[str, Records]) -> list[str]:
    """Lists the names of the numbers that the runs recorded, without those of single noise levels."""
    # a few records of each run are enough to see its fields
    named = dict.fromkeys(
        name
        for records in runs.values()
        for record in (*records[:1], *records[len(records) // 2 :: 50], *records[-1:])
        for name, value in record.items()
        if isinstance(value, int | float) and not BIN.fullmatch(name) and name not in LEFT_OUT
    )
    every = [record for records in runs.values() for record in records]
    if all(record.get("images_per_second") == record.get("images_per_second_per_chip") for record in every):
        named.pop("images_per_second_per_chip", None)  # of one chip, which would be the same curve twice
    return [name for name in FIRST if name in named] + [name for name in named if name not in FIRST]


def points(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Gives the steps and the values of a field, at most MOST of them, without values that are not finite."""
    xy = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
    x, y = np.array(xy, np.float64).reshape(-1, 2).T
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= MOST:
        return x, y
    parts = [np.array_split(values, MOST) for values in (x, y)]
    return np.array([part.mean() for part in parts[0]]), np.array([part.mean() for part in parts[1]])


def plots_of(runs: Mapping[str, Records], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Plots what the runs recorded: title -> plot. labels: of each run its noise levels, as they are numbered."""
    plots = {}
    for name in fields_of(runs):
        curves = {run: points(records, name) for run, records in runs.items()}
        curves = {run: curve for run, curve in curves.items() if len(curve[0])}
        if curves:
            plots[name.replace("_", " ")] = plot_of(curves, name.replace("_", " "), log=name in ("loss", "grad_norm"))
    for run, records in runs.items():
        some = records[:: max(1, len(records) // 50)]  # a bin without samples is missing from a record
        curves = {}
        for name in sorted({name for record in some for name in record if BIN.match(name)}):
            number, named = int(name.removeprefix("loss_bin_")), labels.get(run, ())
            curves[named[number] if number < len(named) else f"level {number}"] = points(records, name)
        if curves:
            title = "loss by noise level" + (f": {run}" if len(runs) > 1 else "")
            plots[title] = plot_of(curves, "loss", log=True, shades=True)
    return plots


def plot_of(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], y_label: str, *, log: bool, shades: bool = False
) -> Any:
    """Plots curves over the steps; a logarithmic axis where it is asked for and all values are positive.

    shades: whether the curves are the steps of a scale, and not different things.
    """
    from bokeh.models import BoxZoomTool, HoverTool, PanTool, ResetTool, WheelZoomTool
    from bokeh.palettes import turbo
    from bokeh.plotting import figure

    # a loss with a learned weight may fall below 0
    positive = all((y > 0).all() for _, y in curves.values())
    columns = 1 if max(map(len, curves)) > LONG else 2
    legend_height = LINE * -(-len(curves) // columns) + 16 if len(curves) > 1 else 0
    plot = figure(
        height=300 + legend_height, sizing_mode="stretch_width", x_axis_label="step",
        y_axis_type="log" if log and positive else "linear", **_range_of_one_value([y for _, y in curves.values()]),
        tools=[box := BoxZoomTool(), PanTool(), WheelZoomTool(), ResetTool()], active_drag=box,
    )  # fmt: skip
    # the ends of the palette are too dark for a page of either brightness
    colours = turbo(len(curves) + 2)[1:-1] if shades else COLOURS
    for i, (name, (x, y)) in enumerate(curves.items()):
        named: dict[str, Any] = {"legend_label": name} if len(curves) > 1 else {}
        line = plot.line(x, y, color=colours[i % len(colours)], line_width=1.8, name=name, **named)
        # a line through one point is not seen
        if len(x) == 1:
            plot.scatter(x, y, color=colours[i % len(colours)], size=6, **named)
        tooltips = [("step", "@x{0,0}"), (name if len(curves) > 1 else y_label, "@y{%.4g}")]
        plot.add_tools(HoverTool(renderers=[line], tooltips=tooltips, formatters={"@y": "printf"}, visible=False))
    _dress(plot, columns if len(curves) > 1 else 0)
    return plot


def _range_of_one_value(values: Sequence[np.ndarray]) -> dict[str, Any]:
    """Sets the axis of curves with one value, but for rounding: it stands in the middle, a tenth from each end."""
    every = np.concatenate(values)
    low, high = every.min(), every.max()
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return {}
    around = abs(high) / 10 or 1.0
    return {"y_range": (float(low - around), float(high + around))}


def _dress(plot: Any, columns: int) -> None:
    """Sets colours that are readable over white and over black, and where there are columns a legend."""
    from bokeh.models import BasicTickFormatter

    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = GREY
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        if isinstance(axis.formatter, BasicTickFormatter):
            # steps below ten million are written in full, not as powers of ten
            axis.formatter.power_limit_high = 7
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = GREY, 0.25
    if columns:
        legend = plot.legend[0]
        plot.add_layout(legend, "below")
        legend.click_policy, legend.ncols, legend.location = "hide", columns, "center"
        legend.spacing, legend.padding, legend.margin = 8, 0, 0
        legend.label_text_color, legend.label_text_font_size = GREY, "11px"
        legend.background_fill_alpha, legend.border_line_color = 0, None
