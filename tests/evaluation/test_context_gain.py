"""The gain from the encoder's input: scores with the input of another window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reptrain.config import RunConfig
from reptrain.errors import ConfigError
from reptrain.evaluation.context_gain import OtherSource
from reptrain.evaluation.evaluate import open_run, score_run
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]
T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48}",
    "objective={name: prefix_lm}",
    "train.total_tokens=800",
    "evaluate.every_fraction=1",
)


class SourceOnly(nn.Module):
    """Returns its encoder input."""

    def forward(self, *, source_BS: Tensor, source_segments_BS: Tensor, inputs_BT: Tensor) -> Tensor:
        assert torch.equal(source_BS > 0, source_segments_BS > 0) and inputs_BT[:, 0].tolist() == [1, 2, 3, 4]
        return source_BS[:, 0]


def test_rows_get_the_source_of_the_row_above_and_padding_rows_keep_theirs() -> None:
    source_BS = torch.tensor([[5, 0], [6, 7], [0, 0], [8, 9]])
    inputs_BT = torch.tensor([[1], [2], [3], [4]])
    other = OtherSource(SourceOnly())
    got = other(source_BS=source_BS, source_segments_BS=(source_BS > 0).long(), inputs_BT=inputs_BT)
    assert got.tolist() == [8, 5, 0, 6]


def test_a_model_that_reads_its_source_loses_with_another(tiny: MakeConfig, tmp_path: Path) -> None:
    train(tiny(*T5), tmp_path / "run")
    run = open_run(tmp_path / "run", device="cpu")
    plain = score_run(run, sets=["report"])
    (row,) = score_run(run, sets=["report"], context_gain=True)
    assert [row.nats] == [score.nats for score in plain]
    assert row.context_gain_nats != 0 and row.row()["context_gain_nats"] == row.context_gain_nats
    # Without what cross-attention reads, every source is the same.
    with torch.no_grad():
        for name, weight in run.model.named_parameters():
            if "cross_attention" in name:
                weight.zero_()
    (row,) = score_run(run, sets=["report"], context_gain=True)
    assert row.context_gain_nats == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [(("train.total_tokens=800",), "decoder-only"), ((*T5, "data.document_mask=true"), "document_mask true")],
)
def test_models_without_an_exchangeable_source_are_refused(
    overrides: tuple[str, ...], error: str, tiny: MakeConfig, tmp_path: Path
) -> None:
    train(tiny("evaluate.every_fraction=1", *overrides), tmp_path / "run")
    with pytest.raises(ConfigError, match=error):
        score_run(open_run(tmp_path / "run", device="cpu"), context_gain=True)
