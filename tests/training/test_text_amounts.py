"""Budgets and checkpoints in words and bytes, their export as revisions, and the certificate of exposures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from interrupts import crash, interrupt_at
from ledgers import steps_of
from typer.testing import CliRunner

from reptrain.checkpoint.step_folder import step_folders
from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.quantities import Budget, TextAmount
from reptrain.config.sections import CheckpointConfig
from reptrain.errors import ConfigError, RunError, StoreError
from reptrain.hub.revisions import export_revisions, revision_steps
from reptrain.plan.text_amounts import steps_of_text
from reptrain.runs import RunFolder
from reptrain.runs.parent import read_parent
from reptrain.store import open_store
from reptrain.store.manifest import SplitInfo
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs
from reptrain.training.setup import open_data, resolve_budgets

Make = Callable[..., RunConfig]
AT_TEXT = "checkpoint.at_text=[1000words, 7kbytes, 2000words, 1Mwords]"


@pytest.fixture(scope="module")
def run(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "run"
    more = ("train.total_tokens=2500words", "checkpoint.every_fraction=1", "evaluate.every_fraction=1")
    train(tiny(AT_TEXT, *more, "train.batch_windows=8"), path)
    return path


def test_words_of_a_store_are_those_of_its_documents(text_file: Path, store_path: Path) -> None:
    # Equal documents are kept once.
    texts = {json.loads(line)["text"] for line in text_file.read_text().splitlines()}
    splits = open_store(store_path).manifest.splits.values()
    assert sum(split.words or 0 for split in splits) == sum(len(text.split()) for text in texts)
    shown = CliRunner().invoke(app, ["store", "show", str(store_path), "--json"], catch_exceptions=False)
    assert json.loads(shown.output)["splits"]["train"]["words"] == open_store(store_path).split("train").words


@pytest.mark.parametrize(
    ("text", "count", "short"),
    [
        ("1Mwords", 10**6, "1M"),
        ("1e9words", 10**9, "1000M"),
        ("5e4 bytes", 50_000, "50kB"),
        ("7words", 7, "7"),
    ],
)
def test_amounts_of_text_are_parsed_and_shortened(text: str, count: int, short: str) -> None:
    amount = TextAmount.parse(text)
    assert amount.count == count and amount.short == short
    assert TextAmount.parse(str(amount)) == amount
    assert Budget.parse(text).text == amount and Budget.parse(str(Budget.parse(text))).text == amount


@pytest.mark.parametrize("text", ["words", "-3words", "0bytes", "1.5words", "1Mtokens", 5])
def test_other_amounts_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="10Mwords"):
        TextAmount.parse(text)


def test_the_amounts_of_babylm() -> None:
    amounts = [amount.short for amount in CheckpointConfig(at_text="babylm").at_text]
    assert amounts[:3] == ["1M", "2M", "3M"] and amounts[8:11] == ["9M", "10M", "20M"]
    assert amounts[-2:] == ["900M", "1000M"]
    assert CheckpointConfig(at_text="10Mwords").at_text == [TextAmount.parse("10Mwords")]
    with pytest.raises(ValueError, match="10Mwords"):
        CheckpointConfig(at_text="babylmm")


def test_a_budget_of_words_becomes_tokens_by_the_mean_of_the_store(run: Path, store_path: Path) -> None:
    split = open_store(store_path).split("train")
    tokens = round(Fraction(2500) * split.num_tokens / (split.words or 0))
    folder = RunFolder.open(run)
    assert folder.config.train.total_tokens == Budget(tokens=tokens)
    consumed = sum(record.tokens for record in folder.ledger.records())
    # Whole windows.
    assert abs(consumed - tokens) <= 32


def test_checkpoints_are_at_the_first_step_with_so_much_text(run: Path, store_path: Path) -> None:
    split, folder = open_store(store_path).split("train"), RunFolder.open(run)
    steps = revision_steps(folder)
    # A million words are never reached.
    assert list(steps) == ["chck_1k", "chck_7kB", "chck_2k"]
    records = [record.tokens for record in folder.ledger.records()]
    for name, count, total in (
        ("1k", 1000, split.words),
        ("7kB", 7000, split.text_bytes),
        ("2k", 2000, split.words),
    ):
        step = steps[f"chck_{name}"]
        before, after = (
            sum(records[:number]) * Fraction(total or 0, split.num_tokens) for number in (step - 1, step)
        )
        assert before < count <= after
    assert set(steps.values()) <= set(step_folders(folder.checkpoints))


def test_a_run_in_words_resumes_with_the_same_checkpoints(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunFolder.open(run)
    # As written by the user, in words.
    budget = whole.config.train.model_copy(update={"total_tokens": Budget.parse("2500words")})
    config = whole.config.model_copy(update={"train": budget})
    for step in (2, max(revision_steps(whole).values())):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, step, crash)
            train(config, tmp_path / "run")
    assert train(config, tmp_path / "run").state == "done"
    resumed = RunFolder.open(tmp_path / "run")
    assert steps_of(resumed.ledger) == steps_of(whole.ledger)
    assert revision_steps(resumed) == revision_steps(whole)
    assert set(revision_steps(whole).values()) <= set(step_folders(resumed.checkpoints))
    assert audit_inputs(resumed.path).exact


@pytest.mark.parametrize("cut", ["fixed", "shifted", "repacked"])
def test_a_run_ends_with_the_amount_of_its_budget(cut: str, tiny: Make) -> None:
    """Whether the budget is rounded to fewer words or to more; an amount far beyond it is not reached."""
    rounded = set()
    for words in range(2000, 2012, 3):
        amounts = f"checkpoint.at_text=[100words, {words}words, {words + 200}words]"
        config = resolve_budgets(tiny(f"train.total_tokens={words}words", amounts, f"data.cut={cut}"))
        data, [first, own, beyond] = open_data(config), config.checkpoint.at_text
        steps = steps_of_text([first, own, beyond], [*data.stores.values()], data.plan, data.steps)
        assert steps[own] == data.steps.num_steps and 1 <= steps[first] < data.steps.num_steps
        assert beyond not in steps
        split = data.stores["data"].split("train")
        rounded.add(data.plan.total_tokens * (split.words or 0) / split.num_tokens < words)
    assert rounded == {True, False}


def test_revisions_are_exported_by_name(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), str(tmp_path / "all"), "--revisions", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    rows = json.loads(result.output)
    steps = revision_steps(RunFolder.open(run))
    assert [(Path(row["path"]).name, row["step"]) for row in rows[:-1]] == list(steps.items())
    assert Path(rows[-1]["path"]).name == "main" and rows[-1]["step"] == max(
        step_folders(run / "checkpoints")
    )
    assert all((Path(row["path"]) / "model.safetensors").exists() for row in rows)
    assert isinstance(CliRunner().invoke(app, [*arguments, "--step", "3"]).exception, ConfigError)


def test_a_missing_revision_is_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / f"checkpoints/step-{revision_steps(RunFolder.open(copy))['chck_1k']}")
    with pytest.raises(RunError, match="chck_1k"):
        export_revisions(copy, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_store_without_word_counts_is_refused(store_path: Path, tiny: Make, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(store_path, old)
    manifest = re.sub(r'\n *"words": \d+,?', "", (old / "manifest.json").read_text())
    (old / "manifest.json").write_text(re.sub(r",(\s*})", r"\1", manifest))
    assert open_store(old).split("train").words is None
    with pytest.raises(StoreError, match="counts words"):
        train(tiny(f"data.store={old}", "train.total_tokens=100words"), tmp_path / "run")
    # Bytes were always counted.
    train(tiny(f"data.store={old}", "train.total_tokens=1000bytes"), tmp_path / "bytes")


def test_words_of_a_split_are_the_sum_of_its_shards(store_path: Path) -> None:
    info: dict[str, Any] = open_store(store_path).manifest.splits["train"].model_dump()
    with pytest.raises(ValueError, match="words must be the sum"):
        SplitInfo.model_validate(info | {"words": 1})


def certified(run: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["audit", str(run), "--certificate", str(out), *more])


def test_the_certificate_has_the_exposures_and_no_path(run: Path, store_path: Path, tmp_path: Path) -> None:
    result = certified(run, tmp_path / "one.txt")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "one.txt").read_text()
    assert "at most 2 times." in text
    plan, split = RunFolder.open(run).plan, open_store(store_path).split("train")
    facts = (
        plan.config_fingerprint,
        plan.sources[0].store_fingerprint,
        f"{split.words:,}",
        f"{split.text_bytes:,}",
    )
    assert all(fact in text for fact in facts)
    assert (
        str(run) not in text
        and str(store_path) not in text
        and "/" not in text.replace(plan.sources[0].epochs, "")
    )
    assert len(text.splitlines()) < 40
    certified(run, tmp_path / "two.txt")
    assert (tmp_path / "two.txt").read_text() == text


def test_the_certificate_names_other_models_that_brought_data(run: Path, tiny: Make, tmp_path: Path) -> None:
    train(tiny(f"init_from={run}", f"distill={{teacher: {run}}}", "train.total_tokens=100"), tmp_path / "run")
    assert certified(tmp_path / "run", tmp_path / "one.txt").exit_code == 0
    text = (tmp_path / "one.txt").read_text()
    weights = read_parent(tmp_path / "run")
    assert weights is not None and text.count("of another model; its training data is not counted") == 2
    assert f"initial weights  weights {weights.weights}" in text and str(run) not in text


def test_the_certificate_adds_the_exposures_of_sources_with_one_store(
    store_path: Path, tiny: Make, tmp_path: Path
) -> None:
    source = f"{{store: {store_path}, unique_tokens: 320, total_tokens: %depochs}}"
    mixture = f"data.sources={{a: {source % 1}, b: {source % 2}}}"
    nothing = [f"{key}=null" for key in ("data.store", "data.unique_tokens", "train.total_tokens")]
    train(tiny(mixture, *nothing), tmp_path / "run")
    assert certified(tmp_path / "run", tmp_path / "one.txt").exit_code == 0
    assert "at most 3 times." in (tmp_path / "one.txt").read_text()


def test_a_signed_certificate_verifies_and_a_changed_one_does_not(run: Path, tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    key, out = tmp_path / "key", tmp_path / "certificate.txt"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    assert certified(run, out, "--sign", str(key)).exit_code == 0
    (tmp_path / "signers").write_text(f"me {key.with_suffix('.pub').read_text()}")

    def verifies(text: str) -> bool:
        command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "signers", "-I", "me"]
        command += ["-n", "reptrain-certificate", "-s", tmp_path / "certificate.txt.sig"]
        return (
            subprocess.run(command, input=text, text=True, capture_output=True, check=False).returncode == 0
        )

    assert verifies(out.read_text())
    assert not verifies(out.read_text().replace("at most 2", "at most 1"))


def test_a_run_that_is_not_as_planned_gets_no_certificate(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    lines = (copy / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))
    result = certified(copy, tmp_path / "certificate.txt")
    assert isinstance(result.exception, RunError) and not (tmp_path / "certificate.txt").exists()


@pytest.mark.parametrize(
    ("out", "key", "option"),
    [("none/c.txt", None, "--certificate"), (".", None, "--certificate"), ("c.txt", "nokey", "--sign")],
)
def test_wrong_paths_of_a_certificate_are_refused_before_the_audit(
    run: Path, tmp_path: Path, out: str, key: str | None, option: str
) -> None:
    result = certified(run, tmp_path / out, *(["--sign", str(tmp_path / key)] if key else []))
    assert isinstance(result.exception, ConfigError) and option in str(result.exception)
    # The report was not printed.
    assert not result.output
