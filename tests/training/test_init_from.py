"""Runs that begin with the weights of a trained model, and remember whose."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interrupts import crash, interrupt_at
from sentencepiece import sentencepiece_model_pb2

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, ReptrainError, ResumeError
from reptrain.hub.export import export_model
from reptrain.hub.saved_model import open_saved_model
from reptrain.runs import Ledger, RunFolder
from reptrain.runs.parent import read_parent
from reptrain.study.paths import is_run_of
from reptrain.text import SentencePieceTokenizer
from reptrain.training.init_from import open_parent
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]
SHORT = ("train.total_tokens=1200", "evaluate.every_fraction=1")


@pytest.fixture(scope="module")
def parent(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "run"
    train(tiny(*SHORT), out)
    return out


@pytest.fixture(scope="module")
def folder(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face folder."""
    return export_model(parent, tmp_path_factory.mktemp("folder") / "out").path


def scores(run: Path, step: int) -> dict[str, float]:
    records = RunFolder.open(run).metrics.records()
    return {record.set: record.nats for record in records if record.kind == "valid" and record.step == step}


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("run", 0),
        pytest.param("run", 1, marks=pytest.mark.slow),
        pytest.param("run", 2, marks=pytest.mark.slow),
        ("run", 3),
        ("folder", 0),
    ],
)
def test_run_begins_where_its_parent_ended(
    kind: str, stage: int, tiny: MakeConfig, parent: Path, folder: Path, tmp_path: Path
) -> None:
    source = parent if kind == "run" else folder
    last = open_saved_model(parent).step
    changed = ("seed=5", "model.dropout.mlp=0.1")
    config = tiny(*SHORT, f"init_from={source}", f"train.zero_stage={stage}", *changed)
    train(config, tmp_path / "run")
    assert last is not None
    before, after = scores(parent, last), scores(tmp_path / "run", 0)
    # The probe is of the same subset: it does not depend on the run's seed.
    assert after == pytest.approx(before, abs=1e-6)
    assert scores(tmp_path / "run", last) != after
    record = read_parent(tmp_path / "run")
    assert record is not None and record.weights == open_saved_model(source).fingerprint()
    assert record.path == str(source) and record.step == (last if kind == "run" else None)
    assert record.changed.keys() == {"dropout.mlp"}
    # The ledger of a branch begins with the last line of its parent's.
    report = audit(tmp_path / "run")
    assert report.exact and report.ledger is not None
    assert report.ledger.parent == (Ledger(parent / "ledger.jsonl").head() if kind == "run" else None)


def test_run_goes_on_without_its_parent(tiny: MakeConfig, parent: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parent, tmp_path / "parent"))
    config = tiny(*SHORT, f"init_from={source}", "checkpoint.every_fraction=0.3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3, crash)
        train(config, tmp_path / "run")
    train(config, tmp_path / "unbroken")
    shutil.rmtree(source)
    train(config, tmp_path / "run")
    with torch.no_grad():
        for name, weight in open_saved_model(tmp_path / "run").load().named_parameters():
            assert torch.equal(weight, open_saved_model(tmp_path / "unbroken").load().get_parameter(name)), (
                name
            )


def test_resume_accepts_another_path_of_the_same_parent(
    tiny: MakeConfig, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(init_from: object) -> RunConfig:
        return tiny(*SHORT, f"init_from={init_from}", "checkpoint.every_fraction=0.3")

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3, crash)
        train(config(parent), run)
    folder = RunFolder.open(run)
    (tmp_path / "link").symlink_to(parent)
    copy = shutil.copytree(parent, tmp_path / "copy")
    monkeypatch.chdir(parent.parent)
    for spelled in (f"{parent}/", parent.name, f"../{parent.parent.name}/{parent.name}", tmp_path / "link"):
        same = config(spelled)
        assert folder.with_recorded_parent(same).init_from == str(parent)
        assert is_run_of(same, folder)
    with pytest.raises(ResumeError, match="init_from="):
        train(config(tmp_path / "nowhere"), run)
    other = tmp_path / "other"
    train(tiny(*SHORT, "seed=9"), other)
    with pytest.raises(ResumeError, match="init_from="):
        train(config(other), run)
    # A copy elsewhere is recognized by its weights.
    assert train(config(copy), run).state == "done"
    assert RunFolder.open(run).config.init_from == str(copy)
    assert audit(run).exact is True
    assert train(config(parent.name), run).state == "already done"


def test_a_second_start_with_other_weights_is_refused(tiny: MakeConfig, parent: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(parent, tmp_path / "parent"))
    config = tiny(*SHORT, f"init_from={source}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 0, crash)
        train(config, tmp_path / "run")
    shutil.rmtree(source)
    train(tiny(*SHORT, "seed=9"), source)
    with pytest.raises(ResumeError, match=r"must hold the weights .* that the run started from"):
        train(config, tmp_path / "run")


REFUSED = {
    "wider": (("model.d_ff=96",), "parameter blocks.0.mlp.gate.weight"),
    "deeper": (("model.num_layers=3",), "parameter blocks.2.attention_norm.weight"),
    "more rows": (("model.vocab_size=600",), "parameter embedding.weight"),
    "a wider family": (
        ("objective={name: span_corruption}", "model={family: t5, num_heads: 2, head_dim: 8}"),
        "model.d_model: must be 32",
    ),
    "other heads": (("model.num_heads=4",), "model.num_heads: must be 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused_by_name(case: str, tiny: MakeConfig, parent: Path, tmp_path: Path) -> None:
    overrides, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        train(tiny(*SHORT, f"init_from={parent}", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused(tiny: MakeConfig, parent: Path, tmp_path: Path) -> None:
    config = tiny(*SHORT, f"init_from={parent}")
    tokenizer = open_saved_model(parent).tokenizer()
    assert open_parent(config.init_from, config.model, tmp_path / "run", tokenizer) is not None
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model_bytes)
    was, proto.pieces[100].piece = proto.pieces[100].piece, "another"
    with pytest.raises(ConfigError, match=rf"must have '{re.escape(was)}' as this id.*'another' as id 100"):
        other = SentencePieceTokenizer(proto.SerializeToString())
        open_parent(config.init_from, config.model, tmp_path / "run", other)


def test_no_model_is_refused(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ReptrainError, match="must be the folder of a model"):
        train(tiny(*SHORT, f"init_from={tmp_path}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
