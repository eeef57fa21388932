"""The tests of a package, collected once: which tests execute a line, and which fail with a mutation.

A server process collects the tests and runs them under coverage. For each mutation it forks. The child
replaces the code of the mutated function and runs the tests of its line, so no mutation repeats the imports.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import _lru_cache_wrapper
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutant_runs import Process, limit_time

_FUNCTION = 1
"""Flag of the code of a function, which module and class bodies lack."""
_FAILED, _UNKNOWN = 1, 3


class TestServer:
    """A process that has collected tests.

    Args:
        tree: The tree.
        tests: Test files or folders of it.
        sources: The files whose coverage to record.
        log: Where pytest writes.

    Raises:
        RuntimeError: If a test fails without a mutation, or in a fork of the process.
    """

    __test__ = False

    def __init__(self, tree: Path, tests: Sequence[str], sources: Sequence[Path], log: Path) -> None:
        self._log = log
        asked, asks = os.pipe()
        answers, answered = os.pipe()
        self._asks, self._answers = os.fdopen(asks, "w"), os.fdopen(answers)

        def serve() -> int:
            for end in (asks, answers):
                os.close(end)
            server = _Server(sources, os.fdopen(asked), os.fdopen(answered, "w"))
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--timeout=0"]
            options.append(f"--rootdir={tree}")
            return int(pytest.main([*options, *(str(tree / test) for test in tests)], plugins=[server]))

        self._process = Process(tree, log, serve)
        for end in (asked, answered):
            os.close(end)
        measured = self._answer()
        self._seconds: dict[str, float] = measured["seconds"]
        self._by_line: dict[str, dict[str, list[str]]] = measured["lines"]
        # The tests must pass in a fork too. Every fifth test is tried, which includes some of each file.
        sample = sorted(self._seconds, key=lambda test: (self._seconds[test], test))[::5]
        if self._ask({"tests": sample, "limit_s": 1800}):
            raise RuntimeError(f"a test fails in a fork:\n{log.read_text()[-30000:]}")

    def fails(self, path: Path, line: int, changed: str) -> bool | None:
        """Whether a test fails with a mutation.

        Args:
            path: The mutated file.
            line: The mutated line.
            changed: The file's text with the mutation.

        Returns:
            None if the mutation is not in a function: then it needs its own process.
        """
        tests = self.of_line(path, line)
        if not tests:
            return False
        limit_s = 60 + round(10 * sum(self._seconds.get(test, 0.0) for test in tests))
        code = self._ask({"path": str(path), "changed": changed, "tests": tests, "limit_s": limit_s})
        return None if code == _UNKNOWN else code != 0

    def _ask(self, request: dict[str, Any]) -> int:
        """The exit code of a fork that runs tests, with a mutation if the request names one."""
        self._asks.write(json.dumps(request) + "\n")
        self._asks.flush()
        return int(self._answer()["code"])

    def of_line(self, path: Path, line: int) -> list[str]:
        """The tests that execute a line, fastest first; for a line without tests, the tests of the file."""
        lines = self._by_line.get(str(path), {})
        found = lines.get(str(line)) or sorted({test for tests in lines.values() for test in tests})
        return sorted(found, key=lambda test: (self._seconds.get(test, 0.0), test))

    def close(self) -> None:
        """End the process."""
        self._asks.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"a test fails without a mutation:\n{self._log.read_text()[-30000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Server:
    """The plugin that runs in the server process.

    Args:
        sources: The files whose coverage to record.
        requests: Mutations, one line of JSON each.
        answers: The result of each.
    """

    def __init__(self, sources: Sequence[Path], requests: Any, answers: Any) -> None:
        import coverage

        self._coverage = coverage.Coverage(include=[str(path) for path in sources], data_file=None)
        self._requests, self._answers = requests, answers
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._failed, self._measures = False, True
        self._groups = _Groups()

    def pytest_collection(self, session: pytest.Session) -> None:
        self._coverage.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # Lines that a fixture executes belong to every test of its file.
        self._begin(f"{item.nodeid.partition('::')[0]}|setup")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._begin(item.nodeid)

    def _begin(self, context: str) -> None:
        if self._measures:
            self._coverage.switch_context(context)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        self._failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests, then those of each request in a fork."""
        items = {item.nodeid: item for item in session.items}
        _run([*items.values()])
        self._coverage.stop()
        self._measures = False
        if self._failed or session.testsfailed:
            return True
        self._groups.leave()
        self._say({"seconds": self._seconds, "lines": self._lines()})
        for line in self._requests:
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                os._exit(self._try(request, items))
            status = os.waitpid(child, 0)[1]
            code = os.waitstatus_to_exitcode(status)
            self._say({"code": _FAILED if code < 0 else code})
        return True

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _lines(self) -> dict[str, dict[str, list[str]]]:
        """The tests of each line of each file."""
        data, lines = self._coverage.get_data(), defaultdict[str, dict[str, list[str]]](dict)
        for path in data.measured_files():
            for line, contexts in data.contexts_by_lineno(path).items():
                found = {test for context in contexts if context for test in self._tests_in(context)}
                if found:
                    lines[path][str(line)] = sorted(found)
        return lines

    def _tests_in(self, context: str) -> list[str]:
        file, bar, _ = context.partition("|setup")
        return [test for test in self._seconds if test.partition("::")[0] == file] if bar else [context]

    def _try(self, request: dict[str, Any], items: dict[str, pytest.Item]) -> int:
        """Run the tests with a mutation, in a fork: its exit code."""
        limit_time(request["limit_s"])
        try:
            if "path" in request and not _patch(request["path"], request["changed"]):
                return _UNKNOWN
            # Garbage of the tests before the fork may have threads that the fork lacks.
            gc.freeze()
            self._failed = False
            _run([items[test] for test in request["tests"]], until=lambda: self._failed)
        except BaseException as error:
            print(f"{request.get('path')}: {error!r}", file=sys.stderr)
            return _FAILED
        finally:
            sys.stdout.flush()
        return int(self._failed)


