"""Greedy generation: our tokens equal those of transformers, for its folders and for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no parity")

import transformers
from their_models import MADE, make, ours_from, save

from reptrain.generation import Sampling, Writer, generate
from reptrain.hub import ModelFolder
from reptrain.hub.export import import_model
from reptrain.hub.tokenizer_files import special_ids, write_tokenizer
from reptrain.text import stdlib_documents, train_tokenizer

NEW = 20
# Transformers 5.24 fails to generate where T5's decoder is deeper than its encoder.
LAYERS = {kind: {"num_decoder_layers": 2} for kind in MADE if "t5" in kind}
PROMPTS = [[5, 9, 33, 60, 2, 7], [40], [11, 12, 13, 14, 15, 16, 17, 18, 19]]


def theirs_of(model: Any, prompt: list[int], start: int | None, end: int, pad: int) -> list[int]:
    """Tokens that transformers adds to one prompt."""
    if model.config.is_encoder_decoder:
        ids = torch.tensor([[*prompt, end]])
        found = model.generate(ids, max_new_tokens=NEW, do_sample=False, num_beams=1)[0, 1:].tolist()
    else:
        ids = torch.tensor([[*([] if start is None else [start]), *prompt]])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=pad
        )[0, ids.shape[1] :].tolist()
    return found[: found.index(end) + 1] if end in found else found


# With a cache these do what another kind does.
LIKE_OTHERS = {"llama-gelu", "llama-linear", "mixtral-window", "qwen2", "t5-silu", "t5-gelu", "mt5"}


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in LIKE_OTHERS])
def test_greedy_tokens_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = make(kind, **LAYERS.get(kind, {}))
    folder = ModelFolder.open(save(theirs, tmp_path))
    special = folder.special_ids()
    assert special.ends == (1,)
    writer = Writer(ours_from(tmp_path), special, num_ids=64)
    written = list(writer.write(PROMPTS, max_new_tokens=NEW, sampling=Sampling(), batch_rows=3))
    assert written == [theirs_of(theirs, prompt, special.start, 1, 0) for prompt in PROMPTS]
    # The prompt matters.
    assert len({tuple(tokens) for tokens in written}) > 1


@pytest.mark.parametrize("kind", ["t5-1.1", "llama"])
def test_texts_from_a_folder_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """With the tokenizer: the special tokens around a prompt are equal."""
    texts = (document.text for document, _ in zip(stdlib_documents(), range(30), strict=False))
    tokenizer = train_tokenizer(texts, tmp_path / "t.model", vocab_size=300, num_sentinels=8)
    is_encoder_decoder = kind.startswith("t5")
    theirs = make(kind, vocab_size=300, **LAYERS.get(kind, {}))
    save(theirs, tmp_path / "theirs")
    special = special_ids(tokenizer)
    write_tokenizer(tokenizer, tmp_path / "theirs", special=special, is_encoder_decoder=is_encoder_decoder)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    prompt = "Return the <extra_id_0> of the list." if is_encoder_decoder else "Return the"
    (found,) = generate(tmp_path / "ours", [prompt], max_new_tokens=NEW, device="cpu")
    assert found == generate(tmp_path / "theirs", [prompt], max_new_tokens=NEW, device="cpu")[0]
    pieces = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    given = pieces(prompt, return_tensors="pt").input_ids
    expected = theirs.generate(given, max_new_tokens=NEW, do_sample=False, num_beams=1)[0].tolist()
    assert found.tokens == expected[1:] if is_encoder_decoder else expected[given.shape[1] :]
    assert found.text and found.ended == "length"
