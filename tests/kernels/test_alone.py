"""The kernels' tests where torch, Triton, pytest and hypothesis are all that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What a trainer needs and a kernel does not.
ABSENT = (
    "pydantic",
    "deepspeed",
    "pyarrow",
    "typer",
    "rich",
    "sentencepiece",
    "tokenizers",
    "yaml",
    "platformdirs",
)
# These test the command, and whole models.
OF_THE_TRAINER = ("test_bench.py", "test_models_fused.py", "test_alone.py")

COLLECT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {ABSENT}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_tests_of_kernels_need_none_of_the_trainers_packages() -> None:
    files = sorted(path for path in HERE.glob("test_*.py") if path.name not in OF_THE_TRAINER)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-c", COLLECT, *map(str, files)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    assert found.returncode == 0, found.stdout[-3000:]
    assert "test_attention_on_a_gpu_equals_float64" in found.stdout
