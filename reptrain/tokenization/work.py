"""Work in progress: the folder by which an interrupted `tokenize` resumes."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.files import write_atomically
from reptrain.store.hashing import file_sha256
from reptrain.store.manifest import MANIFEST, SplitName

WORK = ".work"
LOCK = "lock"
_RECORDS = 2
"""Version of the records; work in progress of another version starts over."""


class Work(NamedTuple):
    """File names of work in progress. A job's record is written last: it marks the job as done.

    Jobs do not flush their files to the disk, which would take longer than a small job. A record has the
    SHA-256 of each file instead, so that a call that resumes detects what a power loss has damaged.
    """

    out: Path

    @property
    def folder(self) -> Path:
        """The work folder, inside the store's folder."""
        return self.out / WORK

    @property
    def fetched(self) -> Path:
        """The folder for copies of remote files."""
        return self.folder / "fetched"

    def scan(self, job: int) -> Path:
        """Record of a job of pass 1."""
        return self.folder / f"scan-{job:05d}.json"

    def hashes(self, job: int) -> Path:
        """Sorted content hashes of a job."""
        return self.folder / f"hashes-{job:05d}.npy"

    def signatures(self, job: int) -> Path:
        """MinHash signatures of a job's documents."""
        return self.folder / f"signatures-{job:05d}.bin"

    def bands(self, job: int) -> Path:
        """Sorted band hashes of a job's signatures."""
        return self.folder / f"bands-{job:05d}.bin"

    def statuses(self, job: int) -> Path:
        """Status of each document of a job."""
        return self.folder / f"statuses-{job:05d}.npy"

    def encoded(self, job: int) -> Path:
        """Record of a job of pass 2."""
        return self.folder / f"encoded-{job:05d}.json"

    def digests(self, split: SplitName, job: int) -> Path:
        """Digests of a job's documents in a split, 16 bytes each."""
        return self.folder / f"digests-{split}-{job:05d}.bin"


def open_work(out: Path, fingerprint: str) -> Work:
    """Open the work folder for a plan. Files of another plan are removed.

    Args:
        out: The store's folder, locked and without a manifest.
        fingerprint: Fingerprint of the sources and options.
    """
    work = Work(out)
    plan = work.folder / "plan.json"
    content = json.dumps({"fingerprint": fingerprint, "records": _RECORDS})
    if not plan.exists() or plan.read_bytes() != content.encode():
        _clear(out)
        write_atomically(plan, content, flush=False)
    unfinished = [name for kind in ("*.arrow", "tokenizer", MANIFEST) for name in out.glob(f".{kind}.*")]
    for temporary in [*unfinished, *work.folder.glob(".*.*.*")]:
        temporary.unlink(missing_ok=True)
    return work


def _clear(out: Path) -> None:
    """Remove the files of an unsealed store, except for the lock and fetched copies."""
    for path in [*out.glob("*.arrow"), *out.glob("tokenizer.*"), *(out / WORK).iterdir()]:
        if path.name != LOCK and not path.is_dir():
            path.unlink()


def hold_inputs(work: Work, hashes: Sequence[str]) -> None:
    """Start over if the files have changed since an interrupted call read them.

    Args:
        work: The work in progress.
        hashes: Current SHA-256 of each file.
    """
    path = work.folder / "inputs.json"
    content = json.dumps(hashes)
    if path.exists() and path.read_bytes() != content.encode():
        discard(work)
    if not path.exists():
        write_atomically(path, content, flush=False)


def discard(work: Work) -> None:
    """Remove what was made of sources that have changed. Fetched copies are kept."""
    plan = (work.folder / "plan.json").read_text()
    _clear(work.out)
    write_atomically(work.folder / "plan.json", plan, flush=False)


def finish(out: Path) -> None:
    """Remove the work folder of a sealed store."""
    shutil.rmtree(out / WORK, ignore_errors=True)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a .npy file atomically, without a flush."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue(), flush=False)


def write_record(path: Path, result: Any, files: Mapping[Path, str] | Iterable[Path]) -> None:
    """Mark a job as done.

    Args:
        path: The record.
        result: What the job returns, for JSON.
        files: The files that the job wrote, with their SHA-256 where it is known.
    """
    known = files if isinstance(files, Mapping) else {file: file_sha256(file) for file in files}
    relative = {os.path.relpath(file, path.parent): digest for file, digest in known.items()}
    write_atomically(path, json.dumps({"result": result, "files": relative}), flush=False)


def read_record(path: Path) -> Any:
    """The result in a job's record."""
    return json.loads(path.read_bytes())["result"]


def is_done(path: Path) -> bool:
    """Whether a job has a record, and its files are as the record says."""
    try:
        files = json.loads(path.read_bytes())["files"]
        return all(file_sha256(path.parent / file) == digest for file, digest in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False
