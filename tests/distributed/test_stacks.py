"""The stacks that a rank prints before it ends, with and without py-spy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The main thread sleeps in C; another thread ends the process.
PROGRAM = """
import ctypes, threading
from reptrain.distributed.watchdog import end_process
from reptrain.errors import RunError

def fail():
    end_process(RunError("rank 1", got="no progress", rule="must make progress", remedy="Resume."))

threading.Timer(0.5, fail).start()
ctypes.CDLL(None).sleep(60)
"""


def ended(program: str, path: str) -> str:
    """What the process prints on stderr."""
    command, environment = [sys.executable, "-c", program], os.environ | {"PATH": path}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (2, "")
    assert "rank 0: error: rank 1: must make progress, but got no progress. Resume." in found.stderr
    return found.stderr


def test_a_rank_prints_native_frames_where_py_spy_may_trace_it() -> None:
    py_spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if py_spy is None:
        pytest.skip("py-spy is not installed")
    dump = [py_spy, "dump", "--pid", str(os.getpid())]
    traced = subprocess.run(dump, capture_output=True, text=True, timeout=120)
    if traced.returncode:
        pytest.skip(f"py-spy may not trace processes here: {traced.stderr.strip()[-200:]}")
    python, native = ended(PROGRAM, os.environ["PATH"]).split("native frames, by py-spy:")
    assert "Thread 0x" in python and "in fail" in python and "nanosleep" not in python
    assert '"MainThread"' in native and "nanosleep" in native and "fail (<string>" in native


def test_without_py_spy_a_rank_prints_python_stacks(tmp_path: Path) -> None:
    elsewhere = f"import sys\nsys.executable = {str(tmp_path / 'python')!r}\n"
    said = ended(elsewhere + PROGRAM, str(tmp_path))
    assert "Thread 0x" in said and "in fail" in said and "py-spy" not in said
