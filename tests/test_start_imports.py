"""What commands import: each package takes a part of the half second in which a command should answer."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

_COMMAND = """
import json, sys
from reptrain.cli import main

sys.argv = ["reptrain", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as ended:
    code = ended.code
print(json.dumps([code or 0, sorted(sys.modules)]), file=sys.stderr)
"""
_CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "decoder.yaml"
_TABLES = {"pandas", "pyarrow.parquet", "duckdb", "scipy"}
_ARRAYS = {"numpy", "pyarrow", *_TABLES}
_TOKENIZERS = {"sentencepiece", "tokenizers"}
_MODELS = {"torch", "deepspeed", "triton"}
_RARE = {"filelock", "fsspec", "matplotlib", "rich", "multiprocessing"}


def imported(*words: object) -> set[str]:
    """The modules of a process that has run a command."""
    command = [sys.executable, "-c", _COMMAND, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], {"pydantic", "yaml", *_ARRAYS, *_RARE}),
        (["config", "show", _CONFIG], _ARRAYS | _RARE),
        (["sizes", _CONFIG, "--vocab-size", "2048"], _ARRAYS | _RARE),
        (["runs", "."], _ARRAYS | _RARE),
    ],
    ids=["help", "config-show", "sizes", "runs"],
)
def test_command_imports_only_what_it_needs(
    words: list[object], unwanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not imported(*words) & (unwanted | _MODELS | _TOKENIZERS)


def test_tokenize_and_store_show_import_only_what_they_need(tmp_path: Path) -> None:
    source, out = tmp_path / "web.jsonl", tmp_path / "store"
    source.write_text("".join(json.dumps({"text": f"document {n}", "n": n}) + "\n" for n in range(80)))
    options = ["--vocab-size", 30, "--num-sentinels", 2, "--processes", 1, "--metadata-field", "n"]
    used = imported("tokenize", source, "--out", out, "--held-out", "0.3", *options)
    # PyArrow would import pandas in every worker process.
    assert not used & {"pandas", "duckdb", "reptrain.config.schema", "tokenizers", *_MODELS}
    used = imported("store", "show", out)
    assert not used & (_TABLES | _TOKENIZERS | _MODELS | _RARE | {"yaml", "reptrain.config.schema"})


@pytest.mark.parametrize("package", ["config", "store", "tables", "text", "tokenization"])
def test_every_name_of_a_package_is_found(package: str) -> None:
    module = importlib.import_module(f"reptrain.{package}")
    for name in module.__all__:
        found = getattr(module, name)
        assert name.isupper() or found.__module__.startswith("reptrain.")
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        module.missing  # noqa: B018
