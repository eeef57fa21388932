"""Events while a study runs, and the outcomes of its arms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal["start", "progress", "skipped", "done", "failed", "stopped", "blocked", "waiting"]


@dataclass(frozen=True)
class StudyEvent:
    """An event of one node: an arm, or a command on arms.

    Attributes:
        kind: Kind of the event.
        arm: Name of the node.
        index: Index of the node, from 0.
        num_arms: Number of nodes.
        total_tokens: Planned tokens of the run, to within one window.
        tokens: Tokens consumed so far.
        tokens_per_s: Latest training speed; None before the first step.
        seconds: Since the node's process started.
        message: Why it failed or stopped; empty otherwise.
    """

    kind: EventKind
    arm: str
    index: int
    num_arms: int
    total_tokens: int
    tokens: int = 0
    tokens_per_s: float | None = None
    seconds: float = 0.0
    message: str = ""


OnEvent = Callable[[StudyEvent], None]


@dataclass(frozen=True)
class ArmOutcome:
    """The last event of a node: ``waiting`` if a signal came before its start, ``blocked`` if an input of it
    failed."""

    arm: str
    state: EventKind
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class StudyResult:
    """The outcomes of all nodes, inputs first."""

    outcomes: tuple[ArmOutcome, ...]

    @property
    def failed(self) -> tuple[ArmOutcome, ...]:
        """The nodes that failed, or could not start because an input failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.state in ("failed", "blocked"))

    @property
    def exit_code(self) -> int:
        """0: every node is done. 1: some failed. 3: stopped by a signal; run it again to resume."""
        if any(outcome.state in ("stopped", "waiting") for outcome in self.outcomes):
            return 3
        return 1 if self.failed else 0
