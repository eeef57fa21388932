"""What an audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from reptrain.auditing.mixed import EpochEnd
from reptrain.runs.files import FrozenRecord
from reptrain.runs.run_plan import Order


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
    candidates: tuple[str, ...] = ()
    """Where that is not known, the first documents that it may be."""

    def text(self) -> str:
        """One line: where, and what."""
        names = (("step", self.step), ("global index", self.index), ("document", self.document))
        where = ", ".join(f"{name} {value}" for name, value in names if value is not None)
        message = f"{where}: {self.message}" if where else self.message
        return f"{message}; in documents {', '.join(self.candidates)}" if self.candidates else message


class NotApplied(FrozenRecord):
    """Steps that the optimizer did not apply: no exposure."""

    attempts: int = 0
    """Attempts at steps that were not applied."""
    steps: tuple[int, ...] = ()
    """The first steps with such an attempt."""
    num_skipped: int = 0
    """Steps that were not tried again: their windows are lost to the run."""
    skipped: tuple[int, ...] = ()
    """The first of them."""

    def text(self) -> str:
        """One line for people."""
        return (
            f"not applied, and no exposure: {_plural(self.attempts, 'attempt')},"
            f" at {_steps(self.steps)}; {_plural(self.num_skipped, 'step')} not tried again"
        )


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _steps(steps: Sequence[int], count: int | None = None) -> str:
    more = (count or len(steps)) - len(steps)
    named = f"step{'s' * (len(steps) != 1)} {', '.join(map(str, steps))}"
    return f"{named} and {more:,} more" if more > 0 else named


class SourceAudit(FrozenRecord):
    """What was consumed of one source."""

    name: str
    """Of the source."""
    tags: dict[str, str]
    """What its store was tagged with when it was made."""
    order: Order
    """Order of its windows."""
    exact: bool
    """Each of its tokens was consumed floor(epochs) or ceil(epochs) times."""
    exposures: dict[int, int]
    """Tokens of its subset by number of exposures."""
    epochs: str
    """Its epochs consumed, as a fraction."""
    epochs_begun: int
    """Epochs with a window consumed; in the order `mixed`, nominal ones."""
    epochs_ended: int
    """Epochs with all windows consumed; in the order `mixed`, nominal ones."""
    windows: int
    """Its windows consumed."""
    total_windows: int
    """Its windows in the whole run."""
    tokens_consumed: int
    """Exposures of all its tokens together."""
    unique_tokens: int
    """Tokens of its subset."""
    mixed_ends: tuple[EpochEnd, ...] = ()
    """In the order `mixed`, what had been seen at the first eight nominal epoch ends, at powers of two and
    at the last."""

    def text(self) -> str:
        """Lines for people."""
        tags = ", ".join(f"{key}={value}" for key, value in self.tags.items())
        lines = [
            f"source {self.name}{f' ({tags})' if tags else ''}:"
            f" {consumed_text(self.exposures, self.unique_tokens)}",
            f"  {self.epochs_text()}, windows {self.windows:,} of {self.total_windows:,},"
            f" tokens {self.tokens_consumed:,}",
            *(f"  {line}" for line in self.mixed_lines()),
        ]
        return "\n".join(lines)

    def epochs_text(self) -> str:
        """``epochs 5/2 (3 begun, 2 ended)``"""
        return f"epochs {self.epochs} ({self.epochs_begun:,} begun, {self.epochs_ended:,} ended)"

    def mixed_lines(self) -> list[str]:
        """What the order `mixed` does, a line for each nominal epoch end."""
        return [f"order mixed, {end.text()}" for end in self.mixed_ends]


def consumed_text(exposures: Mapping[int, int], unique_tokens: int) -> str:
    """``32,768 tokens 4 times, of 32,768 unique tokens``"""
    counts = ", ".join(
        f"{tokens:,} tokens {times:,} time{'s' * (times != 1)}" for times, tokens in exposures.items()
    )
    return f"{counts}, of {unique_tokens:,} unique tokens"


class AuditReport(FrozenRecord):
    """The answer of `reptrain audit`."""

    exact: bool
    """As planned, and each token of a source was consumed floor(k) or ceil(k) times in its k epochs."""
    as_planned: bool
    """The steps are the plan's, all applied, and the model saw the store's bytes. From that follows in every
    order but `mixed` that the run is exact; `mixed` is so at the end of a whole number of epochs only."""
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
    not_applied: NotApplied
    """Steps that count as no exposure."""
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
            as_planned=False,
            complete=False,
            exposures={},
            epochs="0",
            steps=0,
            windows=0,
            total_windows=0,
            tokens_consumed=0,
            unique_tokens=0,
            not_applied=NotApplied(),
            sources=(),
            store_verified=False,
            num_problems=1,
            problems=(Problem(message=f"cannot be audited: {reason}"),),
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return self.model_dump_json(indent=2)

    def head(self) -> str:
        """The answer in one line."""
        if self.exact:
            return "exact" if self.complete else "exact so far, not complete"
        if self.as_planned:
            mixed = [source for source in self.sources if not source.exact]
            names = f" of {', '.join(source.name for source in mixed)}" if len(self.sources) > 1 else ""
            epochs = ", ".join(source.epochs for source in mixed)
            return (
                f"as planned, but the order mixed{names} is not exact at {epochs} epochs"
                f"{'' if self.complete else ', not complete'}"
            )
        problems = _plural(self.num_problems, "problem")
        skipped, count = self.not_applied.skipped, self.not_applied.num_skipped
        return (
            f"not exact: {_steps(skipped, count)} not applied; {problems}"
            if skipped
            else f"not exact: {problems}"
        )

    def text(self) -> str:
        """The report for people."""
        windows = f"windows {self.windows:,} of {self.total_windows:,}, tokens {self.tokens_consumed:,}"
        if len(self.sources) > 1:
            found = [source.text() for source in self.sources]
            found += [f"together: steps {self.steps:,}, {windows}"]
        else:
            (source,) = self.sources or (None,)
            found = [
                f"consumed: {consumed_text(self.exposures, self.unique_tokens)}",
                f"{source.epochs_text() if source else f'epochs {self.epochs}'},"
                f" steps {self.steps:,}, {windows}",
                *(source.mixed_lines() if source else []),
            ]
        if self.not_applied.attempts:
            found.append(self.not_applied.text())
        lines = [
            self.head(),
            *found,
            f"store{'s' * (len(self.sources) > 1)}:"
            f" {'hashed again' if self.store_verified else 'hashes not checked'}",
            *(f"  {problem.text()}" for problem in self.problems),
        ]
        hidden = self.num_problems - len(self.problems)
        return "\n".join(lines + [f"  and {hidden:,} more"] * (hidden > 0))
