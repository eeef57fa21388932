"""Parameter counts: what belongs where. Published totals are held in test_published.py."""

from __future__ import annotations

import pytest

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.errors import ConfigError
from reptrain.sizes import count_parameters, embedding_rows


def test_count_parameters_counts_a_tied_embedding_once() -> None:
    untied, tied = (count_parameters(DecoderConfig(tie_embeddings=tie), 1000) for tie in (False, True))
    assert untied.total - tied.total == 1000 * 128
    assert untied.non_embedding == tied.non_embedding


def test_count_parameters_tells_the_published_non_embedding_of_t5() -> None:
    layers = {"num_encoder_layers": 12, "num_decoder_layers": 12}
    config = T5Config(family="t5", d_model=768, num_heads=12, d_ff=2048, **layers)
    count = count_parameters(config, 32_128)
    assert (count.embedding, count.non_embedding) == (2 * 32_128 * 768, 198_229_248)


def test_embedding_rows_defaults_to_the_tokenizer_and_may_be_padded() -> None:
    assert embedding_rows(DecoderConfig(), 2048) == 2048
    assert embedding_rows(DecoderConfig(vocab_size=2176), 2048) == 2176


def test_embedding_rows_refuses_ids_without_a_row() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: must hold the tokenizer's 2048 ids, but got 2000"
    ):
        embedding_rows(DecoderConfig(vocab_size=2000), 2048)
