"""Exported models: transformers loads them and gives our logits and greedy tokens."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: no parity")

import transformers
from safetensors.torch import save_file
from their_models import MADE, close, make, rows, save
from typer.testing import CliRunner

from reptrain.checkpoint.tensor_file import StoredTensor, write_tensors
from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import HubError, ReptrainError
from reptrain.generation.decoding import without_capacity
from reptrain.hub.export import export_model, import_model, write_model
from reptrain.hub.imported_model import ImportedModel
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.model import build_model
from reptrain.model.init import parameter_shapes
from reptrain.store import open_store
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def run(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder after a few training steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with torch.enable_grad():
        train(tiny("train.total_tokens=1200"), out)
    return out


@pytest.fixture
def untrained(tiny: MakeConfig, store_path: Path, run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Create an imported model with initial weights; without overrides, a run."""

    def make_model(*overrides: str) -> Path:
        if not overrides:
            return run
        model = build_model(tiny(*overrides).model, vocab_size=512, seed=1)
        rows = model.config.model_copy(update={"vocab_size": 512})
        described = ImportedModel(model=rows, start_id=0, end_ids=[1], window_tokens=32)
        shapes = parameter_shapes(model.config, vocab_size=512)
        tokenizer = open_store(store_path).tokenizer()
        write_model(tmp_path / "model", described, tokenizer, shapes, model.get_parameter)
        return tmp_path / "model"

    return make_model


T5 = (
    "objective.name=span_corruption", "model={family: t5, d_model: 32, num_encoder_layers: 2,"
    " num_decoder_layers: 2, num_heads: 2, head_dim: 16, d_ff: 64}",
)  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "llama": (),
    "shared": ("model.num_layers=4", "model.num_stored_layers=2", "model.tie_embeddings=false"),
    "mixtral": ("model.moe={num_experts: 4, top_k: 2}",),
    "gpt": (
        "model.norm=layernorm", "model.positions=learned", "model.max_positions=64", "model.mlp=gelu",
        "model.bias=true",
    ),
    "gelu": ("model.mlp=geglu",),
    "biases": ("model.bias=true", "model.head_dim=10"),
    "mlp biases": ("model.mlp_bias=true",),
    "mistral": ("model.sliding_window=5", "model.num_kv_heads=1"),
    "qwen2": ("model.attention_bias=qkv",),
    "qwen2 window": ("model.attention_bias=qkv", "model.sliding_window=5"),
    "mixtral window": ("model.moe={num_experts: 4, top_k: 2}", "model.sliding_window=5"),
    "llama3 rope": (
        "model.rope_scaling={name: llama3, factor: 4, original_max_positions: 16}", "model.rope_theta=500",
    ),
    "linear rope": ("model.rope_scaling={name: linear, factor: 2.5}",),
    "t5 silu": (*T5, "model.mlp=swiglu"),
    "t5 gelu": (*T5, "model.mlp=gelu", "model.tie_embeddings=true"),
    "umt5": (*T5, "model.relative_bias_per_layer=true"),
    "t5-1.1": T5,
    "t5-1.0": (*T5, "model.mlp=relu", "model.tie_embeddings=true"),
    "switch": (
        *T5, "model.mlp=relu", "model.moe={num_experts: 4, top_k: 1, every: 2, capacity_factor: 1.25}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_exported_model_gives_our_logits_in_transformers(
    kind: str, untrained: Callable[..., Path], tmp_path: Path
) -> None:
    run = untrained(*RUNS[kind])
    told = export_model(run, tmp_path / "out", max_shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    trained = open_saved_model(run)
    config = without_capacity(trained.config)
    ours = trained.load(config)
    tokens_BT, is_token_BT = rows([40, 25, 1], 3)
    counted = is_token_BT.bool()
    if config.family == "t5":
        auto = transformers.AutoModelForSeq2SeqLM
        logits_BTV = ours(tokens_BT, tokens_BT, source_segments_BS=is_token_BT, segments_BT=is_token_BT)
        inputs = {"decoder_input_ids": tokens_BT, "decoder_attention_mask": is_token_BT}
    else:
        auto, inputs = transformers.AutoModelForCausalLM, {}
        logits_BTV = ours(tokens_BT, is_token_BT=counted)
    theirs, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected_BTV = theirs.eval()(input_ids=tokens_BT, attention_mask=is_token_BT, **inputs).logits
    close(logits_BTV[counted], expected_BTV[counted], spread=0.01)
    stored = sum(parameter.numel() for parameter in ours.parameters())
    assert told.parameters == stored and told.step == open_saved_model(run).step
    # Shared layers are copied, and so is the embedding of an untied Switch.
    if kind not in ("shared", "switch"):
        assert sum(parameter.numel() for parameter in theirs.parameters()) == stored


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt"])
def test_exported_decoder_attends_to_its_start_token_without_a_mask(
    kind: str, untrained: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers' `generate` masks another padding id in a prompt."""
    run = untrained(*RUNS[kind])
    export_model(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        # Far from uniform, and with an attention that tells one position from none.
        for name, parameter in theirs.named_parameters():
            parameter.mul_(1 if "norm" in name or "ln_" in name else 5)
    start = open_saved_model(run).special_ids(open_saved_model(run).tokenizer(None)).start
    assert start == theirs.generation_config.bos_token_id == 0
    prompt = torch.tensor([[start, 7, start, 9], [start] * 4, [start, 7, 1, 9]])
    more = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = theirs.generate(prompt, **more)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **more)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))
    pieces = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert pieces.pad_token_id == theirs.generation_config.pad_token_id == pieces.eos_token_id != start
    assert theirs.config.pad_token_id is None


