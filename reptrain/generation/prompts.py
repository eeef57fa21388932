"""Prompts as text: sentinels that are spelled out, and files of prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reptrain.errors import TextError
from reptrain.files import parse_json, read_small
from reptrain.text import Tokenizer

_SENTINEL = re.compile(r"(<extra_id_\d+>)")


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt; ``<extra_id_0>`` in it is the tokenizer's sentinel, which no text encodes to.

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
    """The text of ids, with sentinels spelled out; other special pieces leave no trace."""
    names = {index: f"<extra_id_{number}>" for number, index in enumerate(tokenizer.sentinel_ids)}
    parts: list[str] = []
    begins = 0
    for place, index in enumerate([*ids, -1]):
        if index == -1 or index in names:
            parts.append(tokenizer.decode(ids[begins:place]) if place > begins else "")
            parts.append(names.get(index, ""))
            begins = place + 1
    return "".join(parts)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of a .jsonl the texts under "prompt", of any other its lines but empty ones.

    Raises:
        TextError: If it cannot be read, or holds none.
    """
    try:
        lines = [line for line in read_small(path).decode("utf-8").split("\n") if line.strip()]
        prompts = [parse_json(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise _wrong(path, reason) from error
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise _wrong(path, "no prompts" if not prompts else "a prompt that is no text")
    return prompts


def _wrong(path: Path, got: str) -> TextError:
    return TextError(
        f"prompts {path}",
        got=got,
        rule='must hold a prompt a line, or in a .jsonl {"prompt": "..."}',
        remedy="Mend the file.",
    )
