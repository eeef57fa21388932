"""The report's figures, one function each: rows of a study in, inline SVG out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from reptrain.analysis.text import short_count
from reptrain.report.svg import INK, MUTED, axes, color, to_svg
from reptrain.study.collect import ArmRow, LossCurve
from reptrain.study.words import label

_WIDTH_IN, _HEIGHT_IN = 4.6, 3.1
# Ticks of more epochs would overlap.
_MOST_EPOCH_TICKS = 128


def held_out_curve(row: ArmRow) -> LossCurve:
    """The curve on the report split, or on the selection split if the report split was not scored."""
    return row.report if row.report.nats else row.select


def loss_limits(rows: Sequence[ArmRow]) -> tuple[float, float]:
    """The range of nats per token over all curves, with a margin; all panels share it."""
    curves = [curve for row in rows for curve in (row.probe, held_out_curve(row))]
    nats = [value for curve in curves for value in curve.nats if math.isfinite(value)]
    low, high = (min(nats), max(nats)) if nats else (0.0, 1.0)
    margin = 0.06 * (high - low or 1.0)
    return max(0.0, low - margin), high + margin


def arm_figure(row: ArmRow, index: int, limits: tuple[float, float]) -> str:
    """Loss of one arm on its training probe and on held-out text, with a tick at the end of each epoch.

    Args:
        row: The arm.
        index: Index of the arm, which sets its color.
        limits: Smallest and largest nats per token of the panel.
    """
    with axes(_WIDTH_IN, _HEIGHT_IN) as (figure, plot):
        held_out = held_out_curve(row)
        plot.plot(row.probe.tokens, row.probe.nats, color=color(index), linestyle=(0, (3, 2)))
        plot.plot(held_out.tokens, held_out.nats, color=color(index))
        _mark_best(plot, row, held_out, index)
        _loss_axes(plot, limits)
        # To the end of the plan, so that a run in progress shows its remaining part.
        plot.set_xlim(0, 1.04 * max(row.total_tokens or 0, row.tokens, 1))
        _label_ends(plot, [("held-out", held_out), ("training", row.probe)])
        _epoch_ticks(plot, row)
        text = f"Training and held-out loss of {label(row)} against tokens seen"
        return to_svg(figure, name=f"arm-{row.arm}", description=text)


def exposures_figure(rows: Sequence[ArmRow]) -> str:
    """Tokens of each arm's subset by their number of uses, as counted by the audits."""
    audited = [(index, row.exposures) for index, row in enumerate(rows) if row.exposures]
    times = sorted({number for _, exposures in audited for number in exposures})
    width = 0.8 / max(1, len(audited)) if len(times) < sum(len(e) for _, e in audited) else 0.5
    with axes(_WIDTH_IN, _HEIGHT_IN) as (figure, plot):
        for place, (index, exposures) in enumerate(audited):
            shift = (place - (len(audited) - 1) / 2) * width if width < 0.5 else 0.0
            at = [times.index(number) + shift for number in exposures]
            plot.bar(at, [*exposures.values()], width=width, color=color(index))
            if width == 0.5:
                for x, tokens in zip(at, exposures.values(), strict=True):
                    plot.text(x, tokens * 1.15, f"{tokens:,}", ha="center", color=INK)
        plot.set_yscale("log")
        most = max(tokens for _, exposures in audited for tokens in exposures.values())
        plot.set_ylim(1, most * 4)
        plot.set_xlim(-0.7, len(times) - 0.3)
        plot.set_xticks(range(len(times)), [f"{number:,}" for number in times])
        plot.tick_params(which="both", length=0)
        plot.yaxis.set_minor_locator(NullLocator())
        plot.yaxis.set_major_formatter(FuncFormatter(short_count))
        plot.set_xlabel("uses of a token")
        plot.set_ylabel("tokens")
        return to_svg(figure, name="exposures", description="Tokens by number of uses")


def _loss_axes(plot: Axes, limits: tuple[float, float]) -> None:
    plot.set_ylim(*limits)
    plot.set_xlim(left=0)
    plot.set_xlabel("tokens seen")
    plot.set_ylabel("nats per token")
    plot.grid(axis="y")
    plot.set_axisbelow(True)
    plot.tick_params(length=0)
    plot.xaxis.set_major_locator(MaxNLocator(4))
    plot.yaxis.set_major_locator(MaxNLocator(5))
    plot.xaxis.set_major_formatter(FuncFormatter(short_count))


def _mark_best(plot: Axes, row: ArmRow, held_out: LossCurve, index: int) -> None:
    if row.best_tokens in held_out.tokens:
        nats = held_out.nats[held_out.tokens.index(row.best_tokens)]
        plot.plot(row.best_tokens, nats, "o", color=color(index), markersize=7, fillstyle="none")


def _label_ends(plot: Axes, curves: Sequence[tuple[str, LossCurve]]) -> None:
    """Names and last values at the right ends of the curves, without overlap."""
    ends = [(name, curve.tokens[-1], curve.nats[-1]) for name, curve in curves if curve.nats]
    heights = spread([nats for _, _, nats in ends], gap=0.085 * float(np.ptp(plot.get_ylim())))
    for (name, tokens, nats), height in zip(ends, heights, strict=True):
        plot.annotate(
            f"{name} {nats:.2f}", (tokens, height), (6, 0), textcoords="offset points", va="center", color=INK
        )


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Heights moved apart to at least ``gap``, in their order, around the same mean."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    shift = (sum(heights) - sum(moved)) / len(heights) if heights else 0.0
    return [height + shift for height in moved]


def _epoch_ticks(plot: Axes, row: ArmRow) -> None:
    """A short tick above the axis at the end of every epoch."""
    if not row.epochs or not row.unique_tokens or row.epochs > _MOST_EPOCH_TICKS:
        return
    ends = [row.unique_tokens * epoch for epoch in range(1, math.floor(row.epochs) + 1)]
    plot.vlines(ends, 0, 0.03, transform=plot.get_xaxis_transform(), color=MUTED, linewidth=0.8)
