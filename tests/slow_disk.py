"""A file system on a disk with a limited rate of writing: a loop device, limited by a control group."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Of the root group, since the kernel writes pages back on behalf of no process.
_LIMIT = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def slow_disk(folder: Path, *, size_bytes: int, bytes_per_s: int) -> Iterator[Path]:
    """Make an ext4 file system below ``folder``; skips the test without the right to.

    Args:
        folder: Where its image is stored.
        size_bytes: Its size.
        bytes_per_s: Its rate of writing.
    """
    image, disk = folder / "disk.img", folder / "slow"
    if os.getuid() != 0 or not _LIMIT.exists():
        pytest.skip("needs root and a control group that limits the rate of a disk")
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        _run("mkfs.ext4", "-q", "-F", str(image))
        device = _run("losetup", "--find", "--show", str(image))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a loop device ({error})")
    number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
    try:
        _run("mount", device, str(disk))
        _LIMIT.write_text(f"{number} {bytes_per_s}")
        yield disk
    finally:
        _LIMIT.write_text(f"{number} 0")
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
        subprocess.run(["losetup", "--detach", device], check=False)
