"""Generation equals the uncached forward pass; draws depend on seed, prompt and position only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig, T5Config
from reptrain.errors import ConfigError, ReptrainError, TextError
from reptrain.generation import Sampling, Writer, generate
from reptrain.generation.prompts import decode_text, encode_prompt, read_prompts
from reptrain.hub.export import export_model
from reptrain.hub.saved_model import Reading, open_saved_model
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.model import build_model
from reptrain.text import Tokenizer
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]
VOCAB, IDS, NEW = 61, 50, 12
SPECIAL = SpecialIds(0, (1,))
PROMPTS = [[5, 9, 33], [40], [7] * 9, [11, 12], [30, 31, 32, 33]]
DECODER = DecoderConfig(
    d_model=32, num_heads=4, d_ff=48, num_layers=4, num_stored_layers=2, init_std=0.3,
    moe={"num_experts": 4, "every": 2},
)  # fmt: skip
T5 = T5Config(
    family="t5", d_model=32, num_heads=2, head_dim=16, d_ff=48, num_encoder_layers=2, num_decoder_layers=2,
)  # fmt: skip


def writer(config: DecoderConfig | T5Config, reading: Reading = "causal") -> Writer:
    return Writer(build_model(config, vocab_size=VOCAB, seed=3).eval(), SPECIAL, IDS, reading)


@torch.no_grad()
def uncached(writer: Writer, prompt: list[int], sampling: Sampling, row: int) -> list[int]:
    """A full forward pass for every token."""
    chosen: list[int] = []
    for position in range(NEW):
        if isinstance(writer.model.config, DecoderConfig):
            read = [*prompt, 1, 0] if writer.reading == "inputs" else [0, *prompt]
            prefix = {"causal": 0, "prefix": len(read), "inputs": len(read) - 1}[writer.reading]
            logits_1TV = writer.model(
                torch.tensor([[*read, *chosen]]), prefix_B=torch.tensor([prefix]) if prefix else None
            )
        else:
            source_1S, inputs_1T = torch.tensor([[*prompt, 1]]), torch.tensor([[0, *chosen]])
            logits_1TV = writer.model(
                source_1S,
                inputs_1T,
                source_segments_BS=torch.ones_like(source_1S),
                segments_BT=torch.ones_like(inputs_1T),
            )
        token_B = sampling.choose(logits_1TV[:, -1, :IDS], torch.tensor([row]), position)
        chosen.append(int(token_B))
        if chosen[-1] == 1:
            break
    return chosen


@pytest.mark.parametrize(
    ("config", "reading", "sampling"),
    [
        (DECODER, "causal", Sampling()),
        (DECODER, "causal", Sampling(0.8, 0.9, seed=4)),
        (DECODER, "prefix", Sampling()),
        (DECODER, "inputs", Sampling()),
        (T5, "inputs", Sampling()),
        (T5, "inputs", Sampling(0.8, 0.9, seed=4)),
    ],
)
def test_tokens_equal_those_of_the_uncached_model_in_any_batch(
    config: DecoderConfig | T5Config, reading: Reading, sampling: Sampling
) -> None:
    made = writer(config, reading)
    expected = [uncached(made, prompt, sampling, row) for row, prompt in enumerate(PROMPTS)]
    for batch_rows in (2, 5):
        found = made.write(PROMPTS, max_new_tokens=NEW, sampling=sampling, batch_rows=batch_rows)
        assert list(found) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)


def test_text_stops_after_the_end_id(monkeypatch: pytest.MonkeyPatch) -> None:
    made = writer(DECODER)
    whole = list(made.write(PROMPTS, max_new_tokens=NEW, sampling=Sampling(), batch_rows=5))
    # What one row writes in its midst ends it, and no other row that does not write it.
    end = whole[1][3]
    ends = Writer(made.model, SpecialIds(0, (end,)), IDS)
    cut = list(ends.write(PROMPTS, max_new_tokens=NEW, sampling=Sampling(), batch_rows=5))
    assert cut == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in whole]
    assert len(cut[1]) <= 4


def draws(sampling: Sampling, logits_V: Tensor, count: int = 20_000) -> Tensor:
    token_B = sampling.choose(logits_V.expand(count, -1), torch.arange(count), 7)
    return torch.bincount(token_B, minlength=len(logits_V)) / count


def test_draws_follow_the_models_probabilities() -> None:
    logits_V = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])
    for temperature in (1.0, 0.5, 3.0):
        expected_V = (logits_V / temperature).softmax(-1)
        found_V = draws(Sampling(temperature, seed=1), logits_V)
        # Four standard errors.
        assert ((found_V - expected_V).abs() < 4 * (expected_V / 20_000).sqrt()).all()
    drawn = [
        Sampling(1.0, seed=seed).choose(logits_V.expand(50, -1), torch.arange(50), position)
        for seed, position in [(1, 7), (2, 7), (1, 8)]
    ]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probability_V = torch.tensor([0.15, 0.5, 0.05, 0.3])
    found_V = draws(Sampling(1.0, top_p=0.75), probability_V.log())
    assert found_V.tolist() == [0, pytest.approx(0.5 / 0.8, abs=0.02), 0, pytest.approx(0.3 / 0.8, abs=0.02)]
    assert draws(Sampling(1.0, top_p=1e-9), probability_V.log()).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "words"),
    [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top-p"), ({"seed": -1}, "seed")],
)
def test_sampling_out_of_range_is_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**values)


@pytest.fixture(scope="module")
def run(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 after a few training steps."""
    out = tmp_path_factory.mktemp("run") / "t5"
    model = "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2,"
    train(
        tiny(
            "train.total_tokens=800", "objective.name=span_corruption", f"{model} head_dim: 16, d_ff: 64}}"
        ),
        out,
    )  # fmt: skip
    return out


