"""Plots as inline SVG whose ink is the colour of the text around it, so that they read on light and dark pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"
"""Drawn in this colour, and replaced by `currentColor` in the SVG."""
COLOURS = ("#3b82f6", "#d97706", "#059669", "#ef4444", "#8b5cf6", "#64748b")
"""Readable on white and on black."""
WIDTH, HEIGHT = 3.9, 2.4
"""Inches, without the legend; the page scales the picture to its column."""
AXIS = 2.5
"""Inches that labels at the side leave for the plot."""
LEGEND_ROW = 0.18
"""Inches."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wovr",
    "font.size": 9.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INK,
    "grid.alpha": 0.14,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None where there is no value."""
    dashed: bool = False
    colour: int | None = None
    """Place in COLOURS; by default the series' own place."""


def lines(series: Sequence[Series], *, title: str, x: str, y: str, percent: bool = False) -> Markup:
    """Lines over a common axis. Series without a value are left out; with `percent`, 0 to 1 is shown as 0 to 100,
    and what is below 0 is to be seen too."""
    with mpl.rc_context(STYLE):
        scale = 100 if percent else 1
        pointed = [[(a, scale * b) for a, b in zip(one.x, one.y, strict=True) if b is not None] for one in series]
        labels = sum(map(bool, pointed))
        figure, axes = _figure(title, x, y, legend=(labels + 1) // 2 if labels > 1 else 0)
        for number, (one, points) in enumerate(zip(series, pointed, strict=True)):
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    label=one.label,
                    color=COLOURS[(number if one.colour is None else one.colour) % len(COLOURS)],
                    linestyle="--" if one.dashed else "-",
                    marker="o" if len(points) < 12 else "",
                    markersize=3.5,
                    linewidth=1.6,
                )
        axes.set_xlim(left=0)
        if percent:
            lowest = min((b for points in pointed for _, b in points), default=0.0)
            axes.set_ylim(min(0.0, lowest) - 3, 103)
            axes.set_yticks(range(25 * math.ceil(min(0.0, lowest) / 25), 101, 25))
        if labels > 1:
            _legend(axes, 2)
        return _svg(figure)


def stacked(x: Sequence[float], parts: Mapping[str, Sequence[float]], *, title: str, x_label: str, y: str) -> Markup:
    """Bars at `x` made of named parts."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x_label, y, legend=1)
        below = [0.0] * len(x)
        for (label, values), colour in zip(parts.items(), COLOURS, strict=False):
            axes.bar(x, values, bottom=below, label=label, color=colour, width=0.85)
            below = [a + b for a, b in zip(below, values, strict=True)]
        _legend(axes, 3)
        return _svg(figure)


def intervals(
    values: Mapping[str, tuple[float, float, float]],
    *,
    title: str,
    x: str | None = None,
    left: float = 1.4,
    colours: Sequence[int] | None = None,
    parts: Mapping[str, Sequence[float]] | None = None,
) -> Markup:
    """{label: (value, low, high)} as points with their intervals, first on top.

    Shares in [0, 1], shown as 0 to 100 %; with `x`, the name of the axis, differences beside a line at 0. `left` is the
    margin for the labels, inches; `colours` are places in COLOURS, by default the first. `parts` are
    what a value is the mean of, as rings.
    """
    scale = 100 if x is None else 1
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x or "%", "", height=0.8 + 0.38 * len(values), left=left)
        axes.grid(False)
        axes.grid(axis="x")
        for place, (label, one) in enumerate(values.items()):
            (value, low, high), colour = (scale * number for number in one), COLOURS[colours[place] if colours else 0]
            axes.plot([low, high], [-place, -place], color=colour, linewidth=3, alpha=0.5)
            axes.plot([value], [-place], "o", color=colour, markersize=7)
            for part in parts[label] if parts else ():
                axes.plot([scale * part], [-place], "o", color=INK, markerfacecolor="none", markersize=5)
            axes.annotate(f"{value:.1f}", (value, -place), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks([-place for place in range(len(values))], list(values))
        if x is None:
            axes.set_xlim(-3, 103)
            axes.set_xticks(range(0, 101, 25))
        else:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_ylim(0.6 - len(values), 0.7)
        return _svg(figure)


def scatter(points: Mapping[str, tuple[float, float]], *, title: str, x: str, y: str) -> Markup:
    """{label: (x, y)}, shares in [0, 1] shown as 0 to 100 %, joined in their order beside the line of equality."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x, y)
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, alpha=0.4)
        places = [(100 * a, 100 * b) for a, b in points.values()]
        axes.plot(*zip(*places, strict=True), "o-", color=COLOURS[0], markersize=4, linewidth=0.8)
        for label, place in list(zip(points, places, strict=True))[
            :: max(1, len(points) - 1)
        ]:  # the first and the last
            axes.annotate(label, place, (5, -9), textcoords="offset points")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_view_interval(0, 100, ignore=True)
            axis.set_ticks(range(0, 101, 25))
        return _svg(figure)


def standalone(plot: Markup) -> str:
    """A plot as a file of its own, in a grey that reads on white and on black."""
    return plot.replace("currentColor", COLOURS[-1])


def _figure(
    title: str, x: str, y: str, *, height: float = HEIGHT, left: float = 0.62, legend: int = 0
) -> tuple[Figure, Axes]:
    """One plot; `left` is the margin for the labels of the vertical axis, inches, `legend` the rows above the plot."""
    width, above = max(WIDTH, left + AXIS), LEGEND_ROW * legend
    figure = Figure(figsize=(width, height + above))
    # Margins by hand: layout engines draw every picture twice.
    bottom, top = 0.47 / (height + above), 1 - (0.34 + above) / (height + above)
    figure.subplots_adjust(left=left / width, right=0.97, bottom=bottom, top=top)
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.set_title(title, x=_edge(axes), pad=8 + 72 * above)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    return figure, axes


def _legend(axes: Axes, columns: int) -> None:
    """Between the title and the plot, where it hides no line."""
    place = (_edge(axes), 1.0)
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=place, borderaxespad=0.6, borderpad=0.1)


def _edge(axes: Axes) -> float:
    """The picture's left edge, in coordinates of the axes."""
    box = axes.get_position()
    return float(0.01 - box.x0) / float(box.width)


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the page sets the size
    return Markup(f"{head}>{body}".replace(INK, "currentColor"))
