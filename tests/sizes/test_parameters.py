"""Parameter counts: the published totals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.errors import ConfigError
from reptrain.model import EncoderDecoder
from reptrain.sizes import count_parameters, embedding_rows

# Touvron et al. 2023: layers, width, heads, hidden units, parameters.
LLAMA = {
    "7B": (32, 4096, 32, 11008, 6_738_415_616),
    "13B": (40, 5120, 40, 13824, 13_015_864_320),
    "33B": (60, 6656, 52, 17920, 32_528_943_616),
    "65B": (80, 8192, 64, 22016, 65_285_660_672),
}

# Raffel et al. 2020, and the release 1.1: layers of each stack, width, heads, head width, hidden units,
# parameters.
T5_10 = {
    "small": (6, 512, 8, 64, 2048, 60_506_624),
    "base": (12, 768, 12, 64, 3072, 222_903_552),
    "large": (24, 1024, 16, 64, 4096, 737_668_096),
    "3B": (24, 1024, 32, 128, 16384, 2_851_598_336),
    "11B": (24, 1024, 128, 128, 65536, 11_307_321_344),
}
T5_11 = {
    "small": (8, 512, 6, 64, 1024, 76_961_152),
    "base": (12, 768, 12, 64, 2048, 247_577_856),
    "large": (24, 1024, 16, 64, 2816, 783_150_080),
    "xl": (24, 2048, 32, 64, 5120, 2_849_757_184),
    "xxl": (24, 4096, 64, 64, 10240, 11_135_332_352),
}
T5 = [({"mlp": "relu", "tie_embeddings": True}, *shape) for shape in T5_10.values()]
T5 += [({}, *shape) for shape in T5_11.values()]


@pytest.mark.parametrize("name", LLAMA)
def test_count_parameters_gives_the_published_totals_of_llama(name: str) -> None:
    layers, width, heads, hidden, total = LLAMA[name]
    config = DecoderConfig(num_layers=layers, d_model=width, num_heads=heads, d_ff=hidden)
    count = count_parameters(config, 32_000)
    assert count.total == total
    assert count.embedding == 2 * 32_000 * width


@pytest.mark.parametrize(("version", "layers", "width", "heads", "head_width", "hidden", "total"), T5)
def test_count_parameters_gives_the_published_totals_of_t5(
    version: dict[str, Any], layers: int, width: int, heads: int, head_width: int, hidden: int, total: int
) -> None:
    shape = {"d_model": width, "num_heads": heads, "head_dim": head_width, "d_ff": hidden}
    stacks = {"num_encoder_layers": layers, "num_decoder_layers": layers}
    config = T5Config.model_validate({"family": "t5"} | version | shape | stacks)
    count = count_parameters(config, 32_128)
    assert count.total == total
    assert count.embedding == (1 if config.tie_embeddings else 2) * 32_128 * width
    with torch.device("meta"):
        model = EncoderDecoder(config, vocab_size=32_128)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_count_parameters_counts_a_tied_embedding_once() -> None:
    untied, tied = (count_parameters(DecoderConfig(tie_embeddings=tie), 1000) for tie in (False, True))
    assert untied.total - tied.total == 1000 * 128
    assert untied.non_embedding == tied.non_embedding


def test_embedding_rows_defaults_to_the_tokenizer_and_may_be_padded() -> None:
    assert embedding_rows(DecoderConfig(), 2048) == 2048
    assert embedding_rows(DecoderConfig(vocab_size=2176), 2048) == 2176


def test_embedding_rows_refuses_ids_without_a_row() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: must hold the tokenizer's 2048 ids, but got 2000"
    ):
        embedding_rows(DecoderConfig(vocab_size=2000), 2048)
