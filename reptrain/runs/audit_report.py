"""What an audit found."""

from __future__ import annotations

from typing import Self

from reptrain.runs.files import FrozenRecord


class Problem(FrozenRecord):
    """One thing that is not as the plan says."""

    message: str
    """What is wrong."""
    step: int | None = None
    """Step of the ledger."""
    index: int | None = None
    """First global index concerned."""
    document: str | None = None
    """First document concerned."""

    def text(self) -> str:
        """One line: where, and what."""
        names = (("step", self.step), ("global index", self.index), ("document", self.document))
        where = ", ".join(f"{name} {value}" for name, value in names if value is not None)
        return f"{where}: {self.message}" if where else self.message


class AuditReport(FrozenRecord):
    """The answer of `reptrain audit`."""

    exact: bool
    """Every token was consumed as often as the plan says, from the store's own bytes."""
    complete: bool
    """The run is done and consumed all its windows."""
    exposures: dict[int, int]
    """Tokens of the subset by number of exposures."""
    epochs: str
    """Epochs consumed, as a fraction."""
    steps: int
    """Steps applied."""
    windows: int
    """Windows consumed."""
    total_windows: int
    """Windows of the whole run."""
    tokens_consumed: int
    """Exposures of all tokens together."""
    unique_tokens: int
    """Tokens of the subset."""
    store_verified: bool
    """Whether the store's shards were hashed again."""
    num_problems: int
    """All problems, also those not listed."""
    problems: tuple[Problem, ...]
    """The first of them."""

    @classmethod
    def impossible(cls, reason: str) -> Self:
        """The report on a run that cannot be read."""
        return cls(
            exact=False,
            complete=False,
            exposures={},
            epochs="0",
            steps=0,
            windows=0,
            total_windows=0,
            tokens_consumed=0,
            unique_tokens=0,
            store_verified=False,
            num_problems=1,
            problems=(Problem(message=f"cannot be audited: {reason}"),),
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return self.model_dump_json(indent=2)

    def text(self) -> str:
        """The report for people."""
        if self.exact:
            head = "exact" if self.complete else "exact so far, not complete"
        else:
            head = f"not exact: {self.num_problems} problem{'s' * (self.num_problems > 1)}"
        counts = ", ".join(
            f"{tokens:,} tokens {times:,} time{'s' * (times != 1)}"
            for times, tokens in self.exposures.items()
        )
        lines = [
            head,
            f"consumed: {counts}, of {self.unique_tokens:,} unique tokens",
            f"epochs {self.epochs}, steps {self.steps:,}, windows {self.windows:,} of {self.total_windows:,},"
            f" tokens {self.tokens_consumed:,}",
            f"store: {'hashed again' if self.store_verified else 'hashes not checked'}",
            *(f"  {problem.text()}" for problem in self.problems),
        ]
        hidden = self.num_problems - len(self.problems)
        return "\n".join(lines + [f"  and {hidden:,} more"] * (hidden > 0))
