"""The independent trainer meets the losses and weights of runs, and the auditor their inputs."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from independent_audit import main
from replay import differences

from reptrain import audit
from reptrain.config import RunConfig
from reptrain.distributed.stop import StopRequest
from reptrain.distributed.world import World
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.training.rebuilt_inputs import audit_inputs

HERE = Path(__file__).parent
DROPOUT = [f"model.dropout.{site}=0.1" for site in ("embedding", "attention", "residual", "mlp")]
# An eps far above rounding: Adam would turn the sign of a gradient's rounding into a whole step.
COMMON = [
    *(
        "optimizer.eps=1e-6",
        "optimizer.clip_grad_norm=0.7",
        "checkpoint.keep_last=9",
        "data.unique_tokens=2000",
    ),
    *(
        "evaluate.every_fraction=1",
        "evaluate.max_windows=2",
        "train.batch_windows=8",
        "train.total_tokens=2.2epochs",
    ),
    *DROPOUT,
]
RUNS: dict[str, list[str]] = {
    "decoder": [
        *("model.num_heads=4", "model.num_kv_heads=2", "data.document_mask=true", "data.cut=shifted"),
        *("train.micro_batch_windows=3", "regularize.label_smoothing=0.1", "regularize.z_loss=1e-3"),
        *("average={decay: 0.9}", "schedule.name=constant"),
    ],
    "t5": [
        "objective={name: span_corruption, input_tokens: 32, noise_density: 0.3}",
        "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 2, num_heads: 2}",
        *("model.head_dim=8", "model.d_ff=48", "data.document_mask=true", "data.window_tokens=null"),
        *("model.dropout.mlp_output=0.2", "regularize.input_noise=0.2", "regularize.input_noise_by=random"),
        *("train.micro_batch_windows=4", "regularize.masked_inputs=0.3"),
        "seeds={order: 5, noise: 6, weights: 7, dropout: 8}",
    ],
    "moe": [
        *("model.moe={num_experts: 4, top_k: 2, d_ff: 32, group_windows: 2}", "model.dropout.expert=0.1"),
        *("model.dropout.expert_output=0.3", "model.dropout.mlp_output=0.2"),
        *("regularize.input_noise=0.2", "regularize.masked_inputs=0.4", "regularize.z_loss=1e-3"),
        *("train.micro_batch_windows=4", "data.order=same", "objective={name: prefix_lm}"),
    ],
    "views": [
        "objective={name: augmented_causal, max_offset: 3, right_to_left: 0.5}",
        *("model.dropout.mlp_output=0.2", "train.micro_batch_windows=4", "optimizer.weight_decay=0.5"),
        *("schedule={name: cyclic, cycles: 2, weight_decay_ratio: 5}", "data.cut=repacked"),
    ],
}  # fmt: skip


class StopAfter(StopRequest):
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def reason(self, world: World) -> str | None:
        self._left -= 1
        return "enough" if self._left < 0 else super().reason(world)


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest, tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run of some steps; that of T5 was stopped and resumed."""
    from reptrain.training.loop import train

    folder = tmp_path_factory.mktemp("replayed") / request.param
    config = tiny(*RUNS[request.param], *COMMON)
    if request.param == "t5":
        assert train(config, folder, stop=StopAfter(5)).state == "preempted"
    train(config, folder)
    return folder


@pytest.mark.usefixtures("one_thread")
def test_replay_meets_losses_and_weights(run: Path) -> None:
    assert differences(run) == []


def test_independent_audit_proves_the_inputs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--level", "inputs"]) == 0
    assert capsys.readouterr().out == "exact (level inputs)\n"
    assert audit_inputs(run).exit_code == 0


@pytest.mark.parametrize("run", ["moe"], indirect=True)
@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "state"])
def test_auditors_cannot_say_on_a_changed_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = max(folder.glob("checkpoints/step-*/*.safetensors")) if name == "state" else folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if name == "state" else content + b"\n")
    assert main([str(folder), "--level", "inputs"]) == 4
    assert (audit_inputs if name == "state" else audit)(folder).exit_code == 4
    said = capsys.readouterr().out
    assert path.parent.name in said if name == "state" else name in said


def swap_checkpoints(folder: Path) -> None:
    first, second = sorted(folder.glob("checkpoints/step-*"))[:2]
    other = first.rename(folder / "other")
    second.rename(first)
    other.rename(second)


def lose_manifest(folder: Path) -> None:
    next(folder.glob("checkpoints/step-*/manifest.json")).unlink()


def truncate_state(folder: Path) -> None:
    path = next(folder.glob("checkpoints/step-*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("run", ["t5"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "by_windows", "by_inputs"),
    [(swap_checkpoints, 4, 4), (truncate_state, 0, 4), (lose_manifest, 0, 0)],
)
def test_auditors_agree_on_damaged_checkpoints(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], by_windows: int, by_inputs: int
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    damage(folder)
    assert (audit(folder).exit_code, main([str(folder)])) == (by_windows, by_windows)
    proofs = audit_inputs(folder).exit_code, main([str(folder), "--level", "inputs"])
    assert proofs == (by_inputs, by_inputs)


@pytest.mark.parametrize("run", ["moe"], indirect=True)
def test_independent_audit_finds_other_inputs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints")
    ledger = RunFolder(folder).ledger
    records = [line.record for line in ledger.lines()]
    ledger.remove()
    for record in records:
        other = isinstance(record, LedgerRecord) and record.step == 3
        ledger.append(record.model_copy(update={"inputs": "0" * 16}) if other else record)
    assert main([str(folder), "--level", "inputs"]) == 1
    assert "step 3: other inputs or targets entered the model" in capsys.readouterr().out
    assert audit_inputs(folder).exit_code == 1


@pytest.mark.parametrize("run", ["decoder"], indirect=True)
@pytest.mark.usefixtures("one_thread")
def test_replay_finds_another_loss_and_other_weights(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    metrics = folder / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    wrong = next(record for record in records if record["kind"] == "train" and record["step"] == 2)
    wrong["loss_nats"] += 1e-3
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    state = next(folder.glob("checkpoints/step-*/*.safetensors"))
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    found = differences(folder)
    assert len(found) == 2 and found[0].startswith("step 2: loss_nats ")
    assert found[1].startswith(f"{state.parent.name}: ")


def test_independent_trainer_imports_no_code_of_the_trainer() -> None:
    tree = ast.parse((HERE / "independent_trainer.py").read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (alias.name if isinstance(node, ast.Import) else str(node.module)).partition(".")[0]
        for node in imported
        for alias in node.names
    }
    allowed = {
        "numpy",
        "torch",
        "safetensors",
        "independent_evidence",
        "independent_inputs",
        "independent_tokenizer",
        "independent_windows",
    }
    assert names <= allowed | set(sys.stdlib_module_names)
    assert len((HERE / "independent_trainer.py").read_text().splitlines()) <= 400
