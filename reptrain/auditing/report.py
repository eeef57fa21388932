"""The report of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

from reptrain.auditing.mixed import EpochEnd
from reptrain.files import read_small, write_atomically
from reptrain.runs.records import FrozenRecord
from reptrain.runs.run_plan import Order

Level = Literal["windows", "inputs"]
"""What an audit compares, in ascending order."""


class Problem(FrozenRecord):
    """A difference between the run and its plan."""

    message: str
    """Description."""
    step: int | None = None
    """Step of the ledger."""
    index: int | None = None
    """First global index affected."""
    document: str | None = None
    """First document affected."""
    candidates: tuple[str, ...] = ()
    """If unknown, the first documents that it may be."""

    def text(self) -> str:
        """One line of text."""
        names = (("step", self.step), ("global index", self.index), ("document", self.document))
        where = ", ".join(f"{name} {value}" for name, value in names if value is not None)
        message = f"{where}: {self.message}" if where else self.message
        return f"{message}; in documents {', '.join(self.candidates)}" if self.candidates else message


class NotApplied(FrozenRecord):
    """Steps that the optimizer did not apply; they count no exposure."""

    attempts: int = 0
    """Attempts that were not applied."""
    steps: tuple[int, ...] = ()
    """The first steps with such an attempt."""
    num_skipped: int = 0
    """Steps that were not retried: the run lost their windows."""
    skipped: tuple[int, ...] = ()
    """The first of these steps."""

    def text(self) -> str:
        """One line of text."""
        return (
            f"not applied, and no exposure: {_plural(self.attempts, 'attempt')},"
            f" at {_steps(self.steps)}; {_plural(self.num_skipped, 'step')} not retried"
        )


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _steps(steps: Sequence[int], count: int | None = None) -> str:
    more = (count or len(steps)) - len(steps)
    named = f"step{'s' * (len(steps) != 1)} {', '.join(map(str, steps))}"
    return f"{named} and {more:,} more" if more > 0 else named


class SourceAudit(FrozenRecord):
    """Consumption of one source."""

    name: str
    """Name of the source."""
    tags: dict[str, str]
    """Tags of its store."""
    order: Order
    """Order of its windows."""
    exact: bool
    """Each of its tokens was consumed floor(epochs) or ceil(epochs) times."""
    exposures: dict[int, int]
    """Tokens of its subset by number of exposures."""
    epochs: str
    """Epochs of it consumed, as a fraction."""
    epochs_begun: int
    """Epochs with a window consumed; for the order `mixed`, nominal ones."""
    epochs_ended: int
    """Epochs with all windows consumed; for the order `mixed`, nominal ones."""
    windows: int
    """Windows of it consumed."""
    total_windows: int
    """Windows of it in the whole run."""
    tokens_consumed: int
    """Sum of its tokens' exposures."""
    unique_tokens: int
    """Tokens of its subset."""
    mixed_ends: tuple[EpochEnd, ...] = ()
    """For the order `mixed`, how much had been seen at the first eight nominal epoch ends, at powers of two,
    and at the last."""

    def text(self) -> str:
        """Lines of text."""
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
        """For the order `mixed`, a line for each reported nominal epoch end."""
        return [f"order mixed, {end.text()}" for end in self.mixed_ends]


def consumed_text(exposures: Mapping[int, int], unique_tokens: int) -> str:
    """``32,768 tokens 4 times, of 32,768 unique tokens``"""
    counts = ", ".join(
        f"{tokens:,} tokens {times:,} time{'s' * (times != 1)}" for times, tokens in exposures.items()
    )
    return f"{counts}, of {unique_tokens:,} unique tokens"


class InputsAudit(FrozenRecord):
    """The check of the model's inputs, at level `inputs`."""

    steps: int
    """Attempts at steps whose input digest was compared."""
    steps_without: int
    """Attempts without an input digest in the ledger."""
    first_without: int | None
    """The first of these steps."""
    targets: int
    """Targets of the applied steps."""
    targets_by_epoch: tuple[tuple[int, ...], ...]
    """For each source, targets in its first 64 epochs."""
    tokens_per_s: float
    """Tokens of the windows per second, rebuilding and hashing."""

    def text(self) -> str:
        """One line of text."""
        return (
            f"{_plural(self.steps, 'step')} rebuilt and compared, {self.targets:,} targets,"
            f" {self.tokens_per_s:,.0f} tokens/s"
        )


class LedgerAudit(FrozenRecord):
    """The check of the ledger as a chain of lines."""

    head: str
    """Hash of the last line."""
    lines: int
    """Number of lines."""
    chained_from: int | None
    """The line from which each line has the hash of the line before it; None if none has it."""
    parent: str | None = None
    """In a branch, the line of the parent's ledger at which it begins."""
    compared_with: str | None = None
    """What the head was compared with: a signature or a published head; None: nothing."""

    def text(self) -> str:
        """One line of text."""
        if self.chained_from is None:
            return "ledger: not a chain of lines; written by an earlier version"
        begin = f" from line {self.chained_from:,}" if self.chained_from > 1 else ""
        checked = f"checked against {self.compared_with}" if self.compared_with else "not signed"
        return f"ledger: a chain of {self.lines:,} lines{begin}, head {self.head}, {checked}"


