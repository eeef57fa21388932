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
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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


_IMPORTS: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
    "training": (["training_imports"], {}),
    "interpreter": (["triton", "torch._dynamo", "reptrain_kernels"], {"TRITON_INTERPRET": "1"}),
    "login": (["login_imports"], {}),
}
"""The modules that a server imports, and variables of its environment, by the server's name."""
_SHARED = "REPTRAIN_TESTS_FORK_SERVERS"
"""Variable: folder of the servers that all processes of a test run share."""


class Server:
    """The address of a server of forks.

    Args:
        name: One of `_IMPORTS`.
        folder: Where its socket is.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.address = str(folder / name)
        self.python = folder / f"{name}-python"
        """Starts Python as `sys.executable` does, but as a fork."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; it ends when its standard input is closed."""
        modules, environment = _IMPORTS[self.name]
        self.python.write_text(_PYTHON.format(python=sys.executable, tests=str(_TESTS), address=self.address))
        self.python.chmod(0o755)
        return subprocess.Popen(
            [sys.executable, _TESTS / "fork_server.py", self.address, *modules],
            env={**os.environ, **_VARIABLES, **environment},
            stdin=subprocess.PIPE,
        )

    def wait(self, process: subprocess.Popen[bytes] | None = None) -> Server:
        """Wait until it accepts requests, unless its process ends before."""
        limit = time.monotonic() + _START_S
        while not Path(self.address).exists():
            assert (process is None or process.poll() is None) and time.monotonic() < limit, (
                "the server of forks did not start"
            )
            time.sleep(0.02)
        return self


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End servers, and with them their forks."""
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


@cache
def _server(name: str) -> Server:
    """The server of this name, started if no process of the test run has done so."""
    if shared := os.environ.get(_SHARED):
        with Path(shared, "requests").open("w") as requests:
            requests.write(f"{name}\n")
        return Server(name, Path(shared)).wait()
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    atexit.register(folder.cleanup)
    server = Server(name, Path(folder.name))
    process = server.start()
    atexit.register(_end, [process])
    return server.wait(process)


@contextmanager
def shared_servers() -> Iterator[None]:
    """Let the processes that this one starts share servers, which this process starts on request."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        path = Path(folder, "requests")
        os.mkfifo(path)

        def start() -> None:
            # Opened for writing too, so that it has no end.
            with os.fdopen(os.open(path, os.O_RDWR)) as requests:
                while name := requests.readline().strip():
                    if name not in processes:
                        processes[name] = Server(name, Path(folder)).start()

        starter = threading.Thread(target=start)
        starter.start()
        outer = os.environ.get(_SHARED)
        os.environ[_SHARED] = folder
        try:
            yield
        finally:
            del os.environ[_SHARED]
            if outer is not None:
                os.environ[_SHARED] = outer
            with path.open("w") as requests:
                requests.write("\n")
            starter.join()
            _end(processes.values())


def training_server() -> Server:
    """Its forks train and carry out every command."""
    return _server("training")


def interpreter_server() -> Server:
    """Its forks run Triton kernels in Triton's interpreter."""
    return _server("interpreter")


def login_server() -> Server:
    """Its forks carry out commands where torch, DeepSpeed and Triton cannot be imported."""
    return _server("login")


class Forked:
    """A forked Python process; the methods are those of `subprocess.Popen`.

    Args:
        arguments: Python's: `-m MODULE ...`, `-c PROGRAM ...` or `SCRIPT ...`.
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
