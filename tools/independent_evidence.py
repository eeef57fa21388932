"""Whether a run folder's files agree: plan.json, config.yaml, the chain of the ledger, and the checkpoints.

Written from docs/format.md; see independent_audit.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from independent_windows import U64, Audit, CannotSayError, G, Source, fingerprint, make_key, mix

# Keys of a line by its `event`: those that it must have, and those that it may have.
STEP = {"step", "first_index", "windows", "tokens", "epoch", "applied", "digest"}
LINES: dict[str, tuple[set[str], set[str]]] = {
    "attempt": (STEP, {"inputs", "targets", "optimizer_step", "grad_norm", "slice", "sources"}),
    "start": ({"step"}, {"format", "files", "parent", "discarded"}),
    "resume": ({"step"}, {"files", "state", "discarded"}),
    "checkpoint": ({"step", "state"}, set()),
}
# All others are integers of at least 0.
KINDS: dict[str, Any] = {"applied": bool, "grad_norm": (int, float, str), "slice": list}
KINDS |= dict.fromkeys(("sources", "files", "parent"), dict)
KINDS |= dict.fromkeys(("event", "digest", "inputs", "state", "previous", "discarded"), str)
DIGITS = {"digest": 16, "inputs": 16, "state": 16, "previous": 32, "discarded": 32}
STATES = ("created", "running", "done", "failed", "preempted")


def check_evidence(audit: Audit, *, with_states: bool) -> dict[str, Any]:
    """Note where the files contradict each other; returns the settings of config.yaml by dotted key.

    Args:
        audit: Takes the contradictions.
        with_states: Whether to hash the checkpoints' tensors too.
    """
    settings = read_config(audit.run.path / "config.yaml")
    check_plan(audit, settings)
    states = check_chain(audit)
    for step, state in states.items():
        check_checkpoint(audit, step, state, with_states=with_states)
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


def seed_of(settings: dict[str, Any], part: str) -> int:
    """The seed of a part of the run: order, noise, weights or dropout."""
    own = settings.get(f"seeds.{part}")
    return int(settings["seed"] if own is None else own)


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
        wanted["seed"] = seed = seed_of(config, "order")
        if run.is_mixture:
            wanted["seed"] = int(make_key(seed, f"source {one.name}")[0]) >> 1
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


def check_record(record: dict[str, Any], number: int) -> None:
    """Refuse a line of the ledger that docs/format.md does not describe."""
    kind = record.get("event", "attempt")
    if kind not in LINES or ("event" in record and next(iter(record)) != "event"):
        raise CannotSayError(f"ledger.jsonl, line {number} is a line of an unknown kind: {kind}")
    needed, optional = LINES[kind]
    if not needed <= record.keys() <= needed | optional | {"event", "step", "previous"}:
        other = sorted(record.keys() ^ needed)
        raise CannotSayError(f"ledger.jsonl, line {number} lacks keys or has others: {other}")
    for key, value in record.items():
        right = isinstance(value, KINDS.get(key, int)) and (key == "applied" or not isinstance(value, bool))
        if key in DIGITS:
            right = right and len(value) == DIGITS[key] and not set(value) - set("0123456789abcdef")
        if not right or (isinstance(value, int) and value < 0):
            raise CannotSayError(f"ledger.jsonl, line {number} has the {key} {value!r}")


def check_chain(audit: Audit) -> dict[int, str]:
    """Note where the ledger's lines do not follow from each other; returns the states of its checkpoints."""
    path, note, damage = audit.run.path / "ledger.jsonl", audit.problems.append, audit.damage.append
    previous, updates, files, states = "0" * 32, None, {}, {}
    last: dict[str, Any] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        record = json.loads(line)
        check_record(record, number)
        event, chained = record.get("event"), "previous" in last
        begin = (record.get("parent") or {}).get("head", previous) if number == 1 else previous
        if (chained or "previous" in record) and record.get("previous") != begin:
            damage(f"ledger.jsonl, line {number} does not follow from the line before it")
        if (event == "start" and chained) or (number == 1 and "previous" in record and event != "start"):
            damage(f"ledger.jsonl, line {number}: the first line must be a start, and no other")
        previous = hashlib.sha256(line).hexdigest()[:32]
        files = record.get("files", files)
        if event == "checkpoint":
            states[record["step"]] = record["state"]
        is_saved = last.get("event") == "checkpoint"
        if event == "resume" and chained and not is_saved:
            damage(f"ledger.jsonl, line {number}: a resumption that follows no checkpoint")
        same = is_saved and (record["step"], record.get("state")) == (last["step"], last["state"])
        if event == "resume" and is_saved and not same:
            note(f"ledger.jsonl, line {number}: the run resumed from another state than it saved")
        last = record
        if event is None:
            check_update(audit, record, updates)
            updates = record.get("optimizer_step")
    status = audit.run.path / "status.json"
    state = json.loads(status.read_bytes())["state"] if status.exists() else "created"
    if state not in STATES:
        raise CannotSayError(f"status.json has the state {state!r}")
    if state == "done" and (not last or ("previous" in last and last.get("event") != "checkpoint")):
        damage("ledger.jsonl of a finished run does not end with the line of its last checkpoint")
    for name, expected in files.items():
        if hashlib.sha256((audit.run.path / name).read_bytes()).hexdigest() != expected:
            damage(f"{name} is not the file that the run was started with")
    return states


