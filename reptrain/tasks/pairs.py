"""Texts as token ids: sources and targets.

Shapes: B rows; S positions of the source; T positions of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.objectives import IGNORE, Example
from reptrain.batch.objectives.example import shift_right
from reptrain.config.model import DecoderConfig
from reptrain.config.objectives import Reading
from reptrain.config.task import TaskLimits
from reptrain.errors import ConfigError
from reptrain.hub.saved_model import SavedModel
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.tasks.files import Fits
from reptrain.text import Tokenizer


class Pair(NamedTuple):
    """An input and its target as ids."""

    source: list[int]
    """With the tokens before and after an input."""
    target: list[int]
    """With the end token, unless it is cut."""
    prefix: int = 0
    """Prefix length: number of a decoder's first positions with bidirectional attention."""
    source_is_cut: bool = False
    target_is_cut: bool = False


@dataclass(frozen=True)
class Encoder:
    """Turns texts into pairs of token ids.

    Args:
        tokenizer: The model's tokenizer.
        special: Start and end tokens.
        reading: How the model attends to its inputs.
        in_one_row: Whether the model is a decoder, with source and target in one row.
        separator: Text between input and target for a causal decoder.
        limits: Longest source and target.
    """

    tokenizer: Tokenizer
    special: SpecialIds
    reading: Reading
    in_one_row: bool
    separator: str
    limits: TaskLimits

    @classmethod
    def of(cls, trained: SavedModel, tokenizer: Tokenizer, separator: str, limits: TaskLimits) -> Encoder:
        """The encoder for a model.

        Raises:
            ConfigError: If the limits leave no room, or more than the model has positions; or if the model
                predicts tokens in no order.
        """
        if trained.reading == "unordered":
            raise ConfigError(
                f"objective of {trained.path}",
                got="masked_diffusion",
                rule="must be autoregressive",
                remedy="Use a run with another objective.",
            )
        model = trained.config
        in_one_row = isinstance(model, DecoderConfig)
        special = trained.special_ids(tokenizer)
        made = cls(tokenizer, special, trained.reading, in_one_row, separator, limits)
        positions = model.max_positions if isinstance(model, DecoderConfig) else None
        longest = limits.input_tokens + limits.target_tokens
        if positions is not None and longest > positions:
            raise ConfigError(
                "limits.input_tokens",
                got=f"{limits.input_tokens}, with limits.target_tokens {limits.target_tokens}",
                rule=f"must leave both within the model's {positions} positions",
                remedy="Lower one of them.",
            )
        around = sum(map(len, made._around))
        if limits.input_tokens <= around:
            raise ConfigError(
                "limits.input_tokens",
                got=limits.input_tokens,
                rule=f"must be more than the {around} tokens that begin and end an input",
                remedy="Raise it.",
            )
        return made

    @property
    def _start(self) -> list[int]:
        return [] if self.special.start is None else [self.special.start]

    @property
    def _around(self) -> tuple[list[int], list[int]]:
        """Token ids before and after an input, as in generation."""
        end = list(self.special.ends[:1])
        if not self.in_one_row:
            return [], end
        if self.reading == "inputs":
            return [], end + self._start
        separator = self.tokenizer.encode([self.separator])[0].tolist() if self.separator else []
        return self._start, separator

    def pairs(self, inputs: Sequence[str], targets: Sequence[str]) -> list[Pair]:
        """Pairs of token ids. Long inputs and targets are truncated at the end."""
        before, behind = self._around
        room = self.limits.input_tokens - len(before) - len(behind)
        ends, longest = list(self.special.ends[:1]), self.limits.target_tokens
        found = []
        for read, wanted in zip(self.tokenizer.encode(inputs), self.tokenizer.encode(targets), strict=True):
            source = [*before, *read[:room].tolist(), *behind]
            target = [*wanted.tolist(), *ends]
            prefix = 0
            if self.in_one_row and self.reading != "causal":
                prefix = len(source) - (len(self._start) if self.reading == "inputs" else 0)
            found.append(Pair(source, target[:longest], prefix, len(read) > room, len(target) > longest))
        return found

    @property
    def fits(self) -> Fits | None:
        """Selects the rows that are short enough, for `read_rows`; None if all are used."""
        if self.limits.long_inputs == "cut":
            return None
        room = self.limits.input_tokens - sum(map(len, self._around))
        return lambda rows: [len(ids) <= room for ids in self.tokenizer.encode([row.input for row in rows])]

    def prompt(self, pair: Pair) -> list[int]:
        """A pair's source without the start and end tokens that `Writer.write` adds."""
        before, behind = self._around
        if self.in_one_row and self.reading != "inputs":
            behind = []
        return pair.source[len(before) : len(pair.source) - len(behind)]


