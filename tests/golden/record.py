"""What small real runs compute, written down before a change that must not alter it, and compared after.

    python -m tests.golden.record RECORD.json                  # record, and renew golden.json
    python -m tests.golden.record RECORD.json --check          # record again, and compare with RECORD.json
    python -m tests.golden.record RECORD.json --check --loss-tolerance 1e-6

The part named ``fixed`` is the same on every machine: config fingerprints, the store's digests, which
documents are held out, ledgers. golden.json keeps it. The part named ``machine`` holds losses and scores as
exact hexadecimal floats: they are comparable on one machine alone. Everything goes through commands and the
files that they leave, so a record outlives a move of modules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .runs import RUNS, documents

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "golden.json"
LEDGER = ("step", "first_index", "windows", "tokens", "epoch", "applied", "digest", "sources")
TOKENIZER = HERE / "tokenizer.model"
"""Trained once on the same text: training takes logarithms, whose last bit depends on the processor."""


def command(*words: object, code: int = 0) -> str:
    """Carry out a command of reptrain in this process; returns what it printed."""
    from typer.testing import CliRunner

    from reptrain.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, (words, result.exit_code, result.output)
    return result.stdout


def digest(data: Any) -> str:
    """Of JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def exact(data: Any) -> Any:
    """The same JSON with every float in hexadecimal."""
    if isinstance(data, dict):
        return {key: exact(value) for key, value in data.items()}
    if isinstance(data, list):
        return [exact(value) for value in data]
    return data.hex() if isinstance(data, float) else data


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_store(folder: Path) -> dict[str, Any]:
    """Tokenize `documents` to ``folder/store``; returns its digests and held-out documents."""
    import reptrain

    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    command("tokenize", text, "--out", folder / "store", "--tokenizer", TOKENIZER, "--held-out", 0.2)
    return read_store(reptrain.open_store(folder / "store"))


def read_store(store: Any) -> dict[str, Any]:
    manifest = json.loads((store.path / "manifest.json").read_text())
    splits = {}
    for name, split in manifest["splits"].items():
        ids = [store.split(name).document_id(number) for number in range(split["documents"])]
        splits[name] = {"tokens": split["tokens"], "digest": split["digest"], "documents": digest(ids)}
    return {"fingerprint": manifest["fingerprint"], "tokenizer": manifest["tokenizer"], "splits": splits}


def train(name: str, folder: Path) -> None:
    """Carry out a run of RUNS in ``folder/NAME``."""
    config, settings = RUNS[name]
    settings = [f"data.store={folder / 'store'}", *settings]
    settings = [setting.replace("STORE", str(folder / "store")) for setting in settings]
    words = [ROOT / "configs" / "tiny" / f"{config}.yaml", *settings, "--out", folder / name]
    if name == "two ranks":
        launch = [sys.executable, "-m", "reptrain", "launch", *words, "--gpus", 2]
        subprocess.run([str(word) for word in launch], check=True, capture_output=True)
        return
    if name == "resumed":
        threading.Thread(target=_stop_after_some_steps, args=(folder / name,), daemon=True).start()
        command("train", *words, code=3)
    command("train", *words)


