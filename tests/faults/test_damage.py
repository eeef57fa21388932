"""Files cut short, or with one bit flipped: the run goes on exactly, or says what is wrong with which."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_hooks import SAVE, Actions
from fault_runs import Trial
from fault_table import STOPPED, WENT_ON, FaultTable

from reptrain.runs import RunFolder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MakeTrial = Callable[..., Trial]

OF_THE_RUN = (
    *("ledger.jsonl", "metrics.jsonl", "events.jsonl", "plan.json", "status.json", "config.yaml"),
    *("environment.json", "checkpoints/latest", "checkpoints/NEWEST/manifest.json"),
    *("checkpoints/NEWEST/state-00000-of-00001.safetensors", "checkpoints/NEWEST/ledger.jsonl"),
)
ORDER = "orders/ORDER.npy"
MENDED = ("ledger.jsonl", "metrics.jsonl", "events.jsonl", *OF_THE_RUN[-4:], ORDER)
OF_THE_STORE = ("train-00000.arrow", "select-00000.arrow", "manifest.json", "tokenizer.model", ORDER)
SHORT = ("ledger.jsonl", "plan.json")


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flip(data: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


@pytest.fixture(scope="session")
def half(fault_config: Path, unbroken: RunFolder) -> RunFolder:
    """A run that was killed in its tenth save."""
    struck = Trial(fault_config, fault_config.parent / "half", unbroken)
    assert struck.carry_out(hook=Actions(0, within=SAVE, call=9)).code < 0
    return struck.run


def _damage_and_train(struck: Trial, path: Path, damaged: bytes) -> str:
    """Returns how it ended."""
    whole = path.read_bytes()
    path.write_bytes(damaged)
    ended = struck.carry_out()
    if ended.code == 0:
        struck.check()
        return WENT_ON
    assert ended.refused, ended.said
    print(f"  {ended.error}")
    path.write_bytes(whole)
    struck.finish()
    return STOPPED


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SHORT else [pytest.mark.slow])
        for name in (*OF_THE_RUN, *OF_THE_STORE)
    ],
)
def test_damaged_file(
    half: RunFolder,
    trial: MakeTrial,
    store_path: Path,
    table: FaultTable,
    tmp_path: Path,
    name: str,
    seed: int,
) -> None:
    """Seeds 0 to 2 flip a bit, the others cut the file short."""
    of_the_store = name in OF_THE_STORE
    store = tmp_path / "store"
    struck = trial(overrides=[f"data.store={store}"] if of_the_store else [])
    shutil.copytree(half.path, struck.out)
    if of_the_store:
        shutil.copytree(store_path, store)
    newest = (half.checkpoints / "latest").read_text().strip()
    path = (store if of_the_store else struck.out) / name.replace("NEWEST", newest)
    if name == ORDER:
        path = sorted((store / "orders").glob("*.npy"))[0]
    how, draw = flip if seed < 3 else cut, random.Random(f"{name} {seed}")
    print(f"{how.__name__} {name}, seed {seed}")
    outcome = _damage_and_train(struck, path, how(path.read_bytes(), draw))
    # Of these there is a second copy, or none is needed.
    assert outcome == WENT_ON or name not in MENDED
    kind = "store's " if of_the_store else ""
    told = name.replace("NEWEST", "step-N").removeprefix("checkpoints/")
    table.add(f"damage to {kind}{told}", "one bit flipped" if how is flip else "truncated", outcome)
