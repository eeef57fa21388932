"""Configuration of a vision transformer: parameters and FLOPs can be counted, but it cannot be trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from reptrain.config.base import Frozen, Layers, Rows, Width
from reptrain.config.model import DecoderConfig


class ImageConfig(Frozen):
    """The input of a vision transformer: square patches of a square image, and a class token."""

    image_pixels: Width = 224
    """Side of the image, in pixels."""
    patch_pixels: Width
    """Side of a patch, in pixels; it must divide image_pixels."""
    num_channels: Width = 3
    """Color channels."""
    num_classes: Rows = 1000
    """Classes of the output head, whose input is the class token."""

    @model_validator(mode="after")
    def _patches_fill(self) -> Self:
        if self.image_pixels % self.patch_pixels:
            raise ValueError(
                f"patch_pixels must divide image_pixels {self.image_pixels}; {self.patch_pixels} does not"
            )
        return self

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_pixels // self.patch_pixels) ** 2 + 1


class VitConfig(Frozen):
    """A vision transformer; no model class implements it.

    Attention is bidirectional, positions are learned, the MLP is not gated, and all projections have biases.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021.
    """

    family: Literal["vit"]
    """vit: can be counted, not trained."""
    d_model: Width
    """Width of the residual stream."""
    num_layers: Layers
    """Blocks of attention and MLP."""
    num_heads: Width
    """Heads; their width is d_model / num_heads."""
    d_ff: Width
    """Hidden units of the MLP."""
    image: ImageConfig
    """Size of the image and its patches."""

    @model_validator(mode="after")
    def _has_blocks(self) -> Self:
        # Raises where the widths do not agree.
        _ = self.blocks
        return self

    @property
    def blocks(self) -> DecoderConfig:
        """A decoder with the same blocks, positions and final norm."""
        return DecoderConfig(
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            d_ff=self.d_ff,
            mlp="gelu",
            norm="layernorm",
            bias=True,
            positions="learned",
            max_positions=self.image.num_tokens,
        )
