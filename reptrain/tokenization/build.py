"""`tokenize`: from text to a sealed token store, in restartable jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reptrain.config.json_digest import fingerprint
from reptrain.errors import StoreError
from reptrain.files import flush_files, flush_folder
from reptrain.reading import escape_name, is_unicode
from reptrain.stages import StageProgress
from reptrain.store.manifest import (
    FORMAT,
    MANIFEST,
    StoreManifest,
    read_manifest,
    write_manifest,
)
from reptrain.text import Tokenizer
from reptrain.text.documents import Fields
from reptrain.text.ends import NamedEnd
from reptrain.text.sources import SourceFile, expand_sources, fetch_sources
from reptrain.tokenization.clusters import Decided, decide_near
from reptrain.tokenization.encode import Encoded, EncodeTask, StoredTokenizer, encode_job
from reptrain.tokenization.fields import check_fields, parse_tags
from reptrain.tokenization.guard import as_store_errors, check_same, check_splits, locked
from reptrain.tokenization.inputs import check_same_content, check_unchanged, hash_inputs
from reptrain.tokenization.jobs import TokenizeJob, number_lines, plan_jobs
from reptrain.tokenization.resolve_options import check_options, load_given_tokenizer, resolve_options
from reptrain.tokenization.scan import KEPT, Scan, ScanTask, decide, scan_job
from reptrain.tokenization.seal import assemble
from reptrain.tokenization.store_tokenizer import copy_tokenizer, train_or_load
from reptrain.tokenization.strata import find_strata
from reptrain.tokenization.work import Work, finish, hold_inputs, is_done, open_work
from reptrain.tokenization.workers import Workers
from reptrain.tokenize_options import StoreOptions

Task = TypeVar("Task", ScanTask, EncodeTask)
Record = TypeVar("Record", Scan, Encoded)


class Plan(NamedTuple):
    """The sources and options of one call of `tokenize`, and the jobs that follow from them."""

    files: list[SourceFile]
    jobs: list[TokenizeJob]
    options: StoreOptions
    tokenizer: Tokenizer | None
    workers: Workers
    progress: StageProgress
    fit_vocab: bool
    """Whether the vocabulary size is a default, which may be changed to fit the text."""

    @property
    def fields(self) -> Fields:
        """Where a record keeps its text, id and metadata, and the tags that it gets."""
        options = self.options
        return Fields(options.text_field, options.id_field, options.metadata_fields, parse_tags(options.tags))

    @property
    def fingerprint(self) -> str:
        """Of the options and of each file's path, size and modification time. Equal plans can be resumed."""
        files = [file.identity for file in self.files]
        end = None if self.tokenizer is None else self.tokenizer.eos_id
        return fingerprint({"format": FORMAT, "files": files, "options": asdict(self.options), "end": end})


def tokenize(
    sources: Sequence[str | Path],
    out: Path,
    *,
    tokenizer: Path | None = None,
    processes: int = 1,
    slurm: Sequence[str] = (),
    progress: StageProgress | None = None,
    **options: Any,
) -> StoreManifest:
    """Make a token store. The same text and options give the same bytes, for any number of processes.

    An interrupted call resumes when it is repeated. A finished one returns at once.

    Args:
        sources: Files of a kind in `reptrain.text.documents.SUFFIXES`; folders of them, folders that the
            datasets library saved, globs, and URLs of all these that fsspec can open.
        out: The folder of the store: new, or that of an earlier call.
        tokenizer: A SentencePiece model or a tokenizer.json, recognized by its content; None trains a unigram
            model on the training text.
        processes: Processes, the calling one among them.
        slurm: Options of sbatch, each KEY=VALUE; the jobs then run in Slurm arrays.
        progress: Called after each job with the stage, the bytes done and all bytes.
        **options: Fields of `reptrain.tokenize_options.TokenizeOptions`, such as vocab_size, dedup and
            held_out_fraction.

    Raises:
        ConfigError: If an option is unknown or has another type.
        TextError: If a source cannot be read, naming the file and line.
        TokenizerError: If the model cannot be loaded or trained, or has no EOS.
        StoreError: If a split gets no document, the disk is full, or ``out`` holds something else.
    """
    asked = check_options(options)
    _check_call(out, processes)
    given = load_given_tokenizer(tokenizer, asked.eos)
    resolved = resolve_options(asked, given)
    with as_store_errors(out), _workers(out, processes, slurm) as workers:
        files = expand_sources(sources)
        fit_vocab = given is None and asked.vocab_size is None
        plan = Plan(files, [], resolved, given, workers, progress or _silent, fit_vocab)
        check_fields(plan.fields, _folders(files))
        manifest = _open_or_build(plan, out)
        finish(out)
    return manifest


def _workers(out: Path, processes: int, slurm: Sequence[str]) -> Workers:
    if not slurm:
        return Workers(processes)
    from reptrain.tokenization.slurm import SlurmJobs, SlurmWorkers

    return SlurmWorkers(out, SlurmJobs.parse(slurm))


def _check_call(out: Path, processes: int) -> None:
    if processes < 1:
        raise StoreError(
            "processes", got=processes, rule="must be at least 1", remedy="Use the number of cores."
        )
    if not is_unicode(str(out)):
        raise StoreError(
            f"store {escape_name(str(out))}",
            got="bytes that are not UTF-8",
            rule="must have a path in UTF-8",
            remedy="Choose another --out.",
        )


