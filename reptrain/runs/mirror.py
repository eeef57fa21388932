"""A copy of a run folder in object storage, brought up to date after each checkpoint.

`latest`, which names the checkpoint, is copied last, so an interrupted copy leaves the checkpoint before. A
thread copies one checkpoint at a time. If several are waiting, the newest is copied first, and then those
that the run keeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reptrain.errors import ReptrainError, RunError
from reptrain.text.remote import explained, open_file_system, without_credentials

_ATTEMPTS = 4
_PAUSE_S = 1.0
_REMEDY = "Check the address and your access to it."
_MANIFEST, _LATEST, _PLAN = "manifest.json", "latest", "plan.json"


def refuse_other_copy(folder: Path, address: str) -> None:
    """Refuse to replace the copy of another run, or a copy with a newer checkpoint, before a run starts.

    An address that cannot be reached passes: the first copy reports it.

    Args:
        folder: The run folder, which may not exist yet.
        address: See `Mirror`.

    Raises:
        RunError: If there is such a copy.
        TextError: If the package of the protocol is missing, or there is no such protocol.
    """
    place = _place(folder, address)
    with explained(place, what="checkpoint.mirror", rule="must be an address to write to", remedy=_REMEDY):
        files, root = open_file_system(place)
    try:
        _refuse_other_copy(files, root.rstrip("/"), folder)
    except RunError:
        raise
    except Exception:
        return


def _refuse_other_copy(files: Any, root: str, folder: Path) -> None:
    try:
        latest = files.cat_file(f"{root}/checkpoints/{_LATEST}").decode().strip()
    except FileNotFoundError:
        return
    own = (folder / _PLAN).read_bytes() if (folder / _PLAN).exists() else b""
    try:
        copied = files.cat_file(f"{root}/{_PLAN}")
    except FileNotFoundError:
        copied = b""
    newest = max((_step(path.name) for path in _checkpoints(folder)), default=0)
    is_newer = _step(latest) > newest
    if copied != own or is_newer:
        raise RunError(
            f"checkpoint.mirror, folder {folder.resolve().name}",
            got=f"a copy of {'this' if copied == own else 'another'} run at {latest}",
            rule="must be empty, or hold an older copy of this run",
            remedy=f"Copy it to {folder} to resume that run, remove it, or choose another address or --out.",
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"), key=lambda path: _step(path.name))


def _step(name: str) -> int:
    """The step in the name of a checkpoint; -1 if it is none."""
    number = name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def _place(folder: Path, address: str) -> str:
    return f"{address.rstrip('/')}/{folder.resolve().name}"


class Mirror:
    """Copies a run folder.

    Args:
        folder: The run folder.
        address: URL of the folder that gets the copy, under the name of the run folder.
        report: Called with the reason if a copy fails. The training continues, and the next checkpoint is
            copied with what is missing.
    """

    def __init__(self, folder: Path, address: str, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._address = _place(folder, address)
        self._is_own = False
        self._waiting: int | None = None
        self._closed = False
        self._copied: dict[str, tuple[int, int]] = {}
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the copy of the last checkpoint, then copy the records as they are at the end."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        self._attempt(self._copy_records)

    def commit(self, step: int) -> None:
        """Copy a checkpoint, in the background.

        Args:
            step: Its completed steps.
        """
        with self._change:
            self._waiting = step
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                while self._waiting is None and not self._closed:
                    self._change.wait()
                if self._waiting is None:
                    return
                step, self._waiting = self._waiting, None
            self._attempt(partial(self._copy_checkpoint, step))

    def _attempt(self, copy: Callable[[], None]) -> None:
        url = without_credentials(self._address)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with explained(self._address, what="mirror", rule="must be writable", remedy=_REMEDY):
                    copy()
                return
            except (ReptrainError, OSError) as error:
                if attempt == _ATTEMPTS or isinstance(error, RunError):
                    self._report(f"{error}" if isinstance(error, ReptrainError) else f"mirror {url}: {error}")
                else:
                    time.sleep(_PAUSE_S * 2 ** (attempt - 1))

    def _copy_checkpoint(self, step: int) -> None:
        files, root = self._open()
        place = self._folder / "checkpoints" / f"step-{step}"
        self._put_checkpoint(files, root, place)
        if not place.exists():
            # Removed in the meantime: a newer checkpoint is waiting.
            return
        for path in self._folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                record = place / path.name
                self._put(files, root, record if record.exists() else path, path.name)
        files.pipe_file(f"{root}/checkpoints/{_LATEST}", f"step-{step}\n".encode())
        for older in _checkpoints(self._folder):
            if _step(older.name) < step and not files.exists(f"{root}/checkpoints/{older.name}/{_MANIFEST}"):
                self._put_checkpoint(files, root, older)
        self._remove_old(files, root)

    def _put_checkpoint(self, files: Any, root: str, place: Path) -> None:
        # The manifest completes a checkpoint.
        names = sorted((path.name for path in place.glob("*")), key=lambda name: (name == _MANIFEST, name))
        for inside in names:
            self._put(files, root, place / inside, f"checkpoints/{place.name}/{inside}")

    def _remove_old(self, files: Any, root: str) -> None:
        kept = {path.name for path in _checkpoints(self._folder)}
        for entry in files.ls(f"{root}/checkpoints", detail=False):
            name = str(entry).rstrip("/").rpartition("/")[2]
            if name.startswith("step-") and name not in kept:
                files.rm(entry, recursive=True)
                self._copied = {
                    key: value for key, value in self._copied.items() if f"/{name}/" not in f"/{key}"
                }

    def _copy_records(self) -> None:
        files, root = self._open()
        for path in sorted(self._folder.rglob("*")):
            inside = path.relative_to(self._folder)
            if path.is_file() and inside.parts[0] != "checkpoints" and not path.name.startswith("."):
                self._put(files, root, path, inside.as_posix())

    def _open(self) -> tuple[Any, str]:
        files, root = open_file_system(self._address)
        root = root.rstrip("/")
        if not self._is_own:
            _refuse_other_copy(files, root, self._folder)
            self._is_own = True
        return files, root

    def _put(self, files: Any, root: str, path: Path, name: str) -> None:
        """Copy a file that changed since it was last copied."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        state = (status.st_size, status.st_mtime_ns)
        if self._copied.get(name) == state:
            return
        if "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
            files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        files.put_file(str(path), f"{root}/{name}")
        self._copied[name] = state
