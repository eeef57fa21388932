"""Forks Python processes from one process that has imported what they need; `forked.py` is the client.

Usage: fork_server.py SOCKET MODULE..., where the modules are imported first. A request is a JSON object
(`arguments`, `environment`, `folder`, `path`, `hook`) with the file descriptors of the standard streams. The
server answers with the process id, and with the exit code once the process ends. It ends with its client,
whose end closes its standard input.
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


def serve(address: str) -> None:
    """Accept requests until standard input is closed; then kill the processes that still run."""
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, DefaultSelector() as selector:
        listener.bind(address)
        listener.listen()
        selector.register(listener, EVENT_READ)
        selector.register(sys.stdin, EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for pid in running:
                        os.kill(pid, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    message, streams, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
                    pid = os.fork()
                    if pid == 0:
                        selector.close()
                        listener.close()
                        _carry_out(json.loads(message), streams)
                    for stream in streams:
                        os.close(stream)
                    running[pid] = connection
                    connection.sendall(str(pid).encode())
                    selector.register(os.pidfd_open(pid), EVENT_READ, pid)
                else:
                    assert isinstance(key.fileobj, int)
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    _, status = os.waitpid(key.data, 0)
                    with running.pop(key.data) as connection, contextlib.suppress(OSError):
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
        sys.path[:] = request["path"]
        if request["hook"] is not None:
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
    """Run Python's arguments, `-m MODULE ...` or `SCRIPT ...`; returns the exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
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
    serve(sys.argv[1])
