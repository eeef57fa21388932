"""Metrics sent to trackers: complete, and without paths, text, machine and user."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.path_settings import is_path, path_texts
from reptrain.errors import ConfigError
from reptrain.runs import trackers
from reptrain.runs.folder import RunFolder
from reptrain.runs.trackers import link_boards, points, track, tracked_settings


@pytest.fixture(scope="module")
def run(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that names the store by its path."""
    from reptrain.config.load import validate
    from reptrain.training.loop import train

    out = tmp_path_factory.mktemp("secret-place") / "run"
    settings = {
        "data": {"store": str(store_path), "unique_tokens": 1000, "window_tokens": 32},
        "model": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
        "train": {"total_tokens": "1epochs", "batch_windows": 8, "device": "cpu"},
        "evaluate": {"every_fraction": 0.5, "max_windows": 4},
    }
    train(validate(RunConfig, settings), out)
    return out


def leaks(content: bytes, run: Path, store: Path, text: str) -> list[str]:
    """What a tracker's files must not hold."""
    user, host = getpass.getuser(), socket.gethostname()
    secrets = [str(run.parent), run.parent.name, str(store), str(Path.cwd()), text, host]
    # A short user name may be a part of other words.
    secrets += [user] if len(user) > 5 else [f"/{user}/", f'"{user}"']
    return [secret for secret in secrets if secret.encode() in content]


@pytest.fixture
def text(text_file: Path) -> str:
    """The first words of a document."""
    return str(json.loads(text_file.read_text().split("\n")[0])["text"][:40])


def test_settings_of_a_run_leave_paths_out(run: Path, store_path: Path, text: str) -> None:
    folder = RunFolder.open(run)
    settings = tracked_settings(folder)
    assert settings["data.unique_tokens"] == 1000 and settings["fingerprint"]
    assert not leaks(json.dumps(settings).encode(), run, store_path, text)
    assert tracked_settings(folder, paths=True)["data.store"] == str(store_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init_from", "parent"),
        ("data.sources.web.store", "web"),
        ("checkpoint.mirror", "s3://bucket/runs"),
        ("distill.teacher", ["larger"]),
        ("anything", "/home/me/a"),
        ("anything", ["a", "b/c"]),
        ("anything", {"a": [r"C:\\a"]}),
    ],
)
def test_a_path_is_recognized_in_any_setting(key: str, value: object) -> None:
    assert is_path(key, value)
    assert not is_path("objective.name", "span_corruption")


def test_paths_of_a_list_are_named_one_by_one() -> None:
    assert [*path_texts({"distill": {"teacher": ["/a/b", "c"]}, "seed": 1})] == ["/a/b", "c"]


def test_points_have_every_record(run: Path) -> None:
    folder = RunFolder.open(run)
    found = list(points(folder.metrics.records()))
    assert len(found) == len(list(folder.metrics.records()))
    names = {name for point in found for name in point.values}
    assert {"train/loss_nats", "train/lr", "select/nats", "report/nats", "probe/nats"} <= names
    *_, last = folder.metrics.records("train")
    assert next(p.values["train/loss_nats"] for p in found if p.step == last.step + 1) == last.loss_nats


