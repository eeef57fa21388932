"""The MegaBlocks backend: its results in Triton's interpreter, and the error for a missing part."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reptrain.errors import ConfigError
from reptrain.model.megablocks import require_megablocks

installed = pytest.mark.skipif(
    importlib.util.find_spec("megablocks") is None, reason="needs MegaBlocks: make megablocks"
)


@installed
def test_megablocks_matches_the_loop_backend_in_output_and_gradients() -> None:
    script = Path(__file__).with_name("megablocks_interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stdout + done.stderr


def test_require_megablocks_names_a_missing_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megablocks_ops", None)
    with pytest.raises(ConfigError, match=r"megablocks_ops does not load.*make megablocks") as caught:
        require_megablocks()
    assert "\n" not in str(caught.value)
