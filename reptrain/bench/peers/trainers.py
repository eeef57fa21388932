"""Steps of other trainers, with the sizes of a reptrain run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reptrain.bench.measure import Missing, installed
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig, T5Config
from reptrain.sizes import embedding_rows


def transformers_trainer(config: RunConfig, device: str = "cpu") -> Iterator[float] | Missing:
    """Steps of a transformers model of the same sizes on random tokens, with clipping and AdamW.

    Args:
        config: The run: a T5 or a decoder of the Llama family.
        device: Where to train.

    Returns:
        An endless iterator of the loss of each step, or why there is none.
    """
    if installed("transformers") is None:
        return Missing("not installed")
    return _steps(config, torch.device(device))


def _steps(config: RunConfig, device: torch.device) -> Iterator[float]:
    model_config, shape, rows = config.model, config.example_shape, config.train.batch_windows
    torch.manual_seed(0)
    vocab_size = model_config.vocab_size or embedding_rows(model_config, 256)
    model, inputs, targets = _model(model_config, vocab_size, shape.target_tokens), {}, shape.target_tokens
    if isinstance(model_config, T5Config):
        inputs["input_ids"] = torch.randint(2, vocab_size, (rows, shape.input_tokens))
        inputs["labels"] = torch.randint(2, vocab_size, (rows, targets))
    else:
        inputs["input_ids"] = inputs["labels"] = torch.randint(2, vocab_size, (rows, targets))
    model = model.to(device)
    inputs = {name: ids.to(device) for name, ids in inputs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _model(config: DecoderConfig | T5Config, vocab_size: int, positions: int) -> torch.nn.Module:
    import transformers

    if isinstance(config, T5Config):
        special: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0, "dropout_rate": 0.0}
        t5 = transformers.T5Config(
            vocab_size=vocab_size,
            d_model=config.d_model,
            d_kv=config.head_dim,
            d_ff=config.d_ff,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            **special,
        )
        t5.tie_word_embeddings = config.tie_embeddings
        return transformers.T5ForConditionalGeneration(t5)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=positions,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
