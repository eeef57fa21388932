"""Results of a CPU that a GPU is compared with: digests, dropout masks, first losses.

python gpu/goldens.py --write     rebuild gpu/goldens.json (make gpu-goldens)
python gpu/goldens.py             compare this machine with it, on its GPU; --rehearse on the CPU
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from rows import KIT, ROOT, Arguments, add, short_error
from runs import TINY, TINY_STEPS, config_of, timed_runs, train_steps

FILE = ROOT / "gpu" / "goldens.json"
MASKS = {"rows of 768": (4, 33, 768, 0.1), "odd sizes": (3, 7, 101, 0.5)}
LOSS_TOLERANCE = 0.02
_DOCUMENTS, _WORDS, _VOCABULARY = 700, 220, 2000


def build_store(out: Path) -> Path:
    """Build a store of random text, the same on every machine."""
    from reptrain.tokenization import tokenize

    # random() alone is the same in all versions of Python.
    draw = random.Random(22).random
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "".join(letters[int(26 * draw())] for _ in range(3 + int(5 * draw()))) for _ in range(_VOCABULARY)
    ]
    out.mkdir(parents=True, exist_ok=True)
    text = out / "text.jsonl"
    with text.open("w") as file:
        for number in range(_DOCUMENTS):
            drawn = " ".join(words[int(_VOCABULARY * draw() ** 3)] for _ in range(_WORDS))
            file.write(json.dumps({"id": str(number), "text": drawn}) + "\n")
    tokenize([text], out / "store", vocab_size=1024)
    return out / "store"


def masks(device: str) -> dict[str, str]:
    """Hashes of the units that the counter keeps, for a few shapes."""
    import torch

    from reptrain_kernels import counter

    found = {}
    for name, (rows, positions, units, rate) in MASKS.items():
        key = counter.row_keys(3, 5, torch.arange(rows)).to(device)
        x = torch.ones(rows, positions, units, device=device)
        kept = (counter.dropout(x, key, rate) != 0).to(torch.uint8).cpu()
        found[name] = hashlib.sha256(kept.numpy().tobytes()).hexdigest()
    return found


def tiny_run(name: str, store: Path, device: str) -> dict[str, Any]:
    """Digests and losses of the first steps of a tiny model, in fp32 in two micro-batches."""
    how = {"precision": "fp32", "tf32": False, "micro_batch_windows": 4}
    config = config_of(TINY[name], store, 8, TINY_STEPS, **how)
    results = [result for result, _ in train_steps(config, device)]
    return {"digests": [str(r.digest) for r in results], "losses": [r.loss_nats for r in results]}


def first_digest(config: Any) -> str:
    """The digest of a run's first batch, without its model."""
    from reptrain.batch.digest import batch_digest
    from reptrain.batch.loader import Loader
    from reptrain.training.setup import open_data

    data, windows = open_data(config), config.micro_batch_windows(1)
    loader = Loader(data.stream, data.plan, data.steps, data.objective, 0, 1, windows)
    total = sum(int(batch_digest(batch)) for batch in loader.batch(0).micro_batches)
    return str(total % 2**64)


def rebuilt(store: Path) -> dict[str, Any]:
    """Recompute all goldens on the CPU."""
    from reptrain.store import open_store

    return {
        "store": open_store(store).fingerprint,
        "masks": masks("cpu"),
        "tiny": {name: tiny_run(name, store, "cpu") for name in TINY},
        "first_digests": {
            run.name: first_digest(config_of(run.settings, store, run.batch_windows, run.steps))
            for run in timed_runs()
        },
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The differences between a tiny run and its golden."""
    wrong = []
    if found["digests"] != expected["digests"]:
        wrong.append(f"digests {found['digests']} are not {expected['digests']}")
    off = max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True))
    if not off <= LOSS_TOLERANCE:
        wrong.append(f"losses differ by {off:.3g}")
    return wrong


def compare(device: str) -> int:
    """Compare this machine with the goldens; returns the number of differences."""
    golden = json.loads(FILE.read_text())
    store, bad = KIT / "store", 0
    wrong = [name for name, found in masks(device).items() if found != golden["masks"][name]]
    add("goldens", "dropout masks", ok=not wrong, differing=wrong)
    bad += bool(wrong)
    for name in TINY:
        try:
            wrong = differences(tiny_run(name, store, device), golden["tiny"][name])
        except Exception as error:
            wrong = [short_error(error)]
        add("goldens", f"tiny {name}", ok=not wrong, differing=wrong)
        bad += bool(wrong)
    return bad


if __name__ == "__main__":
    if "--write" in sys.argv:
        store = build_store(KIT)
        FILE.write_text(json.dumps(rebuilt(store), indent=1) + "\n")
    else:
        sys.exit(int(compare(Arguments(__doc__).device) > 0))