def test_wandb_offline_has_the_metrics_and_no_secrets(
    run: Path, store_path: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = CliRunner().invoke(app, ["track", str(run), "--to", "wandb", "--offline"])
    assert result.exit_code == 0, result.output
    # Its own logs stay on this machine: `wandb sync` does not send them.
    files = [path for path in (tmp_path / "dir").rglob("*") if path.is_file() and "logs" not in path.parts]
    (transactions,) = [path for path in files if path.suffix == ".wandb"]
    content = transactions.read_bytes()
    assert b"train/loss_nats" in content and b"select/nats" in content and b"unique_tokens" in content
    for path in files:
        assert not leaks(path.read_bytes(), run, store_path, text), path


def test_mlflow_has_the_metrics_and_no_secrets(
    run: Path, store_path: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    records = list(RunFolder.open(run).metrics.records("train"))
    for _ in range(2):
        # The second call continues the run and repeats nothing.
        track(run, "mlflow", project="tests")
    (experiment,) = [one for one in mlflow.search_experiments() if one.name == "tests"]
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss_nats")
    assert [point.value for point in history] == [record.loss_nats for record in records]
    assert found.data.params["data.unique_tokens"] == "1000"
    for path in (tmp_path / "mlruns").rglob("*"):
        if path.is_file():
            content = path.read_bytes().replace(str(tmp_path).encode(), b"")
            assert not leaks(content, run, store_path, text), path


def test_follow_sends_records_once_until_the_run_ends(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_POLL_S", 0.01)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "plan.json", "environment.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    done = (run / "status.json").read_text()
    (copy / "status.json").write_text(done.replace('"done"', '"running"'))
    log = copy / "metrics.jsonl"
    log.write_bytes(b"".join(lines[:5]))
    followed: Iterator[object] = trackers._following(RunFolder.open(copy))
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.extend(followed))
    reader.start()

    def wait_for(count: int) -> None:
        limit = time.monotonic() + 60
        while len(found) < count and time.monotonic() < limit:
            time.sleep(0.01)

    wait_for(5)
    # Resumed from an earlier checkpoint: records are cut back, then written again.
    log.write_bytes(b"".join(lines[:3]))
    time.sleep(0.1)
    log.write_bytes(b"".join(lines))
    (copy / "status.json").write_text(done)
    reader.join(60)
    assert found == list(RunFolder.open(run).metrics.records())


def test_tensorboard_shows_several_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    other, boards = tmp_path / "other" / "run", tmp_path / "boards"
    shutil.copytree(run, other)
    for _ in range(2):
        # A second call replaces the links.
        names = [link.name for link in link_boards([run, other], boards)]
    assert names == [f"{run.parent.name}-run", "other-run"]
    board = EventMultiplexer().AddRunsFromDirectory(str(boards))
    board.Reload()
    losses = [record.loss_nats for record in RunFolder.open(run).metrics.records("train")]
    for name in names:
        curve = [float(make_ndarray(one.tensor_proto)) for one in board.Tensors(name, "train/loss_nats")]
        assert curve == pytest.approx(losses, rel=1e-6)
    (boards / "mine").mkdir()
    with pytest.raises(ConfigError, match="Choose another folder"):
        link_boards([other.rename(other.with_name("mine"))], boards)


def test_track_names_what_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def message(*arguments: str) -> str:
        return str(CliRunner().invoke(app, ["track", str(run), *arguments]).exception)

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'reptrain[wandb]'" in message("--to", "wandb")
    assert "--out" in message("--to", "tensorboard")
    assert "must have one run" in message(str(run), "--to", "wandb", "--follow")


@pytest.mark.parametrize(
    ("to", "options", "rule"),
    [
        ("mlflow", ["--offline"], "--offline: needs --to wandb, but got --to mlflow"),
        ("wandb", ["--out", "boards"], "needs --to tensorboard"),
        ("tensorboard", ["--follow"], "needs --to wandb or mlflow"),
        ("tensorboard", ["--paths"], "needs --to wandb or mlflow"),
    ],
)
def test_option_of_another_tracker_is_refused(run: Path, to: str, options: list[str], rule: str) -> None:
    result = CliRunner().invoke(app, ["track", str(run), "--to", to, *options])
    assert isinstance(result.exception, ConfigError) and rule in str(result.exception)


def test_runs_with_one_link_are_refused(run: Path, tmp_path: Path) -> None:
    pair = [tmp_path / above / "seeds" / "run" for above in ("a", "b")]
    for place in pair:
        shutil.copytree(run, place)
    with pytest.raises(ConfigError, match="2 with the link seeds-run"):
        link_boards(pair, tmp_path / "boards")


def test_a_tracker_that_refuses_is_one_error_without_passwords(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(trackers._Mlflow):
        def __init__(self, *given: object) -> None:
            raise RuntimeError("no answer from http://me:s3cret@host/api\n  and more")

    monkeypatch.setattr(trackers, "_Mlflow", Refusing)
    with pytest.raises(ConfigError, match=r"--to mlflow: .*RuntimeError: no answer") as refused:
        track(run, "mlflow")
    assert "s3cret" not in str(refused.value)


def test_mlflow_sends_each_step_whole(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(trackers, "_MLFLOW_BATCH", 2)
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    every = list(points(RunFolder.open(run).metrics.records()))
    # The last step has several records. The first call is killed after the first of them.
    steps = [one.step for one in every if "select/nats" in one.values]
    first = next(index for index, one in enumerate(every) if one.step == steps[-1])
    for number in (first + 1, len(every)):
        tracker = trackers._Mlflow("run", "id", "tests", {})
        for point in every[:number]:
            tracker.log(point)
    tracker.finish()
    client = mlflow.MlflowClient()
    (experiment,) = [one for one in mlflow.search_experiments() if one.name == "tests"]
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "select/nats")
    assert steps[0] == 0 and [one.step for one in history] == steps