@pytest.mark.parametrize("kind", MADE)
def test_import_and_export_preserve_the_tensors(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    imported = import_model(save(theirs, tmp_path / "theirs"), tmp_path / "ours")
    assert imported.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    again = open_saved_model(tmp_path / "ours").load()
    for (name, parameter), other in zip(
        open_saved_model(tmp_path / "theirs").load().named_parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name
    record = json.loads((tmp_path / "ours" / "parent.json").read_text())
    assert record["weights"] == open_saved_model(tmp_path / "theirs").fingerprint()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "shared_d_ff": (("model.moe={num_experts: 4, shared_d_ff: 8}",), "moe.shared_d_ff"),
    "sigmoid": (("model.moe={num_experts: 4, score: sigmoid}",), "moe.score"),
    "bias": (("model.moe={num_experts: 4, bias_rate: 0.01}",), "moe.bias_rate"),
    "every": (("model.moe={num_experts: 4, every: 2}",), "moe.every"),
    "switch top-k": ((*T5, "model.mlp=relu", "model.moe={num_experts: 4}"), "moe.top_k"),
    "switch gated": ((*T5, "model.moe={num_experts: 4, top_k: 1}"), "model.mlp"),
    "gelu": (("model.mlp=gelu",), "model.mlp"),
    "window and biases": (("model.sliding_window=5", "model.attention_bias=all"), "model.attention_bias"),
    "biases of queries and of the MLP": (
        ("model.attention_bias=qkv", "model.mlp_bias=true"), "model.mlp_bias",
    ),
    "window of gpt": (
        ("model.norm=layernorm", "model.positions=learned", "model.max_positions=64", "model.mlp=gelu",
         "model.bias=true", "model.sliding_window=5"), "model.sliding_window",
    ),
    "sparse biases": (("model.moe={num_experts: 4}", "model.attention_bias=qkv"), "model.attention_bias"),
    "relative positions": (("model.positions=relative",), "model.positions"),
    "layernorm": (("model.norm=layernorm",), "model.norm"),
    "mup": (("model.mup_base_width=16",), "model.mup_base_width"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_export_refuses_what_transformers_does_not_have(kind: str, tiny: MakeConfig) -> None:
    from reptrain.hub import model_settings

    overrides, name = REFUSED[kind]
    with pytest.raises(HubError, match=name):
        model_settings(tiny(*overrides).model, rows=512)


def test_switch_every_fourth_is_refused(tiny: MakeConfig) -> None:
    from reptrain.hub import model_settings

    overrides = (*T5, "model.mlp=relu", "model.num_encoder_layers=4", "model.num_decoder_layers=4")
    config = tiny(*overrides, "model.moe={num_experts: 4, top_k: 1, every: 4}").model
    with pytest.raises(HubError, match="every"):
        model_settings(config, rows=512)


def test_commands_print_their_results(run: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["export", str(run), str(out), "--step", "3", "--dtype", "bf16", "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    told = json.loads(result.output)
    assert told["model_type"] == "llama" and told["step"] == 3
    result = CliRunner().invoke(app, ["import", str(out), str(again)], catch_exceptions=False)
    assert f"llama, {told['parameters']:,} parameters" in result.output
    for name, parameter in open_saved_model(run, 3).load().named_parameters():
        rounded = open_saved_model(again).load().get_parameter(name)
        assert torch.equal(parameter.bfloat16().float(), rounded), name


def test_export_refuses_a_non_empty_folder_and_a_missing_step(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReptrainError, match="must be new or empty"):
        export_model(run, tmp_path)
    with pytest.raises(ReptrainError, match=r"must be an intact checkpoint \(existing: step-"):
        export_model(run, tmp_path / "out", step=777)
    with pytest.raises(ReptrainError, match="must be the folder of a model"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_holds_one_parameter_at_a_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, held, most = SavedModel.parameter, weakref.WeakSet[torch.Tensor](), 0

    def watched(self: SavedModel, name: str, expert: int | None = None) -> torch.Tensor:
        nonlocal most
        values = plain(self, name, expert)
        held.add(values)
        most = max(most, len(held))
        return values

    monkeypatch.setattr(SavedModel, "parameter", watched)
    export_model(run, tmp_path / "out")
    assert most == 1


def test_written_files_have_the_bytes_of_the_library(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5]), "c": torch.zeros(3, 0)}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stored = [StoredTensor(name, tuple(tensors[name].shape), lambda n=name: tensors[n]) for name in "abc"]
        written = write_tensors(tmp_path / "ours", stored, dtype, {"format": "pt"})
        save_file(
            {name: tensor.to(dtype) for name, tensor in tensors.items()},
            tmp_path / "theirs",
            {"format": "pt"},
        )
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
        assert written.problem(tmp_path / "ours") is None
