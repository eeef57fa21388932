"""What several rooms' tests stand on: one small store of real text, made once."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

# Before torch is loaded, as `reptrain train` does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Processes that share the tests share the cores too.
    shared = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, shared)))

import file_seconds
from forked import shared_servers
from time_limits import extend

if TYPE_CHECKING:
    from reptrain.config import RunConfig

# An example that meets a busy machine, or an import, may take longer than hypothesis' 200 ms.
hypothesis.settings.register_profile("reptrain", deadline=None)
hypothesis.settings.load_profile("reptrain")

TINY: dict[str, Any] = {
    "data": {"unique_tokens": 5_000, "window_tokens": 32},
    "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "tie_embeddings": True},
    "train": {"total_tokens": "2epochs", "batch_windows": 12, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "evaluate": {"every_fraction": 0.5, "max_windows": 8},
}

MakeConfig = Callable[..., "RunConfig"]
MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Has a path made by the first of the processes that share the tests; by name."""
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def make_once(name: str, make: Callable[[Path], None]) -> Path:
        path, done = folder / "shared" / name, folder / "shared" / f"{name}.done"
        path.parent.mkdir(exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return make_once


@pytest.fixture(scope="session")
def text_file(made_once: MadeOnce) -> Path:
    """Some hundred pieces of Python's own documentation as .jsonl."""
    from reptrain.text import stdlib_documents

    def write(path: Path) -> None:
        documents = islice(stdlib_documents(), 400)
        path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents))

    return made_once("docs.jsonl", write)


@pytest.fixture(scope="session")
def store_path(text_file: Path, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store of `text_file` with 512 pieces."""
    from reptrain.tokenization import tokenize

    def make(out: Path) -> None:
        tokenize([text_file], out, vocab_size=512, held_out_fraction=0.2)

    # Runs keep orders of documents in the store, and some tests copy it meanwhile: each process has its own.
    own = tmp_path_factory.mktemp("store") / "store"
    return Path(shutil.copytree(made_once("store", make), own))


@pytest.fixture(scope="session")
def tiny(store_path: Path) -> MakeConfig:
    """Makes the configuration of a run of seconds; takes dotted overrides."""
    # Kernels are tested where torch, Triton and pytest are the only packages: no import of reptrain above.
    from reptrain.config import RunConfig
    from reptrain.config.load import apply_overrides, validate

    def make(*overrides: str) -> RunConfig:
        return validate(
            RunConfig, apply_overrides(TINY, [f"data.store={store_path}", "name=tiny", *overrides])
        )

    return make


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A test draws the same numbers every time, alone and after others."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are computed faster by one thread, far faster where other work runs beside."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many KiB, or grows the one made before; skips without the right to mount."""
    disk = tmp_path / "disk"

    def sized(kib: int) -> Path:
        made = disk.exists()
        disk.mkdir(exist_ok=True)
        options = f"size={kib}k" if not made else f"remount,size={kib}k"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a small file system")
        return disk

    yield sized
    if disk.is_mount():
        subprocess.run(["umount", "-l", str(disk)], check=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-seconds",
        action="store_true",
        help="write the CPU seconds of each file to file_seconds.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record_seconds"):
        config.pluginmanager.register(file_seconds.Recorder(), "record-seconds")
    if getattr(config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        servers = ExitStack()
        servers.enter_context(shared_servers())
        config.add_cleanup(servers.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests the time that their fixtures may take; under xdist, start the longest files first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        file_seconds.longest_first(items, json.loads(file_seconds.TABLE.read_text()))
    for item in items:
        extend(item, float(config.getoption("timeout") or config.getini("timeout") or 0))


def pytest_collection_finish() -> None:
    """Take modules and tests, which live until the end, out of every later garbage collection."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
