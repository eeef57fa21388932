"""Copies of rows with masked inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reptrain.batch.objectives import Example
from reptrain.config.sections import RegularizeConfig
from reptrain.errors import ConfigError
from reptrain.model import DropoutContext
from reptrain.training.masked_inputs import MaskedInputs, doubled


def context(row_B: torch.Tensor) -> DropoutContext:
    return DropoutContext(seed=1, step=2, row_B=row_B)


def example(num_rows: int) -> Example:
    tokens_BT = torch.randint(50, (num_rows, 300), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens_BT": tokens_BT, "is_token_BT": torch.ones_like(tokens_BT, dtype=torch.bool)}
    return Example(inputs, tokens_BT, inputs["is_token_BT"], torch.zeros(num_rows, dtype=torch.int64))


def test_masked_rows_draw_their_shares_uniformly() -> None:
    is_text_V = torch.arange(50) >= 5
    masks = MaskedInputs(is_text_V, 4, ratio=0.6)
    given = example(800)
    both = masks(given, 0.4, context(torch.arange(800)))
    kept_BT, masked_BT = both.inputs["tokens_BT"].chunk(2)
    assert torch.equal(kept_BT, given.inputs["tokens_BT"])
    assert torch.equal(both.targets_BT, torch.cat([given.targets_BT] * 2))
    assert (
        both.weight_BT is not None and both.weight_BT[:800].eq(1).all() and both.weight_BT[800:].eq(0.4).all()
    )
    assert both.loss_tokens_B.tolist() == [300] * 800 + [0] * 800
    is_changed_BT = masked_BT != kept_BT
    assert (masked_BT[is_changed_BT] == 4).all() and is_text_V[kept_BT[is_changed_BT]].all()
    share_B = is_changed_BT.sum(1) / is_text_V[kept_BT].sum(1)
    assert share_B.mean().item() == pytest.approx(0.3, abs=0.02)
    # Uniform on [0, 0.6]: the standard deviation is 0.6 / sqrt(12), plus that of the draws.
    assert share_B.std().item() == pytest.approx(0.175, abs=0.015)
    few = masks(
        Example(
            *(
                {k: v[7:9] for k, v in given.inputs.items()},
                *(x[7:9] for x in (given.targets_BT, given.is_raw_BT, given.num_inputs_B)),
            )
        ),
        0.4,
        context(torch.tensor([7, 8])),
    )
    assert torch.equal(few.inputs["tokens_BT"][2:], masked_BT[7:9])


def test_masked_rows_have_dropout_of_their_own() -> None:
    keys_B = doubled(context(torch.arange(100))).key_B
    assert torch.equal(keys_B[:100], context(torch.arange(100)).key_B) and len(keys_B.unique()) == 200


def test_masked_inputs_need_an_id_for_the_mask() -> None:
    config = RegularizeConfig.model_validate({"masked_inputs": 0.4})
    bare = {"vocab_size": 9, "pad_id": 0, "eos_id": 1, "unk_id": -1, "sentinel_ids": ()}
    tokenizer: Any = SimpleNamespace(**bare)
    with pytest.raises(ConfigError, match="num-sentinels"):
        MaskedInputs.of(config, tokenizer)
    with_unknown: Any = SimpleNamespace(**bare | {"unk_id": 2})
    with_sentinels: Any = SimpleNamespace(**bare | {"unk_id": 2, "sentinel_ids": (8, 7)})
    assert MaskedInputs.of(config, with_unknown).mask_id == 2
    assert MaskedInputs.of(config, with_sentinels).mask_id == 7
