"""Servers of forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

PROGRAM = """
import forked
print(forked.run_forked(["-c", "import os; print(os.getppid())"], server=forked._server("small")).stdout)
"""


def test_processes_of_a_test_run_share_a_server_that_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(forked._IMPORTS, "small", (["json"], {}))
    outer = os.environ.get(forked._SHARED)
    with forked.shared_servers():
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        clients = [
            subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        servers = {int(client.communicate()[0]) for client in clients}
    assert len(servers) == 1
    assert not Path(f"/proc/{servers.pop()}").exists()
    assert os.environ.get(forked._SHARED) == outer
