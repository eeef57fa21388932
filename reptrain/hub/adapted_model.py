"""A decoder's weights as the initial weights of an encoder-decoder.

Encoder and decoder both start from the decoder's layers: the encoder's attention becomes bidirectional, and
each cross-attention starts as the self-attention of its layer. Rotary, learned and relative positions of a
decoder have no counterpart; the relative position biases start at 0.

Source:
    Zhang et al., "Encoder-decoder Gemma", 2025, arXiv 2504.06225 (which keeps the rotary positions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.hub.saved_model import SavedModel
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.model import Decoder, EncoderDecoder
from reptrain.text import Tokenizer

_CROSS = {"cross_norm": "attention_norm", "cross_attention": "attention"}
_LAYER = re.compile(r"(?:encoder|decoder)\.(blocks\.\d+)\.(\w+)\.(.+)")


class AdaptedModel(SavedModel):
    """An encoder-decoder whose weights are those of a decoder.

    Args:
        origin: The decoder.
        config: The encoder-decoder, of the same widths and layers (`config.continuation`).
    """

    def __init__(self, origin: SavedModel, config: T5Config) -> None:
        rows = config.model_copy(update={"vocab_size": origin.rows})
        super().__init__(origin.path, rows, step=origin.step, window_tokens=origin.window_tokens)
        self.origin = origin

    def fingerprint(self) -> str:
        """Fingerprint of the decoder's weights."""
        return self.origin.fingerprint()

    def own_tokenizer(self) -> Tokenizer | None:
        return self.origin.own_tokenizer()

    def special_ids(self, tokenizer: Tokenizer) -> SpecialIds:
        return self.origin.special_ids(tokenizer)

    @property
    def ledger(self) -> Path | None:
        return self.origin.ledger

    def check(self) -> None:
        self.origin.check()

    def fill_buffers(self, model: Decoder | EncoderDecoder) -> None:
        """Nothing: the experts of an adapted model start without a bias."""

    @torch.no_grad()
    def read(self, weights: Mapping[str, Tensor]) -> None:
        """Load some of the parameters; see `SavedModel.read`."""
        for name, parameter in weights.items():
            if "relative_bias" in name:
                parameter.zero_()
            else:
                parameter.copy_(self._converted(name))

    def _converted(self, name: str) -> Tensor:
        decoder, here = self.origin.config, self.config
        assert isinstance(decoder, DecoderConfig) and isinstance(here, T5Config)
        source = source_name(name)
        value = self.origin.parameter(source)
        if source.endswith("attention.query.weight"):
            # An encoder-decoder does not divide its scores by the root of the head's width.
            return value * here.head_dim**-0.5
        if source.endswith(("attention.key.weight", "attention.value.weight")):
            groups = here.num_heads // decoder.kv_heads
            heads = value.unflatten(0, (decoder.kv_heads, here.head_dim))
            return heads.repeat_interleave(groups, 0).flatten(0, 1)
        if name == "decoder.norm.weight" and here.tie_embeddings:
            # An encoder-decoder with a tied head multiplies its output by d_model ** -0.5.
            return value * here.d_model**0.5
        return value


def source_name(name: str) -> str:
    """The decoder's parameter that a parameter of the encoder-decoder starts from.

    >>> source_name("decoder.blocks.3.cross_attention.key.weight")
    'blocks.3.attention.key.weight'
    >>> source_name("encoder.norm.weight"), source_name("embedding.weight")
    ('norm.weight', 'embedding.weight')
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return name.removeprefix("encoder.").removeprefix("decoder.")
    block, part, rest = match.groups()
    return f"{block}.{_CROSS.get(part, part)}.{rest}"
