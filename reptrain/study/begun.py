"""What is fixed once a study has begun: its questions, and the settings of the runs that exist."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptrain.analysis.questions import questions_hash
from reptrain.config import RunConfig, differing_keys
from reptrain.errors import StudyError
from reptrain.files import read_small, write_atomically
from reptrain.reading import parse_json
from reptrain.runs.folder import RunFolder
from reptrain.study.graph import Graph
from reptrain.study.grid import arms
from reptrain.study.looks import RULE, planned_looks
from reptrain.study.paths import difference, questions_path, run_path
from reptrain.study.preflight import Stores
from reptrain.study.schema import STUDY_FILE, StudyConfig, open_study

_MOST_SHOWN = 5


def refuse_changes(study: StudyConfig, graph: Graph, out: Path, stores: Stores) -> None:
    """Refuse a study that no longer agrees with the runs in its folder. New arms and seeds are no change.

    Args:
        study: The study.
        graph: Its nodes.
        out: Its folder, which need not exist.
        stores: The open stores by path.

    Raises:
        StudyError: Naming the differences.
    """
    begun = {path.parent.name for path in run_path(out, "").glob("*/plan.json")}
    if not begun:
        return
    changes = _changed_questions(study, out)
    before = open_study(out).scale if (out / STUDY_FILE).exists() else study.scale
    if before != study.scale:
        changes.append(f"scale was {_text(before)}, now {_text(study.scale)}")
    for node in graph.trainings:
        # A pending run has settings that are still to be tuned.
        if node.name in begun and not node.pending:
            found = changed_settings(node.run, RunFolder.open(run_path(out, node.name)), stores)
            changes += [f"{node.name}: {text}" for text in found]
    gone = begun - graph.by_name.keys()
    changes += [f"{name}: is no longer in the study" for name in sorted(gone)]
    if changes:
        more = f"; and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
        raise StudyError(
            f"study {study.name} in {out}",
            got="; ".join(changes[:_MOST_SHOWN]) + more,
            rule="must not change after its first run has started",
            remedy=f"Undo the change, or start the changed study under a new name: name={_next(study.name)}.",
        )


def _next(name: str) -> str:
    stem, _, number = name.rpartition("-")
    return f"{stem}-{int(number) + 1}" if stem and number.isdecimal() else f"{name}-2"


def changed_settings(config: RunConfig, folder: RunFolder, stores: Stores) -> list[str]:
    """How a run's folder differs from its configuration, in words; empty if they agree."""
    differs = difference(config, folder)
    if differs == "other numerics":
        return [f"numerics_version {folder.plan.numerics_version} in the run folder"]
    changes = []
    if differs is not None:
        device = "cuda" if folder.config.train.precision == "bf16" else "cpu"
        keys = differing_keys(folder.config, config.on_device(device))
        changes += [f"{key} was {_text(old)}, now {_text(new)}" for key, old, new in keys]
    changes += _changed_evaluations(folder.config, config)
    old = [source.store_fingerprint for source in folder.plan.sources]
    new = [stores[source.store].fingerprint for source in config.sources.values() if source.store in stores]
    if len(old) == len(new) and old != new:
        changes.append("the store holds other text or another tokenization")
    return changes


def _changed_evaluations(old: RunConfig, new: RunConfig) -> list[str]:
    before, after = (config.evaluate.model_dump(mode="json", exclude={"at_steps"}) for config in (old, new))
    return [
        f"evaluate.{key} was {_text(before[key])}, now {_text(after[key])}"
        for key in after
        if before.get(key) != after[key]
    ]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def write_questions(study: StudyConfig, out: Path) -> None:
    """Write claims and fits with their hash, and the rule for adding seeds, before the first run starts."""
    record: dict[str, Any] = {"hash": questions_hash(study.claims, study.fits), **_questions(study)}
    if looks := planned_looks(study, arms(study)):
        record["looks"] = {"rule": RULE, "seeds": looks}
    write_atomically(questions_path(out), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _questions(study: StudyConfig) -> dict[str, list[Any]]:
    return {
        "claims": [claim.model_dump(mode="json") for claim in study.claims],
        "fits": [fit.model_dump(mode="json") for fit in study.fits],
    }


def _changed_questions(study: StudyConfig, out: Path) -> list[str]:
    """The claims and fits that differ from those that were written."""
    try:
        before = parse_json(read_small(questions_path(out)))
    except FileNotFoundError:
        before = {}
    changes = []
    for kind, now in _questions(study).items():
        then = {one["name"]: one for one in before.get(kind, [])}
        changes += [f"{kind}: {text}" for text in _changed(then, now)]
    return changes


def _changed(before: dict[str, Any], now: Sequence[Any]) -> list[str]:
    after = {one["name"]: one for one in now}
    found = [f"{name} is gone" for name in before if name not in after]
    found += [f"{name} is new" for name in after if name not in before]
    for name in before.keys() & after.keys():
        keys = [key for key in after[name] if after[name][key] != before[name].get(key)]
        found += [f"{name}.{key} was {before[name].get(key)}, now {after[name][key]}" for key in keys]
    return found
