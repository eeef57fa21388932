"""Import of random models of transformers: equal logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no parity")

from their_models import MADE, close, make, ours_from, rows, save

ENCODER_DECODERS = [kind for kind in MADE if kind.startswith(("t5", "mt5", "umt5", "switch"))]
DECODERS = [kind for kind in MADE if kind not in ENCODER_DECODERS]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_encoder_decoder_logits_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    ours = ours_from(save(theirs, tmp_path))
    # Beyond the largest distance that has a bucket of its own, with padding on either side and on both.
    source_BS, is_source_BS = rows([150, 90, 150, 3], 1)
    inputs_BT, is_input_BT = rows([37, 37, 20, 1], 2)
    logits_BTV = ours(source_BS, inputs_BT, source_segments_BS=is_source_BS, segments_BT=is_input_BT)
    expected_BTV = theirs(
        input_ids=source_BS,
        attention_mask=is_source_BS,
        decoder_input_ids=inputs_BT,
        decoder_attention_mask=is_input_BT,
    ).logits
    counted = is_input_BT.bool()
    close(logits_BTV[counted], expected_BTV[counted])


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_packed_encoder_decoder_logits_equal_those_of_each_document(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    ours = ours_from(save(theirs, tmp_path))
    source_BS, _ = rows([30, 30], 1)
    inputs_BT, _ = rows([12, 12], 2)
    segments_BS = torch.tensor([[1] * 10 + [2] * 15 + [0] * 5, [1] * 30])
    segments_BT = torch.tensor([[1] * 3 + [2] * 8 + [0], [1] * 12])
    logits_BTV = ours(source_BS, inputs_BT, source_segments_BS=segments_BS, segments_BT=segments_BT)
    for row, document in [(0, 1), (0, 2), (1, 1)]:
        of_source, of_inputs = segments_BS[row] == document, segments_BT[row] == document
        expected_1TV = theirs(
            input_ids=source_BS[row, of_source][None], decoder_input_ids=inputs_BT[row, of_inputs][None]
        ).logits
        close(logits_BTV[row, of_inputs], expected_1TV[0])


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_logits_equal_those_of_transformers_padded_and_packed(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    ours = ours_from(save(theirs, tmp_path))
    tokens_BT, is_token_BT = rows([40, 25, 1], 3)
    counted = is_token_BT.bool()
    logits_BTV = ours(tokens_BT, is_token_BT=counted)
    expected_BTV = theirs(input_ids=tokens_BT, attention_mask=is_token_BT).logits
    close(logits_BTV[counted], expected_BTV[counted])

    segments_1T = torch.tensor([[1] * 11 + [2] * 24 + [0] * 5])
    packed_1TV = ours(tokens_BT[:1], segments_BT=segments_1T)
    for document in (1, 2):
        within = segments_1T[0] == document
        expected_1TV = theirs(input_ids=tokens_BT[:1, within]).logits
        close(packed_1TV[0, within], expected_1TV[0])
