"""Plots as inline SVG whose ink is the colour of the text around it, so that they read on light and dark pages."""

from __future__ import annotations

import io
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
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b")
"""Readable on white and on black."""
WIDTH, HEIGHT = 4.6, 2.7
"""Inches; the page scales the picture to its column."""
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
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
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
    """Lines over a common axis. Series without a value are left out; with `percent`, 0 to 1 is shown as 0 to 100."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x, y)
        scale = 100 if percent else 1
        for number, one in enumerate(series):
            points = [(a, scale * b) for a, b in zip(one.x, one.y, strict=True) if b is not None]
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
            axes.set_ylim(-3, 103)
        if len(axes.lines) > 1:
            axes.legend()
        return _svg(figure)


def stacked(x: Sequence[float], parts: Mapping[str, Sequence[float]], *, title: str, x_label: str, y: str) -> Markup:
    """Bars at `x` made of named parts."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x_label, y)
        below = [0.0] * len(x)
        for (label, values), colour in zip(parts.items(), COLOURS, strict=False):
            axes.bar(x, values, bottom=below, label=label, color=colour, width=0.85)
            below = [a + b for a, b in zip(below, values, strict=True)]
        axes.set_ylim(0, 1.3 * max([1.0, *below]))  # room for the legend
        axes.legend(ncols=3, loc="upper center")
        return _svg(figure)


def intervals(
    values: Mapping[str, tuple[float, float, float]], *, title: str, x: str | None = None, left: float = 1.6
) -> Markup:
    """{label: (value, low, high)} as points with their intervals, first on top.

    Shares in [0, 1], shown as 0 to 100 %; with `x`, the name of the axis, differences beside a line at 0. `left` is the
    margin for the labels, inches.
    """
    scale = 100 if x is None else 1
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, x or "%", "", height=0.9 + 0.4 * len(values), left=left)
        for place, one in enumerate(values.values()):
            (value, low, high), colour = (scale * number for number in one), COLOURS[place % len(COLOURS)]
            axes.plot([low, high], [-place, -place], color=colour, linewidth=3, alpha=0.5)
            axes.plot([value], [-place], "o", color=colour, markersize=7)
            axes.annotate(f"{value:.1f}", (value, -place), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks([-place for place in range(len(values))], list(values))
        if x is None:
            axes.set_xlim(0, 100)
            axes.set_xticks(range(0, 101, 20))
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
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        return _svg(figure)


def standalone(plot: Markup) -> str:
    """A plot as a file of its own, in a grey that reads on white and on black."""
    return plot.replace("currentColor", COLOURS[-1])


def _figure(title: str, x: str, y: str, height: float = HEIGHT, left: float = 0.7) -> tuple[Figure, Axes]:
    """One plot; `left` is the margin for the labels of the vertical axis, inches."""
    figure = Figure(figsize=(WIDTH, height))
    # Margins by hand: layout engines draw every picture twice.
    figure.subplots_adjust(left=left / WIDTH, right=0.97, bottom=0.5 / height, top=1 - 0.35 / height)
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return figure, axes


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the page sets the size
    return Markup(f"{head}>{body}".replace(INK, "currentColor"))
