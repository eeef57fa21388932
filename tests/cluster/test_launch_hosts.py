"""A run on two hosts over ssh and pdsh survives the loss of a host, resumes on the other, and is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ssh_hosts import SshHost, missing_parts, ssh_hosts

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
ENVIRON = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "card"}


def launch(host: SshHost, folder: Path, *options: str) -> subprocess.Popen[str]:
    """`reptrain launch` on a host."""
    words = ["env", "-C", folder, sys.executable, "-m", "reptrain", "launch", "config.yaml", "--out", "run"]
    return subprocess.Popen(
        host.command([*words, *options]), env={**os.environ, **ENVIRON}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while sum(1 for _ in RunFolder(run).ledger.records()) < steps:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.1)


def test_a_run_on_two_hosts_survives_one_of_them(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    if missing := missing_parts():
        pytest.skip(f"two hosts on this machine need {', '.join(missing)}")
    config = tiny("train.total_tokens=60epochs", "checkpoint.every_fraction=0.02", "evaluate.max_windows=1")
    (tmp_path / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    (tmp_path / "hosts").write_text("host0 slots=1\nhost1 slots=1\n")
    with ssh_hosts(tmp_path / "h") as (first, second):
        options = ("--hostfile", "hosts", "--env", "REPTRAIN_MARK=a $b", "--env", "HF_TOKEN=hidden")
        training = launch(first, tmp_path, "train.rank_timeout_seconds=20", *options)
        wait_for_steps(tmp_path / "run", 40, training)
        assert RunFolder(tmp_path / "run").environment["world_size"] == 2
        words = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
        assert not any(b"hidden" in line and b"deepspeed.launcher.launch" in line for line in words)
        secrets = tmp_path / "run.launch.secrets"
        assert secrets.read_text() == "HF_TOKEN=hidden\n" and secrets.stat().st_mode & 0o777 == 0o600
        second.kill()
        output, _ = training.communicate(timeout=120)
        assert training.returncode not in (0, 3), output
        assert not secrets.exists() and "hidden" not in (tmp_path / "run.launch.sh").read_text()
        again = launch(
            first, tmp_path, "train.rank_timeout_seconds=20", "--hostfile", "hosts", "--exclude", "host1"
        )
        output, _ = again.communicate(timeout=200)
        assert again.returncode == 0, output
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status().state == "done" and folder.environment["world_size"] == 1
    audit = subprocess.run(
        [sys.executable, "-m", "reptrain", "audit", str(folder.path), "--json"],
        capture_output=True,
        text=True,
    )
    assert audit.returncode == 0 and json.loads(audit.stdout)["exact"], audit.stdout
