"""Norm, rotary embedding, MLP, relative bias and dropout keys against their formulas."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from reptrain.config.model import Activation, T5Config
from reptrain.distributed.sequence_parallel import SplitSequence
from reptrain.model import relative_bias
from reptrain.model.dropout import Dropout, DropoutContext, Site, layer_keys, site_keys
from reptrain.model.mlp import MLP
from reptrain.model.norm import RMSNorm
from reptrain.model.relative_bias import RelativeBias
from reptrain.model.rope import rotation
from reptrain_kernels import counter
from reptrain_kernels.ops.attention import AttentionMask, prepare_mask
from reptrain_kernels.ops.rope import rotate


def test_rms_norm_follows_its_formula() -> None:
    norm = RMSNorm(8, eps=0.5)
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(2, 3, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_bf16_computes_in_fp32_and_rounds_once() -> None:
    x = torch.randn(4, 5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(300, eps=1e-6)
    expected = norm(x.float()).bfloat16()
    assert torch.equal(norm.bfloat16()(x), expected)


def test_rotation_turns_by_position_and_frequency() -> None:
    cos_TM, sin_TM = rotation(3, 4, 10_000.0, torch.device("cpu"))
    for position in range(3):
        angles = (position, position / 100)
        torch.testing.assert_close(cos_TM[position], torch.tensor([math.cos(x) for x in angles]))
        torch.testing.assert_close(sin_TM[position], torch.tensor([math.sin(x) for x in angles]))


def test_rotation_makes_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 40, 1, 16)
    turned_q, turned_k = rotate(q, k, *rotation(40, 16, 100.0, q.device))
    product = turned_q[0, :, 0] @ turned_k[0, :, 0].T
    for distance in (-7, 0, 3):
        diagonal = product.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert product.std() > 0.1


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "relu"])
def test_mlp_follows_its_formula(activation: Activation) -> None:
    mlp = MLP(8, 20, activation=activation, dropout=Dropout(0.5, Site.MLP_HIDDEN))
    x = torch.randn(2, 3, 8)
    hidden = x @ mlp.up.weight.T
    if mlp.gate is None:
        hidden = hidden.clamp(min=0)
    else:
        gate = x @ mlp.gate.weight.T
        inner = (2 / math.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        hidden = hidden * (
            gate / (1 + (-gate).exp()) if activation == "swiglu" else gate / 2 * (1 + inner.tanh())
        )
    assert (mlp.gate is None) == (activation == "relu")
    torch.testing.assert_close(mlp(x, None), hidden @ mlp.down.weight.T)


def test_buckets_docstring_examples_are_true() -> None:
    assert doctest.testmod(relative_bias) == (0, 1)


def test_relative_bias_looks_up_the_bucket_of_each_offset() -> None:
    config = T5Config(family="t5", num_heads=2, relative_buckets=8, relative_max_distance=16)
    for bidirectional in (False, True):
        bias = RelativeBias(config, bidirectional=bidirectional)
        mask = prepare_mask(AttentionMask(segments_BT=torch.ones(1, 25)), 25, 25, torch.device("cpu"))
        bias_HTS = bias(mask).dense.mask[0]
        assert bias_HTS.shape == (2, 25, 25)
        for query, key in [(0, 0), (0, 24), (24, 0), (7, 5), (5, 7)]:
            bucket = bias.buckets(torch.tensor([key - query]))
            assert torch.equal(bias_HTS[:, query, key], bias.table.weight[bucket[0]])


@pytest.mark.parametrize(("rank", "part"), [(0, slice(0, 3)), (1, slice(3, 7))])
def test_a_rank_of_a_split_sequence_has_its_part_of_each_mask(rank: int, part: slice) -> None:
    key_B = DropoutContext(seed=1, step=2, row_B=torch.arange(3)).key_B
    layers = layer_keys(key_B, 0, 1, 4)
    (own,) = SplitSequence(None, rank=rank, size=2).of(7).keys(layers, key_B.device)
    x_BTD = torch.ones(3, 7, 8)
    for site in (Site.EMBEDDING, Site.MLP_OUTPUT):
        dropout = Dropout(0.5, site)
        assert torch.equal(dropout(x_BTD[:, part], own), dropout(x_BTD, layers[0])[:, part])
        assert torch.equal(
            dropout.mask_rows(x_BTD[:, part], own), dropout.mask_rows(x_BTD, layers[0])[:, part]
        )
    heads_BH = Dropout(0.5, Site.CROSS_WEIGHTS).head_keys(layers[0])
    assert torch.equal(Dropout(0.5, Site.CROSS_WEIGHTS).head_keys(own), heads_BH[:, 2 * rank : 2 * rank + 2])


def test_dropout_of_heads_gives_each_head_and_row_its_own_mask() -> None:
    (keys,) = layer_keys(DropoutContext(seed=1, step=2, row_B=torch.arange(3)).key_B, 0, 1, 4)
    key_BH = Dropout(0.5, Site.ATTENTION_WEIGHTS).head_keys(keys)
    mask_BHTS = counter.dropout(torch.ones(3, 4, 6, 7), key_BH, 0.5)
    assert len(mask_BHTS.flatten(0, 1).flatten(1).unique(dim=0)) == 12


def test_site_keys_fold_16_times_the_layer_plus_the_site() -> None:
    key_B = DropoutContext(seed=1, step=2, row_B=torch.arange(3)).key_B
    keys = [site_keys(key_B, layer, 1)[0, site] for layer in range(3) for site in Site]
    assert len(torch.stack(keys).unique()) == 3 * 3 * len(Site)
    assert torch.equal(site_keys(key_B, 2, 1)[0, Site.MLP_HIDDEN], counter.fold(key_B, 2 * 16 + 3))
    assert [*Site] == [*range(16)]
    assert layer_keys(None, 2, 3, 4) == [None] * 3


@pytest.mark.parametrize("site", [Site.ATTENTION_WEIGHTS, Site.CROSS_WEIGHTS])
def test_keys_of_all_layers_are_those_of_each_layer(site: Site) -> None:
    key_B = DropoutContext(seed=1, step=2, row_B=torch.arange(3)).key_B
    for layer, keys in enumerate(layer_keys(key_B, 5, 4, 6), start=5):
        assert torch.equal(keys.site_PB[Site.MLP_HIDDEN], counter.fold(key_B, 16 * layer + Site.MLP_HIDDEN))
        for head in range(6):
            expected_B = counter.fold(counter.fold(key_B, 16 * layer + site), head)
            assert torch.equal(Dropout(0.5, site).head_keys(keys)[:, head], expected_B)
