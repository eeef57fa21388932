"""Prompts: text with sentinels, and prompt files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reptrain.errors import TextError
from reptrain.files import read_small
from reptrain.reading import ReadError, decode, is_unicode, json_type, parse_object, split_lines
from reptrain.text import Tokenizer

_SENTINEL = re.compile(r"(<extra_id_\d+>)")


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt. ``<extra_id_0>`` stands for the tokenizer's sentinel, which ordinary text never
    encodes to.

    Raises:
        TextError: If the tokenizer has no such sentinel.
    """
    ids: list[int] = []
    for part in _SENTINEL.split(text):
        if not _SENTINEL.fullmatch(part):
            ids += tokenizer.encode([part])[0].tolist()
            continue
        index = int(part[len("<extra_id_") : -1])
        if index >= tokenizer.num_sentinels:
            raise TextError(
                "prompt",
                got=part,
                rule=f"must name one of the tokenizer's {tokenizer.num_sentinels} sentinels",
                remedy="Number them from <extra_id_0>.",
            )
        ids.append(tokenizer.sentinel_ids[index])
    return ids


def decode_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of ids. Sentinels become ``<extra_id_0>`` and so on; other special tokens are omitted."""
    names = {index: f"<extra_id_{number}>" for number, index in enumerate(tokenizer.sentinel_ids)}
    parts: list[str] = []
    start = 0
    for position, index in enumerate([*ids, -1]):
        if index == -1 or index in names:
            parts.append(tokenizer.decode(ids[start:position]) if position > start else "")
            parts.append(names.get(index, ""))
            start = position + 1
    return "".join(parts)


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of a file: the values of "prompt" in a .jsonl file, the non-empty lines of other
    files.

    Raises:
        TextError: If the file cannot be read or has no prompts.
    """
    try:
        lines = split_lines(decode(read_small(path)))
    except OSError as error:
        raise _wrong(str(path), error.strerror or str(error)) from error
    except ReadError as error:
        raise _unreadable(str(path), error) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise _wrong(str(path), "no prompts")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt(f"{path}:{number}", line) for number, line in numbered]


def _prompt(place: str, line: str) -> str:
    try:
        record = parse_object(line)
    except ReadError as error:
        raise _unreadable(place, error) from error
    if "prompt" not in record:
        raise _wrong(place, ", ".join(sorted(record)) or "no keys")
    prompt = record["prompt"]
    if not isinstance(prompt, str):
        raise _wrong(place, f"{json_type(prompt)} under 'prompt'")
    if not is_unicode(prompt):
        raise _wrong(place, "an unpaired surrogate")
    return prompt


def _unreadable(place: str, cause: ReadError) -> TextError:
    return TextError(f"prompts {place}", got=cause.got, rule=cause.rule, remedy=cause.remedy)


def _wrong(place: str, got: str) -> TextError:
    return TextError(
        f"prompts {place}",
        got=got,
        rule='must hold one prompt on each line; in a .jsonl file as {"prompt": "..."}',
        remedy="Fix the file.",
    )
