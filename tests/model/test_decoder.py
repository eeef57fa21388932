"""The decoder: outputs, attention masks, and dropout that depends on seed, step, row and site alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from reptrain.config.model import DecoderConfig, Recompute
from reptrain.model import Decoder, DropoutContext, build_model
from reptrain.model.dropout import layer_keys
from reptrain.sizes import count_parameters

VOCAB = 61
ALL_SITES = {"embedding": 0.1, "attention": 0.2, "residual": 0.1, "mlp": 0.15}


def small(**changes: Any) -> DecoderConfig:
    shape = {"d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_ff": 48, "init_std": 0.2}
    return DecoderConfig.model_validate(shape | changes)


def built(**changes: Any) -> Decoder:
    return build_model(small(**changes), vocab_size=VOCAB, seed=3)


def tokens(num_rows: int = 4, num_positions: int = 12) -> Tensor:
    return torch.randint(VOCAB, (num_rows, num_positions), generator=torch.Generator().manual_seed(0))


def context(row_B: Tensor, step: int = 5) -> DropoutContext:
    return DropoutContext(seed=7, step=step, row_B=row_B)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"num_kv_heads": None}, {"vocab_size": 64}]
)
def test_decoder_parameters_match_the_count(changes: dict[str, Any]) -> None:
    config = small(**changes)
    with torch.device("meta"):
        model = Decoder(config, vocab_size=VOCAB)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, VOCAB).total
    assert model(tokens().to("meta")).shape == (4, 12, config.vocab_size or VOCAB)


@pytest.mark.parametrize("dropout", [{}, ALL_SITES])
def test_decoder_is_causal(dropout: dict[str, float]) -> None:
    model, tokens_BT, rows = built(dropout=dropout), tokens(), torch.arange(4)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 7] = (changed_BT[:, 7] + 1) % VOCAB
    before, after = (model(t, dropout=context(rows)) for t in (tokens_BT, changed_BT))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@pytest.mark.parametrize("dropout", [{}, {"attention": 1e-9}], ids=["fused", "spelled_out"])
def test_decoder_with_segments_treats_documents_independently(dropout: dict[str, float]) -> None:
    model, tokens_BT, rows = built(dropout=dropout), tokens(2), torch.arange(2)
    segments_BT = torch.tensor([[1] * 5 + [2] * 7, [1] * 3 + [2] * 6 + [0] * 3])
    logits_BTV = model(tokens_BT, segments_BT=segments_BT, dropout=context(rows))
    for row, start, end in [(0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 9)]:
        alone_BTV = model(tokens_BT[row : row + 1, start:end], dropout=context(rows[:1]))
        torch.testing.assert_close(logits_BTV[row, start:end], alone_BTV[0], rtol=1e-4, atol=1e-4)
    assert logits_BTV.isfinite().all()
    assert not torch.allclose(logits_BTV[0, 5:], model(tokens_BT)[0, 5:], atol=0.1)


@pytest.mark.parametrize("dropout", [{}, ALL_SITES])
def test_decoder_with_one_segment_equals_the_decoder_without(dropout: dict[str, float]) -> None:
    model, rows = built(dropout=dropout), torch.arange(4)
    masked = model(tokens(), segments_BT=torch.ones_like(tokens()), dropout=context(rows))
    torch.testing.assert_close(masked, model(tokens(), dropout=context(rows)))


def test_decoder_depends_on_the_order_of_tokens() -> None:
    model, tokens_BT = built(), tokens(1)
    swapped_BT = tokens_BT[:, [1, 0, *range(2, 12)]]
    assert not torch.allclose(model(tokens_BT)[:, -1], model(swapped_BT)[:, -1])


@pytest.mark.parametrize("site", ALL_SITES)
def test_decoder_drops_at_each_site_in_training_only(site: str) -> None:
    model, plain, rows = built(dropout={site: 0.3}), built(), torch.arange(4)
    dropped = model(tokens(), dropout=context(rows))
    assert not torch.allclose(dropped, plain(tokens()))
    assert not torch.allclose(dropped, model(tokens(), dropout=context(rows, step=6)))
    torch.testing.assert_close(model(tokens()), plain(tokens()))
    torch.testing.assert_close(model.eval()(tokens(), dropout=context(rows)), plain(tokens()))


def test_decoder_sites_of_equal_shape_have_different_masks() -> None:
    model, rows = built(dropout={"embedding": 0.5, "residual": 0.5}), torch.arange(4)
    sites = [(0, model.embedding_dropout)]
    for layer, block in enumerate(model.blocks):
        sites += [(layer, block.attention_dropout.units), (layer, block.mlp_dropout.units)]
    masks = [
        site(torch.ones(4, 12, 32), layer_keys(context(rows).key_B, layer, 1, 1)[0]) for layer, site in sites
    ]
    assert len({mask.numpy().tobytes() for mask in masks}) == 5


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_decoder_logits_do_not_depend_on_the_micro_batch(micro_batch: int) -> None:
    model, tokens_BT, rows = built(dropout=ALL_SITES), tokens(6), torch.tensor([8, 3, 0, 11, 5, 6])
    whole = model(tokens_BT, dropout=context(rows))
    parts = [
        model(t, dropout=context(r))
        for t, r in zip(tokens_BT.split(micro_batch), rows.split(micro_batch), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_decoder_attention_with_spelled_out_weights_equals_sdpa() -> None:
    # A rate too small to drop anything: both paths compute the same function.
    spelled_out, fused = built(dropout={"attention": 1e-9}), built()
    torch.testing.assert_close(spelled_out(tokens(), dropout=context(torch.arange(4))), fused(tokens()))


def test_decoder_grouped_queries_match_repeated_keys_and_values() -> None:
    grouped, full = built(), built(num_kv_heads=None)
    weights = grouped.state_dict()
    for name in weights:
        if name.endswith(("attention.key.weight", "attention.value.weight")):
            heads = weights[name].unflatten(0, (2, 8))
            weights[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    torch.testing.assert_close(full(tokens()), grouped(tokens()))


def gradients(model: Decoder, rows: Tensor) -> list[Tensor]:
    logits_BTV = model(tokens(), dropout=context(rows))
    logits_BTV.logsumexp(-1).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_decoder_with_recomputation_has_the_same_gradients_with_dropout(recompute: Recompute) -> None:
    plain, checkpointed = built(dropout=ALL_SITES), built(dropout=ALL_SITES)
    checkpointed.recompute = recompute
    expected = gradients(plain, torch.arange(4))
    assert len(expected) == len(list(plain.parameters()))
    for grad, want in zip(gradients(checkpointed, torch.arange(4)), expected, strict=True):
        assert torch.equal(grad, want)


def test_decoder_checkpointing_saves_fewer_activations() -> None:
    kept = []
    for recompute in ("none", "full"):
        model, sizes = built(dropout=ALL_SITES), []
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            model(tokens(), dropout=context(torch.arange(4)))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(
    "recompute", ["none", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("selective", "full"))]
)
def test_decoder_compiles_once_without_graph_breaks(recompute: Recompute) -> None:
    model = built(dropout=ALL_SITES)
    model.recompute = recompute
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(4):
        rows = torch.arange(4) + step
        logits_BTV = compiled(tokens(), dropout=context(rows, step))
        logits_BTV.sum().backward()
        torch.testing.assert_close(logits_BTV, model(tokens(), dropout=context(rows, step)))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_decoder_compiled_by_inductor_equals_eager() -> None:
    model, rows = built(dropout=ALL_SITES, num_layers=1), torch.arange(4)
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for run in (compiled, model):
        logits_BTV = run(tokens(), dropout=context(rows))
        results.append((logits_BTV, *torch.autograd.grad(logits_BTV.square().sum(), model.parameters())))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_decoder_runs_in_bf16_close_to_fp32() -> None:
    full, half = built(dropout=ALL_SITES), built(dropout=ALL_SITES).bfloat16()
    expected, logits_BTV = (m(tokens(), dropout=context(torch.arange(4))) for m in (full, half))
    assert logits_BTV.dtype == torch.bfloat16
    assert (logits_BTV.float() - expected).std() < 0.03 * expected.std()


def test_decoder_learns_to_copy_a_sequence() -> None:
    model, tokens_BT = built(dropout={"residual": 0.05}), tokens(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        logits_BTV = model(tokens_BT[:, :-1], dropout=context(torch.arange(2), step))
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.2


@pytest.mark.gpu
def test_decoder_logits_on_a_gpu_match_the_cpu() -> None:
    model, rows = built(dropout=ALL_SITES), torch.arange(4)
    expected = model(tokens(), dropout=context(rows))
    logits_BTV = model.cuda()(tokens().cuda(), dropout=context(rows.cuda())).cpu()
    torch.testing.assert_close(logits_BTV, expected, rtol=1e-3, atol=1e-3)
