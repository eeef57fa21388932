"""The options of `tokenize`: declared once for Python, the command line and the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from reptrain.cli import app
from reptrain.errors import ConfigError
from reptrain.store.manifest import read_manifest
from reptrain.tokenization import tokenize
from reptrain.tokenize_options import StoreOptions, TokenizeOptions

NAMES = [field.name for field in dataclasses.fields(TokenizeOptions)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 512}, r"option vocab: must be an option of tokenize.*Options: eos, vocab_size"),
        ({"vocab_size": "many"}, r"option vocab_size: .* but got 'many'"),
        ({"tags": {"a": 1}}, r"option tags\.a: .* but got 1"),
        ({"dedup": "fuzzy"}, r"dedup: must be one of none, exact"),
    ],
)
def test_tokenize_refuses_unknown_options_and_wrong_types(
    corpus: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenize([corpus], tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_command_line_has_every_option() -> None:
    command = get_command(app).commands["tokenize"]  # type: ignore[attr-defined]
    parameters = {parameter.name: parameter for parameter in command.params}
    assert parameters.keys() >= set(NAMES)
    for field in dataclasses.fields(TokenizeOptions):
        if field.default not in (dataclasses.MISSING, ()):
            assert parameters[field.name].default == field.default, field.name
        assert parameters[field.name].help, field.name


def test_manifest_records_every_option(corpus: Path, tmp_path: Path) -> None:
    options = {"vocab_size": 80, "num_sentinels": 4, "held_out_fraction": 0.2, "tags": {"kind": "web"}}
    tokenize([corpus], tmp_path / "store", **options)
    recorded = read_manifest(tmp_path / "store").options
    assert isinstance(recorded, StoreOptions)
    assert {name: getattr(recorded, name) for name in options} == options
    assert {"split_version", "tokenizer", *NAMES} == set(vars(recorded))
