"""Parts that figures share: colors, axes, ticks, and marks at the ends of epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from reptrain.analysis.text import short_count
from reptrain.report.svg import Paint, tip

MOST_NAMED = 6
"""Largest number of curves that have colors of their own."""
_MOST_TICKS = 7
Rows = list[dict[str, Any]]


def grouped(rows: Rows, keys: Sequence[str]) -> dict[tuple[Any, ...], Rows]:
    """Rows by the values of some columns."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def column_of(rows: Rows, name: str) -> list[float]:
    """The values of a column."""
    return [row[name] for row in rows]


def shade_of(index: int, count: int, paint: Paint) -> str:
    """A categorical color for few curves, a step from light to dark for many."""
    if count <= MOST_NAMED:
        return paint.arm(index)
    return paint.steps[2 + round(index / (count - 1) * (len(paint.steps) - 3))]


def hover(plot: Axes, x: float, y: float, text: str) -> None:
    """An invisible target for the pointer."""
    plot.plot(x, y, "o", color="none", markersize=9, gid=tip(text))


def mark_epochs(plot: Axes, rows: Rows, column: str, shade: str) -> None:
    """Marks on a curve at the ends of epochs: of each up to 16, else of powers of two."""
    last = rows[-1]["epoch"]
    if not last or last < 1:
        return
    whole = range(1, math.floor(last + 1e-9) + 1)
    ends = (
        [float(n) for n in whole] if last <= 16 else [2.0**k for k in range(math.floor(math.log2(last)) + 1)]
    )
    epoch = column_of(rows, "epoch")
    x = np.interp(ends, epoch, column_of(rows, "consumed_tokens"))
    y = np.interp(ends, epoch, column_of(rows, column))
    plot.plot(x, y, "|", color=shade, markersize=7, markeredgewidth=1.4)


def loss_axis(plot: Axes) -> None:
    """Label and grid of a vertical axis of losses."""
    plot.set_ylabel("nats per token")
    plot.grid(axis="y")
    plot.set_axisbelow(True)
    plot.tick_params(length=0)
    plot.yaxis.set_major_locator(MaxNLocator(5))


def epoch_axis(plot: Axes, epochs: Iterable[float]) -> None:
    """Label, scale and ticks of a horizontal axis of epochs."""
    values = sorted(set(epochs))
    plot.set_xlabel("epochs")
    if len(values) > 1 and values[-1] / max(values[0], 1e-9) >= 8:
        plot.set_xscale("log", base=2)
    plot.xaxis.set_major_locator(FixedLocator(spaced(values)))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def count_axis(plot: Axes, values: Sequence[float]) -> None:
    """Ticks of a horizontal axis of counts, at values that occur."""
    distinct = sorted(set(values))
    step = max(1, math.ceil(len(distinct) / 5))
    plot.xaxis.set_major_locator(FixedLocator(distinct[::step]))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(FuncFormatter(short_count))


def two_lines(text: str, length: int = 34) -> str:
    """A label on one line, or on two if it has a comma; a longer line is clipped."""
    lines = text.split(", ", 1) if len(text) > length else [text]
    return "\n".join(line if len(line) <= length else line[: length - 1] + "…" for line in lines)


def spaced(values: Sequence[float]) -> list[float]:
    """Some of the sorted values, far enough apart for ticks on a logarithmic axis."""
    spaced = [*values[:1]]
    octaves = math.log2(values[-1] / values[0]) if len(values) > 1 and values[0] > 0 else 0.0
    for value in values[1:]:
        if spaced[-1] <= 0 or math.log2(value / spaced[-1]) >= octaves / _MOST_TICKS:
            spaced.append(value)
    return spaced
