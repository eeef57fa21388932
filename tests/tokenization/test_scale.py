"""A million documents: memory that does not grow with them, and a run that starts at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from scale_commands import documents

from reptrain.text import train_tokenizer

SCRIPT = Path(__file__).with_name("scale_commands.py")
DOCUMENTS = 1_000_000
# Of the parent and its two workers, what they have in common counted for each.
MOST_BYTES = 1_500_000_000
# 40 bytes a document of tables that are compact, not flat, while near-duplicates are looked for; and noise.
MOST_GROWTH = 150_000_000


class Ended(dict[str, Any]):
    """A command's line of JSON, and ``peak``: the most memory of it and its children together."""


def run(*command: object) -> Ended:
    process = psutil.Popen(
        [sys.executable, str(SCRIPT), *map(str, command)], stdout=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.1)
    assert process.returncode == 0
    ended = Ended(json.loads(process.stdout.read()), peak=peak)
    print(*command, dict(ended))
    return ended


def _resident(process: psutil.Process) -> int:
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "scale.model"
    train_tokenizer(documents(500), path, vocab_size=2048, num_sentinels=32)
    return path


@pytest.fixture
def made(tmp_path: Path, small_model: Path) -> Callable[[int], tuple[Ended, Path]]:
    """Tokenizes so many documents; the source is removed again."""

    def make(count: int) -> tuple[Ended, Path]:
        source, out = tmp_path / f"{count}.jsonl", tmp_path / f"store-{count}"
        written = run("make", source, count)
        ended = run("store", source, small_model, out, "minhash", 0)
        source.unlink()
        assert ended["read"] == count and ended["near_duplicates"] == count // 100
        return Ended(ended, bytes=written["bytes"]), out

    return make


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_documents_take_no_more_memory_than_a_tenth(
    made: Callable[[int], tuple[Ended, Path]],
) -> None:
    tenth, _ = made(DOCUMENTS // 10)
    whole, out = made(DOCUMENTS)
    assert whole["bytes"] > 1.9e9
    assert whole["peak"] < min(MOST_BYTES, tenth["peak"] + MOST_GROWTH)
    checked = run("check", out)
    assert checked["ok"] and checked["peak"] < MOST_BYTES
    first = run("first_batch", out)
    # The order of the documents is made: one pass over their lengths.
    assert first["seconds"] < 30 and first["added_bytes"] < 100_000_000
    again = run("first_batch", out)
    assert again["seconds"] < 1 and again["added_bytes"] < 100_000_000
    assert again["tokens"] == 64 * 1024
    assert again["total_tokens"] > 60 * whole["tokens"] * 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("passages", [None, 512])
def test_a_document_of_1e8_characters_is_one_like_others(
    tmp_path: Path, small_model: Path, passages: int | None
) -> None:
    source, out = tmp_path / "long.jsonl", tmp_path / "store"
    assert run("make_long", source, 10**8)["characters"] == 10**8
    ended = run("store", source, small_model, out, "minhash", passages or 0)
    assert (ended["read"], ended["kept"]) == (301, 298)
    # Text, ids and hashes of one document at once, in one process.
    assert ended["peak"] < 3_000_000_000
    assert run("check", out)["ok"]
