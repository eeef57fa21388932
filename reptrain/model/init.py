"""Build models with their initial weights, and group their parameters for the optimizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
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
# Projections into the residual stream, which sums 2 num_layers of them.
_INTO_RESIDUAL = ("attention.output.weight", "down.weight", "experts.down")


@overload
def build_model(config: DecoderConfig, *, vocab_size: int, seed: int) -> Decoder: ...
@overload
def build_model(config: T5Config, *, vocab_size: int, seed: int) -> EncoderDecoder: ...
def build_model(config: ModelConfig, *, vocab_size: int, seed: int) -> Decoder | EncoderDecoder:
    """Build a model with its initial weights, in fp32 on the CPU.

    Args:
        config: The model.
        vocab_size: Number of ids of the tokenizer.
        seed: Seed of the weights. Each parameter is a function of the seed and of its name alone.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary, or if the weights need more
            memory than this machine has.
    """
    model = empty_model(config, vocab_size=vocab_size)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(initial_weights(config, name, parameter.shape, seed))
    return model


def meta_model(config: ModelConfig, *, vocab_size: int) -> Decoder | EncoderDecoder:
    """Build a model on the meta device: names and shapes without storage."""
    with torch.device("meta"):
        if isinstance(config, DecoderConfig):
            return Decoder(config, vocab_size=vocab_size)
        return EncoderDecoder(config, vocab_size=vocab_size)


def empty_model(config: ModelConfig, *, vocab_size: int) -> Decoder | EncoderDecoder:
    """Build a model with uninitialized weights, in fp32 on the CPU.

    Raises:
        ConfigError: If the weights need more memory than this machine has.
    """
    check_memory(config, vocab_size)
    model = meta_model(config, vocab_size=vocab_size)
    model.to_empty(device="cpu")
    model.tie_head()
    for buffer in model.buffers():
        buffer.zero_()
    return model


def allocate_in_turn(
    model: Decoder | EncoderDecoder, device: torch.device, place: Callable[[str, nn.Parameter], None]
) -> None:
    """Give a model on the meta device its parameters, one at a time, and its buffers, which are zero.

    Args:
        model: The model; its parameters are replaced.
        device: Where the buffers are allocated. The parameters are allocated on the CPU, in fp32.
        place: Called with each name and its uninitialized parameter, to fill and to move it before the next
            one is allocated.
    """
    placed: dict[nn.Parameter, nn.Parameter] = {}
    for name, shape_only in model.named_parameters():
        parameter = nn.Parameter(torch.empty(shape_only.shape), requires_grad=shape_only.requires_grad)
        place(name, parameter)
        placed[shape_only] = parameter
    for module in model.modules():
        for key, shape_only in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(module, key, placed[shape_only])
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, torch.zeros_like(buffer, device=device))


def whole_shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter of which ZeRO 3 may have left only this rank's partition."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def check_memory(config: ModelConfig, vocab_size: int, *, num_ranks: int = 1, on_host: int = 1) -> None:
    """Refuse a model whose weights in fp32 need more memory than this machine has.

    Args:
        config: The model.
        vocab_size: Number of ids of the tokenizer.
        num_ranks: Ranks that the weights are partitioned over.
        on_host: Ranks that share the memory of this machine.

    Raises:
        ConfigError: If the weights of these ranks do not fit.
    """
    num_bytes = on_host * 4 * count_parameters(config, vocab_size).total / num_ranks
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > machine_bytes:
        whose = f" for the {on_host} ranks on this machine" if on_host > 1 else " on each rank"
        raise ConfigError(
            "model",
            got=f"{num_bytes / 1e9:,.0f} GB of weights in fp32" + whose * (max(num_ranks, on_host) > 1),
            rule=f"must fit into the {machine_bytes / 1e9:,.0f} GB of memory of this machine",
            remedy="Make the model smaller. `reptrain sizes` shows its size without building it.",
        )


def parameter_shapes(config: ModelConfig, *, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter by name, without allocating memory."""
    model = meta_model(config, vocab_size=vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def initial_weights(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """Initial values of one parameter: 1 for the gain of a norm, 0 for a bias, otherwise normal with mean 0.

    Args:
        config: The model, which sets the standard deviation.
        name: Name of the parameter in the model.
        shape: Shape of the parameter.
        seed: Seed of the values, with the name.

    Returns:
        fp32, of ``shape``.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    std = _decoder_std(config, name) if isinstance(config, DecoderConfig) else _t5_std(config, name, shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    values = generator.standard_normal(tuple(shape), dtype=np.float32)
    values *= np.float32(std)
    return torch.from_numpy(values)


def _decoder_std(config: DecoderConfig, name: str) -> float:
    """Standard deviation of a decoder's parameter.

    GPT-2's published code initializes learned positions with half of it; later GPT models do not.

    Source:
        Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    """
    into_residual = name.endswith(_INTO_RESIDUAL)
    std = config.init_std / config.mup_ratio**0.5 if _is_hidden(name) else config.init_std
    return std / (2 * config.num_layers) ** 0.5 if into_residual else std


def _is_hidden(name: str) -> bool:
    """Whether both dimensions of a matrix scale with the width of the model."""
    return name.startswith("blocks.")


def _t5_std(config: T5Config, name: str, shape: torch.Size) -> float:
    """Standard deviation of a T5 parameter: attention scores and outputs have unit variance, unscaled.

    Source:
        T5's published code; Zoph et al., "ST-MoE", 2022 (the router); Fedus et al., "Switch transformers",
        2021, section 2.4 (the scale of matrices).
    """
    if name == "embedding.weight":
        return 1.0
    if name.endswith("router.weight"):
        return _T5_ROUTER_STD
    if "relative_bias" in name:
        return config.d_model**-0.5
    num_inputs = shape[-1] * (config.head_dim if name.endswith(".query.weight") else 1)
    return (config.init_scale / num_inputs) ** 0.5


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer.

    Matrices and embeddings get weight decay; norms, biases and relative position biases do not. A table of
    relative position biases is two-dimensional, but it is added to attention scores as a bias is.

    Args:
        model: Any model.

    Returns:
        Groups with the keys `params`, `decays` (whether weight decay applies), `weight_decay` (0 if it does
        not), and `lr_ratio` (factor of the learning rate) if it is not 1.

    Source:
        Yang et al., "Tensor programs V: Tuning large neural networks via zero-shot hyperparameter transfer",
        2022, table 8 for Adam (the rates of a decoder's layers under `model.mup_base_width`).
    """
    ratio = model.config.mup_ratio if isinstance(model, Decoder) else 1.0
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    hidden: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if len(whole_shape(parameter)) < 2 or "relative_bias" in name:
            not_decayed.append(parameter)
        else:
            (hidden if ratio != 1 and _is_hidden(name) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "decays": True},
        {"params": not_decayed, "decays": False, "weight_decay": 0.0},
    ]
    return [*groups, {"params": hidden, "decays": True, "lr_ratio": 1 / ratio}] if hidden else groups
