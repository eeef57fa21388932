"""Calls of other packages, whose errors must not stop the measurement of the rest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from reptrain.bench.measure import Missing, installed

T = TypeVar("T")


def attempted(package: str, make: Callable[[], T]) -> T | Missing:
    """The result of a call, or why there is none.

    Args:
        package: The distribution that must be installed.
        make: The call. Its output is discarded.
    """
    if installed(package) is None:
        return Missing("not installed")
    try:
        with quiet():
            return make()
    except (Exception, SystemExit) as error:
        return Missing(f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:120]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard the output of other packages."""
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        yield
