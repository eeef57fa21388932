"""Starts DeepSpeed ranks on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml


def write_config(out: Path, config: RunConfig) -> None:
    """The settings that all cases below ``out`` begin from."""
    (out / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(ranks: int, out: Path, cases: dict[str, dict[str, Any]], *, fails: bool = False) -> str:
    """Carry out cases (see rank_matrix.py) on so many ranks, all in one start; returns what they wrote."""
    (out / "cases.json").write_text(json.dumps(cases))
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={os.devnull}"),
        *(f"--num_accelerators={ranks}", "--no_local_rank", f"--master_port={_free_port()}"),
        *(str(Path(__file__).with_name("rank_matrix.py")), str(out), str(out / "cases.json")),
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert fails == (ended.returncode != 0), ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout + ended.stderr
