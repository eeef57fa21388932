"""What all faults share: a run that is never broken, and the table of what was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from fault_runs import SETTINGS, Tokenized, Trial
from fault_starts import end_all
from fault_table import FaultTable, show_table

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.runs import RunFolder

MakeTrial = Callable[..., Trial]
MakeTokenized = Callable[..., Tokenized]
_TABLE = FaultTable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-fault-table", action="store_true", help="write what was tried into docs/reliability.md"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TABLE:
        return
    terminalreporter.section("faults tried")
    terminalreporter.write_line(_TABLE.text())
    if not terminalreporter.config.getoption("--write-fault-table", default=False):
        return
    if any(terminalreporter.stats.get(kind) for kind in ("failed", "error", "skipped")):
        terminalreporter.write_line("not all were tried and survived: docs/reliability.md stays as it is")
        return
    show_table(_TABLE.text())


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Ends what a test that failed had started."""
    yield
    end_all()


@pytest.fixture
def table() -> FaultTable:
    """Where a test counts what it tried."""
    return _TABLE


@pytest.fixture(scope="session")
def fault_config(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of every run here, as a file."""
    path = tmp_path_factory.mktemp("faults") / "config.yaml"
    path.write_text(dump_yaml(tiny(*SETTINGS).model_dump(mode="json")))
    return path


@pytest.fixture(scope="session")
def unbroken(fault_config: Path) -> RunFolder:
    """The run that no fault struck."""
    trial = Trial(fault_config, fault_config.parent / "unbroken", None)
    ended = trial.carry_out()
    assert ended.code == 0, ended.said
    return trial.run


@pytest.fixture
def trial(fault_config: Path, unbroken: RunFolder, tmp_path: Path) -> MakeTrial:
    """Makes run folders to be struck, below ``tmp_path`` or elsewhere."""
    numbers = count()
    return lambda folder=tmp_path, **options: Trial(
        fault_config, folder / f"run-{next(numbers)}", unbroken, **options
    )


@pytest.fixture(scope="session")
def corpus(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the text, of which a store is made in a second."""
    path = tmp_path_factory.mktemp("corpus") / "few.jsonl"
    path.write_text("".join(islice(text_file.open(), 60)))
    return path


@pytest.fixture(scope="session")
def whole_store(corpus: Path) -> Path:
    """The store that no fault struck."""
    made = Tokenized(corpus, corpus.parent / "whole", None)
    ended = made.carry_out()
    assert ended.code == 0, ended.said
    assert len(list(made.out.glob("train-*.arrow"))) > 2
    return made.out


@pytest.fixture
def tokenized(corpus: Path, whole_store: Path, tmp_path: Path) -> MakeTokenized:
    """Makes stores to be struck, below ``tmp_path`` or elsewhere."""
    numbers = count()
    return lambda folder=tmp_path, **options: Tokenized(
        corpus, folder / f"store-{next(numbers)}", whole_store, **options
    )