def check_update(audit: Audit, record: dict[str, Any], updates: int | None) -> None:
    """Note where an attempt at a step changed the weights, or their counter, otherwise than it says."""
    note, count = audit.problems.append, record.get("optimizer_step")
    if None not in (updates, count) and count != updates + record["applied"]:
        note(f"step {record['step']} has {count} updates after {updates}")
    before, after = record.get("slice", ("", "-"))
    norm = record.get("grad_norm")
    if record["applied"] and before == after and isinstance(norm, (int, float)) and norm > 0:
        note(f"step {record['step']} left its slice of the weights unchanged under a gradient")
    if not record["applied"] and before != after and after != "-":
        note(f"step {record['step']} was not applied, but changed the weights")


def check_checkpoint(audit: Audit, step: int, state: str, *, with_states: bool) -> None:
    """Note where a checkpoint that is still there differs from the ledger."""
    folder = audit.run.path / "checkpoints" / f"step-{step}"
    if not (folder / "manifest.json").is_file():
        return
    body, _, checksum = (folder / "manifest.json").read_bytes().rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(body).hexdigest() != checksum.decode():
        return
    manifest = json.loads(body)
    copy = manifest["records"]["ledger.jsonl"]
    held = (audit.run.path / "ledger.jsonl").read_bytes()[: copy["bytes"]]
    if hashlib.sha256(held).hexdigest() != copy["sha256"]:
        audit.damage.append(f"ledger.jsonl differs from its copy in {folder.name}")
    if manifest["state"] != state or (with_states and f"{state_hash(folder, manifest):016x}" != state):
        audit.damage.append(f"{folder.name} does not hold the state that ledger.jsonl has")


def state_hash(folder: Path, manifest: dict[str, Any]) -> int:
    """The hash of a checkpoint's tensors and counters."""
    counters = {name: manifest[name] for name in ("step", "optimizer_steps", "averaged_steps")}
    numbers = {f"counter:{name}": [value] for name, value in counters.items()}
    numbers |= {f"buffer:{name}": values for name, values in manifest["votes"].items()}
    for name, value in manifest["loss_scaling"].items():
        numbers[f"scaler:{name}"] = [int(np.float64(value).view(np.int64))]
    total = sum(hash_tensor(name, np.asarray(values, np.int64), 0) for name, values in numbers.items())
    for name in manifest["files"]:
        data = np.memmap(folder / name, np.uint8, "r")
        begin = 8 + int(data[:8].view("<u8")[0])
        for key, entry in json.loads(data[8:begin].tobytes()).items():
            first, end = (begin + offset for offset in entry["data_offsets"])
            tensor, _, start = key.rpartition("@")
            total += hash_tensor(tensor, data[first:end].view("<i4").astype(np.int64), int(start))
    return total % 2**64


def hash_tensor(name: str, bits: np.ndarray, start: int) -> int:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    place = np.arange(start + 1, start + 1 + bits.size).astype(U64)
    return int(mix(U64(key) + place * U64(G) + bits.astype(U64)).sum(dtype=U64))
