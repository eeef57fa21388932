"""How much an encoder-decoder uses its encoder: its loss with the encoder inputs of other windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reptrain.config import RunConfig
from reptrain.errors import ConfigError
from reptrain.model import EncoderDecoder


class OtherSource(nn.Module):
    """An encoder-decoder whose rows get the encoder input of the row above; the first gets that of the last.

    Padding rows keep their own. The loss of a micro-batch with one window does not change.

    Args:
        model: An encoder-decoder, or an ensemble of some.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, source_BS: Tensor, source_segments_BS: Tensor, **inputs: Any) -> Any:
        """The output of the model; see `EncoderDecoder.forward` for the inputs."""
        rows = (source_segments_BS > 0).any(1).nonzero().squeeze(1)
        row_B = torch.arange(len(source_BS), device=source_BS.device)
        row_B[rows] = rows.roll(1)
        return self.model(source_BS=source_BS[row_B], source_segments_BS=source_segments_BS[row_B], **inputs)


def check_context(model: nn.Module, config: RunConfig) -> None:
    """Refuse a model whose encoder inputs cannot be exchanged.

    Raises:
        ConfigError: If it has no encoder, or its targets read the encoder input of their own document only.
    """
    members = getattr(model, "members", [model])
    if not all(isinstance(member, EncoderDecoder) for member in members):
        raise ConfigError(
            "--context-gain",
            got="a decoder-only model",
            rule="needs an encoder-decoder, whose encoder inputs it exchanges",
            remedy="Leave it out.",
        )
    if config.data.document_mask:
        raise ConfigError(
            "--context-gain",
            got="data.document_mask true",
            rule="needs windows whose targets read the whole encoder input",
            remedy="Leave it out.",
        )
