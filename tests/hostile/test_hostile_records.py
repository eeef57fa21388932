"""Records, manifests and model folders that were changed by hand or by an enemy: one error, or none."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hostile_calls import call, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reptrain.config.load import parse_yaml

# The reader of each file; {} is the folder with all of them.
READERS: dict[str, Sequence[str]] = {
    "store/manifest.json": ("store show {}/store", "store verify {}/store", "audit {}/run"),
    "run/config.yaml": ("audit {}/run", "export {}/run {}/out"),
    "run/plan.json": ("audit {}/run", "export {}/run {}/out"),
    "run/status.json": ("audit {}/run", "runs {}"),
    "run/environment.json": ("audit {}/run", "runs {}"),
    "run/ledger.jsonl": ("audit {}/run", "runs {}"),
    "run/metrics.jsonl": ("runs {}",),
    "run/checkpoints/*/manifest.json": ("export {}/run {}/out",),
    "run/checkpoints/latest": ("export {}/run {}/out",),
    "model/config.json": ("import {}/model {}/out",),
    "model/generation_config.json": ("import {}/model {}/out",),
    "model/tokenizer_config.json": ("import {}/model {}/out",),
    "model/model.safetensors": ("import {}/model {}/out",),
    "study/study.yaml": ("study status {}/study",),
}
HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**62, 2**63, 2**70, 10**9, 10**12, 10**300, 1e300, 1e-300, 0.5),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\0b",
        "\ud800",
    ),
    *("x" * 5000, "9" * 4000, "\x1b[31m", "NaN", "2020-01-01", [], {}, [[]], [None], [1] * 3000, {"": {}}),
    *({"a": {"b": 1}}, {f"k{i}": i for i in range(2000)}, {"name": "../x"}, ["../x"], [-1], [10**12]),
]
RAW = [
    *(
        "",
        " ",
        "\n\n",
        "{",
        "}",
        "null",
        "[]",
        "5",
        '"x"',
        "{}",
        "\0",
        "\ufeff{}",
        "[" * 50_000,
        "{" + '"a":{' * 50_000,
    ),
    *("9" * 5000, "1e999999999", '{"a": 1, "a": 2}', "NaN", "\x1f\x8b", "{'a': 1}", "a: &a [*a]", "<html>"),
]


def change(data: st.DataObject, content: bytes, *, jsonl: bool) -> bytes:
    """A record with one thing changed, or something else in its place."""
    text = content.decode()
    how = data.draw(st.sampled_from(["value", "value", "value", "key", "raw", "cut", "bytes"]))
    if how == "raw":
        raw = data.draw(st.sampled_from(RAW))
        return raw.encode("utf-8", "surrogatepass") + (b"\n" if jsonl else b"")
    if how == "cut":
        return content[: data.draw(st.integers(0, len(content)))]
    if how == "bytes":
        place = data.draw(st.integers(0, len(content)))
        return content[:place] + data.draw(st.binary(min_size=1, max_size=4)) + content[place:]
    if jsonl:
        lines = text.splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(changed(data, json.loads(lines[number]), how))
        return ("\n".join(lines) + "\n").encode()
    return json.dumps(changed(data, json.loads(text), how)).encode()


def changed(data: st.DataObject, record: Any, how: str) -> Any:
    """Somewhere within it, another value, or a key too many or too few."""
    places: list[tuple[Any, Any]] = [({"": record}, "")]

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    if isinstance(record, (dict, list)):
        walk(record)
    node, key = places[data.draw(st.integers(0, len(places) - 1))]
    if how == "key" and isinstance(node, dict):
        if data.draw(st.booleans()):
            del node[key]
        else:
            node[data.draw(st.sampled_from(["", "x", "../x", "x" * 600, "9"]))] = node[key]
    else:
        node[key] = data.draw(st.sampled_from(HOSTILE))
    return record if places[0][1] != key or node is not places[0][0] else node.get("", record)


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def read_it(folders: Path, name: str, content: bytes) -> None:
    """Every command that reads a file meets another content of it."""
    path = next(folders.glob(name))
    with replaced(path, content):
        for command in READERS[name]:
            shutil.rmtree(folders / "out", ignore_errors=True)
            check(call(*command.format(*[folders] * 2).split()))


def try_any(folders: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(READERS)))
    content = next(folders.glob(name)).read_bytes()
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")
        header = change(data, content[8 : 8 + length].rstrip(), jsonl=False)
        content = len(header).to_bytes(8, "little") + header + content[8 + length :]
    elif name.endswith((".yaml", "latest")):
        content = change(data, json.dumps(parse_yaml(content.decode())).encode(), jsonl=False)
    elif "checkpoints" in name:
        content = sealed(change(data, content.rpartition(b"\n")[0].rpartition(b"\n")[0], jsonl=False))
    else:
        content = change(data, content, jsonl=name.endswith(".jsonl"))
    read_it(folders, name, content)


def sealed(body: bytes) -> bytes:
    """A checkpoint's manifest with the checksum that it should have."""
    return body + b"\n" + sha256(body).hexdigest().encode() + b"\n"


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json") and "*" not in name])
def test_every_number_of_a_record_is_checked(folders: Path, name: str) -> None:
    record = json.loads((folders / name).read_text())
    for node, key in numbers_of(record):
        for value in (0, -1, 2**62):
            with changed_key(node, key, value):
                read_it(folders, name, json.dumps(record).encode())


def test_a_ledger_with_the_checksum_of_an_unknown_file_is_damaged(folders: Path) -> None:
    content = (folders / "run/ledger.jsonl").read_bytes()
    assert b'"config.yaml"' in content
    with replaced(folders / "run/ledger.jsonl", content.replace(b'"config.yaml"', b'"other"')):
        ended = call("audit", folders / "run")
    assert ended.code == 4 and "other differs from the checksum" in ended.out + ended.err


def numbers_of(node: Any) -> Iterator[tuple[Any, Any]]:
    """Where a record has whole numbers: the mapping or list that holds it, and its key there."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, int) and not isinstance(value, bool):
                yield node, key
            yield from numbers_of(value)


@contextlib.contextmanager
def changed_key(node: Any, key: Any, value: object) -> Iterator[None]:
    """A mapping or list with another value for a while."""
    before, node[key] = node[key], value
    try:
        yield
    finally:
        node[key] = before


FUZZ = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_changed_records_are_refused_in_one_line(folders: Path, data: st.DataObject) -> None:
    try_any(folders, data)


@pytest.mark.slow
@settings(FUZZ, max_examples=2500)
@given(data=st.data())
def test_changed_records_are_refused_in_one_line_2500_times(folders: Path, data: st.DataObject) -> None:
    try_any(folders, data)
