"""Runs `reptrain` commands in forks of one process that has imported everything.

A page has dozens of commands, and each would spend seconds on imports. `python command_server.py SOCKET`
serves; `call` is the client.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path


def serve(address: Path) -> None:
    """Accept commands until the process is terminated."""
    import deepspeed  # noqa: F401

    import reptrain.evaluation.evaluate
    import reptrain.generation
    import reptrain.hub.export
    import reptrain.report
    import reptrain.tokenization
    import reptrain.training.loop  # noqa: F401
    from reptrain.cli import main

    # Children are not waited for: each reports its exit code through its connection.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os._exit(_run(connection, main))
            connection.close()


def _run(connection: socket.socket, main) -> int:  # type: ignore[no-untyped-def]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
    request = json.loads(message)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    os.chdir(request["folder"])
    sys.argv = ["reptrain", *request["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    return code


def call(address: Path, arguments: list[str]) -> int:
    """Run a command in the current folder, with this process's standard streams.

    Returns:
        Its exit code; 70 if its process died.
    """
    request = json.dumps({"arguments": arguments, "folder": str(Path.cwd())}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(address))
        socket.send_fds(connection, [request], [0, 1, 2])
        return int(connection.recv(16) or b"70")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(Path(sys.argv[1]))
