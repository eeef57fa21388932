"""The figures of a report, each with its data, the query behind it, and a file for print."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from matplotlib.figure import Figure

from reptrain.analysis import views
from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.claims import ClaimResult
from reptrain.analysis.proxy import compare, sweeps_of_claim
from reptrain.analysis.views import View
from reptrain.errors import AnalysisError
from reptrain.files import write_atomically
from reptrain.report import plots
from reptrain.report.claim_lines import pair_sentence
from reptrain.report.plot_parts import MOST_NAMED
from reptrain.report.svg import PAGE, PRINT, Paint, to_print, to_svg


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        name: A file name, unique in the report.
        title: Its title.
        draw: Draws it in some colors.
        data: Its data.
        query: The SQL query or the command that gives the data.
        note: What the marks mean.
        legend: (color variable, label) of each curve.
    """

    name: str
    title: str
    draw: Callable[[Paint], Figure]
    data: pa.Table
    query: str
    note: str = ""
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)

    @property
    def svg(self) -> str:
        """The figure for the page."""
        return to_svg(self.draw(PAGE), name=self.name, description=self.title)

    @property
    def csv(self) -> bytes:
        """The data as CSV."""
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(self.data, buffer)
        return buffer.getvalue()

    @property
    def csv_uri(self) -> str:
        """The data as a link that the page carries itself."""
        return f"data:text/csv;base64,{base64.b64encode(self.csv).decode()}"


def write_files(drawings: Sequence[Drawing], folder: Path) -> None:
    """Write each figure as NAME.pdf, NAME.png, NAME.csv and NAME.sql."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        figure = drawing.draw(PRINT)
        for suffix, content in (
            ("pdf", to_print(figure, "pdf")),
            ("png", to_print(figure, "png")),
            ("csv", drawing.csv),
            ("sql", drawing.query.encode() + b"\n"),
        ):
            write_atomically(folder / f"{drawing.name}.{suffix}", content)


def study_drawings(runs: pa.Table, evaluations: pa.Table, names: Mapping[str, str]) -> list[Drawing]:
    """The figures that any study has data for.

    Args:
        runs: The table of runs.
        evaluations: The table of evaluations.
        names: Label of each arm, and of each setting that is a mapping by its text in the table.
    """
    drawings = [
        *_tokens(views.loss_against_tokens(runs, evaluations), runs, names),
        *_epochs(runs, names),
        _map(views.loss_map(runs)),
        _gap(views.gap(runs), names),
        _load(views.expert_load(runs, evaluations), names),
        _cost(views.cost(runs), names),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _tokens(view: View, runs: pa.Table, names: Mapping[str, str]) -> list[Drawing]:
    """One figure, or one for each curve over epochs if there are many arms."""
    title = "Held-out loss against tokens seen"
    arms = [arm for (arm,) in plots.by_arm(view.table, names)]
    series = _arms_by_series(runs, arms, names) if len(arms) > MOST_NAMED else {}
    if not 1 < len(series) <= MOST_NAMED:
        return [_tokens_of(view, names, view.name, title)] if arms else []
    losses = [row[plots.LOSS.mean] for row in view.table.to_pylist()]
    limits = (min(losses), max(losses))
    drawings = []
    for number, (label, members) in enumerate(series.items(), 1):
        wanted = ", ".join(f"'{arm}'" for arm in sorted(members))
        chosen = view.table.filter(pc.is_in(view.table["arm"], pa.array(members)))
        of_series = View(
            view.name, f"SELECT * FROM (\n{view.sql}\n) WHERE arm IN ({wanted})", chosen, view.series
        )
        name, full = f"{view.name}-{number}", f"{title}: {label}"
        drawings.append(_tokens_of(of_series, names, name, full, limits))
    return drawings


def _tokens_of(
    view: View,
    names: Mapping[str, str],
    name: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    arms = [arm for (arm,) in plots.by_arm(view.table, names)]
    return Drawing(
        name,
        title,
        partial(plots.curves_over_tokens, view.table, names, limits=limits),
        view.table,
        view.sql,
        "Means over the seeds, with their range. Marks: ends of epochs, or of 1, 2, 4, 8 … epochs.",
        # A part of the arms needs a legend even if it has one curve.
        plots.legend([names[arm] for arm in arms], always=limits is not None),
    )


def _arms_by_series(runs: pa.Table, arms: Sequence[str], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Some arms, in their order, by the curve over epochs that they are on; by its first key if there are
    many."""
    keys = views.curve_keys(runs)
    rows = {row["arm"]: row for row in runs.select(["arm", *keys]).to_pylist()}
    if len({tuple(str(rows[arm][key]) for key in keys) for arm in arms}) > MOST_NAMED:
        keys = keys[:1]
    series: dict[str, list[str]] = {}
    for arm in arms:
        label = plots.series_label([rows[arm][key] for key in keys], keys, names)
        series.setdefault(label, []).append(arm)
    return series


def _epochs(runs: pa.Table, names: Mapping[str, str]) -> list[Drawing | None]:
    final = views.by_epochs(runs, "loss-against-epochs", "loss_report_final_nats")
    best = views.by_epochs(runs, "loss-against-epochs-best", "loss_report_best_nats")
    if not _has_epochs(final):
        return [None]
    return [
        Drawing(
            final.name,
            "Held-out loss against epochs",
            partial(plots.curves_over_epochs, [final.table, best.table], final.series, names),
            final.table,
            final.sql,
            "Solid: end of training. Dashed: where the selection split is lowest. Lines: range of the seeds.",
            _series_legend(final, names),
        )
    ]


