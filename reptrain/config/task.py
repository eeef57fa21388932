"""The configuration of a downstream task: its files, templates and metrics."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from reptrain.config.base import FileName, Frozen, Positive, Width
from reptrain.config.quantities import Count

KEY_IN_BRACES = re.compile(r"\{(\w(?:[\w .-]*\w)?)\}")
"""A key of a row in a template. Other braces are text."""

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class TaskConfig(Frozen):
    """`task.yaml`: a text-to-text task. Each line of its files is a JSON object."""

    name: FileName
    """Name of the task."""
    kind: Literal["qa", "generation", "classification"]
    """Metrics besides nats. qa: exact match and F1 by SQuAD's rules; generation: BLEU, chrF and ROUGE-L;
    classification: accuracy."""
    data: str | None = None
    """Folder of the files, relative to task.yaml, or in an override to the working directory; null: the
    folder of task.yaml."""
    train: Files = ("train.jsonl",)
    """Training files; may be patterns such as train-*.jsonl.gz."""
    report: Files = ("validation.jsonl",)
    """Files of the report split: reported, never used for a choice."""
    select: Files | None = None
    """Files of the selection split, which chooses the best checkpoint; null: a part of `train`."""
    group: str | None = None
    """Key of a row's group, such as the title of its article; a group stays on one side of a split."""
    input: str = "{input}"
    """Template of the input, with keys of the row in braces; a dot selects a key of a nested object."""
    target: str = "{target}"
    """Template of the target."""
    answers: str | None = "answers"
    """Key of a list of correct answers; a row without it has the target only."""
    separator: str = "\n"
    """Text between input and target in a decoder-only model's row."""
    labels: tuple[str, ...] | None = None
    """Labels of a classification: all possible targets."""
    by: Literal["likelihood", "text"] = "likelihood"
    """How to predict a class. likelihood: the label with the fewest nats; text: the generated text."""
    lowercase: bool = False
    """Whether BLEU and chrF ignore case; ROUGE-L and SQuAD's rules always do."""

    @field_validator("train", "report", "select", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("input", "target")
    @classmethod
    def _names_a_key(cls, template: str) -> str:
        if not KEY_IN_BRACES.search(template):
            raise ValueError("must name a key of the rows in braces, such as {question}")
        return template

    @model_validator(mode="after")
    def _labels_of_a_classification(self) -> Self:
        if self.kind == "classification" and (self.labels is None or len(set(self.labels)) < 2):
            raise ValueError("kind classification needs labels, at least two; list the targets' texts")
        if self.kind != "classification" and self.labels is not None:
            raise ValueError(f"labels are for kind classification, and {self.kind} was given; remove them")
        return self


class TaskLimits(Frozen):
    """Limits on the examples of a task."""

    input_tokens: Annotated[Count, Field(ge=2, le=2**20)] = 512
    """Largest number of input tokens, special tokens included."""
    long_inputs: Literal["cut", "leave_out"] = "cut"
    """Handling of longer inputs. cut: truncate the end; leave_out: drop the example from every split."""
    target_tokens: Width = 128
    """Largest number of target tokens, special tokens included, and of generated tokens; longer targets are
    truncated."""
    train_examples: Positive | None = None
    """Number of training examples, the same for every seed; null: all that are not in the selection split."""
    select_examples: Positive | None = None
    """Smallest size of the selection split; groups are not divided. Null: 256, or a fifth of the training
    rows if that is less."""
    report_examples: Positive | None = None
    """Number of examples of the report split to score; null: all."""
