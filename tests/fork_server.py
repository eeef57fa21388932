"""Forks Python processes from one process that has imported what they need; `forked.py` is the client.

Usage: fork_server.py SOCKET MODULE..., where the modules are imported first. A request is a JSON object
(`arguments`, `environment`, `folder`, `executable`, `path`, `hook`) with the file descriptors of the standard
streams. The server answers with the process id, and with the exit code once the process ends. A process whose
client closes the connection is killed. The server ends when its standard input is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pickle
import runpy
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NoReturn

MESSAGE_BYTES = 2**18


class Server:
    """Accepts requests until standard input is closed; then it kills the processes that still run.

    Args:
        address: Path of its socket.
    """

    def __init__(self, address: str) -> None:
        self._connections: dict[int, socket.socket] = {}
        self._selector = DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A client connects as soon as the address exists.
        self._listener.bind(f"{address}.new")
        self._listener.listen(64)
        Path(f"{address}.new").rename(address)
        self._selector.register(self._listener, EVENT_READ, self._accept)
        self._selector.register(sys.stdin, EVENT_READ, self._stop)

    def serve(self) -> None:
        """Serve until the end."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _stop(self) -> NoReturn:
        for pid in self._connections:
            os.kill(pid, signal.SIGKILL)
        sys.exit()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        message, streams, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._listener.close()
            _carry_out(json.loads(message), streams)
        for stream in streams:
            os.close(stream)
        self._connections[pid] = connection
        self._selector.register(connection, EVENT_READ, lambda: self._abandon(pid, connection))
        ended = os.pidfd_open(pid)
        self._selector.register(ended, EVENT_READ, lambda: self._report(pid, ended))
        connection.sendall(str(pid).encode())

    def _abandon(self, pid: int, connection: socket.socket) -> None:
        """Kill a process whose client is gone; its end is seen later."""
        self._selector.unregister(connection)
        os.kill(pid, signal.SIGKILL)

    def _report(self, pid: int, ended: int) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        with self._connections.pop(pid) as connection:
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _carry_out(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run a request in this fork, and end as an interpreter does."""
    code = 1
    try:
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.executable = request["executable"]
        sys.path[:] = request.get("path", sys.path)
        if request.get("hook") is not None:
            pickle.loads(bytes.fromhex(request["hook"]))()
        code = _run(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run Python's arguments, `-m MODULE ...`, `-c PROGRAM ...` or `SCRIPT ...`; returns the exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            if "." in arguments[1]:
                # A module that was imported before runs with a warning.
                sys.modules.pop(arguments[1], None)
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # A garbage collection in a fork looks at the fork's own objects only.
    gc.freeze()
    Server(sys.argv[1]).serve()
