"""Scaled rotary positions: a decoder's frequencies stretched for windows longer than it was trained on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from reptrain.config.base import Frozen, Positive


class LinearRope(Frozen):
    """All frequencies divided by one factor.

    Source: Chen et al., "Extending context window of large language models via positional interpolation",
        2023.
    """

    name: Literal["linear"]
    """linear: this scaling."""
    factor: Annotated[float, Field(gt=0)]
    """Divides every frequency."""


class Llama3Rope(Frozen):
    """Low frequencies divided by a factor, high ones kept, those between interpolated.

    Source: Grattafiori et al., "The Llama 3 herd of models", 2024; the formula is that of its published code.
    """

    name: Literal["llama3"]
    """llama3: this scaling."""
    factor: Annotated[float, Field(gt=0)]
    """Divides the low frequencies."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """A frequency is low if it turns fewer times than this in original_max_positions."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """A frequency is high if it turns more times than this in original_max_positions."""
    original_max_positions: Positive
    """Longest window that the weights were trained on before scaling."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor {self.low_freq_factor};"
                f" {self.high_freq_factor} is not"
            )
        return self


RopeScaling = Annotated[
    Annotated[LinearRope, Tag("linear")] | Annotated[Llama3Rope, Tag("llama3")], Discriminator("name")
]
"""A scaling of the rotary frequencies, chosen by its name."""
