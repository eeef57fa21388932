"""Updates of the expert bias in checkpoints, under their present and former names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from reptrain.checkpoint import CheckpointManifest, Topology
from reptrain.checkpoint.state import expert_bias, set_expert_bias


def _model() -> nn.Module:
    model, router = nn.Module(), nn.Module()
    router.register_buffer("updates_E", torch.zeros(3, dtype=torch.int64))
    model.add_module("router", router)
    return model


@pytest.mark.parametrize("name", ["router.updates_E", "router.votes_E"])
def test_set_expert_bias_accepts_the_former_buffer_name(name: str) -> None:
    model = _model()
    set_expert_bias(model, {name: [2, -1, 0]})
    assert expert_bias(model) == {"router.updates_E": [2, -1, 0]}


def test_set_expert_bias_refuses_updates_of_another_model() -> None:
    with pytest.raises(KeyError):
        set_expert_bias(_model(), {"other.votes_E": [2, -1, 0]})


def test_manifest_keeps_the_key_of_older_checkpoints(tmp_path: Path) -> None:
    manifest = CheckpointManifest(
        step=1,
        optimizer_steps=1,
        writers=Topology(world_size=1, zero_stage=0),
        loss_scaling={},
        expert_bias={"router.votes_E": [1]},
        parameters={},
        files={},
        records={},
    )
    body = manifest.text().rstrip("\n").rpartition("\n")[0]
    assert json.loads(body)["votes"] == {"router.votes_E": [1]}
    (tmp_path / "manifest.json").write_text(manifest.text())
    assert CheckpointManifest.read(tmp_path) == manifest
