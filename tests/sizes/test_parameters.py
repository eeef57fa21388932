"""Parameter counts: the published totals."""

from __future__ import annotations

import pytest

from reptrain.config.schema import DecoderConfig
from reptrain.errors import ConfigError
from reptrain.sizes import count_parameters, embedding_rows

# Touvron et al. 2023: layers, width, heads, hidden units, parameters.
LLAMA = {
    "7B": (32, 4096, 32, 11008, 6_738_415_616),
    "13B": (40, 5120, 40, 13824, 13_015_864_320),
    "33B": (60, 6656, 52, 17920, 32_528_943_616),
    "65B": (80, 8192, 64, 22016, 65_285_660_672),
}


@pytest.mark.parametrize("name", LLAMA)
def test_count_parameters_gives_the_published_totals_of_llama(name: str) -> None:
    layers, width, heads, hidden, total = LLAMA[name]
    config = DecoderConfig(num_layers=layers, d_model=width, num_heads=heads, d_ff=hidden)
    count = count_parameters(config, 32_000)
    assert count.total == total
    assert count.embedding == 2 * 32_000 * width


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
