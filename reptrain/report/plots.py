"""Figures of a study's tables: the result of a query in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from reptrain.analysis.answers import Fit, FitCurve
from reptrain.analysis.claims import ClaimResult
from reptrain.analysis.text import short_count
from reptrain.report.claim_lines import full_name
from reptrain.report.plot_parts import (
    MOST_NAMED,
    Rows,
    column_of,
    count_axis,
    epoch_axis,
    grouped,
    hover,
    loss_axis,
    mark_epochs,
    shade_of,
    spaced,
    two_lines,
)
from reptrain.report.svg import Paint, axes, tip
from reptrain.study.words import plain, readable_keys
from reptrain.tables.columns import SETTING_PREFIX

_WIDTH_IN, _HEIGHT_IN = 4.6, 3.1
_MOST_TIPS = 300
_LONGEST_VALUE = 32


class OverTokens(NamedTuple):
    """What `curves_over_tokens` draws.

    Attributes:
        mean, lowest, highest: Columns with the mean over the seeds and their range.
        label: Label of the vertical axis.
        unit: Unit in the texts for the pointer.
    """

    mean: str
    lowest: str
    highest: str
    label: str
    unit: str


LOSS = OverTokens("loss_nats", "lowest_nats", "highest_nats", "nats per token", "nats")
"""Columns of `loss_against_tokens`."""
EXPERT_LOAD = OverTokens("expert_load", "lowest", "highest", "load / uniform load", "times a uniform load")
"""Columns of `expert_load`."""
AGREEMENT = OverTokens("agreement", "lowest", "highest", "agreement", "of the tokens")
"""Columns of `router_drawings`."""


def curves_over_tokens(
    table: pa.Table,
    names: Mapping[str, str],
    paint: Paint,
    *,
    what: OverTokens = LOSS,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A quantity of each arm against tokens, with a mark at the end of each epoch.

    Args:
        table: Result of `loss_against_tokens` or `expert_load`, or the data of `router_drawings`.
        names: Label of each arm.
        paint: Colors.
        what: The quantity.
        limits: Smallest and largest value of several figures; None: those of this one.
    """
    groups = by_arm(table, names)
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        tips = sum(map(len, groups.values())) <= _MOST_TIPS
        for index, ((arm,), rows) in enumerate(groups.items()):
            x, y = column_of(rows, "consumed_tokens"), column_of(rows, what.mean)
            plot.plot(x, y, color=shade_of(index, len(groups), paint))
            if any(row["seeds"] > 1 for row in rows):
                plot.fill_between(
                    x, column_of(rows, what.lowest), column_of(rows, what.highest),
                    color=shade_of(index, len(groups), paint), alpha=0.15, linewidth=0,
                )  # fmt: skip
            mark_epochs(plot, rows, what.mean, shade_of(index, len(groups), paint))
            for row in rows if tips else ():
                text = f"{names[str(arm)]}: {row[what.mean]:.3f} {what.unit} at {row['epoch']:.3g} epochs"
                hover(plot, row["consumed_tokens"], row[what.mean], text)
        loss_axis(plot)
        plot.set_ylabel(what.label)
        if limits is not None:
            margin = 0.05 * (limits[1] - limits[0])
            plot.set_ylim(limits[0] - margin, limits[1] + margin)
        plot.set_xlim(left=0)
        plot.set_xlabel("tokens seen")
        plot.xaxis.set_major_locator(MaxNLocator(4))
        plot.xaxis.set_major_formatter(FuncFormatter(short_count))
        return figure


def by_arm(table: pa.Table, names: Mapping[str, str]) -> dict[tuple[Any, ...], Rows]:
    """The rows of each arm of `loss_against_tokens`, in the order of `names`; many arms by epochs first."""
    groups = grouped(table.to_pylist(), ["arm"])
    place = {name: number for number, name in enumerate(names)}
    is_many = len(groups) > MOST_NAMED

    def order(group: tuple[tuple[Any, ...], Rows]) -> tuple[float, int]:
        (arm,), rows = group
        return (rows[-1]["epoch"] if is_many else 0.0, place[arm])

    return dict(sorted(groups.items(), key=order))


