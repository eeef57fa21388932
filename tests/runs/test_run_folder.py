"""The run folder: whole, locked, and refusing to become another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from time_limits import START_S

from reptrain.config import RunConfig, config_fingerprint, load_run_config
from reptrain.errors import ResumeError, RunError
from reptrain.files import write_atomically
from reptrain.plan import EpochPlan, Stream
from reptrain.runs import RunFolder, RunPlan
from reptrain.runs.environment import collect

SETTINGS = {
    "name": "short",
    "data": {"store": "store", "unique_tokens": 100, "window_tokens": 16},
    "train": {"total_tokens": "2.5epochs", "batch_windows": 4},
}


class KnownSubset:
    unique_tokens = num_tokens = 100
    fingerprint = "subset"


def configured(**data) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, "data": {**SETTINGS["data"], **data}})


def planned(config, path, **subset) -> RunPlan:
    known = KnownSubset()
    for name, value in subset.items():
        setattr(known, name, value)
    store = SimpleNamespace(address=str(path / "store"), fingerprint="content")
    return RunPlan.of(config, stores={"data": store}, stream=Stream([known]))


def opened(path, config=None, environment=None, **subset) -> RunFolder:
    config = config or configured()
    return RunFolder.create_or_open(path / "run", config, planned(config, path, **subset), environment or {})


def files_of(path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file() and p.name != ".lock"}


def test_run_plan_is_what_the_config_asks_for(tmp_path):
    plan = planned(configured(order="same", cut="shifted", subset_seed=9), tmp_path)
    assert plan.mixture_plan().plans == (EpochPlan(100, 16, 18, "same", "shifted", 0),)
    (source,) = plan.sources
    assert (source.windows_per_epoch, source.epochs, source.subset_seed) == (7, "18/7", 9)
    assert plan.step_plan().num_steps == 5
    assert RunPlan.model_validate_json(plan.model_dump_json()) == plan


def test_create_or_open_makes_a_folder_that_describes_the_run(tmp_path):
    folder = opened(tmp_path, environment={"python": "3.11"})
    again = RunFolder.open(folder.path)
    # The store's path is absolute there, and not part of the fingerprint.
    written = configured().with_absolute_stores()
    assert Path(written.data.store).is_absolute() and written != configured()
    assert again.config == written == load_run_config(folder.path / "config.yaml")
    assert config_fingerprint(written) == config_fingerprint(configured())
    assert again.plan == planned(configured(), tmp_path)
    assert again.plan.config_fingerprint in (folder.path / "config.yaml").read_text()
    assert again.environment == {"python": "3.11"}
    assert again.tensorboard.is_dir() and again.checkpoints.is_dir()
    assert again.status().state == "created"


def test_create_or_open_resumes_under_settings_that_do_not_change_the_results(tmp_path):
    opened(tmp_path, environment={"host": "a"})
    other = RunConfig.model_validate({**SETTINGS, "train": {**SETTINGS["train"], "zero_stage": 1}})
    opened(tmp_path, other, environment={"host": "b"})
    for _ in range(2):
        folder = opened(tmp_path, other, environment={"host": "c"})
    assert folder.config.train.zero_stage == 1
    assert folder.environment == {"host": "c", "earlier": [{"host": "a"}, {"host": "b"}]}


def test_create_or_open_refuses_another_config_by_the_differing_keys(tmp_path):
    folder = opened(tmp_path)
    before = files_of(folder.path)
    with pytest.raises(ResumeError) as error:
        opened(tmp_path, configured(window_tokens=8, order="same"))
    assert "data.order=same where the folder has reshuffle" in str(error.value)
    assert "data.window_tokens=8 where the folder has 16" in str(error.value)
    assert files_of(folder.path) == before


@pytest.mark.parametrize("other", [{"fingerprint": "another"}, {"unique_tokens": 90}])
def test_create_or_open_refuses_another_subset(tmp_path, other):
    opened(tmp_path)
    with pytest.raises(ResumeError, match=r"subset_fingerprint=another|unique_tokens=90"):
        opened(tmp_path, **other)


def rewrite_plan(folder, **changes) -> None:
    """Write plan.json again with other values; None removes a key."""
    path = folder.path / "plan.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize("state", ["preempted", "done"])
@pytest.mark.parametrize(("found", "named"), [(None, 1), (99, 99)])
def test_create_or_open_refuses_other_numerics_by_name(tmp_path, state, found, named):
    folder = opened(tmp_path, environment={"packages": {"reptrain": "0.0.1"}, "commit": "abc"})
    folder.set_status(state)
    # A run of before the first numerics_version has none.
    rewrite_plan(folder, numerics_version=found, format=None if found is None else 2)
    before = files_of(folder.path)
    with pytest.raises(ResumeError, match=f"but got numerics_version {named}") as error:
        opened(tmp_path)
    assert "resume with reptrain 0.0.1 (commit abc)" in str(error.value)
    assert files_of(folder.path) == before
    assert RunFolder.open(folder.path).plan.numerics_version == named


def test_plan_of_a_newer_format_is_refused(tmp_path):
    folder = opened(tmp_path)
    rewrite_plan(folder, format=4, something="new")
    with pytest.raises(RunError, match=r"must have a format from 1 to 3, but got format 4\. Use the version"):
        opened(tmp_path)


def test_create_or_open_follows_a_store_that_moved(tmp_path):
    opened(tmp_path)
    config = configured()
    plan = planned(config, tmp_path / "moved")
    assert RunFolder.create_or_open(tmp_path / "run", config, plan, {}).plan.sources == plan.sources


def test_create_or_open_finishes_a_folder_whose_making_was_killed(tmp_path):
    folder = opened(tmp_path)
    (folder.path / "plan.json").unlink()
    with pytest.raises(RunError, match=r"no plan\.json"):
        RunFolder.open(folder.path)
    assert opened(tmp_path).plan == planned(configured(), tmp_path)


def test_create_or_open_does_not_change_a_finished_run(tmp_path):
    folder = opened(tmp_path, environment={"host": "a"})
    folder.set_status("done")
    before = files_of(folder.path)
    opened(tmp_path, environment={"host": "b"})
    assert files_of(folder.path) == before


def test_create_or_open_refuses_a_path_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="must be a folder that can be written"):
        opened(tmp_path)


def test_plan_that_is_damaged_is_refused_by_name(tmp_path):
    folder = opened(tmp_path)
    (folder.path / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json"):
        _ = RunFolder.open(folder.path).plan


def test_set_status_replaces_the_status(tmp_path):
    folder = opened(tmp_path)
    folder.set_status("running")
    folder.set_status("failed", "RuntimeError: no", step=3)
    status = RunFolder.open(folder.path).status()
    assert (status.state, status.reason, status.step) == ("failed", "RuntimeError: no", 3)
    assert json.loads((folder.path / "status.json").read_text())["host"] == status.host


def test_lock_refuses_a_second_run_and_leaves_its_files(tmp_path):
    folder = opened(tmp_path)
    with folder.lock():
        folder.set_status("running")
        before = files_of(folder.path)
        with pytest.raises(RunError, match="must be used by one run at a time"), folder.lock():
            pass
        with pytest.raises(RunError, match=f"process {folder.status().pid}"):
            opened(tmp_path, environment={"host": "other"})
        assert files_of(folder.path) == before
    with folder.lock():
        pass


def test_lock_of_a_process_that_died_is_free(tmp_path):
    folder = opened(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from reptrain.runs import RunFolder\n"
        "lock = RunFolder.open(Path(sys.argv[1])).lock(); lock.__enter__(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], timeout=START_S)
    assert done.returncode == -9
    with folder.lock():
        pass


def test_environment_names_versions_without_importing_them():
    code = (
        "import json, sys; from reptrain.runs.environment import collect\n"
        "print(json.dumps([collect({'device': 'cpu'}), 'torch' in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S, check=True
    )
    environment, imported = json.loads(out.stdout)
    assert not imported
    assert environment["packages"].keys() >= {"torch", "numpy"}
    assert environment["device"] == "cpu" and environment["cores"] >= 1 and environment["cpu"]


def test_environment_has_the_commit_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert collect()["commit"] is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert collect()["commit"] == head.stdout.strip()


def test_credentials_of_urls_are_not_written(tmp_path, monkeypatch):
    secret = "ftp://me:s3cret@host/stores/a?key=s3cret"
    monkeypatch.setattr(sys, "argv", ["reptrain", "train", f"data.store={secret}"])
    data = {**SETTINGS["data"], "store": secret}
    config = RunConfig.model_validate({**SETTINGS, "data": data, "checkpoint": {"mirror": secret}})
    folder = opened(tmp_path, config, collect())
    for path in folder.path.glob("*.*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path.name
    assert folder.config.data.store == folder.config.checkpoint.mirror == "ftp://host/stores/a"
    assert folder.environment["command"][2] == "data.store=ftp://host/stores/a"
    # The same command resumes.
    assert opened(tmp_path, config).path == folder.path


@pytest.mark.parametrize("name", ["missing/file", "folder", "folder/pipe"])
def test_a_file_that_cannot_be_written_is_named_itself(tmp_path, name):
    (tmp_path / "folder").mkdir()
    # It stands for every device: a rename would replace it.
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(OSError) as refused:
        write_atomically(tmp_path / name, "text")
    assert refused.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["pipe"]
    assert (tmp_path / "folder" / "pipe").is_fifo()
