"""What the parts of the GPU kit share: arguments, the file of all results, and the loop over cases."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT / ".gpu"
RESTART = 75
"""Exit code of a part that has to be started again, after an error that ends a CUDA process."""
_OUT_OF_TIME = "not begun: out of time"
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "launcher")]


def out_folder() -> Path:
    """The folder of the results: $OUT, or gpu-out in this repository."""
    folder = Path(os.environ.get("OUT") or ROOT / "gpu-out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def add(part: str, name: str, **figures: Any) -> None:
    """Append one result to rows.jsonl, and print it."""
    row = {"part": part, "name": name, **figures}
    with (out_folder() / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = " ".join(f"{key}={_short(value)}" for key, value in figures.items())
    sys.stdout.write(f"{part}: {name}: {shown}\n")
    sys.stdout.flush()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def done_before(part: str) -> set[str]:
    """Names of the cases that an earlier process of this part has finished, or crashed in."""
    path = out_folder() / "rows.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {
        row["name"]
        for row in rows
        if row["part"] in (part, f"{part} begun") and row.get("said") != _OUT_OF_TIME
    }


class Arguments:
    """The arguments of a part: whether it is a rehearsal on a CPU, and when it must stop."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU")
        parser.add_argument("--seconds", type=float, default=3600.0, help="begin no case after so many")
        asked = parser.parse_args()
        self.rehearse: bool = asked.rehearse
        self.device = "cpu" if asked.rehearse else "cuda"
        self._end = time.monotonic() + asked.seconds

    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end


Case = tuple[str, Callable[[], dict[str, Any]]]
"""A name, and a function that returns the figures of its row."""


def run_cases(
    part: str,
    cases: Iterable[Case],
    asked: Arguments,
    *,
    is_bad: Callable[[dict[str, Any]], bool] | None = None,
) -> int:
    """Run the cases of a part, and add a row for each. A case that fails leaves the others.

    Cases that an earlier process of the part has begun are skipped: a crash must not be repeated.

    Args:
        part: Name of the part.
        cases: The cases, in order.
        asked: The arguments; no case is begun when the time is up.
        is_bad: Whether figures are a failure; None: no figures are.

    Returns:
        The exit code of the part: 0, 1 after a failure, or `RESTART`.
    """
    before, code = done_before(part), 0
    for name, measure in cases:
        if name in before:
            continue
        if asked.is_late():
            add(part, name, said=_OUT_OF_TIME)
            continue
        add(f"{part} begun", name)
        try:
            figures = measure()
        except Exception as error:
            add(part, name, ok=False, said=short_error(error))
            code = 1
            if _is_fatal(error):
                return RESTART
            continue
        add(part, name, **figures)
        if is_bad is not None and is_bad(figures):
            code = 1
    return code


def short_error(error: BaseException) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _is_fatal(error: BaseException) -> bool:
    """Whether a CUDA process cannot continue after this error."""
    return "CUDA error" in str(error) or "illegal memory" in str(error)