def curves_over_epochs(
    tables: Sequence[pa.Table],
    series: Sequence[str],
    names: Mapping[str, str],
    paint: Paint,
    *,
    label: str = "nats per token",
) -> Figure:
    """A metric against epochs. The first table is drawn solid, a second one dashed.

    Args:
        tables: Results of `by_epochs`.
        series: Columns that name a curve.
        names: See `series_label`.
        paint: Colors.
        label: Label of the vertical axis.
    """
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        epochs: set[float] = set()
        for dashed, table in enumerate(tables):
            groups = grouped(table.to_pylist(), series)
            for index, (key, rows) in enumerate(groups.items()):
                shade = shade_of(index, len(groups), paint)
                x, y = column_of(rows, "epochs"), column_of(rows, "mean")
                epochs.update(x)
                plot.plot(x, y, color=shade, linestyle=(0, (3, 2)) if dashed else "-")
                plot.vlines(
                    x, column_of(rows, "lowest"), column_of(rows, "highest"), color=shade, linewidth=1
                )
                for row in rows:
                    name = series_label(key, series, names)
                    text = f"{name + ': ' if name else ''}{row['mean']:.3f} at {row['epochs']:.3g} epochs of "
                    text += f"{row['unique_tokens']:,} tokens, {row['seeds']} seed{'s' * (row['seeds'] > 1)}"
                    plot.plot(
                        row["epochs"], row["mean"], "o", color=shade, markersize=4, gid=tip(text),
                        fillstyle="none" if dashed else "full",
                    )  # fmt: skip
        loss_axis(plot)
        plot.set_ylabel(label)
        epoch_axis(plot, epochs)
        return figure


def heat_map(table: pa.Table, second: str, paint: Paint) -> Figure:
    """Final loss by unique tokens and a second quantity, with the number in each cell.

    Args:
        table: Result of `loss_map`.
        second: Column of the vertical axis.
        paint: Colors.
    """
    rows = table.to_pylist()
    across = sorted({row["unique_tokens"] for row in rows}, reverse=True)
    up = sorted({row[second] for row in rows})
    losses = column_of(rows, "loss_nats")
    low, high = min(losses), max(losses)
    with axes(_WIDTH_IN, max(1.8, 0.9 + 0.55 * len(up)), paint) as (figure, plot):
        for row in rows:
            x, y = across.index(row["unique_tokens"]), up.index(row[second])
            step = round((row["loss_nats"] - low) / (high - low or 1.0) * (len(paint.steps) - 1))
            text = f"{row['loss_nats']:.3f} nats after {row['epochs']:.3g} epochs of {row['unique_tokens']:,}"
            cell = plot.bar(
                x, 1, 0.96, y - 0.5, color=paint.steps[step], linewidth=0, gid=tip(f"{text} tokens")
            )
            cell[0].set_gid(tip(f"{text} tokens, {row['runs']} run{'s' * (row['runs'] > 1)}"))
            ink = paint.panel if step > len(paint.steps) // 2 else paint.ink
            plot.text(x, y, f"{row['loss_nats']:.2f}", ha="center", va="center", color=ink)
        plot.set_xticks(range(len(across)), [short_count(value) for value in across])
        plot.set_yticks(range(len(up)), [short_count(value) for value in up])
        plot.tick_params(length=0)
        plot.spines[:].set_visible(False)
        plot.set_xlabel("unique tokens")
        plot.set_ylabel({"parameters_nonembedding": "parameters"}.get(second, "tokens seen"))
        return figure


