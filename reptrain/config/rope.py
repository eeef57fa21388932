"""RoPE scaling: rotary frequencies changed for windows longer than those of the training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from reptrain.config.base import Frozen, Positive


class LinearRope(Frozen):
    """Divide all frequencies by one factor.

    Source: Chen et al., "Extending context window of large language models via positional interpolation",
        2023.
    """

    name: Literal["linear"]
    """linear: this scaling."""
    factor: Annotated[float, Field(gt=0)]
    """Divides every frequency."""


class Llama3Rope(Frozen):
    """Divide low frequencies by a factor, keep high ones, and interpolate between them.

    Source: Grattafiori et al., "The Llama 3 herd of models", 2024; the formula is that of its published code.
    """

    name: Literal["llama3"]
    """llama3: this scaling."""
    factor: Annotated[float, Field(gt=0)]
    """Divides the low frequencies."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """A frequency is low if it makes fewer rotations than this over original_max_positions."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """A frequency is high if it makes more rotations than this over original_max_positions."""
    original_max_positions: Positive
    """Longest window of the training before scaling."""

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
"""RoPE scaling, chosen by name."""
