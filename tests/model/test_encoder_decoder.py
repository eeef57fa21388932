"""T5: attention masks, and dropout that depends on seed, step, row and site alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from reptrain.config.model import Recompute, T5Config
from reptrain.model import DropoutContext, EncoderDecoder, build_model
from reptrain_kernels import counter

VOCAB, S, T = 61, 14, 11
ALL_SITES = {"embedding": 0.1, "attention": 0.2, "residual": 0.1, "mlp": 0.15}
SHAPE = {"d_model": 32, "num_heads": 2, "head_dim": 12, "d_ff": 48}
LAYERS = {"num_encoder_layers": 2, "num_decoder_layers": 2}
Inputs = dict[str, Tensor]


def built(**changes: Any) -> EncoderDecoder:
    config = T5Config.model_validate({"family": "t5"} | SHAPE | LAYERS | changes)
    return build_model(config, vocab_size=VOCAB, seed=3)


def inputs(num_rows: int = 3) -> Inputs:
    """Rows of two documents, with padding in inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    source_BS, inputs_BT = (torch.randint(VOCAB, (num_rows, n), generator=generator) for n in (S, T))
    return {
        "source_BS": source_BS,
        "inputs_BT": inputs_BT,
        "source_segments_BS": torch.tensor([1] * 6 + [2] * 5 + [0] * 3).repeat(num_rows, 1),
        "segments_BT": torch.tensor([1] * 5 + [2] * 4 + [0] * 2).repeat(num_rows, 1),
    }


def context(row_B: Tensor | None = None, step: int = 5) -> DropoutContext:
    return DropoutContext(seed=7, step=step, row_B=torch.arange(3) if row_B is None else row_B)


def changed(given: Inputs, name: str, where: Tensor) -> Inputs:
    """Change the tokens at these positions of every row."""
    tokens = given[name].clone()
    tokens[:, where] = (tokens[:, where] + 1) % VOCAB
    return given | {name: tokens}


@pytest.mark.parametrize("dropout", [{}, ALL_SITES], ids=["fused", "spelled_out"])
@pytest.mark.parametrize(
    ("name", "where", "blind", "seeing"),
    [
        ("inputs_BT", slice(2, 3), [0, 1, 5, 6, 7, 8], [2, 3, 4]),
        ("inputs_BT", slice(9, 11), range(9), []),
        ("source_BS", slice(5, 6), [5, 6, 7, 8], range(5)),
        ("source_BS", slice(6, 11), range(5), [5, 6, 7, 8]),
        ("source_BS", slice(11, 14), range(9), []),
    ],
    ids=["later input", "input padding", "document 1", "document 2", "source padding"],
)
def test_encoder_decoder_attends_within_its_document_and_causally(
    dropout: dict[str, float], name: str, where: slice, blind: list[int], seeing: list[int]
) -> None:
    model, given = built(dropout=dropout), inputs()
    length = given[name].shape[1]
    before = model(**given, dropout=context())
    after = model(**changed(given, name, torch.arange(length)[where]), dropout=context())
    blind, seeing = list(blind), list(seeing)
    torch.testing.assert_close(after[:, blind], before[:, blind], rtol=0, atol=1e-6)
    assert not torch.isclose(before[:, seeing], after[:, seeing]).all(-1).any()


def test_encoder_decoder_treats_documents_independently() -> None:
    # Positions count within the row, and only their differences matter.
    model, given = built(), inputs(1)
    logits_BTV = model(**given)
    for source, target in [(slice(0, 6), slice(0, 5)), (slice(6, 11), slice(5, 9))]:
        alone_BTV = model(
            given["source_BS"][:, source],
            given["inputs_BT"][:, target],
            source_segments_BS=torch.ones_like(given["source_BS"][:, source]),
            segments_BT=torch.ones_like(given["inputs_BT"][:, target]),
        )
        torch.testing.assert_close(logits_BTV[:, target], alone_BTV, rtol=1e-5, atol=1e-5)


def test_encoder_decoder_with_one_segment_attends_to_the_whole_row() -> None:
    model, given = built(), inputs()
    for name in ("source_segments_BS", "segments_BT"):
        given[name] = torch.ones_like(given[name])
    before, after = model(**given), model(**changed(given, "source_BS", torch.tensor([12])))
    assert not torch.isclose(before, after).all(-1).any()


@pytest.mark.parametrize("dropout", [{}, ALL_SITES], ids=["fused", "spelled_out"])
def test_encoder_decoder_cross_attention_is_zero_without_a_source(dropout: dict[str, float]) -> None:
    model, given = built(dropout=dropout), inputs()
    segments_BS = given["source_segments_BS"].clone()
    segments_BS[0, 6:11] = 0  # The second document has no source,
    segments_BS[1] = 1  # nor have the second document and the padding,
    segments_BS[2] = 0  # and only the padding has one.
    logits_BTV = model(**given | {"source_segments_BS": segments_BS}, dropout=context())
    logits_BTV.square().sum().backward()
    assert logits_BTV.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    for block in model.decoder.blocks:
        nn.init.zeros_(block.cross_attention.output.weight)
    without_BTV = model(**given, dropout=context())
    torch.testing.assert_close(logits_BTV[0, 5:9], without_BTV[0, 5:9])
    torch.testing.assert_close(logits_BTV[2, :9], without_BTV[2, :9])
    assert not torch.isclose(logits_BTV[0, :5], without_BTV[0, :5]).all(-1).any()


