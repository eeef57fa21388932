"""A run that resumes with other ranks, ZeRO stage and micro-batch equals the uninterrupted run.

One rank is this process; several are started once for all cases of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import rank_matrix
from ledgers import data_of
from rank_starts import LIMIT_S, start_ranks, write_config

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.runs import RunFolder

pytestmark = pytest.mark.ranks

DROPOUT = [f"model.dropout.{site}=0.1" for site in ("embedding", "attention", "residual", "mlp")]
T5_SHAPE = (
    "family: t5, d_model: 32, num_encoder_layers: 2, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48"
)
T5 = ["objective.name=span_corruption", "data.document_mask=true"]
# No ReLU: a unit at its kink may be on in one world and off in another, and from then on losses differ in the
# fifth digit (2 of 5 seeds; none with smooth activations, within 7e-7 over all steps).
FAMILIES = {
    "decoder": DROPOUT,
    "t5": [f"model={{{T5_SHAPE}}}", *T5, *DROPOUT],
    "t5-tied": [f"model={{{T5_SHAPE}, tie_embeddings: true}}", *T5, *DROPOUT],
}
BF16 = {"bf16": [*DROPOUT, "train.precision=bf16"]}
FIRST_CHANGE, SECOND_CHANGE, END = 7, 14, 24


class Place(NamedTuple):
    """The ranks and settings of a part of a run."""

    ranks: int
    stage: int
    micro: int = 6

    def overrides(self, family: str) -> list[str]:
        return [
            *(FAMILIES | BF16)[family],
            f"train.zero_stage={self.stage}",
            f"train.micro_batch_windows={self.micro}",
        ]


Changes = dict[str, tuple[str, list[Place]]]
# Parts end after FIRST_CHANGE and SECOND_CHANGE steps, the last one at the END.
THIN: Changes = {
    "decoder": ("decoder", [Place(1, 0)]),
    "decoder-1-2-1": ("decoder", [Place(1, 0), Place(2, 3, 3), Place(1, 1, 12)]),
    "t5-tied": ("t5-tied", [Place(1, 0)]),
    "t5-tied-1-2-1": ("t5-tied", [Place(1, 3, 4), Place(2, 1, 2), Place(1, 0)]),
}
WIDE: Changes = {
    **{family: (family, [Place(1, 0)]) for family in FAMILIES},
    "decoder-1-2": ("decoder", [Place(1, 1), Place(2, 2)]),
    "decoder-2-4": ("decoder", [Place(2, 0), Place(4, 3, 2)]),
    "decoder-stages": ("decoder", [Place(2, 1), Place(2, 2), Place(2, 3)]),
    "t5-1-2-4": ("t5", [Place(1, 2), Place(2, 3), Place(4, 1, 1)]),
    "t5-4-2": ("t5", [Place(4, 2, 3), Place(2, 0)]),
    "t5-tied-2-1": ("t5-tied", [Place(2, 3, 2), Place(1, 2)]),
    "t5-tied-4-1": ("t5-tied", [Place(4, 0, 1), Place(1, 3)]),
}


def _config(tiny: Callable[..., RunConfig], overrides: Sequence[str]) -> RunConfig:
    # 24 steps of 12 windows; the epochs straddle the batches.
    return tiny("data.unique_tokens=4096", "train.total_tokens=2.25epochs", *overrides)


def _carry_out(out: Path, changes: Changes, tiny: Callable[..., RunConfig]) -> None:
    """Run all parts; each part starts once for each number of ranks."""
    write_config(out, _config(tiny, []))
    for part, until in enumerate((FIRST_CHANGE, SECOND_CHANGE, None)):
        for ranks in (1, 2, 4):
            cases = {
                name: {
                    "overrides": places[part].overrides(family),
                    "stop_after": until if part + 1 < len(places) else None,
                }
                for name, (family, places) in changes.items()
                if part < len(places) and places[part].ranks == ranks
            }
            if ranks == 1:
                rank_matrix.main(out, cases)
            elif cases:
                start_ranks(ranks, out, cases)


def _losses(folder: RunFolder) -> list[float]:
    return [record.loss_nats for record in folder.metrics.records("train")]


def _assert_equal(found: RunFolder, expected: RunFolder, places: Sequence[Place]) -> None:
    assert found.status().state == "done"
    assert data_of(found.ledger) == data_of(expected.ledger)
    assert _losses(found) == pytest.approx(_losses(expected), rel=0, abs=1e-5)
    assert len(_losses(found)) == END
    assert audit(found.path).exact
    told = [event.detail for event in found.events.records() if event.event == "resumed"]
    assert len(told) == len(places) - 1
    for text, (before, after) in zip(told, pairwise(places), strict=True):
        assert f"{after.ranks} rank" in text and f"at ZeRO {after.stage}" in text
        assert f"written by {before.ranks} rank" in text


def _check(out: Path, changes: Changes) -> None:
    for name, (family, places) in changes.items():
        _assert_equal(RunFolder.open(out / name), RunFolder.open(out / family), places)


@pytest.mark.timeout(3 * LIMIT_S)
def test_run_resumes_in_another_world(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    _carry_out(tmp_path, THIN, tiny)
    _check(tmp_path, THIN)


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)
def test_two_ranks_resume_bit_for_bit(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    stages = {f"zero{stage}": ("decoder", [Place(2, stage)]) for stage in range(4)}
    stopped = {f"{name}-stopped": (family, places * 2) for name, (family, places) in stages.items()}
    _carry_out(tmp_path, stages | stopped, tiny)
    for name in stages:
        ends = [tmp_path / run / "checkpoints" / f"step-{END}" for run in (name, f"{name}-stopped")]
        # The metrics measure time, the ledger records the stop, and the manifest has the sums of both.
        timed = ("manifest.json", "metrics.jsonl", "ledger.jsonl")
        unbroken, resumed = (
            {file.name: file.read_bytes() for file in end.iterdir() if file.name not in timed} for end in ends
        )
        assert len(unbroken) == 2 and unbroken == resumed
        assert data_of(RunFolder(tmp_path / name).ledger) == data_of(
            RunFolder(tmp_path / f"{name}-stopped").ledger
        )


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
def test_bf16_resumes_in_another_world(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    changes: Changes = {
        "unbroken": ("bf16", [Place(1, 1)]),
        "1-2-4": ("bf16", [Place(1, 1), Place(2, 3), Place(4, 2)]),
        "4-2-1": ("bf16", [Place(4, 2), Place(2, 1), Place(1, 3)]),
    }
    _carry_out(tmp_path, changes, tiny)
    expected = RunFolder.open(tmp_path / "unbroken")
    for name in ("1-2-4", "4-2-1"):
        found = RunFolder.open(tmp_path / name)
        assert data_of(found.ledger) == data_of(expected.ledger)
        assert _losses(found) == pytest.approx(_losses(expected), rel=0, abs=0.03)


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
def test_run_resumes_in_any_other_world(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    _carry_out(tmp_path, WIDE, tiny)
    _check(tmp_path, WIDE)
