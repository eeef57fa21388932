"""The audit: recount every token's exposures from the ledger, and prove the digests from the store.

Nothing is believed but plan.json and the store. Each record of the ledger names global indices; the plan
says which windows these are; the store says which tokens stand there. Their digest must be the one that
was taken from the tensors that the model saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.errors import RunError
from reptrain.plan import Stream, Subset, Windows
from reptrain.runs.audit_report import AuditReport, Problem, SourceAudit
from reptrain.runs.exposures import Exposures, Stretches
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import LedgerRecord, SourceShare
from reptrain.runs.rehash import WindowDigests
from reptrain.runs.run_plan import RunPlan, SourcePlan
from reptrain.store import Store, open_store, verify

Progress = Callable[[str, int, int], None]
Int64s = npt.NDArray[np.int64]

_LISTED = 10
# Windows derived at once: bounds the memory, and spreads the cost of a call over many.
_CHUNK_WINDOWS = 1 << 15


def audit(
    run: Path,
    *,
    store: Path | Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    verify_store: bool = True,
) -> AuditReport:
    """Recount a run.

    Args:
        run: Its folder.
        store: Where the store is now, or in a mixture the stores by source; None: where plan.json says.
        progress: Called with a stage, the steps done and all steps.
        verify_store: Hash the shards of the stores again.

    Raises:
        RunError: If the folder is no run's, a line of its ledger is no record, or a store is another.
        StoreError: If a store cannot be opened.
    """
    folder = RunFolder.open(run)
    plan = folder.plan
    stores = {name: open_store(path) for name, path in _places(plan, store).items()}
    stream = Stream([_subset(plan, source, stores[source.name]) for source in plan.sources])
    recount = _Recount(plan, stores, stream)
    if verify_store:
        for path in dict.fromkeys(store.path for store in stores.values()):
            for message in verify(path, progress).problems:
                recount.problem(message)
    for source, subset in zip(plan.sources, stream.subsets, strict=True):
        if not subset.has_order_of_its_seed():
            path = stores[source.name].path
            recount.problem(f"the order of documents cached for {path} is not the one that the seed gives")
    _check_config(folder, stores, stream, recount)
    num_steps = plan.step_plan().num_steps
    for records in _chunks(folder.ledger.records(), plan.batch_windows):
        recount.add(records)
        if progress is not None:
            progress("audit", records[-1].step + 1, num_steps)
    return recount.report(done=folder.status().state == "done", store_verified=verify_store)


def store_places(run: Path, given: Sequence[str]) -> dict[str, Path]:
    """Stores by source from texts: ``NAME=PATH`` for each, or ``PATH`` alone where the run has one.

    Raises:
        RunError: If a text names no source of the run.
    """
    names = [source.name for source in RunFolder.open(run).plan.sources]
    places = {}
    for text in given:
        name, equals, path = text.partition("=")
        if equals and name in names:
            places[name] = Path(path)
        elif len(names) == 1:
            places[names[0]] = Path(text)
        else:
            raise _nameless(text, names)
    return places


def _places(plan: RunPlan, given: Path | Mapping[str, Path] | None) -> dict[str, Path]:
    names = [source.name for source in plan.sources]
    if isinstance(given, Path):
        if plan.is_mixture:
            raise _nameless(str(given), names)
        given = {names[0]: given}
    moved = given or {}
    return {source.name: moved.get(source.name, Path(source.store)) for source in plan.sources}


def _nameless(text: str, names: Sequence[str]) -> RunError:
    return RunError(
        "store of a mixture",
        got=text,
        rule=f"must be told as NAME=PATH with a source of the run, {' or '.join(names)}",
        remedy="Name each store that has moved.",
    )


def _subset(plan: RunPlan, source: SourcePlan, store: Store) -> Subset:
    """The run's subset of a source.

    Raises:
        RunError: If the store holds other content than the run's, or orders it otherwise.
    """
    found, expected = store.fingerprint, source.store_fingerprint
    if found == expected:
        subset = Subset.open(store, seed=source.subset_seed, unique_tokens=source.unique_tokens)
        found, expected = subset.fingerprint, source.subset_fingerprint
    if found != expected:
        raise RunError(
            f"source {source.name}: store {store.path}" if plan.is_mixture else f"store {store.path}",
            got=f"fingerprint {found}, where plan.json has {expected}",
            rule="must be the store that the run was trained on",
            remedy="Name it with --store.",
        )
    return subset


def _check_config(folder: RunFolder, stores: Mapping[str, Store], stream: Stream, recount: _Recount) -> None:
    """The plan must be what config.yaml asks for."""
    names, wanted = [*stores], [*folder.config.sources]
    if names != wanted:
        recount.problem(
            f"plan.json has the sources {', '.join(names)}, where config.yaml asks for {', '.join(wanted)}"
        )
        return
    facts = folder.plan.facts()
    asked = RunPlan.of(folder.config, stores=stores, stream=stream).facts()
    for key, value in facts.items():
        if value != asked[key]:
            recount.problem(f"plan.json has {key} {value}, where config.yaml asks for {asked[key]}")


def _chunks(records: Iterator[LedgerRecord], batch_windows: int) -> Iterator[list[LedgerRecord]]:
    size = max(1, _CHUNK_WINDOWS // batch_windows)
    while chunk := list(islice(records, size)):
        yield chunk


class _Shares(NamedTuple):
    """By record and source: int64 [R, S]."""

    windows_RS: Int64s
    tokens_RS: Int64s


class _Recount:
    """Counts and problems so far; `add` takes the ledger piece by piece."""

    def __init__(self, plan: RunPlan, stores: Mapping[str, Store], stream: Stream) -> None:
        self._plan = plan
        self._stores = stores
        self._mixture = plan.mixture_plan()
        self._steps = plan.step_plan()
        self._stream = stream
        self._digests = WindowDigests(stream, self._mixture)
        self._exposures = Exposures([*stream.starts, stream.unique_tokens])
        self._problems: list[Problem] = []
        self._num_problems = 0
        self._next_step = 0
        self._waits: LedgerRecord | None = None
        self._windows = np.zeros(len(plan.sources), dtype=np.int64)
        self._tokens = np.zeros(len(plan.sources), dtype=np.int64)
        self._applied = 0

    def problem(
        self, message: str, record: LedgerRecord | None = None, *, document: str | None = None
    ) -> None:
        """Note a problem; the first ones are kept in full."""
        self._num_problems += 1
        if len(self._problems) < _LISTED:
            step, index = (record.step, record.first_index) if record else (None, None)
            self._problems.append(Problem(message=message, step=step, index=index, document=document))

    def add(self, records: list[LedgerRecord]) -> None:
        """Check the next records and count their exposures."""
        placed = [record for record in records if self._in_sequence(record)]
        if not placed:
            return
        first = np.asarray([record.first_index for record in placed])
        count = np.asarray([record.windows for record in placed])
        offset = np.cumsum(count) - count
        index = np.repeat(first - offset, count) + np.arange(int(count.sum()))
        found = self._mixture.locate(index)
        applied = np.asarray([record.applied for record in placed])
        used = np.repeat(applied, count)
        self._exposures.add(found.start[used], found.length[used])
        self._applied += int(applied.sum())
        digest = np.add.reduceat(self._digests.of(found), offset)
        shares = self._shares(found, offset)
        self._windows += shares.windows_RS[applied].sum(axis=0)
        self._tokens += shares.tokens_RS[applied].sum(axis=0)
        for place, record in enumerate(placed):
            derived = f"{int(digest[place]):016x}"
            if record.digest != derived:
                first_window = int(found.start[offset[place]]), int(found.length[offset[place]])
                self._wrong_digest(record, derived, *first_window)
            self._check_counts(record, shares.windows_RS[place], shares.tokens_RS[place])

    def _shares(self, found: Windows, offset: Int64s) -> _Shares:
        """Windows and tokens by record and source."""
        of_source = found.source[:, None] == np.arange(len(self._plan.sources))
        return _Shares(
            np.add.reduceat(of_source.astype(np.int64), offset),
            np.add.reduceat(of_source * found.length[:, None], offset),
        )

    def _check_counts(self, record: LedgerRecord, windows_S: Int64s, tokens_S: Int64s) -> None:
        """The record's tokens and epochs must be the plan's."""
        before = self._mixture.interleaving.counts_before(record.first_index)
        epochs = [
            count // source.windows_per_epoch
            for count, source in zip(before, self._plan.sources, strict=True)
        ]
        tokens, epoch = int(tokens_S.sum()), epochs[self._mixture.source_at(record.first_index)]
        if record.tokens != tokens or record.epoch != epoch:
            self.problem(
                f"{record.tokens} tokens in epoch {record.epoch} in the ledger,"
                f" {tokens} in epoch {epoch} by the plan",
                record,
            )
        if not self._plan.is_mixture:
            return
        told = record.sources or {}
        for place, source in enumerate(self._plan.sources):
            share = SourceShare(
                windows=int(windows_S[place]), tokens=int(tokens_S[place]), epoch=epochs[place]
            )
            if told.get(source.name) != share:
                self.problem(
                    f"source {source.name}: {told.get(source.name) or 'nothing'} in the ledger,"
                    f" {share} by the plan",
                    record,
                )

    def report(self, *, done: bool, store_verified: bool) -> AuditReport:
        """The answer for all records added."""
        windows = int(self._windows.sum())
        if self._waits is not None and done:
            self._not_applied(self._waits)
        if done and windows < self._plan.total_windows:
            self.problem(
                f"status.json says done, but the ledger ends after window {windows}"
                f" of {self._plan.total_windows}"
            )
        stretches = self._exposures.stretches()
        sources = tuple(self._of_source(place, stretches) for place in range(len(self._plan.sources)))
        return AuditReport(
            exact=self._num_problems == 0,
            complete=done and windows == self._plan.total_windows,
            exposures=stretches.histogram(),
            epochs=str(Fraction(windows, self._mixture.windows_per_epoch)),
            steps=self._applied,
            windows=windows,
            total_windows=self._plan.total_windows,
            tokens_consumed=int(self._tokens.sum()),
            unique_tokens=self._plan.unique_tokens,
            sources=sources,
            store_verified=store_verified,
            num_problems=self._num_problems,
            problems=tuple(self._problems),
        )

    def _of_source(self, place: int, stretches: Stretches) -> SourceAudit:
        """What was consumed of a source; a token used more or less often than planned is a problem."""
        source, start = self._plan.sources[place], int(self._stream.starts[place])
        windows = int(self._windows[place])
        within = stretches.between(start, start + source.unique_tokens)
        self._check_exposures(source, windows, within)
        return SourceAudit(
            name=source.name,
            tags=_tags(self._stores[source.name]),
            exposures=within.histogram(),
            epochs=str(Fraction(windows, source.windows_per_epoch)),
            windows=windows,
            total_windows=source.total_windows,
            tokens_consumed=int(self._tokens[place]),
            unique_tokens=source.unique_tokens,
        )

    def _in_sequence(self, record: LedgerRecord) -> bool:
        """Whether the record names windows of the run; notes where steps are left out or come twice."""
        if self._waits is not None and record.step != self._waits.step:
            self._not_applied(self._waits)
            self._next_step = self._waits.step + 1
        if record.step != self._next_step:
            self.problem(f"comes where step {self._next_step} should", record)
        self._next_step = record.step + record.applied
        self._waits = None if record.applied else record
        if record.step >= self._steps.num_steps:
            self.problem(f"lies behind the run's {self._steps.num_steps} steps", record)
            return False
        first, count = self._steps.window_range(record.step)
        if (record.first_index, record.windows) != (first, count):
            self.problem(
                f"{record.windows} windows from {record.first_index} in the ledger,"
                f" {count} from {first} by the plan",
                record,
            )
        fits = record.first_index + record.windows <= self._plan.total_windows
        return fits and record.windows <= self._plan.batch_windows

    def _not_applied(self, record: LedgerRecord) -> None:
        self.problem(f"step {record.step} was not applied, and its windows were not tried again", record)

    def _wrong_digest(self, record: LedgerRecord, derived: str, start: int, length: int) -> None:
        # The sum over several windows does not tell which of them is wrong.
        alone = record.windows == 1
        last = record.first_index + record.windows - 1
        self.problem(
            f"digest {record.digest} in the ledger, {derived} from the store,"
            f" for global indices {record.first_index} to {last}: the model saw other tokens",
            record,
            document=self._stream.documents(start, length)[0] if alone else None,
        )

    def _check_exposures(self, source: SourcePlan, windows: int, stretches: Stretches) -> None:
        whole, rest = divmod(windows, source.windows_per_epoch)
        allowed = [whole, whole + 1] if rest else [whole]
        start, end, times = stretches
        for number in np.unique(times[~np.isin(times, allowed)]):
            where = np.flatnonzero(times == number)
            tokens, first = int((end - start)[where].sum()), int(start[where[0]])
            self.problem(
                f"{f'source {source.name}: ' if self._plan.is_mixture else ''}"
                f"{tokens} tokens were consumed {number} times, not {' or '.join(map(str, allowed))};"
                f" the first stands at {first} of the stream",
                document=self._stream.documents(first, 1)[0],
            )


def _tags(store: Store) -> dict[str, str]:
    """What the text of a store was tagged with, such as `synthetic`: what model wrote it."""
    values: dict[str, set[str]] = {}
    for source in store.manifest.sources:
        for key, value in source.tags.items():
            values.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(found)) for key, found in sorted(values.items())}
