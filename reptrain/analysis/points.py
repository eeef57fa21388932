"""From a table to the points of a fit: columns by variable, checked values, clusters, hold-out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reptrain.analysis.laws import Law
from reptrain.analysis.laws.base import Floats
from reptrain.analysis.questions import Holdout
from reptrain.analysis.tables import column, numbers, refuse_mixed, rows_at, values_of
from reptrain.errors import AnalysisError

COLUMNS = {"N": "parameters_nonembedding", "D": "consumed_tokens", "U": "unique_tokens"}
"""The columns of a study's table of runs for the usual variables."""
METRIC = "loss_report_final_nats"
"""The loss that is fitted unless another is named."""
_NAMES = ("run", "name")


@dataclass(frozen=True)
class Points:
    """The runs of a fit.

    Args:
        labels: Name of each run.
        variables: Values of the law's variables, float64, shape (points,).
        loss: Measured loss in nats, float64, shape (points,).
        clusters: Number of the cluster of each run, from 0, shape (points,).
        left_out: Number of rows without a loss.
        columns: The column behind each variable.
        metric: The column of the loss.
        table: The rows of the points.
    """

    labels: tuple[str, ...]
    variables: Mapping[str, Floats]
    loss: Floats
    clusters: NDArray[np.int64]
    left_out: int
    columns: Mapping[str, str]
    metric: str
    table: pa.Table

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def logs(self) -> dict[str, Floats]:
        """Logarithms of the variables."""
        return {name: np.log(values) for name, values in self.variables.items()}

    @property
    def num_clusters(self) -> int:
        """Number of independent units."""
        return len(np.unique(self.clusters))

    @property
    def num_settings(self) -> int:
        """Number of distinct settings of the variables."""
        return len(np.unique(self.settings))

    @property
    def arms(self) -> NDArray[np.int64]:
        """Number of the arm of each run: runs that differ in their seed alone share one.

        The arm is the column `arm`, or else, if there is a column `seed`, all settings of the table. Two runs
        may have equal variables of a law and still be different arms.
        """
        names = self.table.column_names
        if "arm" in names:
            keys = [values_of(self.table, "arm")]
        elif "seed" in names:
            known = {*self.columns.values(), *COLUMNS.values()}
            used = [name for name in names if name in known or name.startswith("set.")]
            keys = [values_of(self.table, name) for name in used]
        else:
            return np.arange(len(self))
        rows = np.array([repr(row) for row in zip(*keys, strict=True)])
        return np.asarray(np.unique(rows, return_inverse=True)[1], np.int64).ravel()

    @property
    def settings(self) -> NDArray[np.int64]:
        """Number of the setting of the law's variables, for each run."""
        stacked = np.stack(list(self.variables.values()))
        _, numbers = np.unique(stacked, axis=1, return_inverse=True)
        return np.asarray(numbers, np.int64).ravel()

    def at(self, keep: NDArray[np.bool_]) -> Points:
        """A part of the points."""
        return Points(
            tuple(label for label, kept in zip(self.labels, keep, strict=True) if kept),
            {name: values[keep] for name, values in self.variables.items()},
            self.loss[keep],
            np.unique(self.clusters[keep], return_inverse=True)[1].astype(np.int64).ravel(),
            self.left_out,
            self.columns,
            self.metric,
            rows_at(self.table, keep),
        )


_UNFINISHED = ("running", "killed", "failed", "preempted", "not run", "damaged", "other config")


