"""Records of a run folder, and logs with one record per line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from reptrain.errors import RunError
from reptrain.files import read_small

Record = TypeVar("Record", bound=BaseModel)
Parsed = TypeVar("Parsed")


class FrozenRecord(BaseModel):
    """Base of the records in a run folder. Non-finite floats are stored as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def read_record(model: type[Record], path: Path, *, remedy: str) -> Record:
    """Read the record in a file.

    Args:
        model: Class of the record.
        path: The file.
        remedy: What to do if it is missing or damaged.

    Raises:
        RunError: If it cannot be read, or is not such a record.
    """
    try:
        return model.model_validate_json(read_small(path))
    except (OSError, ValidationError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason: object = f"{where}: {first['msg']}" if where else first["msg"]
        else:
            reason = error.strerror or error
        rule = "must be a complete record of the run"
        raise RunError(str(path), got=reason, rule=rule, remedy=remedy) from error


class JsonLines(Generic[Record]):
    """An append-only file with one record per line.

    A line counts once its newline is written. `drop_half_line` removes the incomplete last line that a killed
    process may leave.
    """

    remedy = "Fix the line, or copy the file from the newest checkpoint."
    """What to do about an invalid line."""

    def __init__(self, path: Path, adapter: TypeAdapter[Record]) -> None:
        self.path = path
        self._adapter = adapter
        self._checked = False

    def append(self, record: Record) -> None:
        """Append one line. Fields that are None are left out.

        Raises:
            RunError: If the file ends with an incomplete line.
        """
        self.write(record.model_dump_json(exclude_none=True).encode() + b"\n")

    def write(self, line: bytes) -> None:
        """Append the bytes of one line.

        Raises:
            RunError: If the file ends with an incomplete line.
        """
        if not self._checked:
            self._check_end()
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(line) < len(line):
                    self._checked = False
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            error.filename = str(self.path)
            raise

    def sync(self) -> None:
        """Flush the appended lines to the disk. Call it before writing a checkpoint."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def size(self) -> int:
        """Size of the file in bytes; 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def records(self) -> Iterator[Record]:
        """All records, in the order of the file; none if there is no file.

        Raises:
            RunError: Naming the first invalid line.
        """
        return (self.parse(line, number, self._adapter) for number, line in self.raw_lines())

    def raw_lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and bytes of each whole line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield number, line

    def cut(self, size: int) -> None:
        """Truncate the file to its first ``size`` bytes, and flush it."""
        if self.path.exists():
            os.truncate(self.path, size)
            self.sync()
        self._checked = False

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)
        self._checked = False

    def drop_half_line(self) -> None:
        """Remove an incomplete last line."""
        if self.path.exists():
            self.cut(self.path.read_bytes().rfind(b"\n") + 1)

    def parse(self, line: bytes, number: int, adapter: TypeAdapter[Parsed]) -> Parsed:
        """The record of a line.

        Raises:
            RunError: Naming the line, if it is no such record.
        """
        try:
            return adapter.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RunError(
                f"{self.path}, line {number}",
                got=line[:80].decode("utf-8", "replace").strip() or "an empty line",
                rule=f"must be a record ({where + ': ' if where else ''}{first['msg']})",
                remedy=self.remedy,
            ) from error

    def _check_end(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    raise RunError(
                        str(self.path),
                        got="an incomplete last line",
                        rule="must end with a complete line",
                        remedy="Resume from a checkpoint, which truncates it.",
                    )
        self._checked = True
