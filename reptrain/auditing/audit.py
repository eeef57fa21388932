"""The audit: recount every token's exposures from the ledger, and check the digests against the store.

Only plan.json and the store are trusted. Each ledger record names global indices; the plan maps them to
windows, and the store holds the tokens of these windows. Their digest must equal the one in the ledger, which
was computed from the tensors that the model saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from reptrain.auditing.chain import Chain
from reptrain.auditing.exposures_file import check_target, write_exposures
from reptrain.auditing.head_check import HeadCheck, Signed
from reptrain.auditing.ledger_columns import column_chunks
from reptrain.auditing.rebuilt import OpenRebuild
from reptrain.auditing.recount import Recount
from reptrain.auditing.report import AuditReport, LedgerAudit
from reptrain.config import config_fingerprint
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.errors import CannotSayError, ReptrainError, RunError
from reptrain.plan import Stream, Subset
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.runs.run_plan import RunPlan, SourcePlan
from reptrain.stages import StageProgress
from reptrain.store import Store, open_store, verify

# Windows per chunk: bounds the memory. A token that many windows of a chunk share is hashed once.
_CHUNK_WINDOWS = 1 << 20


def audit(
    run: Path,
    *,
    store: Path | Mapping[str, Path] | None = None,
    progress: StageProgress | None = None,
    verify_store: bool = True,
    exposures: Path | None = None,
    rebuild: OpenRebuild | None = None,
    saved_state: Callable[[Path], str] | None = None,
    head: str | None = None,
    signature: Signed | None = None,
) -> AuditReport:
    """Recount the exposures of a run, at level `windows`; see `reptrain.audit_inputs` for level `inputs`.

    Args:
        run: The run folder.
        store: The store's folder, or in a mixture the folders by source. None uses the paths in plan.json.
        progress: Called with a stage, the steps done and all steps.
        verify_store: Also hash the shards of the stores.
        exposures: Also write each token's number of exposures to this Arrow file (see
            `reptrain.auditing.exposures_file`).
        rebuild: Prepares the rebuilding of the model's inputs, for level `inputs`.
        saved_state: Hashes the state files of a checkpoint, for level `inputs`.
        head: Hash of a line that was published while the run wrote it; the ledger must contain it.
        signature: A signature of the ledger's head to check.

    Raises:
        RunError: If the folder holds no run, or the exposures file cannot be written or holds something else.
        CannotSayError: If a line of the ledger is invalid, another file of the run is damaged, or a store
            cannot be opened or differs from the run's.
    """
    folder = RunFolder.open(run)
    if exposures is not None:
        check_target(exposures)
    with evidence():
        plan = folder.plan
    opened = _open(plan, store)
    heads = HeadCheck(head, signature)
    with evidence():
        recount = Recount(plan, *opened, None if rebuild is None else rebuild(folder, *opened))
        chain = Chain(folder, recount.problems, saved_state)
        damage = _store_damage(plan, opened, progress) if verify_store else []
        _check_config(folder, opened, recount)
        _read_ledger(folder, recount, chain.follow(heads.watch(folder.ledger.lines())), progress)
        chain.check_files()
        status = folder.status()
        if status.state == "done":
            chain.check_end()
    if exposures is not None:
        names = [source.name for source in plan.sources]
        write_exposures(exposures, recount.stretches(), opened.stream, names)
    done, compared = status.state == "done", heads.result(chain.num_lines)
    return recount.report(
        done=done,
        ended_early=done and status.reason is not None,
        store_verified=verify_store,
        ledger=LedgerAudit(
            head=chain.head,
            lines=chain.num_lines,
            chained_from=chain.begin,
            parent=chain.parent,
            compared_with=compared.text,
        ),
        damage=[*damage, *chain.damage, *compared.damage],
    )


@contextmanager
def evidence() -> Iterator[None]:
    """Raise errors of the run's files and stores as `CannotSayError`."""
    try:
        yield
    except CannotSayError:
        raise
    except OSError as error:
        raise CannotSayError(
            str(error.filename or "a file of the run"),
            got=error.strerror or error,
            rule="must be a file that can be read",
            remedy="Restore it.",
        ) from error
    except ReptrainError as error:
        raise CannotSayError(error.what, got=error.got, rule=error.rule, remedy=error.remedy) from error


