"""The MegaBlocks backend: its arithmetic under the interpreter, and what is said where it is not whole."""

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
def test_megablocks_agrees_with_the_plain_backend_in_output_and_every_gradient() -> None:
    script = Path(__file__).with_name("megablocks_interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stdout + done.stderr


def test_a_missing_part_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megablocks_ops", None)
    with pytest.raises(ConfigError, match=r"megablocks_ops does not load.*make megablocks") as caught:
        require_megablocks()
    assert "\n" not in str(caught.value)
