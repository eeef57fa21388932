"""`tokenize`: from text to a sealed token store, in restartable jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from reptrain.config.fingerprint import fingerprint
from reptrain.errors import StoreError, TokenizerError, check_choice
from reptrain.files import write_atomically
from reptrain.reading import escape_name, is_unicode
from reptrain.stages import StageProgress
from reptrain.store.hashing import file_sha256
from reptrain.store.manifest import (
    FORMAT,
    MANIFEST,
    TRAINED,
    Dedup,
    Input,
    NearSettings,
    Options,
    StoreManifest,
    read_manifest,
    write_manifest,
)
from reptrain.text import Tokenizer, train_tokenizer
from reptrain.text.documents import Fields
from reptrain.text.ends import NamedEnd
from reptrain.text.sources import SourceFile, expand_sources, fetch_sources
from reptrain.text.training import DEFAULT_VOCAB_SIZE
from reptrain.tokenization.clusters import Clustered, decide_near
from reptrain.tokenization.encode import (
    Encoded,
    EncodeTask,
    StoredTokenizer,
    changed,
    encode_job,
    kept_documents,
)
from reptrain.tokenization.fields import check_fields, parse_tags
from reptrain.tokenization.guard import as_store_errors, check_same, check_splits, locked
from reptrain.tokenization.jobs import Job, number_lines, plan_jobs
from reptrain.tokenization.near import check_near
from reptrain.tokenization.scan import KEPT, Scan, ScanTask, decide, scan_job
from reptrain.tokenization.seal import assemble
from reptrain.tokenization.strata import SPLIT_VERSION, find_strata
from reptrain.tokenization.work import Work, discard, finish, hold_inputs, open_work
from reptrain.tokenization.workers import Workers

_TRAINING_BYTES = 1 << 26
Task = TypeVar("Task", ScanTask, EncodeTask)
Record = TypeVar("Record", Scan, Encoded)


class Plan(NamedTuple):
    """Everything that `tokenize` was asked, and the jobs that follow from it."""

    files: list[SourceFile]
    jobs: list[Job]
    options: Options
    tokenizer: Tokenizer | None
    workers: Workers
    progress: StageProgress
    fit_vocab: bool = False
    """Whether the vocabulary's size is a default, which may be changed to fit the text."""

    @property
    def fields(self) -> Fields:
        """Where a record keeps its text, id and metadata, and the tags that it gets."""
        options = self.options
        return Fields(options.text_field, options.id_field, options.metadata_fields, parse_tags(options.tags))

    @property
    def fingerprint(self) -> str:
        """Of the options and of the files by place, size and time of change: what may go on after a kill."""
        files = [file.identity for file in self.files]
        end = None if self.tokenizer is None else self.tokenizer.eos_id
        options = self.options.model_dump()
        return fingerprint({"format": FORMAT, "files": files, "options": options, "end": end})


