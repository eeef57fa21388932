"""A run on two stores: real text for three and a half epochs, synthetic text once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from interrupts import crash, interrupt_at
from ledgers import steps_of

from reptrain.auditing.audit import audit
from reptrain.batch.loader import Loader, StepBatch
from reptrain.config import RunConfig
from reptrain.errors import PlanError, StoreError
from reptrain.plan import Stream
from reptrain.runs import RunFolder
from reptrain.tokenization import tokenize
from reptrain.training.loop import train
from reptrain.training.setup import open_data

MakeMixture = Callable[..., RunConfig]
REAL, SYNTHETIC = 1_200, 1_000


@pytest.fixture(scope="module")
def synthetic_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of made text, by the tokenizer of the real one."""
    folder = tmp_path_factory.mktemp("synthetic")
    texts = [f"The square of {n} is {n * n}, and {n * n} is no prime." for n in range(2, 220)]
    source = folder / "squares.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([source], folder / "store", tokenizer=store_path / "tokenizer.model", held_out_fraction=0.2)
    return folder / "store"


@pytest.fixture(scope="module")
def mixture(tiny: MakeMixture, store_path: Path, synthetic_path: Path) -> MakeMixture:
    """Makes the configuration of the mixture; takes dotted overrides."""

    def make(*overrides: str) -> RunConfig:
        return tiny(
            *("data.store=null", "data.unique_tokens=null", "train.total_tokens=null"),
            *("evaluate.every_fraction=1", "evaluate.max_windows=4"),
            f"data.sources.real={{store: '{store_path}', unique_tokens: {REAL}, total_tokens: 3.5epochs}}",
            f"data.sources.synthetic={{store: '{synthetic_path}', unique_tokens: {SYNTHETIC}, cut: shifted}}",
            *overrides,
        )

    return make


