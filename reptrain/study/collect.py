"""The table of a study, read from its run folders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from reptrain.errors import RunError
from reptrain.files import read_small
from reptrain.reading import parse_json
from reptrain.runs.folder import RunFolder
from reptrain.runs.metrics import TrainRecord, ValidRecord
from reptrain.runs.records import FrozenRecord
from reptrain.study.arm import Arm
from reptrain.study.chains import training_fingerprints
from reptrain.study.done_table import load_copies
from reptrain.study.graph import store_fingerprints
from reptrain.study.paths import difference, is_run_of, run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.tuning import tuned_arms
from reptrain.tables import RunReading
from reptrain.tables.losses import at_step, best_evaluation, loss_measure

RowState = Literal[
    "waiting", "created", "running", "done", "failed", "preempted", "other config", "other numerics"
]
SetName = Literal["probe", "select", "report"]


class LossCurve(FrozenRecord):
    """The loss on one set over the run.

    Attributes:
        tokens: Tokens consumed at each evaluation.
        nats: Nats per token.
    """

    tokens: tuple[int, ...] = ()
    nats: tuple[float, ...] = ()

    @property
    def last(self) -> float | None:
        """The loss at the last evaluation."""
        return self.nats[-1] if self.nats else None


class ArmRow(FrozenRecord):
    """The results of one arm of a study. None: not known. Losses are in nats per token, without dropout.

    For a mixture, tokens are summed over its sources, and losses are those of one source: the first by name
    whose store all runs of the study share, else the first.

    Attributes:
        arm: Its name.
        values: What distinguishes the arm: ``arm``, the name of its entry, and the value of each axis by
            dotted key, with each mapping replaced by its settings that differ between arms.
        seed: Seed of the run.
        state: State of the run. ``other config``: its folder holds another configuration; ``other
            numerics``: a run of another `numerics_version`. Neither is read.
        is_elsewhere: Whether it is done in another study, whose folder has the run (``--done``).
        reason: Why it failed or was preempted.
        unique_tokens: U.
        epochs: Planned passes over the subset.
        total_tokens: Planned tokens of the run, repeats counted.
        tokens: Tokens consumed at the last evaluation or step.
        probe: Curve on the fixed probe of training windows.
        select: Curve on the selection split.
        report: Curve on the report split.
        start_nats: Loss before the first step, on `report`, or on `select` if `report` was not scored.
        best_select_nats: The lowest loss on `select` after the first step.
        best_tokens: Tokens consumed at that evaluation.
        best_report_nats: Loss on `report` at that evaluation.
        best_scores: Every score at that evaluation by name, on `report`, or on `select` if `report` was not
            scored.
        gap_nats: Last loss on `select` minus last loss on the probe.
        tokens_per_s: Median training speed.
        measure: Fingerprint of held-out text, objective and window. Losses with different measures are not
            comparable.
        audit_exact: Whether the audit found the run exact.
        audit_as_planned: Whether the run followed its plan; with the order `mixed` it may do so and not be
            exact.
        audit_cannot_say: Whether evidence that the audit needs is damaged or missing.
        audit_level: What the audit compared: `windows`, or also the inputs of the model, `inputs`.
        exposures: Number of tokens by their number of uses, from the audit.
    """

    arm: str
    values: dict[str, Any]
    seed: int
    state: RowState
    is_elsewhere: bool = False
    reason: str | None = None
    unique_tokens: int | None = None
    epochs: float | None = None
    total_tokens: int | None = None
    tokens: int = 0
    probe: LossCurve = LossCurve()
    select: LossCurve = LossCurve()
    report: LossCurve = LossCurve()
    start_nats: float | None = None
    best_select_nats: float | None = None
    best_tokens: int | None = None
    best_report_nats: float | None = None
    best_scores: dict[str, float] | None = None
    gap_nats: float | None = None
    tokens_per_s: float | None = None
    measure: str | None = None
    audit_exact: bool | None = None
    audit_as_planned: bool | None = None
    audit_cannot_say: bool = False
    audit_level: str | None = None
    exposures: dict[int, int] | None = None


def collect(study: StudyConfig, out: Path) -> list[ArmRow]:
    """The results of every arm of a study, from the run folders; arms that have not started included.

    Raises:
        StudyError: If the study itself is wrong.
        RunError: If a run folder cannot be read.
    """
    runs = [(arm, _begun(run_path(out, arm.name))) for arm in tuned_arms(study, out)[0]]
    shared = _shared_stores([folder for arm, folder in runs if folder and is_run_of(arm.config, folder)])
    copies = load_copies(out)
    arms = [arm for arm, _ in runs]
    stores = store_fingerprints(arm.config for arm in arms) if copies else {}
    fingerprints = training_fingerprints(arms, stores) if copies else {}
    rows = []
    for arm, folder in runs:
        row = _row(arm, folder, shared)
        copy = copies.get(fingerprints[arm.name]) if copies and row.state != "done" else None
        rows.append(row if copy is None else _copied(arm, copy))
    return rows


def _copied(arm: Arm, copy: RunReading) -> ArmRow:
    """The row of a run that is done elsewhere."""
    row = copy.row
    scored = [
        one
        for one in copy.evaluations
        if one["weights"] == "own" and one["source"] in (None, row["scored_source"])
    ]
    curves = {
        name: LossCurve(
            tokens=tuple(one["consumed_tokens"] for one in scored if one["split"] == name),
            nats=tuple(one["loss_nats"] for one in scored if one["split"] == name),
        )
        for name in get_args(SetName)
    }
    best_tokens = None if row["best_epoch"] is None else round(row["best_epoch"] * row["unique_tokens"])
    select, probe = curves["select"].last, curves["probe"].last
    return ArmRow(
        arm=arm.name,
        values=dict(arm.brief),
        seed=arm.config.seed,
        state="done",
        is_elsewhere=True,
        unique_tokens=row["unique_tokens"],
        epochs=row["planned_epochs"],
        total_tokens=row["planned_tokens"],
        tokens=row["consumed_tokens"],
        **curves,
        start_nats=row["loss_start_nats"],
        best_select_nats=row["loss_select_best_nats"],
        best_tokens=best_tokens,
        best_report_nats=row["loss_report_best_nats"],
        gap_nats=select - probe if select is not None and probe is not None else None,
        tokens_per_s=row["tokens_per_second"],
        measure=row["measure"],
        audit_exact=row["audit_verdict"] == "exact",
        audit_as_planned=True,
        audit_level=row["audit_level"],
    )


def _begun(run: Path) -> RunFolder | None:
    return RunFolder.open(run) if (run / "plan.json").exists() else None


def _shared_stores(folders: Sequence[RunFolder]) -> set[str]:
    """Fingerprints of the stores that all runs share."""
    stores = [{source.store_fingerprint for source in folder.plan.sources} for folder in folders]
    return set.intersection(*stores) if stores else set()


def _row(arm: Arm, folder: RunFolder | None, shared: set[str]) -> ArmRow:
    fields = {"arm": arm.name, "values": dict(arm.brief), "seed": arm.config.seed, **_planned(arm)}
    if folder is None:
        return ArmRow(**fields, state="waiting")
    differs = difference(arm.config, folder)
    if differs is not None:
        return ArmRow(**fields, state=differs)
    status = folder.status()
    fields |= {"state": status.state, "reason": status.reason}
    fields |= _planned(arm, unique_tokens={s.name: s.unique_tokens for s in folder.plan.sources})
    return ArmRow(**fields, **_measured(folder, shared), **_audited(folder.path / "audit.json"))


def _planned(arm: Arm, *, unique_tokens: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The planned tokens and epochs; only the budget if U is taken from a store that is not open.

    Args:
        arm: The arm.
        unique_tokens: U of each source by name, if the run has been planned.
    """
    unique, total = 0, 0
    for name, source in arm.config.sources.items():
        tokens = (unique_tokens or {}).get(name) or source.unique_tokens
        if tokens is None:
            return {"total_tokens": source.total_tokens.tokens if arm.config.data.store else None}
        unique += tokens
        total += round(source.total_tokens.epochs_over(tokens) * tokens)
    return {"unique_tokens": unique, "epochs": total / unique, "total_tokens": total}


