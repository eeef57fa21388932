"""The configuration of a downstream task: its files, how a row becomes a text, and how texts are judged."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from reptrain.config.base import FileName, Frozen, Positive, Width
from reptrain.config.quantities import Count

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class TaskConfig(Frozen):
    """`task.yaml`: a task of texts to texts. Each line of its files is a JSON object."""

    name: FileName
    """The task's."""
    kind: Literal["qa", "generation", "classification"]
    """What is told beside nats. qa: exact match and F1 by SQuAD's rules; generation: BLEU, chrF and ROUGE-L;
    classification: accuracy."""
    data: str | None = None
    """Folder of the files, from the folder of task.yaml, or in an override from the working directory; null:
    that of task.yaml."""
    train: Files = ("train.jsonl",)
    """Files to train on; patterns such as train-*.jsonl.gz are allowed."""
    report: Files = ("validation.jsonl",)
    """Files of which figures are told; nothing is chosen by them."""
    select: Files | None = None
    """Files by which the best checkpoint is chosen; null: examples kept apart from those of `train`."""
    group: str | None = None
    """Key whose value rows of one origin share, an article's title say: they are kept apart together."""
    input: str = "{input}"
    """What the model reads: text with keys of the row in braces."""
    target: str = "{target}"
    """What it should write, likewise."""
    answers: str | None = "answers"
    """Key of a list of texts that are all right; rows without it have the target alone."""
    separator: str = "\n"
    """What stands between both where a decoder has them in one row; an encoder-decoder does without."""
    labels: tuple[str, ...] | None = None
    """The targets of a classification."""
    by: Literal["likelihood", "text"] = "likelihood"
    """How a class is told: the label of the fewest nats, or what the model writes."""
    lowercase: bool = False
    """Whether BLEU and chrF disregard case, as ROUGE-L and SQuAD's rules always do."""

    @field_validator("train", "report", "select", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labels_of_a_classification(self) -> Self:
        if self.kind == "classification" and (self.labels is None or len(set(self.labels)) < 2):
            raise ValueError("kind classification needs labels, at least two; list the targets' texts")
        if self.kind != "classification" and self.labels is not None:
            raise ValueError(f"labels are for kind classification, and {self.kind} was given; leave them out")
        return self


class TaskLimits(Frozen):
    """How much of a task is used."""

    input_tokens: Annotated[Count, Field(ge=2, le=2**20)] = 512
    """Longest input, with what begins and ends it."""
    long_inputs: Literal["cut", "leave_out"] = "cut"
    """What becomes of a longer one: its end is cut off, or the example is left out, everywhere."""
    target_tokens: Width = 128
    """Longest target, with what ends it, and longest text that is written; of a longer target the end is cut
    off."""
    train_examples: Positive | None = None
    """How many to train on, the same ones for every seed; null: all that are not kept apart."""
    select_examples: Positive | None = None
    """How many choose the best checkpoint, at least: groups are not divided. Null: 256, or a fifth of the
    rows to train on where that is less."""
    report_examples: Positive | None = None
    """How many are told of; null: all."""
