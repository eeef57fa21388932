"""Run a program on a host: on this machine, by ssh, or by srun."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from reptrain_launcher.doctor.registry import Answer

Means = Literal["here", "ssh", "srun"]
_FACTS = "@@reptrain-facts "
_REACHED = "@@reptrain-reached"
_NO_FOLDER = "@@reptrain-no-folder"
_NO_INTERPRETER = "@@reptrain-no-interpreter"
_PARALLEL = 64


def prefix(means: Means, host: str, ssh_port: int | None) -> list[str]:
    """The command that runs a shell line on a host, to which the line is appended as one argument."""
    if means == "here":
        return ["sh", "-c"]
    if means == "srun":
        return ["srun", "--overlap", "--quiet", "-N1", "-n1", f"--nodelist={host}", "sh", "-c"]
    port = [] if ssh_port is None else ["-p", str(ssh_port)]
    # BatchMode: ssh must not wait for a password.
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *port, host]


class Reach:
    """Runs programs on hosts, many at once.

    Args:
        means: How the hosts are reached.
        folder: The working folder.
        interpreter: The Python that runs the programs.
        ssh_port: Port of sshd; None: that of the ssh configuration.
    """

    def __init__(self, means: Means, *, folder: str, interpreter: str, ssh_port: int | None = None) -> None:
        self._means, self._folder, self._interpreter = means, folder, interpreter
        self._ssh_port = ssh_port

    def ask(
        self, program: Path, requests: Mapping[str, Mapping[str, Any]], *, timeout_s: float
    ) -> dict[str, Answer]:
        """Run a program on each host with its request, at the same time.

        Args:
            program: A Python file that imports only the standard library and prints one line of JSON.
            requests: The request by host.
            timeout_s: Seconds until a host that has not answered counts as unreachable.
        """
        text = program.read_bytes()
        with ThreadPoolExecutor(max(1, min(_PARALLEL, len(requests)))) as pool:
            answers = pool.map(lambda item: self._ask(text, item[0], item[1], timeout_s), requests.items())
            return dict(zip(requests, answers, strict=True))

    def _ask(self, program: bytes, host: str, request: Mapping[str, Any], timeout_s: float) -> Answer:
        encoded = base64.b64encode(json.dumps(request).encode()).decode()
        line = (
            f"echo {_REACHED}; cd {shlex.quote(self._folder)} 2>/dev/null || {{ echo {_NO_FOLDER}; exit; }};"
            f" test -x {shlex.quote(self._interpreter)} || {{ echo {_NO_INTERPRETER}; exit; }};"
            f" exec {shlex.quote(self._interpreter)} - {encoded}"
        )
        sent = time.time()
        try:
            ended = subprocess.run(
                [*prefix(self._means, host, self._ssh_port), line],
                input=program,
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return Answer({}, "unreachable", f"no answer within {timeout_s:g} seconds")
        except OSError as error:
            return Answer({}, "unreachable", str(error))
        output = ended.stdout.decode(errors="replace")
        problem = " ".join(ended.stderr.decode(errors="replace").split())[-400:]
        return _read(output, problem, sent=sent, received=time.time())


def _read(output: str, problem: str, *, sent: float, received: float) -> Answer:
    """
    >>> _read("@@reptrain-reached\\n@@reptrain-facts {}", "", sent=0, received=1).stage
    'ok'
    >>> _read("", "Permission denied (publickey).", sent=0, received=1).stage
    'unreachable'
    """
    if _REACHED not in output:
        return Answer({}, "unreachable", problem)
    if _NO_FOLDER in output:
        return Answer({}, "no folder")
    if _NO_INTERPRETER in output:
        return Answer({}, "no interpreter")
    for line in output.splitlines():
        if line.startswith(_FACTS):
            return Answer(json.loads(line.removeprefix(_FACTS)), sent=sent, received=received)
    return Answer({}, "failed", problem or "no output")


def run_line(command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float) -> tuple[str, str]:
    """The stdout and stderr of a command; after a timeout, the output until then."""
    try:
        ended = subprocess.run(
            command, env=dict(environment), capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
        return ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired as expired:
        output, problem = expired.stdout or b"", expired.stderr or b""
        return output.decode(errors="replace"), problem.decode(errors="replace")