def claims_forest(results: Sequence[ClaimResult], paint: Paint) -> Figure:
    """The effect of each claim with its interval, its seeds, and the minimum effect."""
    shown = [(result, effect) for result in results if (effect := result.judged.effect) is not None]
    with axes(_WIDTH_IN, 0.9 + 0.42 * len(shown), paint) as (figure, plot):
        plot.axvline(0, color=paint.rule, linewidth=1)
        for place, (result, effect) in enumerate(reversed(shown)):
            judged = result.judged
            shade = {"supported": paint.good, "contradicted": paint.bad}.get(judged.verdict, paint.muted)
            for unit in judged.units:
                plot.plot(
                    unit.effect, place, "|", color=paint.muted, markersize=7, markeredgewidth=1,
                    gid=tip(f"{unit.unit}: {unit.effect:.3f}"),
                )  # fmt: skip
            if judged.low is not None and judged.high is not None:
                plot.plot([judged.low, judged.high], [place] * 2, color=shade, linewidth=2.4)
            text = f"{full_name(result)}: {judged.verdict}, effect {effect:.3f}"
            plot.plot(effect, place, "o", color=shade, markersize=6, gid=tip(text))
            for bound in _bounds(result):
                plot.plot(
                    [bound] * 2, [place - 0.3, place + 0.3], color=paint.ink, linewidth=1, linestyle=":"
                )
        plot.set_yticks(range(len(shown)), [full_name(result) for result, _ in reversed(shown)])
        plot.set_ylim(-0.6, len(shown) - 0.4)
        plot.tick_params(length=0)
        plot.grid(axis="x")
        plot.set_axisbelow(True)
        plot.spines["left"].set_visible(False)
        plot.set_xlabel("effect: treatment minus control")
        plot.xaxis.set_major_locator(MaxNLocator(5))
        return figure


def _bounds(result: ClaimResult) -> list[float]:
    claim = result.claim
    if claim.direction == "equal":
        return [-claim.minimum_effect, claim.minimum_effect]
    return [-claim.minimum_effect if claim.direction == "less" else claim.minimum_effect]


def bars(table: pa.Table, column: str, names: Mapping[str, str], paint: Paint, *, label: str) -> Figure:
    """One horizontal bar for each arm.

    Args:
        table: Has the columns ``arm`` and `column`.
        column: The length of a bar.
        names: Label of each arm.
        paint: Colors.
        label: Label of the horizontal axis.
    """
    rows = table.to_pylist()[:24]
    labels = [two_lines(names[row["arm"]]) for row in reversed(rows)]
    step_in = 0.46 if any("\n" in text for text in labels) else 0.34
    with axes(_WIDTH_IN, 0.9 + step_in * len(rows), paint) as (figure, plot):
        for place, row in enumerate(reversed(rows)):
            text = f"{names[row['arm']]}: {row[column]:.4g} {label}"
            bar = plot.barh(place, row[column], 0.62, color=paint.arm(0))
            bar[0].set_gid(tip(text))
            plot.annotate(
                f"{row[column]:.3g}", (row[column], place), (4, 0), textcoords="offset points", va="center"
            )
        plot.set_yticks(range(len(rows)), labels)
        plot.tick_params(length=0)
        plot.spines["left"].set_visible(False)
        plot.set_xlabel(label)
        plot.set_xlim(0, 1.15 * max((row[column] for row in rows), default=1) or 1)
        plot.xaxis.set_major_locator(MaxNLocator(3))
        return figure


def tuning_curves(table: pa.Table, paint: Paint) -> Figure:
    """The mean selection loss of each group against one setting, with a ring at the chosen value.

    Args:
        table: Has the columns ``group``, ``setting``, ``value``, ``mean_select_nats`` and ``is_chosen``.
        paint: Colors.
    """
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        groups = grouped(table.to_pylist(), ["group"])
        for index, ((group,), rows) in enumerate(groups.items()):
            shade = shade_of(index, len(groups), paint)
            plot.plot(column_of(rows, "value"), column_of(rows, "mean_select_nats"), color=shade)
            for row in rows:
                text = f"{group}: {row['mean_select_nats']:.3f} nats at {row['value']:g}"
                plot.plot(
                    row["value"], row["mean_select_nats"], "o", color=shade, gid=tip(text),
                    markersize=8 if row["is_chosen"] else 4, fillstyle="none" if row["is_chosen"] else "full",
                )  # fmt: skip
        loss_axis(plot)
        plot.set_xlabel(table["setting"][0].as_py())
        values = sorted({*table["value"].to_pylist()})
        if values[0] > 0:
            plot.set_xscale("log")
        plot.xaxis.set_major_locator(FixedLocator(spaced(values)))
        plot.xaxis.set_minor_locator(NullLocator())
        plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return figure