def _has_epochs(view: View) -> bool:
    """Whether there are several numbers of epochs to draw against."""
    return len({*view.table["epochs"].to_pylist()}) > 1


def _map(view: View | None) -> Drawing | None:
    if view is None or view.table.num_rows < 4:
        return None
    return Drawing(
        view.name,
        "Final held-out loss by unique tokens and size",
        partial(plots.heat_map, view.table, view.series[0]),
        view.table,
        view.sql,
        "Nats per token, a mean over runs. To the right there is less text, which is repeated more often.",
    )


def _gap(view: View, names: Mapping[str, str]) -> Drawing | None:
    if not _has_epochs(view):
        return None
    return Drawing(
        view.name,
        "Generalization gap against epochs",
        partial(plots.curves_over_epochs, [view.table], view.series, names, label="gap, nats per token"),
        view.table,
        view.sql,
        "Final loss on held-out text minus final loss on training text.",
        _series_legend(view, names),
    )


def _load(view: View | None, names: Mapping[str, str]) -> Drawing | None:
    if view is None:
        return None
    return Drawing(
        view.name,
        "Load of the busiest expert against tokens seen",
        partial(plots.curves_over_tokens, view.table, names, what=plots.EXPERT_LOAD),
        view.table,
        view.sql,
        "In the worst layer, since the previous evaluation; 1 is a uniform load. Means over the seeds, with"
        " their range. Marks: ends of epochs, as in the figure of the loss.",
        plots.legend([names[arm] for (arm,) in plots.by_arm(view.table, names)]),
    )


def _cost(view: View, names: Mapping[str, str]) -> Drawing | None:
    if view.table.num_rows < 1:
        return None
    return Drawing(
        view.name,
        "Training time",
        partial(plots.bars, view.table, "device_hours", names, label="device-hours"),
        view.table,
        view.sql,
        "Time in training steps times devices, all seeds together. The CSV has FLOPs, speed and money.",
    )


def claims_drawing(results: Sequence[ClaimResult], command: str) -> Drawing | None:
    """Effects with their intervals; None if no claim has an effect."""
    if not any(result.judged.effect is not None for result in results):
        return None
    return Drawing(
        "claims",
        "Effects and their intervals",
        partial(plots.claims_forest, results),
        claims_table(results),
        command,
        "Dot: mean effect. Bar: interval after all corrections. Ticks: seeds. Dotted: minimum effect.",
    )


def claims_table(results: Sequence[ClaimResult]) -> pa.Table:
    """One row for each claim and checkpoint."""
    rows = [
        {
            **({"study": result.study} if result.study else {}),
            "claim": result.claim.name,
            "family": result.claim.family,
            "direction": result.claim.direction,
            "minimum_effect": result.claim.minimum_effect,
            **judged.model_dump(exclude={"units", "runs", "excluded"}),
        }
        for result in results
        for judged in (result.judged, result.other_checkpoint)
        if judged is not None
    ]
    return pa.Table.from_pylist(rows)


def proxy_drawings(results: Sequence[ClaimResult], runs: pa.Table, command: str) -> list[Drawing]:
    """For each claim of the kind ``regret``: the target's loss against the proxy's, at each setting."""
    drawings = []
    for result in results:
        claim = result.claim
        try:
            proxy, target = sweeps_of_claim(runs, claim)
        except AnalysisError:
            continue
        rows = [
            {"value": value, "proxy_loss": loss, "target_loss": target.losses[value]}
            for value, loss in sorted(proxy.losses.items())
            if value in target.losses
        ]
        points = [
            (r["proxy_loss"], r["target_loss"], f"{r['value']:g}", f"{r['value']:g}: {r['target_loss']:.3f}")
            for r in rows
        ]
        if points:
            drawings.append(
                Drawing(
                    f"proxy-{claim.name}",
                    f"{claim.name}: target against proxy",
                    partial(plots.scatter, points, "loss of the proxy, nats", "loss of the target, nats"),
                    pa.Table.from_pylist(rows),
                    command,
                    f"Each dot is a value of the setting. {pair_sentence(compare(proxy, target))}.",
                )
            )
    return drawings


def fit_drawings(answers: Sequence[FitAnswer], command: str) -> list[Drawing]:
    """The curves and residuals of each fit."""
    drawings = []
    for answer in answers:
        fit = answer.fit
        if fit is None:
            continue
        rows = [
            {"run": r.run, "held_out": held, **r.variables, "loss": r.loss, "predicted": r.predicted}
            for held, residuals in (
                (False, fit.residuals),
                (True, fit.holdout.residuals if fit.holdout else []),
            )
            for r in residuals
        ]
        data = pa.Table.from_pylist(rows)
        if answer.curves:
            drawings.append(
                Drawing(
                    f"fit-{answer.name}",
                    f"{answer.name}: {fit.law} law through the runs",
                    partial(plots.fit_curves, fit, answer.curves),
                    data,
                    command,
                    "Dots: runs. Lines: the law.",
                    plots.legend([curve.label for curve in answer.curves[:MOST_NAMED]]),
                )
            )
        drawings.append(
            Drawing(
                f"fit-{answer.name}-residuals",
                f"{answer.name}: residuals",
                partial(plots.fit_residuals, fit),
                data,
                command,
                "Predicted minus measured loss." + (" Rings: held-out runs." if fit.holdout else ""),
            )
        )
    return drawings


def _series_legend(view: View, names: Mapping[str, str]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(tuple(row[name] for name in view.series) for row in view.table.to_pylist())
    return plots.legend([plots.series_label(key, view.series, names) for key in keys])
