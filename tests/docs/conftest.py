"""The documentation's tests share the small corpus, and the programs that write pages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from small_corpus import texts  # noqa: F401

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="session")
def open_tool() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of tools/ by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module