def pack(
    pairs: Sequence[Pair],
    number_B: np.ndarray,
    row_B: np.ndarray,
    *,
    in_one_row: bool,
    widths: tuple[int, int],
) -> MicroBatch:
    """Pairs as a micro-batch for `SourceTarget`.

    Args:
        pairs: All pairs.
        number_B: int64, index of each row's pair; -1 for a padding row.
        row_B: int64, the row's position in the step's batch.
        in_one_row: For a decoder: the target follows the source.
        widths: Columns of the source (or of the whole row), and of the target.
    """
    chosen = [pairs[number] if number >= 0 else Pair([], []) for number in number_B]
    sources = [[*pair.source, *pair.target] if in_one_row else pair.source for pair in chosen]
    if in_one_row:
        columns = {"split_B": [len(pair.source) for pair in chosen], "prefix_B": [p.prefix for p in chosen]}
        noise = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
    else:
        noise = {"target_BT": _padded([pair.target for pair in chosen], widths[1], IGNORE)}
    length_B = np.array([len(ids) for ids in sources], dtype=np.int64)
    return MicroBatch(
        torch.from_numpy(_padded(sources, widths[0], 0)),
        torch.from_numpy(length_B),
        torch.from_numpy(np.maximum(number_B, 0)),
        torch.from_numpy(row_B),
        {name: torch.from_numpy(value) for name, value in noise.items()},
    )


def widths_of(pairs: Sequence[Pair], *, in_one_row: bool) -> tuple[int, int]:
    """The smallest widths for these pairs, for `pack`."""
    targets = max(len(pair.target) for pair in pairs)
    if in_one_row:
        return max(len(pair.source) + len(pair.target) for pair in pairs), targets
    return max(len(pair.source) for pair in pairs), targets


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


@dataclass(frozen=True)
class SourceTarget:
    """The objective of fine-tuning: predict the target from the source.

    An encoder-decoder reads the source with its encoder:

    >>> pairs = [Pair([7, 8, 1], [21, 1], prefix=3), Pair([9, 1], [22, 23, 1], prefix=2)]
    >>> number = np.arange(2)
    >>> batch = pack(pairs, number, number, in_one_row=False, widths=widths_of(pairs, in_one_row=False))
    >>> example = SourceTarget(start_id=0, in_one_row=False).example(batch)
    >>> example.inputs["source_BS"].tolist(), example.inputs["inputs_BT"].tolist()
    ([[7, 8, 1], [9, 1, 0]], [[0, 21, 0], [0, 22, 23]])
    >>> example.targets_BT.tolist()
    [[21, 1, -100], [22, 23, 1]]

    A decoder has both in one row and predicts the target only:

    >>> batch = pack(pairs, number, number, in_one_row=True, widths=widths_of(pairs, in_one_row=True))
    >>> example = SourceTarget(start_id=0, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist()
    [[7, 8, 1, 21], [9, 1, 22, 23]]
    >>> example.targets_BT.tolist(), example.inputs["prefix_B"].tolist()
    ([[-100, -100, 21, 1], [-100, 22, 23, 1]], [3, 2])

    Args:
        start_id: First input of an encoder-decoder's decoder.
        in_one_row: Whether the model is a decoder.
    """

    start_id: int
    in_one_row: bool

    def example(self, batch: MicroBatch) -> Example:
        """Model inputs and targets of a micro-batch made by `pack`."""
        column_L = torch.arange(batch.tokens_BL.shape[1], device=batch.length_B.device)
        if self.in_one_row:
            return self._row(batch, column_L)
        target_BT = batch.noise["target_BT"]
        segments_BT = (target_BT != IGNORE).long()
        inputs = {
            "source_BS": batch.tokens_BL,
            "inputs_BT": shift_right(target_BT, segments_BT, start_id=self.start_id),
            "source_segments_BS": (column_L < batch.length_B[:, None]).long(),
            "segments_BT": segments_BT,
        }
        return Example(inputs, target_BT, segments_BT > 0, batch.length_B)

    def _row(self, batch: MicroBatch, column_L: Tensor) -> Example:
        split_B, length_B = batch.noise["split_B"], batch.length_B
        next_T = column_L[1:]
        is_target_BT = (next_T >= split_B[:, None]) & (next_T < length_B[:, None])
        inputs = {
            "tokens_BT": batch.tokens_BL[:, :-1],
            "is_token_BT": next_T < length_B[:, None],
            "prefix_B": batch.noise["prefix_B"],
        }
        targets_BT = batch.tokens_BL[:, 1:].masked_fill(~is_target_BT, IGNORE)
        return Example(inputs, targets_BT, is_target_BT, split_B)
