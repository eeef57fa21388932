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


def test_count_parameters_equals_the_published_non_embedding_of_t5() -> None:
    layers = {"num_encoder_layers": 12, "num_decoder_layers": 12}
    config = T5Config(family="t5", d_model=768, num_heads=12, d_ff=2048, **layers)
    count = count_parameters(config, 32_128)
    assert (count.embedding, count.non_embedding) == (2 * 32_128 * 768, 198_229_248)


PUBLISHED: dict[str, tuple[DecoderConfig | T5Config, int]] = {
    "Mistral 7B": (
        DecoderConfig(
            d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336, vocab_size=32_000,
            sliding_window=4096,
        ),
        7_241_732_096,
    ),
    "Qwen2 0.5B": (
        DecoderConfig(
            d_model=896, num_layers=24, num_heads=14, num_kv_heads=2, d_ff=4864, vocab_size=151_936,
            attention_bias="qkv", tie_embeddings=True,
        ),
        494_032_768,
    ),
    "mT5 small": (T5Config(family="t5", vocab_size=250_112), 300_176_768),
    "umT5 small": (
        T5Config(family="t5", vocab_size=256_384, relative_bias_per_layer=True), 306_601_984,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_parameters_gives_published_totals(name: str) -> None:
    config, total = PUBLISHED[name]
    assert count_parameters(config, 1).total == total


def test_embedding_rows_defaults_to_the_tokenizer_and_may_be_padded() -> None:
    assert embedding_rows(DecoderConfig(), 2048) == 2048
    assert embedding_rows(DecoderConfig(vocab_size=2176), 2048) == 2176


def test_embedding_rows_refuses_ids_without_a_row() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: must hold the tokenizer's 2048 ids, but got 2000"
    ):
        embedding_rows(DecoderConfig(vocab_size=2000), 2048)
