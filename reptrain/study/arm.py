"""One training run that a study asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reptrain.config import RunConfig
from reptrain.study.point import Point


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Attributes:
        name: Unique within the study, and a file name.
        config: Configuration of the run.
        values: The value of each varied key, by dotted key, with defaults filled in and numbers read, and
            ``entry``, the name of its entry, if it has one.
        shown: What the name of the arm consists of: its entry, and the value of each axis.
        group: The name without the seed.
        point: The settings that it was made of.
        look: 2 if the second look of a claim added its seed, else 1.
        parent: Run of the study whose last checkpoint holds the initial weights; None if there is none.
        brief: What distinguishes the arm from others in reports: `shown`, with each mapping replaced by its
            settings that differ between arms.
    """

    name: str
    config: RunConfig
    values: Mapping[str, Any]
    shown: Mapping[str, Any]
    group: str
    point: Point
    look: int = 1
    parent: str | None = None
    brief: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> RunConfig:
        """The configuration."""
        return self.config