def tokenize(
    sources: Sequence[str | Path],
    out: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    num_sentinels: int | None = None,
    dedup: Dedup = "exact",
    near: NearSettings | None = None,
    held_out_fraction: float = 0.05,
    passages: int | None = None,
    processes: int = 1,
    text_field: str = "text",
    id_field: str = "id",
    metadata_fields: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    eos: str | None = None,
    progress: StageProgress | None = None,
) -> StoreManifest:
    """Make a token store. The same text and options give the same bytes, for any number of processes.

    A killed call goes on where it stopped when it is repeated. A finished one returns at once.

    Args:
        sources: Files of a kind in `reptrain.text.documents.SUFFIXES`; folders of them, folders that the
            datasets library saved, globs, and URLs of all these that fsspec can open.
        out: The store's folder, new or of an earlier call.
        tokenizer: A SentencePiece model or a tokenizer.json, told apart by content; None trains a unigram
            model on the training text.
        vocab_size: Pieces of the model to train; None: 2048, or as near as the text allows.
        num_sentinels: Of them reserved for span corruption; None: 32.
        dedup: `exact` keeps the first of documents with equal text, `minhash` the first of near-duplicates
            too. `group` keeps near-duplicates, each cluster of them whole on one side of the held-out split.
        near: How near-duplicates are found; None takes the defaults.
        held_out_fraction: Share of the documents that is sealed off, half as `select`, half as `report`: of
            each source, file of many documents, or folder of .txt files (see `reptrain.tokenization.strata`).
        passages: Cut documents into passages of at most so many tokens, EOS of each included, so that a small
            subset holds many; those of a document stay on one side of the held-out split. None does not.
        processes: Worker processes.
        text_field: Key of the text in a JSON line, or column of a table; dots reach into nested ones.
        id_field: Key or column of the id.
        metadata_fields: Keys or columns that are kept with each document.
        tags: Keys and values that are kept with each document too, such as {"synthetic": "alpaca"}; a key
            "SOURCE:KEY" tags the documents of one source.
        eos: The special piece of the given tokenizer that ends a document; None takes its own.
        progress: Called after each step.

    Raises:
        ConfigError: If ``dedup`` is unknown.
        TextError: If a source cannot be read, naming the file and line.
        TokenizerError: If the model cannot be loaded or trained, or has no EOS.
        StoreError: If nothing remains for a split, the disk is full, or ``out`` holds something else.
    """
    check_choice("dedup", dedup, get_args(Dedup))
    _check_numbers(held_out_fraction, processes, passages)
    if not is_unicode(str(out)):
        raise StoreError(
            f"store {escape_name(str(out))}",
            got="bytes that are not UTF-8",
            rule="must have a path in UTF-8",
            remedy="Choose another --out.",
        )
    given = _load_tokenizer(tokenizer, eos)
    options = Options(
        dedup=dedup,
        near=_near(near, dedup),
        held_out_fraction=held_out_fraction,
        split_version=SPLIT_VERSION,
        passages=passages,
        tokenizer=given.fingerprint if given else None,
        **_of_training(given, vocab_size=vocab_size, num_sentinels=num_sentinels),
        eos=eos,
        text_field=text_field,
        id_field=id_field,
        metadata_fields=tuple(metadata_fields),
        tags=dict(tags or {}),
    )
    with as_store_errors(out), Workers(processes) as workers:
        files = expand_sources(sources)
        plan = Plan(
            files,
            [],
            options,
            given,
            workers,
            progress or _silent,
            fit_vocab=given is None and vocab_size is None,
        )
        check_fields(plan.fields, _places(files))
        manifest = _open_or_build(plan, out)
        finish(out)
    return manifest


def _of_training(
    given: Tokenizer | None, *, vocab_size: int | None, num_sentinels: int | None
) -> dict[str, int | None]:
    """The settings of a tokenizer to be trained; a given one has its own."""
    settings = {"vocab_size": vocab_size, "num_sentinels": num_sentinels}
    if given is None:
        defaults = {"vocab_size": DEFAULT_VOCAB_SIZE, "num_sentinels": 32}
        return {name: defaults[name] if value is None else value for name, value in settings.items()}
    for name, value in settings.items():
        if value is not None:
            raise TokenizerError(
                name,
                got=f"{value} beside a model of {given.vocab_size} pieces, {given.num_sentinels} sentinels",
                rule="must be left out where a tokenizer is given",
                remedy="Leave it out, or leave the tokenizer out to train one.",
            )
    return settings


def _places(files: Sequence[SourceFile]) -> dict[str, set[str]]:
    """Where the files of each source lie."""
    places: dict[str, set[str]] = {}
    for file in files:
        place = file.url or str(file.path)
        places.setdefault(file.source, set()).add(place.removesuffix(file.name))
    return places


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
            got=f"EOS {plan.tokenizer.eos_id} where {MANIFEST} says {manifest.eos_id}",
            rule="must be made with the end of a document that the tokenizer has",
            remedy="Choose another --out, or delete the folder.",
        )
    hashed = _hash_inputs(plan, [file for file in plan.files if file.url is None])
    sealed = [item for item in manifest.inputs if item.url is None]
    versions = [(file.url, file.version) for file in plan.files if file.url is not None]
    if [item.sha256 for item in hashed] != [item.sha256 for item in sealed] or versions != [
        (item.url, item.version) for item in manifest.inputs if item.url is not None
    ]:
        raise StoreError(
            f"store {out}",
            got="sources with other content",
            rule="must be made from the sources named",
            remedy="Choose another folder, or delete this one.",
        )
    return manifest


