"""Hostfiles: what is read and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher import read_hostfile


def test_read_hostfile_keeps_the_order_and_skips_comments(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# the cluster\n\nnode-1 slots=8\n  node-0   slots=4  # half\n")
    assert list(read_hostfile(path).items()) == [("node-1", 8), ("node-0", 4)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("node-0 slots=8\nnode-1\n", r"line 2: must be HOST slots=N.*'node-1'"),
        ("node-0 slots=0\n", r"line 1: must be HOST slots=N.*slots=0"),
        ("node-0 slots=8 max=9\n", r"line 1: must be HOST slots=N"),
        ("a slots=1\n#\na slots=2\n", r"line 3: must name each host once, but got a again"),
        ("# nothing\n", "must name at least one host"),
    ],
)
def test_read_hostfile_refuses_by_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(LaunchError, match=error):
        read_hostfile(path)


def test_read_hostfile_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(LaunchError, match="must be a readable text file"):
        read_hostfile(tmp_path / "binary")
