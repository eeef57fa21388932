"""The audit: recount every token's exposures from the ledger, and check the digests against the store.

Only plan.json and the store are trusted. Each ledger record names global indices; the plan maps them to
windows, and the store holds the tokens of these windows. Their digest must equal the one in the ledger, which
was computed from the tensors that the model saw.
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

# Windows per chunk: bounds the memory. A token that many windows of a chunk share is hashed once.
_CHUNK_WINDOWS = 1 << 20


def audit(
    run: Path,
    *,
    store: Path | Mapping[str, Path] | None = None,
    progress: StageProgress | None = None,
    verify_store: bool = True,
    exposures: Path | None = None,
) -> AuditReport:
    """Recount the exposures of a run.

    Args:
        run: The run folder.
        store: The store's folder, or in a mixture the folders by source. None uses the paths in plan.json.
        progress: Called with a stage, the steps done and all steps.
        verify_store: Also hash the shards of the stores.
        exposures: Also write each token's number of exposures to this Arrow file (see
            `reptrain.auditing.exposures_file`).

    Raises:
        RunError: If the folder holds no run, a line of its ledger is invalid, a store differs from the run's,
            or the exposures file cannot be written or holds something else.
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
                recount.problems.add(message)
    for source, subset in zip(plan.sources, stream.subsets, strict=True):
        if not subset.has_order_of_its_seed():
            path = stores[source.name].path
            recount.problems.add(
                f"the order of documents cached for {path} differs from the one that the seed gives"
            )
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
    """Store folders by source, from ``NAME=PATH`` for each, or ``PATH`` for a run with one store.

    Raises:
        RunError: If a name is not a source of the run.
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


def _check_config(folder: RunFolder, stores: Mapping[str, Store], stream: Stream, recount: Recount) -> None:
    """Note where the plan differs from config.yaml."""
    names, wanted = [*stores], [*folder.config.sources]
    if names != wanted:
        recount.problems.add(
            f"plan.json has the sources {', '.join(names)}, where config.yaml asks for {', '.join(wanted)}"
        )
        return
    facts = folder.plan.facts()
    asked = RunPlan.of(folder.config, stores=stores, stream=stream).facts()
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
