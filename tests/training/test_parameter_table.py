"""What `reptrain config show --parameters` tells of the optimizer, against the optimizer that is built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.config.optimizers import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig
from reptrain.model import build_model
from reptrain.training.optimizers import build_optimizer
from reptrain.training.parameter_table import treatments, treatments_text

SMALL = {"d_model": 16, "num_heads": 2, "d_ff": 24}
DECODER = DecoderConfig.model_validate(SMALL | {"num_layers": 3, "moe": {"num_experts": 4, "every": 3}})
T5 = T5Config.model_validate(
    SMALL | {"family": "t5", "head_dim": 8, "num_encoder_layers": 2, "num_decoder_layers": 2}
)
MUP = DecoderConfig.model_validate(SMALL | {"num_layers": 2, "mup_base_width": 8})
MOE_BASE = Path(__file__).parents[2] / "configs" / "models" / "moe-base.yaml"


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        (DECODER, AdamWConfig()),
        (T5, AdafactorConfig(name="adafactor", weight_decay=0.01)),
        (DECODER, MuonConfig(name="muon")),
        (DECODER, MuonConfig(name="muon", adjust_lr="match_rms_adamw")),
        (MUP, AdamWConfig(mup_scales_decay=True)),
        (MUP, AdamWConfig(lr=0.5, weight_decay=3.0)),
    ],
)
def test_treatments_are_the_optimizers(model: ModelConfig, optimizer: OptimizerConfig) -> None:
    told = {row.name: row for row in treatments(model, optimizer, vocab_size=31)}
    built = build_model(model, vocab_size=31, seed=0)
    names = {parameter: name for name, parameter in built.named_parameters()}
    made = build_optimizer(built, optimizer)
    for group in made.param_groups:
        for parameter in group["params"]:
            row = told[re.sub(r"\.\d+\.", ".*.", names[parameter])]
            assert row.shape == parameter.shape
            assert row.peak_lr == optimizer.lr * group.get("lr_ratio", 1.0)
            assert row.weight_decay == group["weight_decay"]
            assert (row.optimizer == "muon") == group.get("use_muon", False)
    assert sum(row.parameters for row in told.values()) == sum(p.numel() for p in built.parameters())


def test_text_sums_up_what_decays() -> None:
    lines = treatments_text(treatments(T5, AdamWConfig(), vocab_size=31)).splitlines()
    assert any(
        re.match(r"decoder\.blocks\.\*\.cross_norm\.weight +2 x 16 +adamw +0.001 +0$", line) for line in lines
    )
    total, decayed = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", lines[-1]))
    norms, tables = (2 * 2 + 1) + (2 * 3 + 1), 2
    assert total - decayed == 16 * norms + tables * 32 * 2


def test_published_shape_is_shown_without_its_memory() -> None:
    result = CliRunner().invoke(app, ["config", "show", str(MOE_BASE), "--parameters", "--json"])
    rows = json.loads(result.output)
    count = 0
    for row in rows:
        size = row["number"]
        for extent in row["shape"]:
            size *= extent
        count += size
    assert count == 700_636_416
