"""What the scale test starts as processes of their own: each command prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Dedup = Literal["none", "exact", "minhash", "group"]

WORDS = 50_000
LETTERS = "etaoinshrdlu"
DOCUMENT_WORDS = 340
MODEL = ["model.d_model=32", "model.num_layers=1", "model.num_heads=1", "model.d_ff=32"]


def documents(count: int) -> Iterator[str]:
    """Texts of 2 kB on average, of words by Zipf's law; every hundredth is a near-duplicate of the last."""
    draw = np.random.default_rng(0)
    letters = np.array(list(LETTERS))
    names = ["".join(letters[draw.integers(0, 12, draw.integers(2, 10))]) for _ in range(WORDS)]
    words = np.array(names, object)
    text = ""
    for first in range(0, count, 1000):
        lengths = draw.integers(20, 2 * DOCUMENT_WORDS, min(1000, count - first))
        # The rank of a word by Zipf's law is about uniform in its logarithm.
        drawn = words[(WORDS ** draw.random(int(lengths.sum()))).astype(np.int64) - 1]
        for index, part in enumerate(np.split(drawn, np.cumsum(lengths)[:-1])):
            text = f"{text} {words[index]}" if index % 100 == 99 else " ".join(part)
            yield text


def make(path: Path, count: int) -> dict[str, float]:
    """Write the corpus, about 2 kB a document."""
    with path.open("w") as file:
        for text in documents(count):
            file.write(f'{{"text": "{text}"}}\n')
    return {"bytes": path.stat().st_size}


def make_long(path: Path, characters: int) -> dict[str, float]:
    """Write one document of so many characters, and some short ones."""
    text = " ".join(documents(characters // 2000))[:characters]
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in [text, *documents(300)]))
    return {"characters": len(text)}


def store(source: Path, model: Path, out: Path, dedup: Dedup, passages: int | None) -> dict[str, float]:
    """Tokenize with two processes."""
    from reptrain.tokenization import tokenize

    manifest = tokenize([source], out, tokenizer=model, dedup=dedup, passages=passages, processes=2)
    return {"tokens": sum(info.tokens for info in manifest.splits.values()), **manifest.counts.model_dump()}


def check(out: Path) -> dict[str, float]:
    """Verify, with the overlap."""
    from reptrain.store import verify

    report = verify(out, overlap=True)
    return {"ok": report.ok, "distinct_share": max(found.distinct_share for found in report.overlap)}


def first_batch(out: Path) -> dict[str, float]:
    """Open the store for 64 epochs and take the first batch; modules are loaded before the clock starts."""
    from reptrain.batch.loader import Loader
    from reptrain.config import RunConfig
    from reptrain.config.load import apply_overrides, validate
    from reptrain.training.setup import open_data

    settings = ["data.window_tokens=1024", "train.total_tokens=64epochs", "train.batch_windows=64"]
    config = validate(RunConfig, apply_overrides({}, [f"data.store={out}", *settings, *MODEL]))
    memory, start = Memory.now(), time.perf_counter()
    data = open_data(config)
    loader = Loader(
        data.stream, data.plan, data.steps, data.objective, rank=0, world_size=1, micro_batch_windows=64
    )
    batch = loader.batch(0)
    seconds = time.perf_counter() - start
    after = Memory.now()
    return {
        "seconds": seconds,
        "added_bytes": after.own - memory.own,
        "mapped_bytes": after.mapped - memory.mapped,
        "tokens": int(batch.micro_batches[0].length_B.sum()),
        "total_tokens": data.plan.total_tokens,
    }


class Memory(NamedTuple):
    """Bytes of this process: its own, and those of mapped files that the kernel can drop at any time.

    How much of a file a touch maps hangs on how the page cache got it: after a pass over the whole store
    ten times as much was seen as in a fresh one.
    """

    own: int
    mapped: int

    @classmethod
    def now(cls) -> Memory:
        """What it is now."""
        import psutil

        info = psutil.Process().memory_info()
        return cls(info.rss - info.shared, info.shared)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    paths = [Path(argument) for argument in arguments if "/" in argument]
    started = time.perf_counter()
    if command == "make":
        result = make(paths[0], int(arguments[1]))
    elif command == "make_long":
        result = make_long(paths[0], int(arguments[1]))
    elif command == "store":
        result = store(*paths, arguments[3], int(arguments[4]) or None)
    else:
        result = {"check": check, "first_batch": first_batch}[command](*paths)
    print(json.dumps({"wall_seconds": time.perf_counter() - started, **result}))
