"""Runs as rows: which can be used, which match a selection, how they group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reptrain.analysis.questions import Claim, Scalar, Void
from reptrain.analysis.tables import ROLE
from reptrain.errors import AnalysisError
from reptrain.tables.columns import MAIN

VARIED = "set."
"""Prefix of the columns that hold the keys which a study varies."""
_EXACT = "exact"


@dataclass(frozen=True)
class Run:
    """One row of a table of runs.

    Attributes:
        name: The run's name.
        seed: Its seed.
        cluster: Runs of one cluster share a prefix of their training.
        values: All columns of the row.
    """

    name: str
    seed: int
    cluster: str
    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """The value of a varied key or of a column; None if the table has neither."""
        varied = self.values.get(VARIED + key)
        return self.values.get(key) if varied is None else varied

    def number(self, key: str) -> float:
        """A value as a float; NaN if it is missing."""
        value = self[key]
        return math.nan if value is None else float(value)


class NoRunsError(Exception):
    """Why a claim has no effects."""


def runs_of(table: pa.Table) -> list[Run]:
    """The rows of a table of runs.

    Raises:
        AnalysisError: If the table has no seeds, or mixes runs of several versions of the numerics.
    """
    if "seed" not in table.column_names:
        raise AnalysisError(
            "table of runs",
            got=f"the columns {', '.join(table.column_names)}",
            rule="must have a column seed",
            remedy="Use the table runs.parquet of a study.",
        )
    runs = [_run(index, row) for index, row in enumerate(table.to_pylist())]
    refuse_versions(runs)
    return runs


def refuse_versions(runs: Sequence[Run]) -> None:
    """Refuse runs of several versions of the numerics.

    Raises:
        AnalysisError: Naming a run of each version.
    """
    versions = {run["numerics_version"]: run.name for run in runs if run["numerics_version"] is not None}
    if len(versions) > 1:
        raise AnalysisError(
            "numerics_version of the runs",
            got=", ".join(f"{version} in {name}" for version, name in sorted(versions.items())),
            rule="must be the same in all runs that are compared",
            remedy="Run the older arms again, or remove them from the table.",
        )


def runs_of_studies(by_study: Mapping[str, Sequence[Run]]) -> list[Run]:
    """The runs of several studies as one list, in which names and clusters start with the study.

    Raises:
        AnalysisError: If they mix several versions of the numerics.
    """
    runs = [
        Run(f"{study}/{run.name}", run.seed, f"{study}/{run.cluster}", {**run.values, "study": study})
        for study, of_study in by_study.items()
        for run in of_study
    ]
    refuse_versions(runs)
    return runs


def _run(index: int, row: dict[str, Any]) -> Run:
    name = str(row.get("run") or row.get("arm") or f"row {index}")
    return Run(name, int(row["seed"]), str(row.get("cluster") or name), row)


def runs_for(runs: Iterable[Run], claim: Claim) -> list[Run]:
    """The runs that a claim selects from: main runs, unless it names the column role."""
    asks = ROLE in claim.columns()
    return [run for run in runs if matches(run, claim.where) and (asks or run[ROLE] in (MAIN, None))]


def matches(run: Run, selection: Mapping[str, Scalar | list[Scalar]]) -> bool:
    """Whether a run has all values of a selection."""
    return all(
        any(same(run[key], choice) for choice in (wanted if isinstance(wanted, list) else [wanted]))
        for key, wanted in selection.items()
    )


def same(value: Any, wanted: Any) -> bool:
    """Whether two values of a key are equal; numbers to a relative 1e-9."""
    if _is_number(value) and _is_number(wanted):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return type(value) is type(wanted) and bool(value == wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def words(selection: Mapping[str, Any]) -> str:
    """A selection as text."""
    return ", ".join(f"{key} = {value}" for key, value in selection.items()) or "any value"


def usable(run: Run, void: Sequence[Void], metric: str, excluded: dict[str, str]) -> bool:
    """Whether a run can enter a claim; if not, its name and the reason are added to `excluded`."""
    reason = _why_not(run, void, metric)
    if reason is not None:
        excluded[run.name] = reason
    return reason is None


def _why_not(run: Run, void: Sequence[Void], metric: str) -> str | None:
    status, audit = run["status"], run["audit_verdict"]
    if status not in (None, "done"):
        return str(status)
    if audit not in (None, _EXACT):
        return f"audit: {audit}"
    for rule in void:
        value = run.number(rule.column)
        if (rule.above is not None and value > rule.above) or (rule.below is not None and value < rule.below):
            return rule.reason or f"{rule.column} is {value:g}"
    value = run.number(metric)
    return None if math.isfinite(value) else f"{metric} is {'missing' if math.isnan(value) else value}"


def varied_keys(runs: Iterable[Run]) -> list[str]:
    """The keys that a study varies, without the seed."""
    columns = dict.fromkeys(column for run in runs for column in run.values if column.startswith(VARIED))
    return [column.removeprefix(VARIED) for column in columns if column != f"{VARIED}seed"]


def grouped(runs: Iterable[Run], keys: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """Runs by their values of some keys."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(setting(run, keys), []).append(run)
    return groups


def setting(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    """The values of some keys as texts that can be compared."""
    return tuple(_text(run[key]) for key in keys)


def _text(value: Any) -> str:
    return repr(float(value)) if _is_number(value) else repr(value)


def mean_of(runs: Sequence[Run], metric: str) -> float:
    """Mean of a column over runs."""
    return float(np.mean([run.number(metric) for run in runs]))


def complete_seeds(runs: Sequence[Run], excluded: dict[str, str]) -> list[int]:
    """The seeds in which every arm of the contrast has a run; the others are named."""
    keys = varied_keys(runs)
    arms = {_identity(run, keys): run["arm"] or run.name for run in runs}
    has = {
        seed: {_identity(run, keys) for run in runs if run.seed == seed} for seed in {r.seed for r in runs}
    }
    for seed, settings in sorted(has.items()):
        lacking = [str(arm) for setting, arm in arms.items() if setting not in settings]
        if lacking:
            excluded[f"seed {seed}"] = f"no usable run of {', '.join(lacking[:3])}" + (
                f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            )
    complete = sorted(seed for seed, settings in has.items() if len(settings) == len(arms))
    if not complete:
        raise NoRunsError("no seed has a finished run on both sides")
    return complete


def _identity(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    return (str(run["study"]), str(run["arm"]), *setting(run, keys))