@pytest.mark.parametrize("site", ALL_SITES)
def test_encoder_decoder_drops_at_each_site_in_training_only(site: str) -> None:
    model, plain, given = built(dropout={site: 0.3}), built(), inputs()
    dropped = model(**given, dropout=context())
    assert torch.equal(dropped, model(**given, dropout=context()))
    assert not torch.allclose(dropped, plain(**given))
    assert not torch.allclose(dropped, model(**given, dropout=context(step=6)))
    torch.testing.assert_close(model(**given), plain(**given))
    torch.testing.assert_close(model.eval()(**given, dropout=context()), plain(**given))


@pytest.mark.parametrize("stored", [None, 1])
def test_encoder_decoder_sites_have_different_keys(
    stored: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"num_stored_encoder_layers": stored, "num_stored_decoder_layers": stored}
    model = built(num_encoder_layers=2, num_decoder_layers=3, dropout=ALL_SITES, **shared)
    seen, random_words = [], counter.random_words_in_torch

    def noted(key: Tensor, *sizes: int) -> Tensor:
        # Attention weights have one key per row and head.
        seen.append(key.reshape(len(key), -1)[:, 0])
        return random_words(key, *sizes)

    monkeypatch.setattr("reptrain_kernels.counter_native._library_for", lambda *tensors: None)
    monkeypatch.setattr(counter, "random_words_in_torch", noted)
    model(**inputs(), dropout=context())
    # Four sites per encoder layer, six per decoder layer, two per stack.
    assert len(seen) == len(torch.stack(seen).unique(dim=0)) == 2 * 4 + 3 * 6 + 2 * 2


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_encoder_decoder_logits_do_not_depend_on_the_micro_batch(micro_batch: int) -> None:
    model, given, rows = built(dropout=ALL_SITES), inputs(), torch.tensor([8, 3, 0])
    whole = model(**given, dropout=context(rows))
    parts = []
    for start in range(0, 3, micro_batch):
        part = slice(start, start + micro_batch)
        part_of = {name: tensor[part] for name, tensor in given.items()}
        parts.append(model(**part_of, dropout=context(rows[part])))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_encoder_decoder_attention_with_spelled_out_weights_equals_sdpa() -> None:
    # A rate too small to drop anything: both paths compute the same function.
    spelled_out, fused = built(dropout={"attention": 1e-9}), built()
    torch.testing.assert_close(spelled_out(**inputs(), dropout=context()), fused(**inputs()))


def gradients(model: EncoderDecoder) -> list[Tensor]:
    model(**inputs(), dropout=context()).logsumexp(-1).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_encoder_decoder_with_checkpointed_blocks_has_the_same_gradients_with_dropout(
    recompute: Recompute,
) -> None:
    plain, checkpointed = built(dropout=ALL_SITES), built(dropout=ALL_SITES)
    checkpointed.recompute = recompute
    expected = gradients(plain)
    assert len(expected) == len(list(plain.parameters()))
    for grad, want in zip(gradients(checkpointed), expected, strict=True):
        assert torch.equal(grad, want)


def test_encoder_decoder_checkpointing_saves_fewer_activations() -> None:
    kept = []
    for recompute in ("none", "full"):
        model, sizes = built(dropout=ALL_SITES), []
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            model(**inputs(), dropout=context())
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.slow
def test_encoder_decoder_compiles_once_without_graph_breaks(recompute: Recompute) -> None:
    model = built(dropout=ALL_SITES, num_encoder_layers=1)
    model.recompute = recompute
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(4):
        logits_BTV = compiled(**inputs(), dropout=context(step=step))
        logits_BTV.sum().backward()
        torch.testing.assert_close(logits_BTV, model(**inputs(), dropout=context(step=step)))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dropout", [{}, {"attention": 0.2}], ids=["fused", "spelled_out"])
def test_encoder_decoder_compiled_by_inductor_equals_eager(dropout: dict[str, float]) -> None:
    model = built(dropout=dropout, num_encoder_layers=1, num_decoder_layers=1)
    results = []
    for run in (torch.compile(model, fullgraph=True), model):
        logits_BTV = run(**inputs(), dropout=context())
        results.append((logits_BTV, *torch.autograd.grad(logits_BTV.square().sum(), model.parameters())))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dropout", [{}, ALL_SITES], ids=["fused", "spelled_out"])
def test_encoder_decoder_runs_in_bf16_close_to_fp32(dropout: dict[str, float]) -> None:
    full, half = built(dropout=dropout), built(dropout=dropout).bfloat16()
    expected, logits_BTV = (m(**inputs(), dropout=context()) for m in (full, half))
    assert logits_BTV.dtype == torch.bfloat16
    assert (logits_BTV.float() - expected).std() < 0.03 * expected.std()


@pytest.mark.gpu
def test_encoder_decoder_logits_on_a_gpu_match_the_cpu() -> None:
    model = built(dropout=ALL_SITES)
    expected = model(**inputs(), dropout=context())
    on_gpu = {name: tensor.cuda() for name, tensor in inputs().items()}
    logits_BTV = model.cuda()(**on_gpu, dropout=context(torch.arange(3).cuda())).cpu()
    torch.testing.assert_close(logits_BTV, expected, rtol=1e-3, atol=1e-3)
