"""Hostfiles that are accepted and refused."""

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
    "text",
    [
        "a slots=4 max_slots=8",
        "a slots=4 max-slots=4",
        "a max_slots=8 slots=4",
        "\ufeffa slots=4",
        "a\tslots=4\r\n",
        "\n#b slots=1\na slots=4#half",
    ],
)
def test_read_hostfile_accepts_deepspeed_and_open_mpi_syntax(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_bytes(text.encode())
    assert read_hostfile(tmp_path / "hosts") == {"a": 4}


@pytest.mark.parametrize("host", ["node-1.cluster.example", "user@node_1", "10.0.0.1", "fe80::1"])
def test_read_hostfile_accepts_every_form_of_a_host(tmp_path: Path, host: str) -> None:
    (tmp_path / "hosts").write_text(f"{host} slots=1024\n")
    assert read_hostfile(tmp_path / "hosts") == {host: 1024}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("node-0 slots=8\nnode-1\n", r"line 2: must have slots=N.*'node-1'"),
        ("node-0\nnode-0\nnode-1\n", r"line 1: must have slots=N.*PBS"),
        ("node-0 slots=0\n", r"line 1: must have slots from 1.*slots=0"),
        ("a slots=9 max_slots=8\n", r"line 1: must have slots from 1.*slots=9"),
        ("a slots=9999\n", "at most 1024, but got slots=9999"),
        (f"a slots={'9' * 5000}\n", "line 1: must be HOST slots=N"),
        ("a slots=1 slots=2\n", "line 1: must be HOST slots=N"),
        ("a slots = 4\n", "line 1: must be HOST slots=N"),
        ("a slots=4 max_slots=8 gpu=A100\n", "line 1: must be HOST slots=N"),
        ("node[01-03] slots=8\n", r"line 1: must name one host, not a range.*scontrol"),
        ("node0[1,3-4],b slots=8\n", "line 1: must name one host"),
        ("node-0:8\n", "line 1: must be HOST slots=N"),
        ("a,b slots=8\n", "line 1: must be HOST slots=N"),
        ("-oProxyCommand=x slots=8\n", "line 1: must be HOST slots=N"),
        ("nöde slots=8\n", "line 1: must be HOST slots=N"),
        ("a\0b slots=8\n", "got a NUL byte at offset 1"),
        ("#" * 2**20 + "\na slots=4", "larger than 1048576 bytes"),
        ("node-0 slots=8 max=9\n", r"line 1: must be HOST slots=N"),
        ("a slots=1\n#\na slots=2\n", r"line 3: must name each host once, but got a again"),
        ("a slots=1\nA slots=2\n", "line 2: must name each host once, but got A again"),
        ("a.b slots=1\nme@a.b. slots=2\n", "line 2: must name each host once"),
        ("[fe80::1] slots=2\n", "line 1: must be HOST slots=N"),
        ("# nothing\n", "must name at least one host"),
    ],
)
def test_read_hostfile_refuses_by_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(LaunchError, match=error) as refused:
        read_hostfile(path)
    assert len(str(refused.value)) <= 500 + len(str(path))


def test_read_hostfile_refuses_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "wide").write_text("a slots=4\n", encoding="utf-16")
    with pytest.raises(LaunchError, match="must be UTF-8, but got UTF-16, by its byte order mark"):
        read_hostfile(tmp_path / "wide")
    (tmp_path / "latin").write_bytes(b"n\xf6de slots=4\n")
    with pytest.raises(LaunchError, match="must be UTF-8, but got byte 0xf6 at offset 1"):
        read_hostfile(tmp_path / "latin")
