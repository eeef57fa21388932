"""Claims about the results of commands in `then`."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.analysis.questions import Claim
from reptrain.errors import StudyError
from reptrain.study.arm import Arm
from reptrain.study.node_results import SCORED
from reptrain.study.schema import StudyConfig
from reptrain.study.sections import Then
from reptrain.study.selections import claim_arms


def entry_of(study: StudyConfig, column: str) -> Then | None:
    """The entry of `then` whose result a column is; None if it is no result."""
    return next((entry for entry in study.then if column.startswith(f"{entry.name}.")), None)


def check_results(study: StudyConfig, claim: Claim, arms: Sequence[Arm]) -> None:
    """Refuse a claim about results that it cannot use, or that its arms do not have.

    Raises:
        StudyError: Naming the claim.
    """
    for name in claim.columns():
        entry = entry_of(study, name)
        if entry is not None:
            _check_result(f"study {study.name}, claim {claim.name}", claim, name, entry)
            _check_taken(study, claim, name, entry, arms)


def _check_result(what: str, claim: Claim, column: str, entry: Then) -> None:
    if entry.do not in SCORED:
        raise StudyError(
            what,
            got=column,
            rule="must name a command with scores",
            remedy="Name another entry."
            if entry.do == "export"
            else "The figures of routers are the columns knock_out_mean_nats and knock_out_max_nats.",
        )
    if entry.unit == "seeds":
        raise StudyError(
            what,
            got=f"{column}, one result for all seeds of an arm",
            rule="must have a result for each seed, since seeds are the independent units of a claim",
            remedy=f"Set `over` of {entry.name} to run or members.",
        )
    if claim.max_seeds is not None:
        raise StudyError(
            what,
            got=f"max_seeds {claim.max_seeds} with {column}",
            rule="must have one look, since the commands in then use only the seeds of the study",
            remedy="Leave max_seeds out and list all seeds of the study in seeds.",
        )


def _check_taken(study: StudyConfig, claim: Claim, column: str, entry: Then, arms: Sequence[Arm]) -> None:
    for arm in claim_arms(claim, arms):
        if not _takes(study, entry, arm):
            raise StudyError(
                f"study {study.name}, claim {claim.name}",
                got=f"{arm.group}, which has no {column}",
                rule=f"must compare arms that the command {entry.name} takes",
                remedy=f"Change the claim, or `where` of {entry.name}.",
            )


def _takes(study: StudyConfig, entry: Then, arm: Arm) -> bool:
    """Whether a command takes the runs of an arm, directly or through another command."""
    above = next((one for one in study.then if one.name == entry.of), None)
    return arm.point.satisfies(entry.where) and (above is None or _takes(study, above, arm))