def _read_ledger(
    folder: RunFolder, recount: Recount, records: Iterator[LedgerRecord], progress: StageProgress | None
) -> None:
    plan = folder.plan
    num_steps = plan.step_plan().num_steps
    names = [source.name for source in plan.sources] if plan.is_mixture else []
    for columns in column_chunks(records, names, max(1, _CHUNK_WINDOWS // plan.batch_windows)):
        recount.add(columns)
        if progress is not None:
            progress("audit", min(int(columns.step[-1]) + 1, num_steps), num_steps)


class _Opened(NamedTuple):
    """The stores of a run by source, and their subsets as one stream."""

    stores: dict[str, Store]
    stream: Stream


def open_run(plan: RunPlan, places: Mapping[str, Path], *, named_by: str | None = None) -> _Opened:
    """Open the stores of a run, and their subsets.

    Args:
        plan: The run's plan.
        places: Folders of the stores by source.
        named_by: What names them, for the error message.

    Raises:
        RunError: If a store's content or document order differs from the run's.
        CannotSayError: If the plan is impossible.
        StoreError: If a store cannot be opened.
    """
    stores = {name: open_store(path, named_by=named_by) for name, path in places.items()}
    subsets = [_subset(plan, source, stores[source.name]) for source in plan.sources]
    with evidence():
        return _Opened(stores, Stream(subsets, plan.mixture_plan().plans))


def _open(plan: RunPlan, store: Path | Mapping[str, Path] | None) -> _Opened:
    option = "--store NAME=FOLDER" if plan.is_mixture else "--store FOLDER"
    if store is not None:
        # What was named is input; what plan.json names is evidence.
        return open_run(plan, _places(plan, store), named_by=option)
    with evidence():
        return open_run(plan, _places(plan, None), named_by=option)


def _store_damage(plan: RunPlan, opened: _Opened, progress: StageProgress | None) -> list[str]:
    """Why the stores are not what was sealed."""
    paths = dict.fromkeys(store.path for store in opened.stores.values())
    damage = [f"store {path}: {message}" for path in paths for message in verify(path, progress).problems]
    for source, subset in zip(plan.sources, opened.stream.subsets, strict=True):
        if not subset.has_order_of_its_seed():
            path = opened.stores[source.name].path
            damage.append(
                f"the order of documents cached for {path} differs from the one that the seed gives"
            )
    return damage


def store_places(run: Path, given: Sequence[str]) -> dict[str, Path]:
    """Store folders by source, from ``NAME=PATH`` for each, or ``PATH`` for a run with one store.

    Raises:
        RunError: If a name is not a source of the run.
        CannotSayError: If plan.json is damaged.
    """
    folder = RunFolder.open(run)
    with evidence():
        names = [source.name for source in folder.plan.sources]
    places = {}
    for text in given:
        name, equals, path = text.partition("=")
        if equals and name in names:
            places[name] = Path(path)
        elif len(names) == 1:
            places[names[0]] = Path(text)
        else:
            raise _unnamed(text, names)
    return places


def _places(plan: RunPlan, given: Path | Mapping[str, Path] | None) -> dict[str, Path]:
    names = [source.name for source in plan.sources]
    if isinstance(given, Path):
        if plan.is_mixture:
            raise _unnamed(str(given), names)
        given = {names[0]: given}
    moved = given or {}
    return {source.name: moved.get(source.name, Path(source.store)) for source in plan.sources}


def _unnamed(text: str, names: Sequence[str]) -> RunError:
    return RunError(
        "store of a mixture",
        got=text,
        rule=f"must be NAME=PATH with a source of the run, {' or '.join(names)}",
        remedy="Name each store that has moved.",
    )


def _subset(plan: RunPlan, source: SourcePlan, store: Store) -> Subset:
    """The run's subset of a source.

    Raises:
        RunError: If the store's content or document order differs from the run's.
    """
    actual, expected = store.fingerprint, source.store_fingerprint
    if actual == expected:
        subset = Subset.open(store, seed=source.subset_seed, unique_tokens=source.unique_tokens)
        actual, expected = subset.fingerprint, source.subset_fingerprint
    if actual != expected:
        raise RunError(
            f"source {source.name}: store {store.path}" if plan.is_mixture else f"store {store.path}",
            got=f"fingerprint {actual}, where plan.json has {expected}",
            rule="must be the store that the run was trained on",
            remedy="Name it with --store.",
        )
    return subset


def _check_config(folder: RunFolder, opened: _Opened, recount: Recount) -> None:
    """Note where the plan differs from config.yaml."""
    stores, stream = opened
    names, wanted = [*stores], [*folder.config.sources]
    if names != wanted:
        recount.problems.add(
            f"plan.json has the sources {', '.join(names)}, where config.yaml asks for {', '.join(wanted)}"
        )
        return
    facts = folder.plan.facts()
    # The teacher is a model, not data: the plan alone has the fingerprint of its weights.
    asked = RunPlan.of(folder.config, stores=stores, stream=stream, teacher=folder.plan.teacher).facts()
    for key, value in facts.items():
        if value != asked[key]:
            recount.problems.add(f"plan.json has {key} {value}, where config.yaml asks for {asked[key]}")
    recorded, actual = folder.plan.config_fingerprint, config_fingerprint(folder.config)
    if folder.plan.numerics_version != NUMERICS_VERSION:
        return
    # Another release may have other settings, and so other fingerprints.
    release = folder.environment.get("packages", {}).get("reptrain")
    if recorded != actual and release == version("reptrain"):
        recount.problems.add(
            f"config.yaml has the fingerprint {actual}, where plan.json has {recorded}: it was edited"
        )
