"""Which arms the selections of a claim name, before the runs have started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reptrain.analysis.questions import Claim, Interaction
from reptrain.study.arm import Arm

_COMPARED = ("treatment", "control", "proxy", "target")


def sides(claim: Claim, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The selections of a claim's contrast by name, without unset ones."""
    found = {name: getattr(claim.contrast, name, None) for name in names}
    return {name: selection for name, selection in found.items() if selection is not None}


def selected(arm: Arm, selection: Mapping[str, Any]) -> bool:
    """Whether an arm may be selected. Keys that only a finished run has count as true."""
    own = {**arm.values, "arm": arm.group, "seed": arm.config.seed, "study": None}
    for key, wanted in selection.items():
        name = key.removeprefix("set.")
        if name not in own or name == "study":
            continue
        choices = wanted if isinstance(wanted, list) else [wanted]
        if own[name] not in choices:
            return False
    return True


def claim_arms(claim: Claim, arms: Iterable[Arm]) -> list[Arm]:
    """The arms that a claim may compare, selected by the keys that are known before the runs."""
    found = [
        arm
        for arm in arms
        if any(selected(arm, {**claim.where, **side}) for side in sides(claim, _COMPARED).values())
    ]
    if isinstance(claim.contrast, Interaction):
        levels = (claim.contrast.high, claim.contrast.low)
        found = [arm for arm in found if any(selected(arm, level) for level in levels)]
    return found
