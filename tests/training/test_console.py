"""What a run shows: its header, a bar on a terminal, plain lines elsewhere, a closing summary, and spikes."""

from __future__ import annotations

import os
import pty
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs.folder import RunFolder
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def config_file(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console")
    config = tiny("data.unique_tokens=1000", "train.total_tokens=2epochs", "train.device=cpu")
    (folder / "tiny.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    return folder / "tiny.yaml"


def command(config_file: Path, run: str) -> list[str]:
    return ["-m", "reptrain", "train", str(config_file), "--out", run]


ENVIRONMENT = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}


def on_a_terminal(words: list[str], folder: Path) -> str:
    """What a command writes where standard output and error are a terminal."""
    leader, follower = pty.openpty()
    child = Forked(
        words, folder=folder, stdin=follower, stdout=follower, stderr=follower, environment=ENVIRONMENT
    )
    os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 65_536):
            written += chunk
    except OSError:
        # Linux ends a terminal whose writers are gone with an error.
        pass
    os.close(leader)
    assert child.wait(timeout=120) == 0, written.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def test_a_run_shows_what_it_trains_and_what_comes_next(
    one_thread: None,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = config_file.parent
    monkeypatch.chdir(folder)
    app(["train", str(config_file), "--out", "runs/a b"], standalone_mode=False)
    plan = RunFolder.open(folder / "runs" / "a b").plan
    shown = capsys.readouterr().out
    header = shown[: shown.index("step 0/")]
    for fact in (
        rf"store +{re.escape(plan.sources[0].store)}\n",
        r"subset +1,000 of [\d,]+ training tokens \([\d.]+ %\)\n",
        r"epochs +2 over the subset, order reshuffle, cut fixed\n",
        r"model +decoder, [\d,]+ parameters\n",
        rf"steps +{plan.step_plan().num_steps} over 2,000 tokens\n",
        r"batch +\d+ windows of \d+ tokens, \d+ at a time\n",
        r"device +CPU, 1 thread\n",
        r"precision +fp32, ZeRO 0\n",
        r"output +runs/a b\n",
    ):
        assert re.search(fact, header), (fact, header)
    assert "WARNING: the run uses" in header and "data.unique_tokens=null uses all of them." in header
    assert re.search(r"step (\d+)/\1  epoch 2.00  loss \d\.\d+ nats  [\d,]+ tokens/s  lr", shown)
    closing = shown[shown.index("done: ") :]
    assert re.search(r"trained +2,000 tokens, 2 epochs, \d+ s of steps, [\d,]+ tokens/s\n", closing)
    assert re.search(r"report +\d+\.\d+ nats/token, \d+\.\d+ bits/byte\n", closing)
    assert "reptrain audit 'runs/a b'" in closing and "reptrain generate" in closing
    # From any folder: the run knows where its store is.
    config = RunFolder.open(folder / "runs" / "a b").config
    assert config.data.store == plan.sources[0].store


def test_a_terminal_gets_a_bar_with_time_left(config_file: Path) -> None:
    shown = on_a_terminal(command(config_file, "runs/terminal"), config_file.parent)
    assert "left" in shown and "100 %" in shown and "tokens/s" in shown
    # Scores stand above the bar, and steps are shown by the bar alone.
    assert re.search(r"step \d+/\d+  select \d", shown) and not re.search(r"lr \d", shown)
    assert "done: " in shown and "next" in shown


def test_no_warning_where_the_store_is_read(
    tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(
        "data.unique_tokens=null",
        "train.total_tokens=0.5epochs",
        "train.batch_windows=256",
        "evaluate.max_windows=1",
    )
    train(config.model_copy(update={"name": "all"}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "(100 %)" in printed and "WARNING" not in printed


def test_the_warning_of_a_short_run_does_not_advise_a_larger_subset(
    tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("data.unique_tokens=1000", "train.total_tokens=500", "evaluate.max_windows=1")
    train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert re.search(r"WARNING: the run uses .* It ends within its first epoch\.\n", printed)
    assert "data.unique_tokens=null" not in printed


def test_a_spike_is_noted_and_changes_nothing(
    tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reptrain.training import loop

    config = tiny(
        "data.unique_tokens=2000",
        "train.total_tokens=3epochs",
        "train.batch_windows=2",
        "evaluate.max_windows=1",
    )
    real = loop.step_learning_rate
    # A rate that kicks the weights far away, once.
    kicked = RunConfig.model_validate(config.model_dump(mode="json"))
    calls = iter(range(10**6))
    monkeypatch.setattr(
        loop, "step_learning_rate", lambda *args: real(*args) * (3000 if next(calls) == 60 else 1)
    )
    train(kicked, tmp_path / "run", stop=None)
    folder = RunFolder.open(tmp_path / "run")
    noted = [record for record in folder.events.records() if record.event == "spike"]
    assert noted and noted[0].step == 61 and noted[0].detail.startswith(("loss", "gradient norm"))
    assert f"WARNING: step 61: {noted[0].detail}" in capsys.readouterr().out
    assert folder.status().state == "done"
