"""Random models of transformers, saved as folders, and our models of these folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from reptrain.hub import ModelFolder
from reptrain.model import Decoder, EncoderDecoder, build_model

VOCAB = 64
T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 24, "d_kv": 16, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 3, "dropout_rate": 0.1, "decoder_start_token_id": 0,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
SWITCH = T5 | {
    "num_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2, "num_experts": 4, "expert_capacity": 10_000,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64, "n_inner": 40,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
# Rotary positions are scaled within the lengths that the tests read.
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}


def _llama(**settings: Any) -> Callable[..., Any]:
    return lambda **more: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | settings | more))


def _t5(**settings: Any) -> Callable[..., Any]:
    return lambda **more: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5 | settings | more)
    )


MADE: dict[str, Callable[..., Any]] = {
    "t5-1.1": lambda **more: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5 | more, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "t5-1.0": lambda **more: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5 | more)),
    "switch": lambda **more: transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(**SWITCH | more)
    ),
    "llama": lambda **more: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA | more, rope_parameters={"rope_type": "default", "rope_theta": 5e3})
    ),
    "llama-tied": lambda **more: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA | more, tie_word_embeddings=True)
    ),
    "mixtral": lambda **more: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LLAMA | more, num_local_experts=4, num_experts_per_tok=2)
    ),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True, head_dim=10),
    "llama-gelu": _llama(hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True),
    "llama-rope3": _llama(rope_parameters=LLAMA3_ROPE),
    "llama-linear": _llama(rope_parameters=LINEAR_ROPE),
    "mistral": lambda **more: transformers.MistralForCausalLM(
        transformers.MistralConfig(**LLAMA | more, sliding_window=7, head_dim=12)
    ),
    "qwen2": lambda **more: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**LLAMA | more, tie_word_embeddings=True)
    ),
    "qwen2-window": lambda **more: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **LLAMA | more, use_sliding_window=True, sliding_window=7, max_window_layers=0
        )
    ),
    "mixtral-window": lambda **more: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LLAMA | more, num_local_experts=4, sliding_window=7)
    ),
    "t5-silu": _t5(feed_forward_proj="gated-silu"),
    "t5-gelu": _t5(feed_forward_proj="gelu_new"),
    "mt5": lambda **more: transformers.MT5ForConditionalGeneration(transformers.MT5Config(**T5 | more)),
    "umt5": lambda **more: transformers.UMT5ForConditionalGeneration(
        transformers.UMT5Config(**T5 | more, tie_word_embeddings=False)
    ),
    "gpt2": lambda **more: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | more)),
}


def make(kind: str, *, own_head: bool = True, **more: Any) -> Any:
    """A model whose logits are far from uniform.

    Args:
        kind: A key of `MADE`.
        own_head: Whether a T5 1.1, mT5 or umT5 gets a head of its own: transformers 5 ties every new one.
        more: Further settings.
    """
    torch.manual_seed(len(kind))
    model = MADE[kind](**more).eval()
    if kind in ("t5-1.1", "mt5", "umt5") and own_head:
        model.lm_head.weight = torch.nn.Parameter(
            torch.randn(model.shared.weight.shape) * T5["d_model"] ** -0.5
        )
    with torch.no_grad():
        if kind in ("t5-1.0", "t5-silu", "t5-gelu"):
            # Else what a tied model reads outweighs what it makes of it, and it repeats that.
            model.shared.weight.mul_(0.5)
            for name, parameter in model.named_parameters():
                parameter.mul_(3 if name.endswith((".o.weight", ".wo.weight")) else 1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            elif kind.startswith(("llama", "mi", "qwen2", "gpt2")):
                parameter.mul_(5)
            elif "router" in name or "bias" in name:
                parameter.normal_()
    return model


def save(model: Any, path: Path) -> Path:
    """Folder of the model."""
    model.save_pretrained(path)
    return path


def ours_from(path: Path) -> Decoder | EncoderDecoder:
    """Our model of a folder."""
    folder = ModelFolder.open(path)
    model = build_model(folder.config, vocab_size=VOCAB, seed=0).eval()
    folder.load(dict(model.named_parameters()))
    return model


def rows(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Random ids, and a mask that is 1 except for padding."""
    generator = torch.Generator().manual_seed(seed)
    is_token_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids_BT = torch.randint(2, VOCAB, is_token_BT.shape, generator=generator)
    return ids_BT * is_token_BT, is_token_BT.long()


def close(found: Tensor, expected: Tensor, *, spread: float = 0.3) -> None:
    """Equal to 1e-5, and far from uniform."""
    assert expected.std() > spread
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