class AuditReport(FrozenRecord):
    """The result of `reptrain audit`."""

    exact: bool
    """As planned, and each token of a source was consumed floor(k) or ceil(k) times in its k epochs."""
    as_planned: bool
    """The steps are the plan's, all were applied, and the model saw the store's tokens. Then the run is exact
    in every order but `mixed`, which is exact only at the end of a whole number of epochs."""
    complete: bool
    """The run is done and consumed all its windows."""
    exposures: dict[int, int]
    """Tokens by number of exposures, all sources together."""
    epochs: str
    """Epochs consumed, as a fraction; in a mixture, passes over all sources together."""
    steps: int
    """Steps applied."""
    windows: int
    """Windows consumed."""
    total_windows: int
    """Windows of the whole run."""
    tokens_consumed: int
    """Sum of all tokens' exposures."""
    unique_tokens: int
    """Tokens of all subsets together."""
    not_applied: NotApplied
    """Steps that count no exposure."""
    sources: tuple[SourceAudit, ...]
    """The same for each source, in the order of the configuration."""
    store_verified: bool
    """Whether the shards of the stores were hashed."""
    level: Level = "windows"
    """What was compared: the raw windows on the device, or also the inputs of the model."""
    inputs: InputsAudit | None = None
    """The check of the model's inputs; None at level `windows`."""
    ledger: LedgerAudit | None = None
    """The check of the ledger as a chain; None if it cannot be read."""
    cannot_say: tuple[str, ...] = ()
    """Damaged or missing evidence: then the audit proves nothing, whatever else it found."""
    num_problems: int
    """Number of problems, including those not listed."""
    problems: tuple[Problem, ...]
    """The first problems."""

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
            cannot_say=(reason,),
            num_problems=0,
            problems=(),
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return self.model_dump_json(indent=2)

    def keep(self, run: Path) -> AuditReport:
        """Write the report to ``RUN/audit.json``, from which tables and `reptrain runs` take the verdict.

        An existing report of a higher level on the same ledger is kept, unless this audit finds more faults:
        then a file has changed since that report.

        Returns:
            The report that the run then has.
        """
        kept = kept_report(run)
        if kept is not None and self._confirms(kept):
            return kept
        write_atomically(run / "audit.json", self.to_json())
        return self

    def _confirms(self, other: AuditReport) -> bool:
        """Whether another report has a higher level and is still valid."""
        if self.ledger is None or other.ledger is None:
            return False
        levels = get_args(Level)
        return (
            levels.index(other.level) > levels.index(self.level)
            and other.ledger.head == self.ledger.head
            and other.exit_code >= self.exit_code
        )

    def head(self) -> str:
        """The verdict in one line."""
        if self.cannot_say:
            return "cannot say: damaged or missing evidence"
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

    @property
    def exit_code(self) -> int:
        """0 exact, 1 not exact, 4 cannot say."""
        return 4 if self.cannot_say else int(not self.exact)

    def _level_text(self) -> str:
        """What was compared, in one line."""
        if self.inputs is None:
            return "level windows: the raw windows on the device were compared, not the model's inputs"
        proved = "proved to the model's inputs; " if self.as_planned else ""
        return f"level inputs: {proved}{self.inputs.text()}"

    def text(self) -> str:
        """The report as lines of text."""
        windows = f"windows {self.windows:,} of {self.total_windows:,}, tokens {self.tokens_consumed:,}"
        if len(self.sources) > 1:
            lines = [source.text() for source in self.sources]
            lines += [f"together: steps {self.steps:,}, {windows}"]
        else:
            (source,) = self.sources or (None,)
            lines = [
                f"consumed: {consumed_text(self.exposures, self.unique_tokens)}",
                f"{source.epochs_text() if source else f'epochs {self.epochs}'},"
                f" steps {self.steps:,}, {windows}",
                *(source.mixed_lines() if source else []),
            ]
        if self.not_applied.attempts:
            lines.append(self.not_applied.text())
        lines = [
            self.head(),
            *(f"  {reason}" for reason in self.cannot_say),
            *lines,
            self._level_text(),
            *([self.ledger.text()] if self.ledger else []),
            f"store{'s' * (len(self.sources) > 1)}:"
            f" {'hashed again' if self.store_verified else 'hashes not checked'}",
            *(f"  {problem.text()}" for problem in self.problems),
        ]
        hidden = self.num_problems - len(self.problems)
        return "\n".join(lines + [f"  and {hidden:,} more"] * (hidden > 0))


def kept_report(run: Path) -> AuditReport | None:
    """The report in ``RUN/audit.json``; None if there is none that this version can read."""
    try:
        return AuditReport.model_validate_json(read_small(run / "audit.json"))
    except (OSError, ValueError):
        return None