def test_generate_command_accepts_prompts_and_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The <extra_id_0> of a list\n\nis\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "The <extra_id_0> of a list"}\n{"prompt": "is"}\n')
    told = []
    for name in ("p.txt", "p.jsonl"):
        out = tmp_path / f"{name}.out"
        words = ["generate", str(run), "--prompts", str(tmp_path / name), "--out", str(out)]
        result = CliRunner().invoke(app, [*words, "--max-new-tokens", "5"], catch_exceptions=False)
        assert result.exit_code == 0 and "2 texts in" in result.output
        told.append([json.loads(line) for line in out.read_text().splitlines()])
    assert told[0] == told[1]
    assert [row["prompt"] for row in told[0]] == ["The <extra_id_0> of a list", "is"]
    result = CliRunner().invoke(
        app,
        ["generate", str(run), "--prompt", "is", "--max-new-tokens", "5", "--json"],
        catch_exceptions=False,
    )
    assert json.loads(result.output)[0] == told[0][1]


READINGS = {
    "causal": "causal",
    "fill_in_the_middle": "causal",
    "prefix_lm": "prefix",
    "prefix_lm, bidirectional: false": "causal",
    "span_corruption": "inputs",
    "masked_diffusion": "unordered",
}


def test_decoder_treats_a_prompt_as_in_its_objective(tiny: MakeConfig, tmp_path: Path) -> None:
    train(tiny("train.total_tokens=400"), tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    for objective, reading in READINGS.items():
        (tmp_path / "config.yaml").write_text(
            re.sub(r"objective:\n( .*\n)+", f"objective: {{name: {objective}}}\n", text)
        )
        assert open_saved_model(tmp_path).reading == reading
        if reading != "causal":
            with pytest.raises(ReptrainError, match="causal attention only"):
                export_model(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="must be autoregressive"):
        generate(tmp_path, ["a"])


def test_wrong_input_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="must name one of the tokenizer's 32 sentinels"):
        generate(run, ["a <extra_id_99>"])
    with pytest.raises(ConfigError, match="max-new-tokens"):
        generate(run, ["a"], max_new_tokens=0)
    with pytest.raises(ReptrainError, match="must be the folder of a model"):
        generate(tmp_path, ["a"])
    (tmp_path / "p.jsonl").write_text('{"text": "a"}\n')
    result = CliRunner().invoke(app, ["generate", str(run), "--prompts", str(tmp_path / "p.jsonl")])
    assert isinstance(result.exception, TextError) and "p.jsonl:1" in str(result.exception)


def test_sentinels_are_written_as_text(store_path: Path) -> None:
    from reptrain.store import open_store

    tokenizer: Tokenizer = open_store(store_path).tokenizer()
    text = "one <extra_id_0> two<extra_id_11>"
    ids = encode_prompt(tokenizer, text)
    assert tokenizer.sentinel_ids[0] in ids and ids[-1] == tokenizer.sentinel_ids[11]
    assert decode_text(tokenizer, [*ids, tokenizer.eos_id]) == text


def test_read_prompts_accepts_every_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\xe2\x80\xa8three\n")
    assert read_prompts(path) == ["one", "two\u2028three"]
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b"}')
    assert read_prompts(path) == ["a", "b"]
    for content, words in (
        (b'{"prompt": null}', r"p\.jsonl:1: .*got null under 'prompt'"),
        (b'\n{"prompt": ["a"]}', r"p\.jsonl:2: .*got a list under 'prompt'"),
        (b'{"text": "a"}', r"p\.jsonl:1: .*got text"),
        (b'{"prompt": "\\ud800"}', r"p\.jsonl:1: .*an unpaired surrogate"),
        (b'{"prompt": "a\tb"}', r"p\.jsonl:1: .*a raw tab in a string at column 14"),
        (b'{"prompt": "a", "prompt": "b"}', r"p\.jsonl:1: .*the key 'prompt' twice"),
        ("one".encode("utf-16"), r"p\.jsonl: must be UTF-8, but got UTF-16"),
        (b" \n", r"p\.jsonl: .*no prompts"),
    ):
        path.write_bytes(content)
        with pytest.raises(TextError, match=words):
            read_prompts(path)
