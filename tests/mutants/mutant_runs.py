"""Trees with a mutant, and processes that train, judge or test in them.

Processes are forked from this one, which has imported torch and DeepSpeed but nothing of reptrain: so each
imports the code of its own tree, and starts in a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mutants import AUDIT, AUDITOR, REPLAY, Mutant
from tiny_runs import TinyRun

ROOT = Path(__file__).parents[2]
_FAILED = "failed"


def preload() -> None:
    """Import what the processes need besides their own tree."""
    os.environ.update({"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"})
    import deepspeed.ops
    import hypothesis.strategies
    import pyarrow.compute
    import pyarrow.ipc
    import pydantic
    import pytest
    import tensorboard.summary.writer.event_file_writer
    import torch._dynamo
    import typer.testing
    import yaml

    torch.set_num_threads(1)
    loaded = (deepspeed, hypothesis, pyarrow, pydantic, pytest, tensorboard, typer, yaml)
    assert loaded and not any(name.partition(".")[0] == "reptrain" for name in sys.modules)


def make_tree(folder: Path, mutant: Mutant | None = None) -> Path:
    """A copy of the tree by hard links, with a mutant applied."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if mutant is not None:
        path = folder / mutant.file
        path.write_text(patched(mutant, path.read_text()))
    return folder


def patched(mutant: Mutant, text: str) -> str:
    """A file's text with the mutant.

    Raises:
        ValueError: If the text that it replaces does not occur exactly once.
    """
    for old, new in ((mutant.old, mutant.new), *mutant.also):
        found = text.count(old)
        if found != 1 or old == new:
            raise ValueError(
                f"mutant {mutant.name!r}: its text occurs {found} times in {mutant.file}, not once"
            )
        text = text.replace(old, new)
    return text


class Process:
    """A forked process that calls a function with the code of a tree.

    Args:
        tree: The tree.
        log: Where it writes.
        function: Its result must be JSON.
        environment: Variables of it alone.
    """

    def __init__(
        self, tree: Path, log: Path, function: Callable[[], Any], environment: dict[str, str] | None = None
    ) -> None:
        self._answer = log.with_suffix(".json")
        self._answer.unlink(missing_ok=True)
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                self._carry_out(tree, log, function, environment or {})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _carry_out(
        self, tree: Path, log: Path, function: Callable[[], Any], environment: dict[str, str]
    ) -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(handle, standard)
        paths = [str(tree), str(tree / "kernels"), str(tree / "launcher")]
        os.environ.update({"PYTHONPATH": os.pathsep.join(paths), **environment})
        sys.path[:0] = paths
        os.chdir(tree)
        self._answer.write_text(json.dumps(function()))

    def wait(self) -> Any:
        """Its result, or None if it failed."""
        _, status = os.waitpid(self._pid, 0)
        return json.loads(self._answer.read_text()) if status == 0 else None


def make_store(tree: Path, folder: Path) -> Path:
    """Tokenize the golden text to ``folder/store``."""

    def make() -> bool:
        from tests.golden.record import make_store as tokenized

        tokenized(folder)
        return True

    assert Process(tree, folder / "store.log", make).wait(), (folder / "store.log").read_text()
    return folder / "store"


def train(tree: Path, run: TinyRun, store: Path, folder: Path) -> Path | None:
    """Train a run in a tree; None if it failed.

    The store is copied without its cached orders of documents, which the mutant might not make.
    """
    folder.mkdir(parents=True)
    own = shutil.copytree(store, folder / "store", ignore=lambda *_: {"orders"}, copy_function=os.link)
    settings = [f"data.store={own}", *(text.replace("STORE", str(own)) for text in run.settings)]
    config, out = tree / "configs" / "tiny" / f"{run.config}.yaml", folder / "run"
    if run.branches_at is not None:
        parent = folder / "parent"
        if not _train(tree, run.ranks, config, settings, parent, None):
            return None
        settings.append(f"branch={{run: {parent}, step: {run.branches_at}}}")
    for stops_after in [run.stops_after, None] if run.stops_after else [None]:
        trained = _train(tree, run.ranks, config, settings, out, stops_after)
        if not trained:
            return None
    return out


def _train(
    tree: Path, ranks: int, config: Path, settings: Sequence[str], out: Path, stops_after: int | None
) -> bool:
    def carry_out() -> bool:
        from reptrain.config import load_run_config
        from reptrain.distributed.stop import StopRequest
        from reptrain.training.loop import train as trained

        class StopAfter(StopRequest):
            asked = 0

            def reason(self, world: Any) -> str | None:
                # Asked before the first step, and after each one.
                self.asked += 1
                enough = stops_after is not None and self.asked > stops_after
                return "enough" if enough else super().reason(world)

        trained(load_run_config(config, settings), out, stop=StopAfter())
        return True

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in range(ranks):
        environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = out.with_name(f"train-{rank}.log")
        started.append(Process(tree, log, carry_out, environment if ranks > 1 else {}))
    ended = [process.wait() for process in started]
    return all(ended)


def judge(tree: Path, run: Path) -> dict[str, str]:
    """What each judge says of a run folder, in the code of a sound tree; empty if it finds nothing.

    A judge that fails has an entry that says so.
    """

    def by_audit() -> str:
        from reptrain.training.rebuilt_inputs import audit_inputs

        report = audit_inputs(run)
        return "" if report.exit_code == 0 else str(report.text())

    def by_auditor() -> str:
        command = [
            sys.executable,
            str(tree / "tools" / "independent_audit.py"),
            str(run),
            "--level",
            "inputs",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def by_replay() -> str:
        sys.path.insert(0, str(tree / "tests" / "format"))
        from replay import differences

        return "\n".join(differences(run)[:20])

    judges = {AUDIT: by_audit, AUDITOR: by_auditor, REPLAY: by_replay}
    said = {}
    for name, function in judges.items():
        log = run.with_name(f"{name.replace(' ', '-')}.log")
        answer = Process(tree, log, function).wait()
        said[name] = f"{_FAILED}:\n{log.read_text()[-2000:]}" if answer is None else str(answer)
    return said


def limit_time(cpu_s: int) -> None:
    """End this process after some CPU time, or if a mutant waits forever.

    CPU time, because a busy machine must not end the process of a mutant that no test finds.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.alarm(600 + 20 * cpu_s)


def passes(tree: Path, tests: Sequence[str], log: Path, *, limit_s: int = 1800) -> bool:
    """Whether test files, or single tests, pass in a tree within some seconds of CPU time."""

    def carry_out() -> int:
        import pytest

        limit_time(limit_s)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--timeout=0"]
        return int(pytest.main([*options, *(str(tree / test) for test in tests)]))

    return Process(tree, log, carry_out).wait() == 0
