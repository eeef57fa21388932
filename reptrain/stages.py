"""The progress callback of long jobs."""

from __future__ import annotations

from collections.abc import Callable

StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the units (bytes or steps) done, and their total."""