def fit_curves(fit: Fit, curves: Sequence[FitCurve], paint: Paint) -> Figure:
    """The law's curves through the runs."""
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        for index, curve in enumerate(curves[:MOST_NAMED]):
            plot.plot(curve.x, curve.loss, color=shade_of(index, min(len(curves), MOST_NAMED), paint))
        variable = curves[0].variable
        for residual in fit.residuals:
            text = f"{residual.run}: {residual.loss:.3f} nats, predicted {residual.predicted:.3f}"
            plot.plot(
                residual.variables[variable],
                residual.loss,
                "o",
                color=paint.ink,
                markersize=3.5,
                gid=tip(text),
            )
        plot.set_xscale("log")
        loss_axis(plot)
        plot.set_xlabel(fit.columns.get(variable, variable).replace("_", " "))
        count_axis(plot, [residual.variables[variable] for residual in fit.residuals])
        return figure


def fit_residuals(fit: Fit, paint: Paint) -> Figure:
    """Predicted minus measured loss against the measured loss; runs that were held out are rings."""
    held_out = fit.holdout.residuals if fit.holdout is not None else []
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        plot.axhline(0, color=paint.rule, linewidth=1)
        for residual, ring in [*((r, False) for r in fit.residuals), *((r, True) for r in held_out)]:
            text = f"{residual.run}: {residual.error:+.3f} nats{' (held out)' if ring else ''}"
            plot.plot(
                residual.loss, residual.error, "o", color=paint.arm(int(ring)), markersize=4 + ring,
                fillstyle="none" if ring else "full", gid=tip(text),
            )  # fmt: skip
        plot.grid(axis="y")
        plot.set_axisbelow(True)
        plot.tick_params(length=0)
        plot.set_xlabel("measured nats per token")
        plot.set_ylabel("predicted minus measured")
        plot.xaxis.set_major_locator(MaxNLocator(5))
        plot.yaxis.set_major_locator(MaxNLocator(5))
        return figure


def scatter(
    points: Sequence[tuple[float, float, str, str]], xlabel: str, ylabel: str, paint: Paint
) -> Figure:
    """Points with a label and a text for the pointer each: (x, y, label, text)."""
    with axes(_WIDTH_IN, _HEIGHT_IN, paint) as (figure, plot):
        for x, y, name, text in points:
            plot.plot(x, y, "o", color=paint.arm(0), markersize=5, gid=tip(text))
            plot.annotate(name, (x, y), (5, 4), textcoords="offset points", color=paint.muted, fontsize=9)
        plot.margins(0.12)
        plot.grid()
        plot.set_axisbelow(True)
        plot.tick_params(length=0)
        plot.set_xlabel(xlabel)
        plot.set_ylabel(ylabel)
        plot.xaxis.set_major_locator(MaxNLocator(4))
        plot.yaxis.set_major_locator(MaxNLocator(5))
        return figure


def legend(labels: Sequence[str], *, always: bool = False) -> list[tuple[str, str]]:
    """Colors of few curves by name; of many curves, the first and the last, and the number in between."""
    if len(labels) <= 1 and not always:
        return []
    if len(labels) <= MOST_NAMED:
        return [(f"arm-{index + 1}", label) for index, label in enumerate(labels)]
    between = f"{len(labels) - 2} curves in between"
    return [("step-3", labels[0]), ("step-6", between), ("step-9", labels[-1])]


def series_label(key: Sequence[Any], series: Sequence[str], names: Mapping[str, str]) -> str:
    """A curve in words: ``d_model 128, dropout.residual 0.1``; a named arm by its name.

    Args:
        key: The values of the columns.
        series: The columns that name a curve.
        names: Label of each setting that is a mapping, by its text in the table.
    """
    short = readable_keys(column.removeprefix(SETTING_PREFIX) for column in series)
    parts = []
    for column, value in zip(series, key, strict=True):
        name = column.removeprefix(SETTING_PREFIX)
        if str(value) in names:
            parts.append(names[str(value)])
        else:
            parts.append(_value(value) if name == "entry" else f"{short[name]} {_value(value)}")
    return ", ".join(parts)


def _value(value: Any) -> str:
    text = plain(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