def _folders(files: Sequence[SourceFile]) -> dict[str, set[str]]:
    """The folders or URLs of each source's files."""
    folders: dict[str, set[str]] = {}
    for file in files:
        place = file.url or str(file.path)
        folders.setdefault(file.source, set()).add(place.removesuffix(file.name))
    return folders


def _open_or_build(plan: Plan, out: Path) -> StoreManifest:
    if not (out / MANIFEST).exists():
        with locked(out):
            # Another process may have sealed it meanwhile.
            if not (out / MANIFEST).exists():
                return _build(plan, out)
    manifest = read_manifest(out)
    check_same(out, manifest, plan.options, plan.files)
    if plan.tokenizer is not None and plan.tokenizer.eos_id != manifest.eos_id:
        raise StoreError(
            f"store {out}",
            got=f"EOS {plan.tokenizer.eos_id}, where {MANIFEST} has {manifest.eos_id}",
            rule="must have been made with the same EOS",
            remedy="Choose another --out, or delete the folder.",
        )
    check_same_content(out, manifest, plan.files, plan.workers, plan.progress)
    return manifest


def _build(plan: Plan, out: Path) -> StoreManifest:
    work = open_work(out, plan.fingerprint)
    files = fetch_sources(plan.files, work.fetched, lambda done, total: plan.progress("fetch", done, total))
    plan = plan._replace(files=files, jobs=plan_jobs(files, plan.fields))
    if len(plan.jobs) > 1:
        plan.workers.start()
    inputs = hash_inputs(files, plan.workers, plan.progress)
    hold_inputs(work, [item.sha256 for item in inputs])
    scans = _scan(plan, work)
    options = plan.options
    decided = _decide(plan, work, scans)
    if plan.workers.remote:
        flush_files(work.statuses(job.index) for job in plan.jobs)
    check_splits(decided.counts[KEPT:], options.held_out_fraction)
    jobs = number_lines(plan.jobs, [scan.newlines for scan in scans])
    tokenizer = _make_tokenizer(plan, jobs, work, text_bytes=sum(scan.text_bytes for scan in scans))
    stored = StoredTokenizer(
        tokenizer.file_name, tokenizer.fingerprint, NamedEnd(tokenizer.eos_id, None, MANIFEST)
    )
    tasks = [
        EncodeTask(job, plan.fields, work, stored, options.passages, flush=plan.workers.remote)
        for job in jobs
    ]
    encoded = _run_stage(plan, "tokenize", tasks, encode_job, work.encoded, Encoded.read)
    check_unchanged(files, inputs, work, plan.workers, plan.progress)
    manifest = assemble(options, plan.fields, tokenizer, inputs, decided, encoded, work)
    check_splits([info.documents for info in manifest.splits.values()], options.held_out_fraction)
    # The files that the manifest seals must survive a power loss before it does.
    shards = [shard.file for info in manifest.splits.values() for shard in info.shards]
    flush_files(out / name for name in [tokenizer.file_name, *shards])
    flush_folder(out)
    write_manifest(out, manifest)
    return manifest


def _scan(plan: Plan, work: Work) -> list[Scan]:
    tasks = [ScanTask(job, plan.fields, work, plan.options.near) for job in plan.jobs]
    return _run_stage(plan, "scan", tasks, scan_job, work.scan, Scan.read)


def _decide(plan: Plan, work: Work, scans: Sequence[Scan]) -> Decided:
    options = plan.options
    strata = find_strata(plan.jobs, [scan.slice_documents for scan in scans])
    counts = decide(work, scans, strata, dedup=options.dedup, held_out_fraction=options.held_out_fraction)
    if options.near is None:
        return Decided(counts, clusters=0, largest=0)
    return decide_near(
        work,
        scans,
        options.near,
        strata,
        dedup=options.dedup,
        held_out_fraction=options.held_out_fraction,
        progress=lambda done, total: plan.progress("find near-duplicates", done, total),
    )


def _make_tokenizer(plan: Plan, jobs: Sequence[TokenizeJob], work: Work, *, text_bytes: int) -> Tokenizer:
    if plan.tokenizer is not None:
        return copy_tokenizer(plan.tokenizer, work)
    return train_or_load(
        jobs,
        plan.fields,
        work,
        plan.options,
        text_bytes=text_bytes,
        fit_vocab=plan.fit_vocab,
        progress=plan.progress,
    )


def _run_stage(
    plan: Plan,
    stage: str,
    tasks: Sequence[Task],
    function: Callable[[Task], Record],
    record: Callable[[int], Path],
    read: Callable[[Path], Record],
) -> list[Record]:
    """Run the tasks of a stage that have no record yet; returns the records of all of them in order."""
    total = sum(task.job.size for task in tasks)
    paths = [record(task.job.index) for task in tasks]
    with ThreadPoolExecutor() as threads:
        is_kept = threads.map(is_done, paths)
    results = {
        task.job.index: read(path) for task, path, kept in zip(tasks, paths, is_kept, strict=True) if kept
    }
    left = [task for task in tasks if task.job.index not in results]
    done = total - sum(task.job.size for task in left)
    plan.progress(stage, done, total)
    for task, result in plan.workers.run(function, left):
        results[task.job.index] = result
        done += task.job.size
        plan.progress(stage, done, total)
    return [results[task.job.index] for task in tasks]


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller that passes none."""