class _Groups:
    """The process group of the tests that train, whose threads do not survive a fork.

    DeepSpeed keeps groups in module variables, so these are restored too.
    """

    def __init__(self) -> None:
        import deepspeed
        import torch.distributed

        self._torch, self._comm = torch.distributed, deepspeed.comm.comm
        self._kept = vars(deepspeed.utils.groups)
        names = [name for name, value in self._kept.items() if value is None or isinstance(value, dict)]
        self._before = {name: copy.copy(self._kept[name]) for name in names if not name.startswith("__")}

    def leave(self) -> None:
        """End the process group: each fork forms its own."""
        if self._torch.is_initialized():
            self._torch.destroy_process_group()
        self._comm.cdb = None
        self._kept.update({name: copy.copy(value) for name, value in self._before.items()})
        if "reptrain.distributed.world" in sys.modules:
            sys.modules["reptrain.distributed.world"]._rendezvous.clear()
        # The destructors of a group and of its store join their threads.
        gc.collect()


def _run(items: Sequence[pytest.Item], until: Any = lambda: False) -> None:
    for number, item in enumerate(items):
        following = items[number + 1] if number + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if until():
            return


def _patch(path: str, changed: str) -> bool:
    """Replace the code of the functions that a mutation changes; False if it changes anything else."""
    codes = _changed_functions(compile(Path(path).read_text(), path, "exec"), compile(changed, path, "exec"))
    if not codes:
        return False
    functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
    functions = [one for one in functions if one.__code__.co_filename == path]
    for name, code in codes.items():
        own = [one for one in functions if one.__code__.co_qualname == name]
        if not own:
            return False
        for function in own:
            function.__code__ = code
    for one in gc.get_objects():
        # What the sound function has computed.
        with suppress(ReferenceError):
            if isinstance(one, _lru_cache_wrapper) and str(one.__module__).startswith("reptrain"):
                one.cache_clear()
    return True


def _changed_functions(old: CodeType, new: CodeType) -> dict[str, CodeType] | None:
    """The new code of the functions that differ, by name; None if the body of a module or class does."""
    if old == new:
        return {}
    if old.co_flags & _FUNCTION:
        return {new.co_qualname: new}
    same = (old.co_code, old.co_names) == (new.co_code, new.co_names)
    if not same or len(old.co_consts) != len(new.co_consts):
        return None
    found: dict[str, CodeType] = {}
    for one, other in zip(old.co_consts, new.co_consts, strict=True):
        if isinstance(one, CodeType) and isinstance(other, CodeType):
            below = _changed_functions(one, other)
            if below is None:
                return None
            found |= below
        elif type(one) is not type(other) or one != other:
            return None
    return found