def _build(plan: Plan, out: Path) -> StoreManifest:
    work = open_work(out, plan.fingerprint)
    files = fetch_sources(plan.files, work.fetched, lambda done, all_: plan.progress("fetch", done, all_))
    plan = plan._replace(files=files)
    plan = plan._replace(jobs=plan_jobs(files, plan.fields))
    inputs = _hash_inputs(plan, files)
    hold_inputs(work, [item.sha256 for item in inputs])
    scans = _scan(plan, work)
    options = plan.options
    decided = _decide(plan, work, scans)
    check_splits(decided.fates[KEPT:], options.held_out_fraction)
    jobs = number_lines(plan.jobs, [scan.newlines for scan in scans])
    tokenizer = _make_tokenizer(plan, jobs, work, text_bytes=sum(scan.text_bytes for scan in scans))
    stored = StoredTokenizer(
        tokenizer.file_name, tokenizer.fingerprint, NamedEnd(tokenizer.eos_id, None, MANIFEST)
    )
    tasks = [EncodeTask(job, plan.fields, work, stored, options.passages) for job in jobs]
    encoded = _go_on(plan, "tokenize", tasks, encode_job, work.encoded, Encoded.read)
    _check_unchanged(plan, files, inputs, work)
    manifest = assemble(options, plan.fields, tokenizer, inputs, decided, encoded, work)
    check_splits([info.documents for info in manifest.splits.values()], options.held_out_fraction)
    write_manifest(out, manifest)
    return manifest


def _hash_inputs(plan: Plan, files: Sequence[SourceFile]) -> list[Input]:
    hashes: dict[SourceFile, str] = {}
    done, total = 0, sum(file.size for file in files)
    for file, digest in plan.workers.run(_hash_file, files):
        hashes[file] = digest
        done += file.size
        plan.progress("hash", done, total)
    return [
        Input(name=file.label, bytes=file.size, sha256=hashes[file], url=file.url, version=file.version)
        for file in files
    ]


def _check_unchanged(plan: Plan, files: Sequence[SourceFile], inputs: Sequence[Input], work: Work) -> None:
    """Hash all files again, so that the manifest's hashes are those of what was read.

    Raises:
        StoreError: If one has changed since the first time; what was made of it is removed.
    """
    for file, before, after in zip(files, inputs, _hash_inputs(plan, files), strict=True):
        if before.sha256 != after.sha256:
            discard(work)
            raise changed(file.url or escape_name(str(file.path)), "other content than before")


def _hash_file(file: SourceFile) -> str:
    return file_sha256(file.path)


def _scan(plan: Plan, work: Work) -> list[Scan]:
    tasks = [ScanTask(job, plan.fields, work, plan.options.near) for job in plan.jobs]
    return _go_on(plan, "scan", tasks, scan_job, work.scan, Scan.read)


def _decide(plan: Plan, work: Work, scans: Sequence[Scan]) -> Clustered:
    options = plan.options
    strata = find_strata(plan.jobs, [scan.slice_documents for scan in scans])
    fates = decide(work, scans, strata, dedup=options.dedup, held_out_fraction=options.held_out_fraction)
    if options.near is None:
        return Clustered(fates, clusters=0, largest=0)
    return decide_near(
        work,
        scans,
        options.near,
        strata,
        dedup=options.dedup,
        held_out_fraction=options.held_out_fraction,
        progress=lambda done, total: plan.progress("find near-duplicates", done, total),
    )


