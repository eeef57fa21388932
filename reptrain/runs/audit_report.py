"""What an audit found."""

from __future__ import annotations

from collections.abc import Mapping
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


class SourceAudit(FrozenRecord):
    """What was consumed of one source."""

    name: str
    """Of the source."""
    tags: dict[str, str]
    """What its store was tagged with when it was made."""
    exposures: dict[int, int]
    """Tokens of its subset by number of exposures."""
    epochs: str
    """Its epochs consumed, as a fraction."""
    windows: int
    """Its windows consumed."""
    total_windows: int
    """Its windows in the whole run."""
    tokens_consumed: int
    """Exposures of all its tokens together."""
    unique_tokens: int
    """Tokens of its subset."""

    def text(self) -> str:
        """Two lines for people."""
        tags = ", ".join(f"{key}={value}" for key, value in self.tags.items())
        return (
            f"source {self.name}{f' ({tags})' if tags else ''}:"
            f" {consumed_text(self.exposures, self.unique_tokens)}\n"
            f"  epochs {self.epochs}, windows {self.windows:,} of {self.total_windows:,},"
            f" tokens {self.tokens_consumed:,}"
        )


def consumed_text(exposures: Mapping[int, int], unique_tokens: int) -> str:
    """``32,768 tokens 4 times, of 32,768 unique tokens``"""
    counts = ", ".join(
        f"{tokens:,} tokens {times:,} time{'s' * (times != 1)}" for times, tokens in exposures.items()
    )
    return f"{counts}, of {unique_tokens:,} unique tokens"


class AuditReport(FrozenRecord):
    """The answer of `reptrain audit`."""

    exact: bool
    """Every token was consumed as often as the plan says, from the store's own bytes."""
    complete: bool
    """The run is done and consumed all its windows."""
    exposures: dict[int, int]
    """Tokens by number of exposures, all sources together."""
    epochs: str
    """Epochs consumed, as a fraction; in a mixture passes over all sources together."""
    steps: int
    """Steps applied."""
    windows: int
    """Windows consumed."""
    total_windows: int
    """Windows of the whole run."""
    tokens_consumed: int
    """Exposures of all tokens together."""
    unique_tokens: int
    """Tokens of all subsets together."""
    sources: tuple[SourceAudit, ...]
    """The same by source, in their order."""
    store_verified: bool
    """Whether the shards of the stores were hashed again."""
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
            sources=(),
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
        windows = f"windows {self.windows:,} of {self.total_windows:,}, tokens {self.tokens_consumed:,}"
        if len(self.sources) > 1:
            found = [source.text() for source in self.sources]
            found += [f"together: steps {self.steps:,}, {windows}"]
        else:
            found = [
                f"consumed: {consumed_text(self.exposures, self.unique_tokens)}",
                f"epochs {self.epochs}, steps {self.steps:,}, {windows}",
            ]
        lines = [
            head,
            *found,
            f"store{'s' * (len(self.sources) > 1)}:"
            f" {'hashed again' if self.store_verified else 'hashes not checked'}",
            *(f"  {problem.text()}" for problem in self.problems),
        ]
        hidden = self.num_problems - len(self.problems)
        return "\n".join(lines + [f"  and {hidden:,} more"] * (hidden > 0))
