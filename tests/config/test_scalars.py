"""What plain scalars of YAML mean, and that what is written reads back."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reptrain.config import RunConfig
from reptrain.config.load import apply_overrides, dump_yaml, parse_yaml, validate
from reptrain.config.task import TaskConfig
from reptrain.errors import ConfigError

TRAPS = ["no", "Off", "010", "08", "0o17", "1:30", "1:30.5", "2024-01-01", "=", "<<", "~", "1e3", "0x_", "y"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-0", 0),
        ("0.5", 0.5),
        ("1.5e+3", 1500.0),
        (".inf", math.inf),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("2024-01-01", "2024-01-01"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("=", "="),
        (".", "."),
        ("0x_", "0x_"),
        ("1__0", "1__0"),
        ("0b11", "0b11"),
        ("!!str no", "no"),
        ('"010"', "010"),
    ],
)
def test_parse_yaml_reads_plain_scalars_as_both_versions_do(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: no", 'no, which YAML 1.1 reads as false.*write false, or quote the text: "no"'),
        ("{on: 1}", 'write true, or quote the text: "on"'),
        ("[YES]", 'write true, or quote the text: "YES"'),
        ("010", 'write 10, or quote the text: "010"'),
        ("-08", 'write -8, or quote the text: "-08"'),
        ("0o17", "write 15, or quote"),
        ("00", "write 0, or quote"),
        ("!!int x", "'x' is not a whole number"),
        ("!!int " + "9" * 5000, "is not a whole number with fewer digits"),
        ("9" * 5000, "is not a whole number with fewer digits"),
        ("!!bool no", "'no' is not true or false"),
        ("!!float x", "'x' is not a number"),
        ("!!timestamp x", "the tag .*timestamp is not supported"),
    ],
)
def test_parse_yaml_refuses_values_that_parsers_read_differently(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        parse_yaml(text)


@given(st.lists(st.one_of(st.sampled_from(TRAPS), st.text("0123456789_.:-+oxeyn~", max_size=6))))
def test_dump_yaml_quotes_ambiguous_strings(texts: list[str]) -> None:
    data = {"list": texts, "map": dict.fromkeys(texts, 1)}
    assert parse_yaml(dump_yaml(data)) == data
    assert yaml.safe_load(dump_yaml(data)) == data


NUMBERS = {
    "1.1 integer": r"[-+]?(0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|[1-9][0-9_]*(:[0-5]?[0-9])+)",
    "1.1 float": r"[-+]?([0-9][0-9_]*)?\.[0-9][0-9_.]*([eE][-+][0-9]+)?",
    "1.1 base 60": r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*",
    "1.1 not finite": r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "1.1 boolean": r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "1.1 date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "1.2 integer": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "1.2 float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "null": r"~|null|Null|NULL|",
}
"""Grammars of plain scalars that are not strings: yaml.org/type (1.1); YAML 1.2.2, section 10.3 (1.2)."""


@pytest.mark.parametrize("kind", NUMBERS)
@given(data=st.data())
def test_dump_yaml_quotes_strings_that_look_like_other_values(kind: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(rf"\A(?:{NUMBERS[kind]})\Z", alphabet=st.characters(codec="ascii")))
    written = dump_yaml({"a": text, "b": {text: 1}})
    assert written.startswith("a: '") and re.search(r"\n  (\? )?'", written)
    assert parse_yaml(written) == yaml.safe_load(written) == {"a": text, "b": {text: 1}}


@given(st.lists(st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False))))
def test_dump_yaml_gives_back_numbers(values: list[Any]) -> None:
    written = dump_yaml({"list": values})
    assert parse_yaml(written)["list"] == yaml.safe_load(written)["list"] == values
    assert "!!" not in written and "'" not in written


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.zero_stage=true", "train.zero_stage: must be a number, but got true or false"),
        ("optimizer.lr=true", "optimizer.lr: must be a number"),
        ("train.batch_windows=12:30", "train.batch_windows: .*but got '12:30'"),
        ("name=true", r"name: must be a string, but got true\. Quote it as it is written"),
        ("data.store=1.10", r"data.store: must be a string, but got 1.1\. Quote it as it is written"),
        ("train.total_tokens=1,5B", "train.total_tokens: must be a number of tokens"),
        ("train=", "^train: must be a mapping of settings, but got null. Remove the key, or add"),
        ("train=3", "^train: must be a mapping of settings, but got 3"),
        ("seed=9999999999999999999", "^seed: must be less than 9223372036854775808, but got 9{19}"),
        ("data.store=", r"^data: must name a store .*; set data.store=FOLDER\. See"),
        ("model.positions=learned", r"^model: max_positions must be .* was given with learned\. See"),
        ("train.compile=no", "override train.compile: must have only values that YAML .* write false"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(RunConfig, apply_overrides({"data": {"store": "s"}}, [override]))


def test_labels_that_are_words_of_yaml_are_refused() -> None:
    task = {"name": "t", "kind": "classification"}
    with pytest.raises(ConfigError, match=r"labels\.0: must be a string, but got true\. Quote it"):
        validate(TaskConfig, apply_overrides(task, ["labels=[true, false]"]))
    assert validate(TaskConfig, apply_overrides(task, ['labels=["yes", "no"]'])).labels == ("yes", "no")