def _go_on(
    plan: Plan,
    stage: str,
    tasks: Sequence[Task],
    function: Callable[[Task], Record],
    record: Callable[[int], Path],
    read: Callable[[Path], Record],
) -> list[Record]:
    """Do what of a stage is not done yet; the records of all its jobs in order."""
    total = sum(task.job.size for task in tasks)
    results = {task.job.index: read(path) for task in tasks if (path := record(task.job.index)).exists()}
    left = [task for task in tasks if task.job.index not in results]
    done = total - sum(task.job.size for task in left)
    plan.progress(stage, done, total)
    for task, result in plan.workers.run(function, left):
        results[task.job.index] = result
        done += task.job.size
        plan.progress(stage, done, total)
    return [results[task.job.index] for task in tasks]


def _make_tokenizer(plan: Plan, jobs: Sequence[Job], work: Work, *, text_bytes: int) -> Tokenizer:
    """The store's tokenizer: copied, kept from a killed call, or trained on the training documents."""
    if plan.tokenizer is not None:
        write_atomically(work.out / plan.tokenizer.file_name, plan.tokenizer.model_bytes)
        return plan.tokenizer
    path = work.out / TRAINED
    if path.exists():
        return Tokenizer.load(path)
    plan.progress("train tokenizer", 0, text_bytes)
    options = plan.options
    assert options.vocab_size is not None and options.num_sentinels is not None
    share = min(1.0, _TRAINING_BYTES / text_bytes)
    tokenizer = train_tokenizer(
        _TrainingTexts(plan, jobs, work, share),
        path,
        vocab_size=options.vocab_size,
        num_sentinels=options.num_sentinels,
        fit=plan.fit_vocab,
    )
    plan.progress("train tokenizer", text_bytes, text_bytes)
    return tokenizer


@dataclass(frozen=True)
class _TrainingTexts:
    """The training documents, or a share of them chosen by their content; each pass reads them again."""

    plan: Plan
    jobs: Sequence[Job]
    work: Work
    share: float

    def __iter__(self) -> Iterator[str]:
        limit = int(self.share * 2**64)
        for job in self.jobs:
            for split, document in kept_documents(job, self.plan.fields, self.work):
                if split == "train" and (self.share == 1.0 or _draw(document.text) < limit):
                    yield document.text


def _draw(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"reptrain.sample").digest()
    return int.from_bytes(digest)


def _load_tokenizer(path: Path | None, eos: str | None) -> Tokenizer | None:
    if path is None:
        if eos is not None:
            raise TokenizerError(
                "eos",
                got=repr(eos),
                rule="must be left out where no tokenizer is given",
                remedy="A trained one ends documents with </s>.",
            )
        return None
    tokenizer = Tokenizer.load(path, eos)
    if tokenizer.eos_id < 0:
        raise TokenizerError(
            f"tokenizer {path}",
            got="none",
            rule="must have an end-of-sentence piece, which ends every document",
            remedy="Name a special piece with --eos, or leave the tokenizer out to train one.",
        )
    return tokenizer


def _near(near: NearSettings | None, dedup: Dedup) -> NearSettings | None:
    if dedup in ("minhash", "group"):
        return check_near(near or NearSettings())
    if near is not None:
        raise StoreError(
            "near",
            got=f"settings with dedup {dedup!r}",
            rule="must be left out where no near-duplicates are looked for",
            remedy="Set dedup to `minhash` or `group`.",
        )
    return None


def _check_numbers(held_out_fraction: float, processes: int, passages: int | None) -> None:
    if not 0 < held_out_fraction < 1:
        raise StoreError(
            "held_out_fraction",
            got=held_out_fraction,
            rule="must be between 0 and 1",
            remedy="0.05 is usual.",
        )
    if passages is not None and passages < 2:
        raise StoreError(
            "passages", got=passages, rule="must be at least 2 tokens", remedy="One of them is the EOS."
        )
    if processes < 1:
        raise StoreError(
            "processes", got=processes, rule="must be at least 1", remedy="Take the number of cores."
        )


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller that wants none."""
