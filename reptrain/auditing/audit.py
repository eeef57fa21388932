"""The audit: recount every token's exposures from the ledger, and prove the digests from the store.

Nothing is believed but plan.json and the store. Each record of the ledger names global indices; the plan
says which windows these are; the store says which tokens stand there. Their digest must be the one that
was taken from the tensors that the model saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from reptrain.auditing.exposures_file import check_target, write_exposures
from reptrain.auditing.ledger_columns import column_chunks
from reptrain.auditing.recount import Recount
from reptrain.auditing.report import AuditReport
from reptrain.config import config_fingerprint
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.errors import RunError
from reptrain.plan import Stream, Subset
from reptrain.runs.folder import RunFolder
from reptrain.runs.run_plan import RunPlan, SourcePlan
from reptrain.stages import StageProgress
from reptrain.store import Store, open_store, verify

# Windows derived at once: bounds the memory, and lets a token be hashed once for many windows.
_CHUNK_WINDOWS = 1 << 20


def audit(
    run: Path,
    *,
    store: Path | Mapping[str, Path] | None = None,
    progress: StageProgress | None = None,
    verify_store: bool = True,
    exposures: Path | None = None,
) -> AuditReport:
    """Recount a run.

    Args:
        run: Its folder.
        store: Where the store is now, or in a mixture the stores by source; None: where plan.json says.
        progress: Called with a stage, the steps done and all steps.
        verify_store: Hash the shards of the stores again.
        exposures: Also write how often each token was consumed to this Arrow file (`runs/exposures_file.py`).

    Raises:
        RunError: If the folder is no run's, a line of its ledger is no record, a store is another, or the
            file for the exposures cannot be written or is something else.
        StoreError: If a store cannot be opened.
    """
    folder = RunFolder.open(run)
    if exposures is not None:
        check_target(exposures)
    plan = folder.plan
    option = "--store NAME=FOLDER" if plan.is_mixture else "--store FOLDER"
    stores = {name: open_store(path, named_by=option) for name, path in _places(plan, store).items()}
    stream = Stream([_subset(plan, source, stores[source.name]) for source in plan.sources])
    recount = Recount(plan, stores, stream)
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
    names = [source.name for source in plan.sources] if plan.is_mixture else []
    size = max(1, _CHUNK_WINDOWS // plan.batch_windows)
    for records in column_chunks(folder.ledger.records(), names, size):
        recount.add(records)
        if progress is not None:
            progress("audit", min(int(records.step[-1]) + 1, num_steps), num_steps)
    if exposures is not None:
        write_exposures(exposures, recount.stretches(), stream, [source.name for source in plan.sources])
    status = folder.status()
    done = status.state == "done"
    return recount.report(
        done=done, ended_early=done and status.reason is not None, store_verified=verify_store
    )


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


def _check_config(folder: RunFolder, stores: Mapping[str, Store], stream: Stream, recount: Recount) -> None:
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
    made, found = folder.plan.config_fingerprint, config_fingerprint(folder.config)
    if folder.plan.numerics_version != NUMERICS_VERSION:
        return
    # Another release may have other settings, and so other fingerprints.
    if made != found and folder.environment.get("packages", {}).get("reptrain") == version("reptrain"):
        recount.problem(f"config.yaml has the fingerprint {found}, where plan.json has {made}: it was edited")
