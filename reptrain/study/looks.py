"""The second look of a claim: more seeds for its arms, if the first look leaves it undecided."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import TypeAdapter

from reptrain.analysis.questions import Claim
from reptrain.errors import AnalysisError
from reptrain.files import read_small, write_atomically
from reptrain.runs.records import FrozenRecord
from reptrain.study.arm import Arm
from reptrain.study.chains import with_seeds_of_parents
from reptrain.study.schema import StudyConfig
from reptrain.study.selections import claim_arms

if TYPE_CHECKING:
    from reptrain.study.audits import StudyAudits

RULE = (
    "A claim with max_seeds is judged once its runs are done and audited, at its number of seeds, with"
    " first_look_share of alpha and Holm's correction over its family in the studies that run together. If it"
    " is undecided, every arm of its contrast gets the seeds listed as second, and the claim is judged at"
    " max_seeds with the rest of alpha. No other result adds a seed."
)
"""When seeds are added; written to questions.json before the first run starts."""


class Place(NamedTuple):
    """A study and its folder."""

    study: StudyConfig
    out: Path


class LookRecord(FrozenRecord):
    """The look that a claim is at.

    Attributes:
        look: 1, or 2 once the seeds of the second look have been added.
        verdict: The verdict at the first look.
        arms: Arms that got more seeds.
        seeds: These seeds.
    """

    look: Literal[1, 2]
    verdict: str
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


Looks = dict[str, LookRecord]
"""The looks by name of the claim."""
_ADAPTER = TypeAdapter(Looks)


def load_looks(out: Path) -> Looks:
    """The looks that a study's folder records; a claim that has not been judged is absent."""
    try:
        return _ADAPTER.validate_json(read_small(_path(out)))
    except FileNotFoundError:
        return {}


def _path(out: Path) -> Path:
    return out / "looks.json"


def added_seeds(out: Path) -> dict[str, list[int]]:
    """The seeds that second looks have added, by the name of the arm without its seed."""
    seeds: dict[str, set[int]] = {}
    for look in load_looks(out).values():
        for arm in look.arms:
            seeds.setdefault(arm, set()).update(look.seeds)
    return {arm: sorted(of_arm) for arm, of_arm in seeds.items()}


def planned_looks(study: StudyConfig, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """The planned looks of each claim: its first seeds, and the seeds that a second look adds.

    Args:
        study: The study.
        arms: Its arms, without the seeds that looks have added.
    """
    looks = {}
    for claim in study.claims:
        if claim.max_seeds is not None:
            first = _common_seeds(claim_arms(claim, arms))
            looks[claim.name] = {"first": first, "second": [*second_seeds(study, claim, first)]}
    return looks


def most_added(study: StudyConfig, arms: Sequence[Arm], out: Path) -> int:
    """Largest number of runs that second looks may still add."""
    looks, more = load_looks(out), dict[str, set[int]]()
    for claim in study.claims:
        if claim.max_seeds is None or claim.name in looks or "study" in claim.columns():
            continue
        of_claim = claim_arms(claim, arms)
        seeds = second_seeds(study, claim, _common_seeds(of_claim))
        for arm in of_claim:
            more.setdefault(arm.group, set()).update(seeds)
    needed, added = (
        with_seeds_of_parents(arms, {group: sorted(seeds) for group, seeds in seeds_of.items()})
        for seeds_of in (more, added_seeds(out))
    )
    return sum(len({*seeds} - {*added.get(group, [])}) for group, seeds in needed.items())


def _common_seeds(arms: Iterable[Arm]) -> list[int]:
    by_arm: dict[str, set[int]] = {}
    for arm in arms:
        by_arm.setdefault(arm.group, set()).add(arm.config.seed)
    return sorted(set.intersection(*by_arm.values())) if by_arm else []


def second_seeds(study: StudyConfig, claim: Claim, first: Collection[int]) -> tuple[int, ...]:
    """The seeds that the second look adds: counted up from the largest of the study, without those of tune.

    Args:
        study: The study.
        claim: One of its claims.
        first: Seeds that all arms of the claim have.
    """
    tuning = study.tune.seeds if study.tune is not None else []
    later = (seed for seed in itertools.count(max(study.all_seeds, default=0) + 1) if seed not in tuning)
    return tuple(itertools.islice(later, max(0, claim.most_seeds - len(first))))


def add_looks(places: Sequence[Place], audits: StudyAudits | None = None) -> list[Place]:
    """Judge the claims that may still get a second look, and record the looks.

    Args:
        places: Studies whose runs have ended. Claims of one family are corrected together.
        audits: Audits the runs before they are compared; None: at level `windows`.

    Returns:
        The studies that got more seeds.
    """
    if not any(_open_claims(place) for place in places):
        return []
    from reptrain.analysis.claims import StudyClaims, judge_studies
    from reptrain.analysis.rows import runs_of
    from reptrain.study.audits import StudyAudits
    from reptrain.study.write_tables import study_runs

    tables, audits = [], audits or StudyAudits()
    for place in places:
        audits.missing(*place)
        tables.append(study_runs(*place))
    asked = [
        StudyClaims(place.study.name, table, place.study.claims)
        for place, table in zip(places, tables, strict=True)
    ]
    try:
        results = judge_studies(asked)
    except AnalysisError:
        # The report shows this error.
        return []
    grown = []
    for place, table in zip(places, tables, strict=True):
        of_study = runs_of(table)
        before = load_looks(place.out)
        verdicts = {
            result.claim.name: result.verdict
            for result in results
            if result.study == place.study.name and result.judged.look == 1
        }
        looks = _next_looks(place, verdicts, of_study)
        if looks != before:
            data = {name: look.model_dump(mode="json") for name, look in looks.items()}
            write_atomically(_path(place.out), json.dumps(data, indent=1) + "\n")
        if any(look.look == 2 and name not in _second(before) for name, look in looks.items()):
            grown.append(place)
    return grown


def _second(looks: Looks) -> set[str]:
    return {name for name, look in looks.items() if look.look == 2}


def _open_claims(place: Place) -> list[Claim]:
    """The claims that may get a second look. Claims that compare several studies get none."""
    second = _second(load_looks(place.out))
    return [
        claim
        for claim in place.study.claims
        if claim.max_seeds is not None and claim.name not in second and "study" not in claim.columns()
    ]


def _next_looks(place: Place, verdicts: Mapping[str, str], runs: Sequence[Any]) -> Looks:
    """The looks after judging; a second look is final."""
    from reptrain.analysis.effects import contrasted_arms

    looks = load_looks(place.out)
    for claim in _open_claims(place):
        verdict = verdicts.get(claim.name)
        if verdict is None:
            continue
        looks[claim.name] = LookRecord(look=1, verdict=verdict)
        if verdict != "undecided":
            continue
        names = contrasted_arms(runs, claim)
        first = set.intersection(*({run.seed for run in runs if run["arm"] == name} for name in names))
        own = first - {seed for name in names for seed in added_seeds(place.out).get(name, [])}
        if seeds := second_seeds(place.study, claim, own):
            looks[claim.name] = LookRecord(look=2, verdict=verdict, arms=tuple(names), seeds=seeds)
    return looks