def _stop_after_some_steps(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    while not ledger.exists() or len(ledger.read_bytes().splitlines()) < 4:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


def read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a run every machine has, and what this one has."""
    plan = json.loads((run / "plan.json").read_text())
    steps = [line for line in lines(run / "ledger.jsonl") if "event" not in line]
    # Hashes of weights, and so of lines, belong to the machine.
    ledger = [{key: line[key] for key in LEDGER if key in line} for line in steps]
    trained = [record for record in lines(run / "metrics.jsonl") if record["kind"] == "train"]
    scored = [record for record in lines(run / "metrics.jsonl") if record["kind"] == "valid"]
    fixed = {
        "config": plan["config_fingerprint"],
        "subsets": [source["subset_fingerprint"] for source in plan["sources"]],
        "steps": len(ledger),
        "ledger": digest(ledger),
        "digests": digest([record["digest"] for record in ledger]),
        "inputs": digest([[record["inputs"], record["targets"]] for record in steps]),
        "tokens": [trained[-1][key] for key in ("tokens", "input_tokens", "target_tokens")],
        "scored": digest([[r["step"], r["set"], r["scored_tokens"], r["raw_tokens"]] for r in scored]),
    }
    keys = ("loss_nats", "grad_norm", "lr", "routing")
    machine = {
        "train": [exact([record.get(key) for key in keys]) for record in trained],
        "valid": {f"{r['step']} {r['set']} {r['weights']}": r["nats"].hex() for r in scored},
    }
    return fixed, machine


def fingerprints() -> dict[str, str]:
    """Of every file below configs: of a run its config fingerprint, of others their resolved settings."""
    import reptrain
    from reptrain.config import config_fingerprint
    from reptrain.config.load import read_yaml
    from reptrain.errors import ReptrainError
    from reptrain.tasks.finetune import load_finetune

    def of(path: Path) -> str:
        if "\nbase:" in path.read_text():
            settings = reptrain.load_study(path).model_dump_json(exclude_defaults=True)
            return digest(json.loads(settings.replace(str(ROOT), "")))
        if path.parent.name == "scales":
            return digest(read_yaml(path))
        if path.parent.name == "tasks":
            settings = load_finetune(path).model_dump_json(exclude_defaults=True)
            return digest(json.loads(settings.replace(str(ROOT), "")))
        try:
            return config_fingerprint(reptrain.load_run_config(path, ["data.store=store"]))
        except ReptrainError:
            # Vision transformers are counted and not trained.
            return digest(json.loads(command("sizes", path, "--json")))

    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    return {path.relative_to(ROOT / "configs").as_posix(): of(path) for path in paths}


def finetuned(folder: Path) -> Any:
    """Figures of a small fine-tuning of the T5 run."""
    task, kinds = folder / "task", ("one", "two")
    task.mkdir()
    rows = [{"input": f"what is {d['text'][:30]}", "target": kinds[n % 2]} for n, d in enumerate(documents())]
    for name, part in (("train", rows[:24]), ("validation", rows[24:32])):
        (task / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (task / "task.yaml").write_text("name: golden\nkind: qa\n")
    limits = ["limits.select_examples=6", "limits.input_tokens=24", "limits.target_tokens=6", "epochs=2"]
    settings = [*limits, "train.batch_windows=4", "train.device=cpu", "evaluate.every_fraction=0.25"]
    command("finetune", folder / "t5", task, *settings, "--seeds", 2, "--out", folder / "tuned")
    results = json.loads((folder / "tuned" / "results.json").read_text())
    kept = ("kind", "step", "loss_nats", "grad_norm", "nats_per_token", "nats_per_answer")
    records = [r for path in sorted(folder.glob("tuned/seed-*/metrics.jsonl")) for r in lines(path)]
    steps = [{key: record[key] for key in kept if key in record} for record in records]
    texts = digest(lines(folder / "tuned" / "seed-0" / "texts.jsonl"))
    return exact({"seeds": results["seeds"], "steps": steps, "texts": texts})


def demo(folder: Path) -> Any:
    """What `demo --quick` makes, and the figures it prints. Its text is the documentation of this Python."""
    import reptrain

    out = folder / "demo"
    said = command("demo", "--quick", "--out", out).replace(str(folder), "")
    runs = {plan.parent.name: read_run(plan.parent) for plan in sorted(out.rglob("plan.json"))}
    figures = re.findall(r"\d[\d,.]*", said)
    return {"figures": figures, "store": read_store(reptrain.open_store(out / "store")), "runs": runs}


def record(folder: Path) -> dict[str, Any]:
    """Make everything, and read it."""
    fixed: dict[str, Any] = {"configs": fingerprints(), "store": make_store(folder), "runs": {}}
    machine: dict[str, Any] = {"runs": {}}
    for name in RUNS:
        train(name, folder)
        fixed["runs"][name], machine["runs"][name] = read_run(folder / name)
        print(f"{name}: {fixed['runs'][name]['steps']} steps", flush=True)
    scores = json.loads(command("evaluate", folder / "decoder", folder / "t5", "--device", "cpu", "--json"))
    machine["evaluate"] = exact(
        [{key: value for key, value in score.items() if key != "run"} for score in scores]
    )
    machine["finetune"] = finetuned(folder)
    machine["demo"] = demo(folder)
    return {"fixed": fixed, "machine": machine}


def differences(before: Any, after: Any, tolerance: float = 0.0, path: str = "") -> list[str]:
    """Where two records differ; floats may by the tolerance, relative to those beyond 1."""
    if isinstance(before, (dict, list)) and type(before) is type(after):
        places = (
            before.keys() | after.keys() if isinstance(before, dict) else range(max(len(before), len(after)))
        )
        found: list[str] = []
        for place in sorted(places):
            inside = f"{path}/{place}"
            if isinstance(before, dict) and not (place in before and place in after):
                found.append(f"{inside}: only {'before' if place in before else 'after'}")
            elif isinstance(before, list) and place >= min(len(before), len(after)):
                found.append(f"{inside}: {len(before)} entries before, {len(after)} after")
                break
            else:
                found += differences(before[place], after[place], tolerance, inside)
        return found
    if before == after:
        return []
    if tolerance and "0x" in str(before) and "0x" in str(after):
        one, other = float.fromhex(before), float.fromhex(after)
        if abs(one - other) <= tolerance * max(1.0, abs(one)):
            return []
    return [f"{path}: {before} before, {after} after"]


def main() -> int:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with RECORD instead of writing it")
    parser.add_argument("--loss-tolerance", type=float, default=0.0)
    given = parser.parse_args()
    # Before torch is loaded: the order of sums depends on the threads.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", CUDA_VISIBLE_DEVICES="")
    before = json.loads(given.record.read_text()) if given.check else None
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(record(Path(folder))))
    if before is None:
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(found, indent=1) + "\n")
        GOLDEN.write_text(json.dumps(found["fixed"], indent=1, sort_keys=True) + "\n")
        return 0
    differing = differences(before["fixed"], found["fixed"])
    differing += differences(before["machine"], found["machine"], given.loss_tolerance)
    print("\n".join(differing) or "the same")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
