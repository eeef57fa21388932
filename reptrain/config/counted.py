"""Configuration of a transformer whose parameters and FLOPs can be counted, but which cannot be trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reptrain.config.base import Frozen, Layers, Rows, Width
from reptrain.config.model import Activation, AttentionBias, Norm, StackShape
from reptrain.config.quantities import Count


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


class CountedConfig(Frozen):
    """One stack of layers with a published shape that no model class of reptrain implements."""

    family: Literal["counted"]
    """counted: can be counted, not trained."""
    d_model: Width
    """Width of the residual stream."""
    num_layers: Layers
    """Blocks of attention and MLP."""
    num_heads: Width
    """Query heads."""
    head_dim: Width
    """Width of a head; num_heads x head_dim need not be d_model."""
    num_kv_heads: Width | None = None
    """Key and value heads; null: as many as num_heads."""
    d_ff: Width
    """Hidden units of the MLP."""
    mlp: Activation
    """Activation of the MLP: swiglu and geglu are gated, gelu and relu are not."""
    norm: Norm
    """Kind of norm; a LayerNorm has offsets if bias is true."""
    block_norms: Annotated[Count, Field(ge=0, le=16)] = 2
    """Norms of a block; 0 leaves out all norms, the final one included."""
    bias: bool = False
    """Biases in attention, MLP and LayerNorm."""
    relative_positions: bool = False
    """Project relative positions in each block (Dai et al., "Transformer-XL", 2019)."""
    vocab_size: Rows | None = None
    """Rows of the embedding; null if image is set."""
    tie_embeddings: bool = True
    """Use the embedding as the output head."""
    image: ImageConfig | None = None
    """Image input, with bidirectional attention and learned positions; null: tokens and causal attention."""

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.vocab_size is None) == (self.image is None):
            raise ValueError("vocab_size or image must be set, and not both")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads with the default filled in."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim

    @property
    def attention_biases(self) -> AttentionBias:
        """Which projections of an attention have biases."""
        return "all" if self.bias else "none"

    @property
    def has_mlp_bias(self) -> bool:
        """Whether the MLP has biases."""
        return self.bias

    @property
    def max_positions(self) -> int | None:
        """Rows of the position embedding; None without one."""
        return self.image.num_tokens if self.image else None

    @property
    def stack(self) -> StackShape:
        """The shape of the stack."""
        return StackShape(self.num_layers, self.num_layers, None)