def _measured(folder: RunFolder, shared: set[str]) -> dict[str, Any]:
    plan = folder.plan
    scored_source = next(
        (source for source in plan.sources if source.store_fingerprint in shared), plan.sources[0]
    )
    records = [*folder.metrics.records()]
    steps = [record for record in records if isinstance(record, TrainRecord)]
    suffix = f"/{scored_source.name}" if plan.is_mixture else ""
    scored = [record for record in records if isinstance(record, ValidRecord) and record.weights == "own"]
    scores = {name: [r for r in scored if r.set == f"{name}{suffix}"] for name in get_args(SetName)}
    curves = {name: _curve(records_of_set) for name, records_of_set in scores.items()}
    probe, select = curves["probe"].last, curves["select"].last
    return {
        **curves,
        **_best(scores["select"], scores["report"]),
        "measure": loss_measure(folder.config, scored_source.store_fingerprint),
        "tokens": max((record.tokens for record in records), default=0),
        "gap_nats": select - probe if select is not None and probe is not None else None,
        "tokens_per_s": statistics.median(r.tokens_per_s for r in steps) if steps else None,
    }


def _curve(scores: Sequence[ValidRecord]) -> LossCurve:
    return LossCurve(tokens=tuple(r.tokens for r in scores), nats=tuple(r.nats for r in scores))


def _best(select: Sequence[ValidRecord], report: Sequence[ValidRecord]) -> dict[str, Any]:
    """The evaluation with the lowest loss on `select`, and the scores on `report` at that step."""
    start = next((record.nats for record in report or select if record.step == 0), None)
    best = best_evaluation(select)
    if best is None:
        return {"start_nats": start}
    reported = at_step(report, best.step)
    return {
        "start_nats": start,
        "best_select_nats": best.nats,
        "best_tokens": best.tokens,
        "best_report_nats": reported.nats if reported else None,
        "best_scores": (reported or best).scores,
    }


def _audited(path: Path) -> dict[str, Any]:
    """The audit in the run folder, if there is one."""
    if not path.exists():
        return {}
    try:
        audit = parse_json(read_small(path))
        return {
            "audit_exact": audit["exact"],
            "audit_as_planned": audit.get("as_planned", audit["exact"]),
            "audit_cannot_say": bool(audit.get("cannot_say")),
            "audit_level": audit.get("level"),
            "exposures": {int(times): tokens for times, tokens in audit["exposures"].items()},
        }
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise RunError(
            str(path),
            got=error,
            rule="must be the report of an audit",
            remedy="Remove the file; `reptrain study run` writes it again.",
        ) from error
