"""Planted faults between the data loader and the model: only the digest of the inputs sees them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import StoreError
from reptrain.model import Decoder, EncoderDecoder
from reptrain.runs import LedgerRecord, RunFolder
from reptrain.store import reader
from reptrain.training.checkpoints import Checkpoints
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

MakeConfig = Callable[..., RunConfig]
# Two epochs of 16 windows, in 8 steps of 4.
SHORT = [
    "data.unique_tokens=512",
    "train.batch_windows=4",
    "train.total_tokens=2epochs",
    "evaluate.max_windows=4",
]
T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48}"
)


def put(name: str, row: int, column: int, add: int) -> Callable[[dict[str, Any]], None]:
    """Change one integer of an input, in place."""

    def change(inputs: dict[str, Any]) -> None:
        inputs[name][row, column] += add

    return change


def overwrite_column(inputs: dict[str, Any]) -> None:
    inputs["tokens_BT"][:, 3] = 7


def replace_token(inputs: dict[str, Any]) -> None:
    name = "tokens_BT" if "tokens_BT" in inputs else "inputs_BT"
    place = tuple((inputs[name] > 0).nonzero()[-1])
    inputs[name][place] += 1


def drop_last_target(inputs: dict[str, Any]) -> None:
    place = tuple((inputs["targets"].target >= 0).nonzero()[-1])
    inputs["targets"].weight[place] = 0


def another_target(inputs: dict[str, Any]) -> None:
    place = tuple((inputs["targets"].target >= 0).nonzero()[-1])
    inputs["targets"].target[place] += 1


def longer_prefix(inputs: dict[str, Any]) -> None:
    inputs["prefix_B"][1] += 1


FAULTS: dict[str, tuple[Any, list[str], dict[int, Callable[[dict[str, Any]], None]]]] = {
    "decoder": (
        Decoder,
        ["objective.name=prefix_lm", "data.document_mask=true"],
        {
            **{0: overwrite_column, 1: replace_token, 2: drop_last_target, 3: another_target},
            **{5: longer_prefix, 6: put("segments_BT", 0, 9, 1)},
        },
    ),
    "t5": (
        EncoderDecoder,
        [T5, "objective.name=span_corruption"],
        {
            **{1: put("source_BS", 0, 2, 1), 2: replace_token, 3: drop_last_target, 4: another_target},
            **{5: put("source_segments_BS", 1, 1, 1), 6: put("segments_BT", 0, 1, 1)},
        },
    ),
}


def plant(patch: pytest.MonkeyPatch, model: Any, faults: dict[int, Callable[[dict[str, Any]], None]]) -> None:
    """Change the inputs of some steps between the training step and the model."""
    forward = model.forward

    def planted(self: Any, *given: Tensor, **inputs: Any) -> Any:
        witness = inputs.get("witness")
        step = None if witness is None else int(witness.index_B.min()) // 4
        if step in faults:
            faults[step](inputs)
        return forward(self, *given, **inputs)

    patch.setattr(model, "forward", planted)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["decoder", pytest.param("t5", marks=pytest.mark.slow)])
def test_level_inputs_finds_what_the_windows_do_not_show(
    family: str, tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings, faults = FAULTS[family]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        plant(patch, model, faults)
        train(tiny(*SHORT, *settings), out)
    windows = audit(out)
    assert windows.exact and windows.level == "windows", windows.text()
    assert "not the model's inputs" in windows.text() and "proved" not in windows.text()
    report = audit_inputs(out)
    assert not report.exact and report.exit_code == 1
    wrong = [problem for problem in report.problems if "input digest" in problem.message]
    assert [problem.step for problem in wrong] == list(faults)
    assert report.text().startswith("not exact") and "proved" not in report.text()


@pytest.mark.usefixtures("one_thread")
def test_level_inputs_recounts_targets_and_says_what_is_missing(tiny: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(*SHORT, "regularize.input_noise=0.2"), out)
    report = audit_inputs(out, processes=2)
    assert report.exact and "proved to the model's inputs" in report.text(), report.text()
    assert report.inputs is not None and report.inputs.targets_by_epoch == ((512, 512),)
    # A run of a version without input digests: the windows can be audited, the inputs cannot.
    ledger = RunFolder.open(out).ledger
    lines = [line.record for line in ledger.lines()]
    ledger.remove()
    for record in lines:
        gone = {"inputs": None, "targets": None} if hasattr(record, "inputs") else {}
        ledger.append(record.model_copy(update=gone))
    for folder in (out / "checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    assert audit(out).exact
    report = audit_inputs(out)
    assert report.exit_code == 4 and "no input digest for 8 steps, from step 0" in report.cannot_say[0]


@pytest.mark.usefixtures("one_thread")
def test_the_speed_of_level_inputs_is_tokens_over_the_time_of_rebuilding(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train(tiny(*SHORT), out)
    clock = itertools.count(step=0.25)
    monkeypatch.setattr("reptrain.auditing.inputs_recount.time", SimpleNamespace(perf_counter=clock.__next__))
    report = audit_inputs(out, processes=1)
    tokens = sum(r.tokens for r in RunFolder.open(out).ledger.records() if isinstance(r, LedgerRecord))
    # The ledger is short: all records are one chunk, whose rebuilding lasts from one reading to the next.
    assert report.inputs is not None and report.inputs.tokens_per_s == tokens / 0.25


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_level_inputs_rebuilds_masked_copies(family: str, tiny: MakeConfig, tmp_path: Path) -> None:
    settings = FAULTS[family][1] if family == "t5" else ()
    masked = (
        "regularize={masked_inputs: {value: 0.4, start: 3steps}, input_noise: 0.1, input_noise_by: random}"
    )
    out = tmp_path / "run"
    train(tiny(*SHORT, *settings, masked), out)
    report = audit_inputs(out)
    assert report.exact and "proved to the model's inputs" in report.text(), report.text()
    records = [record for record in RunFolder.open(out).ledger.records() if hasattr(record, "targets")]
    predicted = [r.target_tokens for r in RunFolder.open(out).metrics.records("train")]
    each = np.diff([0, *predicted])
    copies = [1 + (record.step >= 3) for record in records]
    assert [record.targets for record in records] == (each * copies).tolist()


@pytest.mark.usefixtures("one_thread")
def test_a_store_that_changes_under_a_run_ends_it(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, save = reader._file_state, Checkpoints.save

    def seen(path: Path) -> Any:
        # As if the shards had been written again after the first checkpoint.
        return (0, 0, 0, 0) if saved else state(path)

    saved: list[int] = []

    def counted(self: Checkpoints, step: int, **options: Any) -> None:
        save(self, step, **options)
        saved.append(step)

    monkeypatch.setattr(reader, "_file_state", seen)
    monkeypatch.setattr(Checkpoints, "save", counted)
    with pytest.raises(StoreError, match="must not change while it is in use"):
        train(tiny(*SHORT), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status().state == "failed" and "a file that was changed" in str(folder.status().reason)
    assert [path.name for path in folder.checkpoints.glob("step-*")] == [f"step-{saved[0]}"]
