"""Training steps of Hugging Face's T5 and Llama at the same shapes, Llama also with Liger's kernels.

Weights and the states of the fused AdamW are in bf16. This is less work than in reptrain, which also has
fp32 weights.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rows import Arguments, run_cases

PART = "peers"


def t5(asked: Arguments, rows: int) -> Callable[[], Any]:
    """T5 1.1 Base on 512 inputs and 114 targets: a call that computes the loss."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    small = asked.rehearse
    config = T5Config(
        vocab_size=32128, d_model=32 if small else 768, d_kv=64, d_ff=64 if small else 2048,
        num_layers=1 if small else 12, num_decoder_layers=1 if small else 12, num_heads=2 if small else 12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).to(asked.device, torch.bfloat16)
    inputs = torch.randint(3, 32000, (rows, 16 if small else 512), device=asked.device)
    labels = torch.randint(3, 32000, (rows, 8 if small else 114), device=asked.device)
    return _step(model, {"input_ids": inputs, "labels": labels})


def llama(asked: Arguments, rows: int) -> Callable[[], Any]:
    """A decoder of the dense twin's shape on 1024 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = asked.rehearse
    config = LlamaConfig(
        vocab_size=50304, hidden_size=32 if small else 768, intermediate_size=64 if small else 2048,
        num_hidden_layers=1 if small else 12, num_attention_heads=2 if small else 12,
        num_key_value_heads=2 if small else 12, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(asked.device, torch.bfloat16)
    tokens = torch.randint(3, 50000, (rows, 16 if small else 1024), device=asked.device)
    return _step(model, {"input_ids": tokens, "labels": tokens})


def liger_llama(asked: Arguments, rows: int) -> Callable[[], Any]:
    """The same with Liger's kernels."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama()
    return llama(asked, rows)


def _step(model: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Any:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def measure(
    make: Callable[[Arguments, int], Callable[[], Any]], rows: int, positions: int, asked: Arguments
) -> dict[str, Any]:
    """The median time of a step.

    Args:
        make: Builds the model and its optimizer, and returns a call that trains a step.
        rows: Rows of a batch; 2 in a rehearsal.
        positions: Positions of a row, of encoder and decoder together.
        asked: The arguments of the part.
    """
    import torch

    step = make(asked, 2 if asked.rehearse else rows)
    seconds = []
    for _ in range(3 if asked.rehearse else 10):
        begin = time.perf_counter()
        loss = step()
        if not asked.rehearse:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    figures = {"step_ms": 1e3 * median, "positions_per_s": rows * positions / median, "loss": loss.item()}
    del step, loss
    if not asked.rehearse:
        torch.cuda.empty_cache()
    return figures


def main() -> int:
    """Time each; returns the exit code."""
    asked = Arguments(__doc__)
    peers = [("HF T5 base", t5, 16, 626), ("HF T5 base", t5, 128, 626), ("HF Llama 125m", llama, 32, 1024)]
    # Last: it changes transformers for the rest of the process, and needs a GPU.
    peers += [] if asked.rehearse else [("Liger Llama 125m", liger_llama, 32, 1024)]
    return run_cases(
        PART,
        [(f"{name} batch {rows}", partial(measure, make, rows, n, asked)) for name, make, rows, n in peers],
        asked,
    )


if __name__ == "__main__":
    sys.exit(main())
