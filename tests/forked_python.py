"""A `python` that forks a server's process: what `Server.python` in `forked.py` runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

ONLY_CHILDREN = "ONLY_CHILDREN_ARE_FORKS"
"""Variable that, if set, starts an interpreter, whose own children are forks."""
# It checks which process its parent is, and starts the command of a job.
_WORKER = "reptrain_launcher.worker"
_MODULE = """
import runpy, sys
sys.executable, *sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def main(address: str, python: str) -> NoReturn:
    """Run this process's arguments in a fork; end with its exit code.

    Args:
        address: Path of the server's socket.
        python: The interpreter, which runs what no fork can, such as `-c CODE`.
    """
    arguments = sys.argv[1:]
    while arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-m"):
        os.execv(python, [python, *sys.argv[1:]])
    is_interpreter = os.environ.pop(ONLY_CHILDREN, None) is not None or arguments[1:2] == [_WORKER]
    if is_interpreter and arguments[0] == "-m":
        os.execv(python, [python, "-c", _MODULE, sys.argv[0], *arguments[1:]])
    request = {
        "arguments": arguments,
        "environment": {**os.environ},
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes longer to import than all else.
        "executable": sys.argv[0],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(connection.recv(64))
        for number in _FORWARDED:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        code = int(connection.recv(64) or b"1")
    if code < 0:
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
