"""Scores of a model on a task: nats of the targets, and metrics of its outputs.

Shapes: B rows, T positions of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from reptrain.config.task import TaskConfig
from reptrain.distributed.world import World
from reptrain.generation import Sampling, Writer
from reptrain.generation.prompts import decode_text
from reptrain.model import Decoder, EncoderDecoder
from reptrain.tasks.files import Row
from reptrain.tasks.metrics import accuracy, generation_metrics, qa_metrics
from reptrain.tasks.pairs import Encoder, Pair, SourceTarget, pack, widths_of
from reptrain_kernels.ops.linear_cross_entropy import Targets


class TaskScore(BaseModel):
    """Scores of a model on rows of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int
    nats_per_token: float
    """Mean over target tokens, without dropout."""
    nats_per_answer: float
    """Mean over answers of the sum over their tokens."""
    metrics: dict[str, float]
    """In percent."""
    cut_inputs: int
    """Examples whose input was cut."""
    cut_targets: int
    """Examples whose target was cut."""

    @property
    def figures(self) -> dict[str, float]:
        """All scores by name."""
        return {
            "nats_per_token": self.nats_per_token,
            "nats_per_answer": self.nats_per_answer,
        } | self.metrics


class _Batch(NamedTuple):
    number_B: np.ndarray
    """Indices of the pairs."""
    counts: bool
    """False for a rank that has no pairs left while another one has, for ZeRO 3 gathers weights together."""


@dataclass(frozen=True)
class Scorer:
    """Scores a model on a task.

    Args:
        task: The task.
        encoder: Turns its texts into token ids.
        world: The ranks; each scores a share.
        batch_examples: Examples of a forward pass; does not change the results.
        is_partitioned: Whether the model is partitioned over the ranks (ZeRO 3).
    """

    task: TaskConfig
    encoder: Encoder
    world: World
    batch_examples: int
    is_partitioned: bool = False

    @property
    def objective(self) -> SourceTarget:
        """Predicts the target from the source."""
        start = self.encoder.special.start
        return SourceTarget(0 if start is None else start, self.encoder.in_one_row)

    def score(self, model: Decoder | EncoderDecoder, rows: Sequence[Row]) -> tuple[TaskScore, list[str]]:
        """Score rows; returns the scores, and the text or label that the model gave each row.

        Args:
            model: In evaluation mode, on the device.
            rows: Rows of the task.
        """
        pairs = self.encoder.pairs([row.input for row in rows], [row.target for row in rows])
        nats_N = self.nats(model, pairs)
        texts = self._texts(model, rows, pairs)
        score = TaskScore(
            examples=len(rows),
            nats_per_token=float(nats_N.sum()) / sum(len(pair.target) for pair in pairs),
            nats_per_answer=float(nats_N.mean()),
            metrics=self._metrics(texts, rows),
            cut_inputs=sum(pair.source_is_cut for pair in pairs),
            cut_targets=sum(pair.target_is_cut for pair in pairs),
        )
        return score, texts

    @torch.no_grad()
    def nats(self, model: Any, pairs: Sequence[Pair]) -> np.ndarray:
        """Nats of each pair's target, float64 [N], the same on every rank.

        Args:
            model: DeepSpeed's engine or a plain model, in evaluation mode.
            pairs: Sources and targets.
        """
        nats_N = torch.zeros(len(pairs), dtype=torch.float64)
        for number_B, counts in self._batches(pairs):
            chosen = [pairs[number] for number in number_B]
            in_one_row = self.encoder.in_one_row
            widths = widths_of(chosen, in_one_row=in_one_row)
            batch = pack(pairs, number_B, number_B, in_one_row=in_one_row, widths=widths)
            example = self.objective.example(batch.to(self.world.device))
            targets = Targets(example.targets_BT, wants_correct=False)
            nats_BT = model(**example.inputs, targets=targets).nats
            if counts:
                nats_N[torch.from_numpy(number_B)] = nats_BT.sum(1).double().cpu()
        total_N: np.ndarray = np.sum(self.world.gather(nats_N.numpy()), axis=0)
        return total_N

    def _batches(self, pairs: Sequence[Pair]) -> Iterator[_Batch]:
        """This rank's pairs in batches of similar length. A partitioned model has as many on every rank."""
        order = np.argsort([len(pair.source) + len(pair.target) for pair in pairs], kind="stable")
        own = order[self.world.rank :: self.world.world_size]
        most = -(-len(order) // self.world.world_size) if self.is_partitioned else len(own)
        for first in range(0, most, self.batch_examples):
            number_B = own[first : first + self.batch_examples]
            yield _Batch(number_B, True) if len(number_B) else _Batch(order[:1], False)

    def _texts(
        self, model: Decoder | EncoderDecoder, rows: Sequence[Row], pairs: Sequence[Pair]
    ) -> list[str]:
        if self.task.labels is not None and self.task.by == "likelihood":
            return self._likeliest(model, rows, self.task.labels)
        encoder = self.encoder
        together = self.world if self.is_partitioned else None
        writer = Writer(model, encoder.special, encoder.tokenizer.vocab_size, encoder.reading, together)
        written: dict[int, str] = {}
        for number_B, counts in self._batches(pairs):
            prompts = [encoder.prompt(pairs[number]) for number in number_B]
            tokens = writer.write(
                prompts,
                max_new_tokens=encoder.limits.target_tokens,
                sampling=Sampling(),
                batch_rows=len(prompts),
            )
            texts = [decode_text(encoder.tokenizer, ids).strip() for ids in tokens]
            if counts:
                written |= dict(zip(number_B.tolist(), texts, strict=True))
        whole = {number: text for part in self.world.gather(written) for number, text in part.items()}
        return [whole[number] for number in range(len(pairs))]

    def _likeliest(self, model: Any, rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
        inputs = [row.input for row in rows]
        nats_CN = np.stack(
            [self.nats(model, self.encoder.pairs(inputs, [label] * len(rows))) for label in labels]
        )
        return [labels[place] for place in nats_CN.argmin(0)]

    def _metrics(self, texts: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
        answers = [row.answers for row in rows]
        if self.task.kind == "qa":
            return qa_metrics(texts, answers)
        if self.task.kind == "generation":
            return generation_metrics(texts, answers, lowercase=self.task.lowercase)
        return accuracy(texts, [row.target for row in rows])
