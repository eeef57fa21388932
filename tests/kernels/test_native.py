"""C files are compiled once into the user cache, whatever other processes do at the same time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from reptrain_kernels import native

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C file, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def libraries() -> list[Path]:
    return sorted((Path(platformdirs.user_cache_dir("reptrain")) / "native").iterdir())


def recording_compiler(folder: Path) -> tuple[Path, Path]:
    """A compiler that writes the name of each output into a file, and that file."""
    log, script = folder / "outputs", folder / "recording-cc"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" >> {log}\nexec cc "$@"\n')
    script.chmod(0o755)
    return script, log


def test_two_compilations_with_one_process_id_write_to_two_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that share a cache, whose processes may have the same ids."""
    compiler, log = recording_compiler(tmp_path)
    monkeypatch.setenv("CC", str(compiler))
    for _ in range(2):
        library = native.load(source)
        assert library is not None and library.answer() == 42
        # The library alone: no temporary file is left.
        [built] = libraries()
        built.unlink()
    first, second = log.read_text().split()
    assert first != second


def test_a_compiler_of_several_words_is_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, log = recording_compiler(tmp_path)
    monkeypatch.setenv("CC", f"env {compiler}")
    library = native.load(source)
    assert library is not None and library.answer() == 42 and log.exists()


@pytest.mark.parametrize("command", ["no-such-compiler", "'unfinished", "false"])
def test_without_a_working_compiler_there_is_no_library(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", command)
    assert native.load(source) is None


def test_a_changed_header_is_compiled_again(source: Path) -> None:
    header, inner = source.with_name("number.h"), source.parent / "more" / "inner.h"
    inner.parent.mkdir()
    source.write_text('#include <stdint.h>\n #include "number.h"\nint answer(void) { return NUMBER; }\n')
    header.write_text('#include "more/inner.h"\n#define NUMBER (1 + INNER)\n')
    answers = []
    for number in (1, 2, 1):
        inner.write_text(f"#define INNER {number}\n")
        library = native.load(source)
        assert library is not None
        answers.append(library.answer())
    assert answers == [2, 3, 2] and len(libraries()) == 2


def test_a_damaged_library_is_compiled_again_elsewhere(source: Path) -> None:
    assert native.load(source) is not None
    [built] = libraries()
    # A new file: this process has mapped the old one.
    built.unlink()
    built.write_bytes(b"not a library")
    library = native.load(source)
    assert library is not None and library.answer() == 42


def test_draws_before_torch_load_no_openmp_library() -> None:
    """torch would take it over, although it brings its own."""
    script = (
        "import sys; from reptrain import random_native; assert random_native._library() is not None;"
        " print('torch' in sys.modules, 'libgomp' in open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