def points_of(
    table: pa.Table,
    law: Law,
    *,
    metric: str = METRIC,
    columns: Mapping[str, str] | None = None,
    cluster: str | None = None,
) -> Points:
    """The points of a fit, checked.

    Args:
        table: One row per run. Runs without a loss, or with a `status` other than `done`, are left out.
        law: The law, which names its variables.
        metric: Column of the loss in nats.
        columns: Column of each variable, where it is not the one of a study's table.
        cluster: Column that names the unit of the bootstrap. Default: the column `cluster` if there is one,
            else each run is a unit.

    Raises:
        AnalysisError: If a column is missing, a value is NaN, infinite, zero or negative, or runs are not
            comparable (other `numerics_version` or `measure`).
    """
    chosen = variable_columns(law, columns or {})
    present = ~np.asarray(column(table, metric).is_null().to_numpy(zero_copy_only=False), bool)
    if "status" in table.column_names:
        # The last loss of an unfinished run is not that of its budget.
        present &= np.array([status not in _UNFINISHED for status in values_of(table, "status")], bool)
    if not present.any():
        raise AnalysisError(
            f"column {metric}",
            got="no values in finished runs",
            rule="must have a value in at least one row",
            remedy="Run the study first, or name another metric.",
        )
    kept = rows_at(table, present)
    refuse_mixed(kept, ("numerics_version", "measure"))
    names = next((name for name in _NAMES if name in kept.column_names), None)
    labels = tuple(str(v) for v in values_of(kept, names)) if names else _numbered(present)
    loss = _positive(kept, metric, labels, "The loss must be the mean nats of a finished run.")
    variables = {
        name: _positive(kept, source, labels, f"{name} of the law is read from it; name another column.")
        for name, source in chosen.items()
    }
    if "U" in variables and "D" in variables:
        # A run that saw less than one epoch has seen only its tokens.
        variables["U"] = np.minimum(variables["U"], variables["D"])
    if cluster is None and "cluster" in table.column_names:
        cluster = "cluster"
    units = values_of(kept, cluster) if cluster else list(range(len(labels)))
    _, codes = np.unique(np.array([str(unit) for unit in units]), return_inverse=True)
    left_out = int((~present).sum())
    return Points(labels, variables, loss, codes.astype(np.int64), left_out, chosen, metric, kept)


def variable_columns(law: Law, columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each variable of a law.

    Args:
        law: The law.
        columns: Columns of variables by name; the others are those of a study's table.

    Raises:
        AnalysisError: If the law has no such variable, or a variable has no column.
    """
    unknown = [name for name in columns if name not in law.variables]
    if unknown:
        raise AnalysisError(
            f"variables of the law {law.name}",
            got=", ".join(unknown),
            rule=f"must be among {', '.join(law.variables)}",
            remedy="Remove the other columns.",
        )
    missing = [name for name in law.variables if name not in columns and name not in COLUMNS]
    if missing:
        raise AnalysisError(
            f"columns of the law {law.name}",
            got=f"none for {', '.join(missing)}",
            rule="must name a column for each variable",
            remedy=f"Add {missing[0]}=COLUMN.",
        )
    return {name: columns.get(name, COLUMNS.get(name, "")) for name in law.variables}


def _numbered(present: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(f"row {place + 1}" for place in np.flatnonzero(present))


def _positive(table: pa.Table, name: str, labels: tuple[str, ...], remedy: str) -> Floats:
    values = numbers(table, name)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0.0)))
    if len(wrong):
        first = int(wrong[0])
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise AnalysisError(
            f"column {name}",
            got=f"{values[first]:g} in {labels[first]}{more}",
            rule="must be finite and above zero in every run",
            remedy=f"Remove or fix the row. {remedy}",
        )
    return values


def held_out(points: Points, rule: Holdout) -> NDArray[np.bool_]:
    """Which points a fit does not see.

    Args:
        points: All points.
        rule: The largest runs (by `train_flops`, else by the product of N and D, or of all variables) with
            all seeds of their arms, or those with a true value in a column.

    Raises:
        AnalysisError: If no point is held out, or none is left.
    """
    if rule.column is not None:
        chosen = np.array([_is_true(value) for value in values_of(points.table, rule.column)], bool)
    else:
        assert rule.largest is not None
        chosen = np.zeros(len(points), bool)
        chosen[np.argsort(_size(points), kind="stable")[::-1][: rule.largest]] = True
        # Another seed of the same arm would give its loss away.
        chosen |= np.isin(points.arms, points.arms[chosen])
    if not chosen.any() or chosen.all():
        raise AnalysisError(
            "hold-out",
            got=f"{int(chosen.sum())} of {len(points)} runs",
            rule="must hold out at least one run and leave at least one",
            remedy="Change the rule of the hold-out.",
        )
    return chosen


def _is_true(value: object) -> bool:
    return value.lower() in ("true", "test", "holdout", "1") if isinstance(value, str) else bool(value)


def _size(points: Points) -> Floats:
    if "train_flops" in points.table.column_names:
        flops = numbers(points.table, "train_flops")
        if np.isfinite(flops).all():
            return flops
    names = [name for name in ("N", "D") if name in points.variables] or list(points.variables)
    return np.asarray(np.prod([points.variables[name] for name in names], axis=0))
