"""Processes that start at once: forks of a server that has imported torch, DeepSpeed and the commands.

An interpreter needs 5 s of CPU time for these imports before it trains. A fork starts at once, and the
moments at which a test stops it are those of its work, not those of its imports.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from fork_server import MESSAGE_BYTES

_TESTS = Path(__file__).parent
_START_S = 300
# Before torch is loaded; one thread, so that processes beside each other do not compete for cores.
_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
_PYTHON = """#!{python} -ES
import sys
sys.path[:0] = [{tests!r}]
from forked_python import main
main({address!r}, {python!r})
"""


class Server:
    """A server of forks, which ends with this process.

    Args:
        modules: What it imports.
        environment: More variables of its environment.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self._folder.name) / "socket")
        self.python = Path(self._folder.name) / "python"
        """Starts Python as `sys.executable` does, but as a fork."""
        self.python.write_text(_PYTHON.format(python=sys.executable, tests=str(_TESTS), address=self.address))
        self.python.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, _TESTS / "fork_server.py", self.address, *modules],
            env={**os.environ, **_VARIABLES, **environment},
            stdin=subprocess.PIPE,
        )
        atexit.register(self.end)
        limit = time.monotonic() + _START_S
        while not Path(self.address).exists():
            assert self.process.poll() is None and time.monotonic() < limit, (
                "the server of forks did not start"
            )
            time.sleep(0.02)

    def end(self) -> None:
        """End the server, and with it its forks."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self._folder.cleanup()


@cache
def training_server() -> Server:
    """Its forks train and carry out every command."""
    return Server(["training_imports"], {})


@cache
def interpreter_server() -> Server:
    """Its forks run Triton kernels in Triton's interpreter."""
    return Server(["triton", "torch._dynamo", "reptrain_kernels"], {"TRITON_INTERPRET": "1"})


@cache
def login_server() -> Server:
    """Its forks carry out commands where torch, DeepSpeed and Triton cannot be imported."""
    return Server(["login_imports"], {})


class Forked:
    """A forked Python process; the methods are those of `subprocess.Popen`.

    Args:
        arguments: Python's: `-m MODULE ...` or `SCRIPT ...`.
        server: Has imported what the process needs.
        stdin, stdout, stderr: Standard streams, as files or file descriptors; None for no input or output.
        environment: Its environment, beside the variables that set the number of threads.
        folder: Its current folder.
        hook: Called in the process before the arguments are.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        server: Server | None = None,
        stdin: IO[Any] | int | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        hook: Callable[[], object] | None = None,
    ) -> None:
        server = server or training_server()
        self.returncode: int | None = None
        request = {
            "arguments": [os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments],
            "environment": {**(os.environ if environment is None else environment), **_VARIABLES},
            "folder": str(folder or Path.cwd()),
            "executable": str(server.python),
            "path": sys.path,
            "hook": None if hook is None else pickle.dumps(hook).hex(),
        }
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(server.address)
        with Path(os.devnull).open("r+b") as nothing:
            streams = [_descriptor(stream, nothing) for stream in (stdin, stdout, stderr)]
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
            self.pid = int(self._connection.recv(MESSAGE_BYTES))

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: If it still runs after ``timeout`` seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            # It may end in between.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._connection.recv(MESSAGE_BYTES))
            self._connection.close()
        return self.returncode


def _descriptor(stream: IO[Any] | int | None, nothing: IO[Any]) -> int:
    if isinstance(stream, int):
        return stream
    return (nothing if stream is None else stream).fileno()


def run_forked(
    arguments: Sequence[object],
    *,
    server: Server | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, as `subprocess.run` does with captured text.

    Raises:
        subprocess.TimeoutExpired: If it takes longer than ``timeout`` seconds; it is killed.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Forked(
            arguments, server=server, stdout=stdout, stderr=stderr, environment=environment, folder=folder
        )
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess([str(word) for word in arguments], code, *texts)