@pytest.fixture(scope="module")
def finished(mixture: MakeMixture, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An unbroken run."""
    out = tmp_path_factory.mktemp("mixed") / "run"
    assert train(mixture(), out).state == "done"
    return RunFolder.open(out)


def test_train_on_a_mixture_audits_exact_by_source(finished: RunFolder) -> None:
    report = audit(finished.path)
    assert report.exact and report.complete, report.text()
    real, synthetic = report.sources
    assert (real.epochs, set(real.exposures)) == ("7/2", {3, 4})
    assert (synthetic.epochs, synthetic.exposures) == ("1", {1: SYNTHETIC})
    losses = [record.loss_nats for record in finished.metrics.records("train")]
    assert losses[-1] < losses[0] - 0.5


def test_every_step_holds_both_sources(finished: RunFolder) -> None:
    shares = [record.sources for record in finished.ledger.records()]
    counts = [share["synthetic"].windows for share in shares[:-1] if share]
    assert len(counts) == len(shares) - 1
    assert max(counts) - min(counts) <= 2 and min(counts) > 0


def test_each_source_is_scored_on_its_own(finished: RunFolder) -> None:
    names = {record.set for record in finished.metrics.records("valid")}
    assert names == {
        f"{kind}/{name}" for kind in ("probe", "select", "report") for name in ("real", "synthetic")
    }


def test_t5_trains_on_a_mixture_under_span_corruption(mixture: MakeMixture, tmp_path: Path) -> None:
    small = "num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8, d_ff: 48"
    config = mixture(f"model={{family: t5, d_model: 32, {small}}}", "objective.name=span_corruption")
    assert train(config, tmp_path / "run").state == "done"
    report = audit(tmp_path / "run")
    assert report.exact and report.complete, report.text()
    losses = [record.loss_nats for record in RunFolder.open(tmp_path / "run").metrics.records("train")]
    assert losses[-1] < losses[0] - 0.5


def test_killed_and_resumed_equals_unbroken(
    finished: RunFolder, mixture: MakeMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 11, crash)
        train(mixture(), out)
    partial = audit(out)
    assert partial.exact and not partial.complete, partial.text()
    assert train(mixture(), out).state == "done"
    assert audit(out).exact
    again = RunFolder.open(out)
    assert steps_of(again.ledger) == steps_of(finished.ledger)
    losses = [[r.loss_nats for r in folder.metrics.records("train")] for folder in (again, finished)]
    assert losses[0] == losses[1]


def test_planted_window_of_the_other_source_makes_the_audit_fail(
    mixture: MakeMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Stream.tokens

    def misled(
        self: Stream, start_B: np.ndarray, length_B: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens_BL, length_B = honest(self, start_B, length_B, width)
        here = np.flatnonzero((self.source_of(start_B) == 1) & (length_B == width))
        if here.size and int(start_B[here[0]]) < REAL + 200:
            tokens_BL[here[0]] = self.read(64, width)
        return tokens_BL, length_B

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "tokens", misled)
        train(mixture("data.sources.real.total_tokens=0.5epochs"), tmp_path / "run")
    report = audit(tmp_path / "run")
    assert not report.exact
    assert "the model saw other tokens" in report.text()


def test_batches_are_the_same_rows_on_any_ranks(mixture: MakeMixture) -> None:
    data = open_data(mixture())

    def rows_of(rank: int, world_size: int, micro: int) -> dict[int, tuple[int, list[int]]]:
        loader = Loader(
            data.stream,
            data.plan,
            data.steps,
            data.objective,
            rank=rank,
            world_size=world_size,
            micro_batch_windows=micro,
        )
        batch: StepBatch = loader.batch(7)
        return {
            int(row): (int(start), tokens[:length].tolist())
            for mb in batch.micro_batches
            for row, start, tokens, length in zip(
                mb.row_B, mb.start_B, mb.tokens_BL, mb.length_B, strict=True
            )
            if length
        }

    whole = rows_of(0, 1, 12)
    assert len(whole) == 12
    assert {int(data.stream.source_of(start)) for start, _ in whole.values()} == {0, 1}
    assert rows_of(0, 3, 2) | rows_of(1, 3, 2) | rows_of(2, 3, 2) == whole
    assert rows_of(0, 1, 5) == whole


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        (
            "data.sources.synthetic.unique_tokens=1e9",
            PlanError,
            ["data.sources.synthetic.unique_tokens", "1000000000"],
        ),
        ("data.sources.real.unique_tokens=20", PlanError, ["source real: data.window_tokens", "of 20"]),
        ("data.sources.synthetic.store=nowhere", StoreError, ["nowhere"]),
    ],
)
def test_bad_mixture_is_refused_before_anything_is_written(
    mixture: MakeMixture, tmp_path: Path, override: str, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        train(mixture(override), tmp_path / "run")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_stores_of_two_tokenizers_are_refused_with_both_names(
    mixture: MakeMixture, store_path: Path, synthetic_path: Path, tmp_path: Path
) -> None:
    text = synthetic_path.parent / "squares.jsonl"
    tokenize([text], tmp_path / "other", vocab_size=100, num_sentinels=4, held_out_fraction=0.2)
    with pytest.raises(StoreError, match="must have the same tokenizer") as caught:
        train(mixture(f"data.sources.synthetic.store={tmp_path / 'other'}"), tmp_path / "run")
    assert str(store_path) in str(caught.value) and str(tmp_path / "other") in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_store_may_serve_two_sources(mixture: MakeMixture, store_path: Path, tmp_path: Path) -> None:
    config = mixture(
        f"data.sources.synthetic={{store: '{store_path}', unique_tokens: 600, subset_seed: 4}}",
        "data.sources.real.unique_tokens=400",
    )
    train(config, tmp_path / "run")
    report = audit(tmp_path / "run")
    assert report.exact, report.text()
    assert [set(source.exposures) for source in report.sources] == [{3, 4}, {1}]
