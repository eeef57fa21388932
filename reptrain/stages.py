"""The type of a callback that shows the progress of a long job."""

from __future__ import annotations

from collections.abc import Callable

StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the units (bytes or steps) that are done, and their total."""
