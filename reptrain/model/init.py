"""Initial weights, and how the optimizer treats each parameter."""

from __future__ import annotations

import hashlib
import os
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import ConfigError
from reptrain.model.decoder import Decoder
from reptrain.model.encoder_decoder import EncoderDecoder
from reptrain.sizes import count_parameters

_T5_ROUTER_STD = 0.02
# Projections into the residual stream, which sums 2 x num_layers of them.
_INTO_RESIDUAL = ("attention.output.weight", "down.weight", "experts.down")


@overload
def build_model(config: DecoderConfig, *, vocab_size: int, seed: int) -> Decoder: ...
@overload
def build_model(config: T5Config, *, vocab_size: int, seed: int) -> EncoderDecoder: ...
def build_model(config: ModelConfig, *, vocab_size: int, seed: int) -> Decoder | EncoderDecoder:
    """A model on the CPU in fp32 with its initial weights.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.
        seed: Keys the weights; each is a function of (seed, its parameter's name) alone.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.
    """
    model = empty_model(config, vocab_size=vocab_size)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(initial_weights(config, name, parameter.shape, seed))
    return model


def meta_model(config: ModelConfig, *, vocab_size: int) -> Decoder | EncoderDecoder:
    """A model on the device "meta": its names and shapes, without the memory for them."""
    model_class = Decoder if isinstance(config, DecoderConfig) else EncoderDecoder
    with torch.device("meta"):
        return model_class(config, vocab_size=vocab_size)


def empty_model(config: ModelConfig, *, vocab_size: int) -> Decoder | EncoderDecoder:
    """A model on the CPU in fp32 whose weights are yet to be filled in.

    Raises:
        ConfigError: If this machine has less memory than the weights alone take.
    """
    _check_memory(config, vocab_size)
    model = meta_model(config, vocab_size=vocab_size)
    model.to_empty(device="cpu")
    model.tie_head()
    for buffer in model.buffers():
        buffer.zero_()
    return model


def _check_memory(config: ModelConfig, vocab_size: int) -> None:
    num_bytes = 4 * count_parameters(config, vocab_size).total
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > here:
        raise ConfigError(
            "model",
            got=f"one of {num_bytes / 1e9:,.0f} GB in fp32",
            rule=f"must fit into the {here / 1e9:,.0f} GB of memory of this machine",
            remedy="Make it smaller; `reptrain sizes` counts it without building it.",
        )


def parameter_shapes(config: ModelConfig, *, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, without the memory for it."""
    model = meta_model(config, vocab_size=vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def initial_weights(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """Initial values of one parameter: ones for a norm, zeros for a bias, else normal with mean 0.

    Args:
        config: The model, for the standard deviation.
        name: The parameter's name in the model.
        shape: The parameter's shape.
        seed: Keys the values, with the name.

    Returns:
        fp32, of ``shape``.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    std = _decoder_std(config, name) if isinstance(config, DecoderConfig) else _t5_std(config, name, shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std))


def _decoder_std(config: DecoderConfig, name: str) -> float:
    """Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.

    Their released code draws learned positions at half this; the models trained after it do not.
    """
    into_residual = name.endswith(_INTO_RESIDUAL)
    std = config.init_std / config.mup_ratio**0.5 if _is_hidden(name) else config.init_std
    return std / (2 * config.num_layers) ** 0.5 if into_residual else std


def _is_hidden(name: str) -> bool:
    """Whether both sides of a matrix grow with the model's width."""
    return name.startswith("blocks.")


def _t5_std(config: T5Config, name: str, shape: torch.Size) -> float:
    """As T5's published code has it: what it reads has unit variance, and so have the unscaled scores.

    A router's is that of ST-MoE. Fedus et al., "Switch transformers", 2021, section 2.4 scale the matrices.
    """
    if name == "embedding.weight":
        return 1.0
    if name.endswith("router.weight"):
        return _T5_ROUTER_STD
    if "relative_bias" in name:
        return config.d_model**-0.5
    inputs = shape[-1] * (config.head_dim if name.endswith(".query.weight") else 1)
    return (config.init_scale / inputs) ** 0.5


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Optimizer groups: matrices, embeddings among them, decay; norms and relative position biases do not.

    Each group tells under `decays` which it is, and under `lr_ratio` where its rate is not the run's.

    The table of biases is two-dimensional, but as any bias it is added, to the scores: its size does not
    change with its inputs', and decay would pull attention to forget positions.

    Args:
        model: Any model.

    Source:
        Yang et al., "Tensor programs V: Tuning large neural networks via zero-shot hyperparameter transfer",
        2022, table 8 for Adam (the rates of a decoder's layers under `model.mup_base_width`).
    """
    ratio = model.config.mup_ratio if isinstance(model, Decoder) else 1.0
    decayed, kept, hidden = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or "relative_bias" in name:
            kept.append(parameter)
        else:
            (hidden if ratio != 1 and _is_hidden(name) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "decays": True},
        {"params": kept, "decays": False, "weight_decay": 0.0},
    ]
    return [*groups, {"params": hidden, "decays": True, "lr_ratio": 1 / ratio}] if hidden else groups
