"""Whether a run folder's files agree: plan.json, config.yaml, and the chain of the ledger.

Written from docs/format.md; see independent_audit.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from independent_windows import Audit, Source, fingerprint, make_key


def check_evidence(audit: Audit) -> dict[str, Any]:
    """Note where the files contradict each other; returns the settings of config.yaml by dotted key."""
    settings = read_config(audit.run.path / "config.yaml")
    check_plan(audit, settings)
    check_chain(audit)
    return settings


def read_config(path: Path) -> dict[str, Any]:
    """The settings by dotted key. Reads what a run folder holds: mappings of plain scalars, no lists."""
    settings: dict[str, Any] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.strip().partition(":")
        if not colon or key.startswith(("#", "-")):
            continue
        indent = len(line) - len(line.lstrip())
        above = [*(item for item in above if item[0] < indent), (indent, key)]
        try:
            scalar = json.loads(value)
        except ValueError:
            scalar = value.strip().strip("'\"")
        settings[".".join(name for _, name in above)] = scalar
    return settings


def check_plan(audit: Audit, config: dict[str, Any]) -> None:
    """Note where plan.json contradicts itself or config.yaml."""
    run, plan = audit.run, audit.run.plan
    places = {"seed": "seed", "batch_windows": "train.batch_windows", "window_tokens": "data.window_tokens"}
    facts = [(key, plan[key], config.get(place)) for key, place in places.items()]
    for data, one, store in zip(plan["sources"], run.sources, run.stores, strict=True):
        prefix = f"data.sources.{one.name}." if run.is_mixture else "data."
        given = {key: config.get(prefix + key) for key in ("order", "cut", "subset_seed", "unique_tokens")}
        wanted = {key: config.get(f"data.{key}") if v is None else v for key, v in given.items()}
        if wanted["unique_tokens"] is None:
            wanted["unique_tokens"] = int(store.lengths.sum())
        wanted["seed"] = plan["seed"]
        if run.is_mixture:
            wanted["seed"] = int(make_key(plan["seed"], f"source {one.name}")[0]) >> 1
        subset = {"store": data["store_fingerprint"], "split": "train", "seed": data["subset_seed"]}
        wanted["subset_fingerprint"] = fingerprint(subset | {"unique_tokens": one.unique})
        wanted |= {"windows_per_epoch": one.W, "epochs": str(Fraction(one.total, one.W))}
        budget = config.get(f"{prefix}total_tokens" if run.is_mixture else "train.total_tokens")
        wanted["total_windows"] = windows_of(audit, budget, one)
        facts += [(f"{key} of {one.name}", data[key], value) for key, value in wanted.items()]
    facts.append(("total_windows", run.N, sum(run.counts)))
    for name, value, expected in facts:
        if expected is not None and value != expected:
            audit.problems.append(f"plan.json has {name} {value}, not {expected}")


def windows_of(audit: Audit, budget: Any, one: Source) -> int | None:
    """The windows of a budget; None if it counts what an objective makes."""
    text = "1epochs" if budget is None else str(budget)
    if text.endswith(("inputs", "targets")):
        audit.unchecked.append(f"the budget {budget} of {one.name} against total_windows")
        return None
    number = Fraction(text.removesuffix("epochs"))
    epochs = number if text.endswith("epochs") else number / one.unique
    return max(1, math.floor(epochs * one.W + Fraction(1, 2)))


def check_chain(audit: Audit) -> None:
    """Note where the ledger's lines do not follow from each other, and files that differ from the start's."""
    path, note = audit.run.path / "ledger.jsonl", audit.problems.append
    previous, chained, updates, state, files = "0" * 32, False, None, None, {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        record = json.loads(line)
        parent = record.get("parent") or {}
        if "previous" in record:
            begins = {previous, parent.get("head", previous)} if number == 1 else {previous}
            if record["previous"] not in begins:
                note(f"ledger line {number} does not follow from the line before it")
        elif chained or audit.run.plan.get("format", 1) > 2:
            note(f"ledger line {number} has no hash of the line before it")
        chained = chained or "previous" in record
        previous = hashlib.sha256(line).hexdigest()[:32]
        files = record.get("files", files)
        if record.get("event") in ("checkpoint", "resume"):
            if record["event"] == "resume" and state is not None and record["state"] != state:
                note(f"ledger line {number}: the run resumed from another state than it saved")
            state = record["state"]
        if "optimizer_step" in record:
            if updates is not None and record["optimizer_step"] != updates + record["applied"]:
                note(f"step {record['step']} has {record['optimizer_step']} updates after {updates}")
            updates = record["optimizer_step"]
            before, after = record.get("slice", ("", " "))
            if record["applied"] and before == after and record.get("grad_norm", 0) not in (0, None):
                note(f"step {record['step']} left its slice of the weights unchanged under a gradient")
    for name, expected in files.items():
        if hashlib.sha256((audit.run.path / name).read_bytes()).hexdigest() != expected:
            note(f"{name} is not the file that the run was started with")
