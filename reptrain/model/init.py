"""Initial weights, and how the optimizer treats each parameter."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reptrain.config.schema import DecoderConfig
from reptrain.model.decoder import Decoder

# Projections into the residual stream, which sums 2 x num_layers of them.
_INTO_RESIDUAL = ("attention.output.weight", "mlp.down.weight")


def build_model(config: DecoderConfig, *, vocab_size: int, seed: int) -> Decoder:
    """A decoder on the CPU in fp32 with its initial weights.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.
        seed: Keys the weights; each is a function of (seed, its parameter's name) alone.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.

    Source:
        Radford et al., "Language models are unsupervised multitask learners", 2019, for the scale of the
        projections into the residual stream.
    """
    with torch.device("meta"):
        model = Decoder(config, vocab_size=vocab_size)
    model.to_empty(device="cpu")
    model.tie_head()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(initial_weights(config, name, parameter.shape, seed))
    return model


def initial_weights(config: DecoderConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """Initial values of one parameter: ones for a norm, else normal with mean 0.

    Args:
        config: The model, for the standard deviation.
        name: The parameter's name in the model.
        shape: The parameter's shape.
        seed: Keys the values, with the name.

    Returns:
        fp32, of ``shape``.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(_INTO_RESIDUAL):
        std /= (2 * config.num_layers) ** 0.5
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: matrices, embeddings among them, decay; vectors (the norms) do not.

    Args:
        model: Any model.
        weight_decay: Of the matrices.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
