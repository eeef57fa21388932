"""The recount: exposures and digests of a ledger's steps, derived from the plan and the store's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.auditing.applied_ranges import AppliedRanges
from reptrain.auditing.cuts import Cuts
from reptrain.auditing.exposures import Exposures, Stretches
from reptrain.auditing.inputs_recount import InputsRecount
from reptrain.auditing.ledger_columns import Columns
from reptrain.auditing.mixed import EpochEnd, differing, mixed_prefix
from reptrain.auditing.narrow import Narrower
from reptrain.auditing.problems import MissedSteps, Problems
from reptrain.auditing.rebuilt import Rebuild
from reptrain.auditing.rehash import window_digests
from reptrain.auditing.report import AuditReport, LedgerAudit, Problem, SourceAudit
from reptrain.auditing.subset_exposures import subset_exposures
from reptrain.plan import Stream, Windows
from reptrain.runs.run_plan import RunPlan, SourcePlan
from reptrain.store import Store

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


class _Derived(NamedTuple):
    """Derived from plan and store for some records. N: windows, R: records, S: sources."""

    index_N: Int64s
    windows: Windows
    offset_R: Int64s
    windows_RS: Int64s
    tokens_RS: Int64s
    digest_N: UInt64s
    digest_R: UInt64s


class Recount:
    """Counts exposures and notes problems; `add` takes the ledger piece by piece.

    Args:
        plan: The run's plan.
        stores: The stores by source.
        stream: Their subsets.
        rebuild: Rebuilds the model's inputs, to check them too.
    """

    def __init__(
        self, plan: RunPlan, stores: Mapping[str, Store], stream: Stream, rebuild: Rebuild | None = None
    ) -> None:
        self._plan = plan
        self._inputs = None if rebuild is None else InputsRecount(rebuild, len(plan.sources))
        self._stores = stores
        self._mixture = plan.mixture_plan()
        self._steps = plan.step_plan()
        self._stream = stream
        self._per_epoch = np.asarray([source.windows_per_epoch for source in plan.sources])
        self._exposures = Exposures([*stream.starts.tolist(), stream.num_tokens])
        self._windows = np.zeros(len(plan.sources), dtype=np.int64)
        self._tokens = np.zeros(len(plan.sources), dtype=np.int64)
        self._by_epoch = [np.zeros(0, dtype=np.int64) for _ in plan.sources]
        self._applied = 0
        self._ranges = AppliedRanges()
        self._last_step, self._last_applied = -1, True
        self._missed = MissedSteps()
        self.problems = Problems()

    def add(self, records: Columns) -> None:
        """Check the next records and count their exposures."""
        records = records.at(self._check_places(records))
        if not records.step.size:
            return
        index_N, offset_R = _indices(records)
        windows = self._mixture.locate(index_N)
        cuts = Cuts.of(windows.start, windows.length)
        used_N = np.repeat(records.applied, records.windows)
        self._exposures.add(cuts, used_N)
        windows_RS, tokens_RS = self._shares(windows, offset_R)
        digest_N = window_digests(self._stream, cuts)
        digest_R = np.add.reduceat(digest_N, offset_R)
        derived = _Derived(index_N, windows, offset_R, windows_RS, tokens_RS, digest_N, digest_R)
        self._count(records, derived, used_N)
        self._check_digests(records, derived)
        self._check_counts(records, derived)
        if self._inputs is not None:
            self._inputs.check(records, windows, offset_R, self.problems)

    def stretches(self) -> Stretches:
        """The exposures of the concatenated subsets by the records added so far."""
        return subset_exposures(self._exposures.stretches(), self._stream)

    def report(
        self,
        *,
        done: bool,
        ended_early: bool,
        store_verified: bool,
        ledger: LedgerAudit,
        damage: Sequence[str] = (),
    ) -> AuditReport:
        """The report on all records added.

        Args:
            done: Whether status.json has the state `done`.
            ended_early: Whether the run stopped before the end of its plan, by its own rule.
            store_verified: Whether the shards were hashed again.
            ledger: The check of the ledger's chain.
            damage: Why the run cannot be audited.
        """
        inputs = None if self._inputs is None else self._inputs.report()
        if inputs is not None and inputs.steps_without:
            damage = [
                *damage,
                f"ledger.jsonl has no input digest for {inputs.steps_without:,} steps, from step"
                f" {inputs.first_without}: they were trained by a version of reptrain that recorded none;"
                " use --level windows",
            ]
        windows = int(self._windows.sum())
        if done and not self._last_applied:
            self._skipped(self._last_step)
        if done and not ended_early and windows < self._plan.total_windows:
            self.problems.add(
                f"status.json has the state done, but the ledger has {windows} applied windows"
                f" of {self._plan.total_windows}"
            )
        stretches = self.stretches()
        sources = tuple(self._audit_source(place, stretches) for place in range(len(self._plan.sources)))
        return AuditReport(
            exact=not damage and self.problems.count == 0 and all(source.exact for source in sources),
            as_planned=not damage and self.problems.count == 0,
            complete=done and windows == self._plan.total_windows,
            exposures=stretches.histogram(),
            epochs=str(Fraction(windows, self._mixture.windows_per_epoch)),
            steps=self._applied,
            windows=windows,
            total_windows=self._plan.total_windows,
            tokens_consumed=int(self._tokens.sum()),
            unique_tokens=self._plan.unique_tokens,
            not_applied=self._missed.report(),
            sources=sources,
            store_verified=store_verified,
            level="windows" if inputs is None else "inputs",
            inputs=inputs,
            ledger=ledger,
            cannot_say=tuple(damage),
            num_problems=self.problems.count,
            problems=tuple(self.problems.first),
        )

    def _check_places(self, records: Columns) -> Bools:
        """Which records name windows of the run. Notes steps that are missing, repeated or not applied."""
        step, last_step = records.step, self._last_step
        before = np.append(last_step, step[:-1])
        before_applied = np.append(self._last_applied, records.applied[:-1])
        skipped = ~before_applied & (step != before)
        for place in np.flatnonzero(skipped):
            self._skipped(int(before[place]))
        expected = before + (before_applied | skipped)
        self.problems.add_records(
            records, step != expected, lambda place: f"comes instead of step {expected[place]}"
        )
        self._missed.add(step[~records.applied])
        self._last_step, self._last_applied = int(step[-1]), bool(records.applied[-1])
        beyond = step >= self._steps.num_steps
        self.problems.add_records(
            records, beyond, lambda _: f"is beyond the run's {self._steps.num_steps} steps"
        )
        first = np.where(beyond, 0, step) * self._steps.batch_windows
        count = np.minimum(self._steps.batch_windows, self._steps.total_windows - first)
        other = ~beyond & ((records.first_index != first) | (records.windows != count))
        self.problems.add_records(
            records,
            other,
            lambda place: (
                f"{records.windows[place]} windows from {records.first_index[place]} in the ledger,"
                f" {count[place]} from {first[place]} by the plan"
            ),
        )
        fits = records.windows <= self._steps.batch_windows
        fits &= records.first_index <= self._steps.total_windows - np.where(fits, records.windows, 0)
        return np.asarray(fits & ~beyond)

    def _skipped(self, step: int) -> None:
        self._missed.skip(step)
        self.problems.add(
            "was not applied, and its windows were not retried",
            step=step,
            index=step * self._steps.batch_windows,
        )

    def _shares(self, windows: Windows, offset_R: Int64s) -> tuple[Int64s, Int64s]:
        """Windows and tokens by record and source: int64 [R, S] each."""
        shape = offset_R.size, len(self._plan.sources)
        record_N = np.repeat(np.arange(shape[0]), np.diff(offset_R, append=windows.source.size))
        cell_N, cells = record_N * shape[1] + windows.source, shape[0] * shape[1]
        # Sums of weights are float64: exact far above the tokens of a step.
        tokens = np.bincount(cell_N, weights=windows.length, minlength=cells).astype(np.int64)
        return np.bincount(cell_N, minlength=cells).reshape(shape), tokens.reshape(shape)

    def _count(self, records: Columns, derived: _Derived, used_N: Bools) -> None:
        applied = records.applied
        self._applied += int(applied.sum())
        self._windows += derived.windows_RS[applied].sum(axis=0)
        self._tokens += derived.tokens_RS[applied].sum(axis=0)
        for source in range(len(self._plan.sources)):
            epoch = derived.windows.epoch[used_N & (derived.windows.source == source)]
            self._by_epoch[source] = _added(self._by_epoch[source], np.bincount(epoch))
        ends = records.first_index + records.windows
        self._ranges.add(records.first_index[applied], ends[applied])

    def _check_digests(self, records: Columns, derived: _Derived) -> None:
        places = np.flatnonzero(records.digest != derived.digest_R)
        narrower = Narrower(
            self._stream,
            max(store.vocab_size for store in self._stores.values()),
            derived.index_N,
            derived.windows,
            derived.digest_N,
            records.step,
            derived.offset_R,
            derived.digest_R,
        )

        def problem(number: int) -> Problem:
            place = int(places[number])
            recorded, first = records.digest[place], int(records.first_index[place])
            finding = narrower.find(place, recorded)
            return Problem(
                message=f"digest {int(recorded):016x} in the ledger, {int(derived.digest_R[place]):016x} from"
                f" the store, for global indices {first} to {first + int(records.windows[place]) - 1}:"
                f" the model saw other tokens; {finding.message}",
                step=int(records.step[place]),
                index=finding.index,
                document=finding.document,
                candidates=finding.candidates,
            )

        self.problems.add_many(places.size, problem)

    def _check_counts(self, records: Columns, derived: _Derived) -> None:
        """Compare the records' tokens and epochs with the plan's."""
        epoch_RS = self._counts_before(records, derived) // self._per_epoch
        source_R = derived.windows.source[derived.offset_R]
        tokens_R = derived.tokens_RS.sum(axis=1)
        epoch_R = epoch_RS[np.arange(source_R.size), source_R]
        self.problems.add_records(
            records,
            (records.tokens != tokens_R) | (records.epoch != epoch_R),
            lambda place: (
                f"{records.tokens[place]} tokens in epoch {records.epoch[place]} in the ledger,"
                f" {tokens_R[place]} in epoch {epoch_R[place]} by the plan"
            ),
        )
        planned_RSC = np.stack([derived.windows_RS, derived.tokens_RS, epoch_RS], axis=2)
        for source in range(records.shares.shape[1]):
            self._check_shares(records, source, planned_RSC[:, source])

    def _check_shares(self, records: Columns, source: int, planned_RC: Int64s) -> None:
        """Compare the records' windows, tokens and epoch of one source with the plan's."""
        name, recorded_RC = self._plan.sources[source].name, records.shares[:, source]
        self.problems.add_records(
            records,
            (recorded_RC != planned_RC).any(axis=1),
            lambda place: (
                f"source {name}: {_share_text(recorded_RC[place])} in the ledger,"
                f" {_share_text(planned_RC[place])} by the plan"
            ),
        )

    def _counts_before(self, records: Columns, derived: _Derived) -> Int64s:
        """Windows of each source before each record: int64 [R, S]."""
        end = records.first_index + records.windows
        jumps = np.flatnonzero(np.append(True, records.first_index[1:] != end[:-1]))
        before = np.cumsum(derived.windows_RS, axis=0) - derived.windows_RS
        # After a jump the sums start from the plan's counts at that index.
        for jump, stop in zip(jumps, np.append(jumps[1:], end.size), strict=True):
            start = self._mixture.interleaving.counts_before(int(records.first_index[jump]))
            before[jump:stop] += np.asarray(start) - before[jump]
        return before

    def _audit_source(self, place: int, stretches: Stretches) -> SourceAudit:
        """What was consumed of a source. A token used more or less often than planned is a problem."""
        source, start = self._plan.sources[place], int(self._stream.subset_starts[place])
        windows = int(self._windows[place])
        within = stretches.between(start, start + source.unique_tokens)
        whole, rest = divmod(windows, source.windows_per_epoch)
        allowed = [whole, whole + 1] if rest else [whole]
        exact = bool(np.isin(within.times, allowed).all())
        ends: tuple[EpochEnd, ...] = ()
        if source.order == "mixed":
            plan = self._mixture.plans[place]
            prefix = mixed_prefix(plan, min(windows, source.total_windows))
            local = Stretches(within.start - start, within.end - start, within.times)
            for other, planned in differing(local, prefix.stretches):
                self._wrong_exposures(place, other, str(planned))
            ends, begun, ended = prefix.ends, whole + (rest > 0), whole
        else:
            for number in np.setdiff1d(within.times, allowed):
                where = within.times == number
                other = Stretches(within.start[where] - start, within.end[where] - start, within.times[where])
                self._wrong_exposures(place, other, " or ".join(map(str, allowed)))
            by_epoch = self._by_epoch[place]
            begun, ended = (int((by_epoch >= least).sum()) for least in (1, source.windows_per_epoch))
        return SourceAudit(
            name=source.name,
            tags=_tags(self._stores[source.name]),
            order=source.order,
            exact=exact,
            exposures=within.histogram(),
            epochs=str(Fraction(windows, source.windows_per_epoch)),
            epochs_begun=begun,
            epochs_ended=ended,
            windows=windows,
            total_windows=source.total_windows,
            tokens_consumed=int(self._tokens[place]),
            unique_tokens=source.unique_tokens,
            mixed_ends=ends,
        )

    def _wrong_exposures(self, place: int, wrong: Stretches, planned: str) -> None:
        source, times, first = self._plan.sources[place], int(wrong.times[0]), int(wrong.start[0])
        tokens = int((wrong.end - wrong.start).sum())

        def problem(_: int) -> Problem:
            index = self._irregular_index(place, source, first)
            return Problem(
                message=f"{f'source {source.name}: ' if self._plan.is_mixture else ''}"
                f"{tokens} tokens were consumed {times} times, not {planned};"
                f" the first is at position {first} of its subset",
                step=None if index is None else index // self._plan.batch_windows,
                index=index,
                document=self._stream.subsets[place].documents(first, 1)[0],
            )

        self.problems.add_many(1, problem)

    def _irregular_index(self, place: int, source: SourcePlan, position: int) -> int | None:
        """The first global index that holds this position of a source and was not applied exactly once."""
        for number in self._local_indices(place, source, position):
            index = self._mixture.index_of(place, number)
            if index >= self._ranges.end:
                return None
            if self._ranges.count(index) != 1:
                return index
        return None

    def _local_indices(self, place: int, source: SourcePlan, position: int) -> Iterator[int]:
        """The windows of a source that hold this position of its subset, as numbers within the source."""
        plan, part = self._mixture.plans[place], self._stream.parts[place]
        epochs = np.arange(-(-source.total_windows // plan.windows_per_epoch))
        if source.cut == "repacked":
            # One by one, as each epoch has an order of its own.
            found = (
                int(plan.indices_of(part.in_epoch(np.asarray([position]), epoch), np.asarray([epoch]))[0])
                for epoch in epochs.tolist()
            )
        else:
            found = iter(np.sort(plan.indices_of(position, epochs)).tolist())
        return takewhile(lambda number: number < source.total_windows, found)


def _indices(records: Columns) -> tuple[Int64s, Int64s]:
    """The global indices of records, concatenated, and the offset of each record among them."""
    offset_R = np.cumsum(records.windows) - records.windows
    index_N = np.repeat(records.first_index - offset_R, records.windows)
    return index_N + np.arange(index_N.size), offset_R


def _added(counts: Int64s, more: Int64s) -> Int64s:
    if more.size > counts.size:
        counts = np.append(counts, np.zeros(more.size - counts.size, dtype=np.int64))
    counts[: more.size] += more
    return counts


def _share_text(share: Iterable[int]) -> str:
    windows, tokens, epoch = (int(value) for value in share)
    return "nothing" if windows < 0 else f"{windows} windows of {tokens} tokens from epoch {epoch}"


def _tags(store: Store) -> dict[str, str]:
    """The tags of a store's sources, such as `synthetic`: the model that wrote the text."""
    values: dict[str, set[str]] = {}
    for source in store.manifest.sources:
        for key, value in source.tags.items():
            values.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(names)) for key, names in sorted(values.items())}
