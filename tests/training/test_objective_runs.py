"""Every objective trains, over the same windows, and what it trained is scored, also under another one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from interrupts import crash, interrupt_at
from ledgers import windows_of
from time_limits import takes_up_to
from typer.main import get_command

from reptrain.batch.collate import places_of
from reptrain.batch.objectives import build_objective
from reptrain.cli import app
from reptrain.config import Budget, RunConfig
from reptrain.errors import ConfigError, StoreError
from reptrain.evaluation.evaluate import ScoredRun, open_run, score_run
from reptrain.evaluation.memorization import exposures, memorized
from reptrain.evaluation.sets import evaluation_sets, sampled_windows
from reptrain.plan import plan_epochs
from reptrain.runs import RunFolder
from reptrain.runs.scores import compute_scores
from reptrain.tokenization import tokenize
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs
from reptrain.training.setup import open_data

MakeConfig = Callable[..., RunConfig]
T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48}"
)
# 13 windows of an epoch, the last of them short, twice, in steps of 12.
SHORT = ["data.unique_tokens=410", "evaluate.max_windows=4"]
RUNS = {
    "causal": ["objective.name=causal"],
    "prefix_lm": ["objective.name=prefix_lm", "data.document_mask=true"],
    "span_corruption": ["objective.name=span_corruption", "objective.noise=frozen"],
    "ul2": ["objective.name=ul2"],
    "masked_diffusion": ["objective.name=masked_diffusion", "evaluate.noise_samples=3"],
    "fill_in_the_middle": ["objective.name=fill_in_the_middle"],
    "augmented_causal": ["objective={name: augmented_causal, max_offset: 3, right_to_left: 0.5}"],
    "denoising": ["objective.name=denoising"],
    "t5-denoising": [T5, "objective.name=denoising", "data.document_mask=true", "objective.noise=frozen"],
    "t5-prefix_lm": [T5, "objective.name=prefix_lm"],
    "t5-ul2": [T5, "objective.name=ul2", "objective.noise=frozen"],
    # Sparse layers, whose losses are weighted as the nats are.
    "moe-masked_diffusion": ["objective.name=masked_diffusion", "model.moe.num_experts=4"],
}


@pytest.fixture(scope="module")
@takes_up_to(900)
def runs(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    out = tmp_path_factory.mktemp("objectives")
    for name, overrides in RUNS.items():
        assert train(tiny(*SHORT, *overrides), out / name).state == "done"
    return {name: RunFolder.open(out / name) for name in RUNS}


@pytest.fixture(scope="module")
def opened(runs: dict[str, RunFolder]) -> Callable[[str], ScoredRun]:
    return lambda name: open_run(runs[name].path, device="cpu")


@pytest.mark.parametrize("name", RUNS)
def test_every_objective_consumes_the_same_tokens(runs: dict[str, RunFolder], name: str) -> None:
    assert windows_of(runs[name].ledger) == windows_of(runs["causal"].ledger)
    report = audit_inputs(runs[name].path)
    assert report.exact and report.exposures == {2: 410}, report.text()
    assert report.inputs is not None and report.inputs.steps == len(list(runs[name].ledger.records()))
    losses = [record.loss_nats for record in runs[name].metrics.records("train")]
    assert len(losses) == 3 and all(4 < loss < 9 for loss in losses)


@pytest.mark.parametrize("name", RUNS)
def test_inputs_and_targets_are_counted(runs: dict[str, RunFolder], name: str) -> None:
    (last,), config = runs[name].metrics.last_train(1), runs[name].config
    assert last is not None and last.tokens == 820
    if name == "causal":
        assert (last.input_tokens, last.target_tokens) == (0, 820)
    elif name in ("prefix_lm", "t5-prefix_lm", "masked_diffusion", "moe-masked_diffusion"):
        assert last.input_tokens + last.target_tokens == 820
        assert 200 < last.target_tokens < 620
    else:
        data = open_data(config)
        places = places_of(data.plan, data.plan.locate(np.arange(data.plan.total_windows)))
        assert last.target_tokens == data.objective.loss_tokens(places)
        assert (last.input_tokens == 0) == (name == "fill_in_the_middle")


def test_losses_of_diffusion_are_bounds_per_token(runs: dict[str, RunFolder]) -> None:
    first = next(runs["masked_diffusion"].metrics.records("train"))
    # Before the first step the model is all but uniform over 512 pieces.
    assert first.loss_nats == pytest.approx(math.log(512), abs=0.1)


@pytest.mark.parametrize("name", ["ul2", "masked_diffusion"])
def test_crashed_run_goes_on_with_the_same_noise(
    runs: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "run"
    config = runs[name].config
    for step in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, step, crash)
            train(config, out)
    assert train(config, out).state == "done"
    for kind in ("train", "valid"):
        found, expected = (
            [
                record.model_dump(exclude={"step_ms", "tokens_per_s", "tokens_per_s_per_device", "rank_ms"})
                for record in folder.metrics.records(kind)  # type: ignore[call-overload]
            ]
            for folder in (RunFolder.open(out), runs[name])
        )
        assert found == expected


@pytest.mark.parametrize("name", RUNS)
def test_score_run_tells_what_the_run_recorded(
    runs: dict[str, RunFolder], opened: Callable[[str], ScoredRun], name: str
) -> None:
    recorded = {r.set: r for r in runs[name].metrics.records("valid") if r.step == 3}
    scores = {score.set: score for score in score_run(opened(name))}
    assert scores.keys() == recorded.keys() == {"probe", "select", "report"}
    for of, score in scores.items():
        assert score.nats == pytest.approx(recorded[of].nats, abs=1e-5)
        assert score.scores["bits_per_byte"] == pytest.approx(recorded[of].scores["bits_per_byte"], abs=1e-5)
        assert score.scores["scored_tokens"] == recorded[of].scores["scored_tokens"]
        gap = None if of == "probe" else pytest.approx(score.nats - scores["probe"].nats)
        assert score.gap_nats == gap


def test_evaluate_prints_a_table_or_json(runs: dict[str, RunFolder]) -> None:
    names = [str(runs[name].path) for name in ("causal", "t5-ul2")]
    arguments = ["evaluate", *names, "--set", "select", "--max-windows", "2", "--device", "cpu"]
    rows = json.loads(CliRunner().invoke(get_command(app), [*arguments, "--json"]).output)
    assert [(row["run"], row["step"], row["set"]) for row in rows] == [(name, 3, "select") for name in names]
    assert rows[0]["scored_tokens"] == 64 and rows[0]["gap_nats"] != 0
    heading, *lines = CliRunner().invoke(get_command(app), arguments).output.splitlines()
    assert heading.startswith("run ") and "bits per byte" in heading
    assert f"{rows[0]['nats']:.4f}" in lines[0] and "ul2" in lines[1]


@pytest.mark.parametrize("command", ["memorization", "memorisation"])
def test_memorization_prints_shares_by_exposures(runs: dict[str, RunFolder], command: str) -> None:
    names = [str(runs[name].path) for name in ("causal", "t5-ul2")]
    words = [command, *names, "--max-windows", "2", "--device", "cpu", "--json"]
    words += ["--prefix-tokens", "20", "--continuation-tokens", "3"]
    rows = json.loads(CliRunner().invoke(get_command(app), words).output)
    assert [(row["set"], row["exposures"]) for row in rows] == 2 * [("train", 2), ("select", 0)]
    assert [row["share"] for row in rows] == [row["reproduced"] / 2 for row in rows]


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("--memorised", "memorization"),
        ("--memorized", "memorization"),
        ("--prefix-tokens", "memorization"),
        ("--task", "score-task"),
        ("--set-task", "score-task"),
        ("--max-examples", "score-task"),
        ("--lm-eval", "lm-eval"),
        ("--include", "lm-eval"),
    ],
)
def test_evaluate_names_the_command_that_replaced_an_option(option: str, command: str) -> None:
    with pytest.raises(ConfigError, match=f"no longer an option of evaluate.*reptrain {command} RUN"):
        CliRunner().invoke(get_command(app), ["evaluate", "run", option, "4"], catch_exceptions=False)
    shown = CliRunner().invoke(get_command(app), ["evaluate", "-h"]).output
    assert f"{option} " not in shown


def test_score_commands_refuse_options_of_each_other() -> None:
    for words in (
        ["memorization", "run", "--ensemble"],
        ["score-task", "run", "--task", "t", "--tasks", "a"],
    ):
        result = CliRunner().invoke(get_command(app), words)
        assert result.exit_code == 2 and "No such option" in result.output


def test_bits_per_byte_of_a_whole_split_follow_from_its_bytes(opened: Callable[[str], ScoredRun]) -> None:
    run = opened("causal")
    (score,) = score_run(run, sets=["select"], max_windows=10**6)
    split = run.sources["data"][0].split("select")
    assert score.scores["scored_tokens"] == split.num_tokens
    assert score.scores["bits_per_byte"] == pytest.approx(
        score.nats / math.log(2) * split.num_tokens / split.text_bytes
    )


@pytest.mark.parametrize("max_windows", [8, 64, 1000])
def test_windows_of_a_set_are_drawn_without_replacement(max_windows: int) -> None:
    plan = plan_epochs(
        unique_tokens=32 * 300 + 5, window_tokens=32, budget=Budget(epochs=Fraction(1)),
        order="same", cut="fixed", seed=0,
    )  # fmt: skip
    start_N = np.sort(plan.locate(sampled_windows(plan, max_windows)).start)
    assert len(np.unique(start_N)) == min(max_windows, 301)
    if max_windows < 301:
        # Drawn, not spread evenly: some stand next to each other, some far apart.
        gaps = np.diff(start_N) * max_windows / (32 * 301)
        assert gaps.min() < 0.5 and gaps.max() > 1.5
    else:
        assert start_N.tolist() == list(range(0, 32 * 301, 32))


@pytest.mark.parametrize("objective", ["causal", "masked_diffusion"])
def test_bits_per_byte_are_of_the_bytes_of_the_scored_windows(
    opened: Callable[[str], ScoredRun], objective: str
) -> None:
    run = opened(objective)
    (found,) = evaluation_sets(
        run.config, run.sources, run.tokenizer, world=run.world, micro_batch_windows=12, only=["select"]
    )
    score = found.score(run.model, world=run.world)
    num_bytes = sum(
        len(run.tokenizer.decode(row[:length]).encode())
        for batch in found.micro_batches
        for row, length in zip(batch.tokens_BL.tolist(), batch.length_B.tolist(), strict=True)
    )
    assert compute_scores(score)["bits_per_byte"] == pytest.approx(
        score.nats / math.log(2) / num_bytes, rel=2e-3
    )
    split = run.sources["data"][0].split("select")
    of_mean = score.loss_tokens * split.text_bytes / split.num_tokens
    assert abs(of_mean / num_bytes - 1) > 0.004, "the windows must differ from their split for this test"


def test_sets_of_a_source_are_scored_under_equal_noise_and_samples_under_other(
    runs: dict[str, RunFolder], opened: Callable[[str], ScoredRun]
) -> None:
    run = opened("masked_diffusion")
    found = evaluation_sets(run.config, run.sources, run.tokenizer, world=run.world, micro_batch_windows=12)
    masks = {of.name: of.micro_batches[0].noise["is_noise_BL"] for of in found}
    assert torch.equal(masks["probe"], masks["select"]) and torch.equal(masks["probe"], masks["report"])
    # Arms of other seeds are scored under the same noise.
    other = evaluation_sets(
        run.config.model_copy(update={"seed": 7}), run.sources, run.tokenizer, world=run.world,
        micro_batch_windows=12, only=["select"],
    )  # fmt: skip
    assert torch.equal(masks["select"], other[0].micro_batches[0].noise["is_noise_BL"])
    samples = masks["probe"].view(3, 4, 32)
    assert not torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])
    for of in found:
        assert torch.equal(*(of.micro_batches[0].tokens_BL.view(3, 4, 32)[[place]] for place in (0, 2)))
    once, thrice = (
        score_run(run, sets=["select"], noise_samples=samples, max_windows=4)[0] for samples in (1, 3)
    )
    assert once.nats != thrice.nats


def test_causal_model_is_scored_on_the_rest_of_a_prefix(opened: Callable[[str], ScoredRun]) -> None:
    run = opened("causal")
    (half,) = score_run(
        run, sets=["select"], objectives=["{name: prefix_lm, prefix_fraction: 0.5, bidirectional: false}"]
    )
    nats, count = 0.0, 0
    (of,) = evaluation_sets(
        run.config, run.sources, run.tokenizer, world=run.world, micro_batch_windows=4, only=["select"]
    )
    for batch in of.micro_batches:
        example = of.objective.example(batch)
        with torch.no_grad():
            logp_BTV = run.model(**example.inputs).log_softmax(-1)
        logp_BT = logp_BTV.gather(-1, batch.tokens_BL[..., None])[..., 0]
        nats, count = nats - float(logp_BT[:, 16:].sum()), count + logp_BT[:, 16:].numel()
    assert half.nats == pytest.approx(nats / count, abs=1e-5)
    assert half.scores["scored_tokens"] == count == 64
    # By its name alone a causal model reads the prefix causally, and one that learned to, in both directions.
    by_name, causally, both = (
        score_run(run, sets=["select"], objectives=[text])[0].nats
        for text in ("prefix_lm", "{name: prefix_lm, bidirectional: false}", "{name: prefix_lm}")
    )
    assert by_name == causally != both


def test_model_of_one_objective_is_scored_under_others(opened: Callable[[str], ScoredRun]) -> None:
    names = ["span_corruption", "prefix_lm", "{name: ul2, denoisers: [{mode: R, noise_density: 0.15}]}"]
    scores = score_run(opened("t5-ul2"), sets=["report"], objectives=names)
    assert [score.objective for score in scores] == ["span_corruption", "prefix_lm", "ul2"]
    # Four windows of 32 tokens: 5 hidden in 2 spans, or in one; sentinels and an EOS come on top.
    assert [scores[0].scores["scored_tokens"], scores[0].scores["raw_tokens"]] == [4 * 8, 4 * 5]
    assert [scores[2].scores["scored_tokens"], scores[2].scores["raw_tokens"]] == [4 * 7, 4 * 5]
    with pytest.raises(ConfigError, match=r"masked_diffusion needs model\.family decoder"):
        score_run(opened("t5-ul2"), objectives=["masked_diffusion"])
    with pytest.raises(ConfigError, match=r"objective\.name: must be one of"):
        score_run(opened("t5-ul2"), objectives=["ul3"])
    with pytest.raises(ConfigError, match="must be a name, or a mapping"):
        score_run(opened("t5-ul2"), objectives=["[ul2]"])


def test_runs_are_scored_on_another_store_of_the_same_tokenizer_alone(
    runs: dict[str, RunFolder], text_file: Path, store_path: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(store_path, tmp_path / "moved"))
    run = open_run(runs["causal"].path, stores={"data": moved}, device="cpu")
    assert [score.set for score in score_run(run)] == ["probe", "select", "report"]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(text_file.read_text().splitlines(keepends=True)[:60]))
    tokenize([few], tmp_path / "same", held_out_fraction=0.3, tokenizer=store_path / "tokenizer.model")
    tokenize([few], tmp_path / "other", held_out_fraction=0.3, vocab_size=300)
    run = open_run(runs["causal"].path, stores={"data": tmp_path / "same"}, device="cpu")
    scores = score_run(run)
    assert [(score.set, score.gap_nats) for score in scores] == [("select", None), ("report", None)]
    with pytest.raises(StoreError, match="must have the tokenizer of"):
        open_run(runs["causal"].path, stores={"data": tmp_path / "other"}, device="cpu")


@pytest.fixture(scope="module")
@takes_up_to(600)
def by_heart(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> ScoredRun:
    """A run that has learnt the five windows of its subset, one of which was left out in its last epoch."""
    out = tmp_path_factory.mktemp("by-heart") / "run"
    config = tiny(
        *("data.unique_tokens=160", "train.total_tokens=79.8epochs", "train.batch_windows=3"),
        *("optimizer.lr=5e-3", "evaluate.every_fraction=1", "model.d_model=64"),
    )
    train(config, out)
    return open_run(out, device="cpu")


def test_memorized_tells_of_windows_that_were_learnt_by_heart(by_heart: ScoredRun) -> None:
    rows = memorized(by_heart, prefix_tokens=16, continuation_tokens=6, max_windows=100)
    found = {(row.set, row.exposures): row for row in rows}
    assert found.keys() == {("train", 79), ("train", 80), ("select", 0)}
    assert [found["train", times].windows for times in (79, 80)] == [1, 4]
    assert sum(found["train", times].reproduced for times in (79, 80)) >= 4
    assert found["select", 0].windows == 100 and found["select", 0].share < 0.1


def test_memorized_is_what_greedy_decoding_gives(
    by_heart: ScoredRun, opened: Callable[[str], ScoredRun]
) -> None:
    found: dict[str, list[int]] = {}
    # One that has learnt its five windows, and one that has hardly seen its 13.
    for name, run in (("by heart", by_heart), ("untrained", opened("causal"))):
        subset = run.sources["data"][1]
        assert subset is not None
        for prompt in (1, 2, 4, 16):
            right = 0
            for start in range(0, subset.unique_tokens - prompt - 4 + 1, 32):
                text = subset.read(start, prompt + 4).tolist()
                tokens = [0, *text[:prompt]]
                for _ in range(4):
                    with torch.no_grad():
                        tokens.append(int(run.model(torch.tensor([tokens]))[0, -1].argmax()))
                right += tokens[1:] == text
            rows = memorized(run, prefix_tokens=prompt, continuation_tokens=4, max_windows=100)
            assert sum(row.reproduced for row in rows if row.set == "train") == right
            found.setdefault(name, []).append(right)
    # How few tokens of a prompt suffice is chance; with 16 it knows them.
    assert found["by heart"][-1] >= 4 and max(found["untrained"]) <= 2


@pytest.mark.parametrize("name", RUNS)
def test_memorized_looks_at_the_continuation_alone(
    opened: Callable[[str], ScoredRun], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows all targets, and errs at one of the window's own tokens in the first row."""
    run, given = opened(name), {}
    kind = type(build_objective(run.config, run.tokenizer, noise_seed=0))
    honest = kind.example
    monkeypatch.setattr(kind, "example", lambda self, batch: given.setdefault("e", honest(self, batch)))

    def reproduced(wrong: int | None) -> int:
        def knows(**_: torch.Tensor) -> torch.Tensor:
            example = given.pop("e")
            best_BT = example.targets_BT.clamp(min=0)
            if wrong is not None:
                best_BT[0, example.is_raw_BT[0].nonzero()[wrong]] += 1
            return torch.nn.functional.one_hot(best_BT, 513).float()

        rows = memorized(replace(run, model=knows), prefix_tokens=20, continuation_tokens=3, max_windows=6)
        return rows[0].reproduced

    predicts_all = name in ("causal", "augmented_causal", "fill_in_the_middle") or "denoising" in name
    assert [reproduced(wrong) for wrong in (None, -1, 0)] == [6, 5, 6 if predicts_all else 5]


@pytest.mark.parametrize("name", RUNS)
def test_memorized_asks_every_objective(opened: Callable[[str], ScoredRun], name: str) -> None:
    rows = memorized(opened(name), prefix_tokens=20, continuation_tokens=3, max_windows=6)
    assert [(row.set, row.exposures, row.windows) for row in rows] == [("train", 2, 6), ("select", 0, 6)]
    assert all(row.reproduced <= 2 for row in rows)
    with pytest.raises(
        ConfigError, match="must be at least one each, and fit a window of the run, 32 tokens"
    ):
        memorized(opened(name), prefix_tokens=20, continuation_tokens=13, max_windows=6)


def test_exposures_leave_out_steps_that_were_not_applied(by_heart: ScoredRun, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(by_heart.path, tmp_path / "copy"))
    path = copy / "ledger.jsonl"
    lines = path.read_text().splitlines()
    (fifth,) = (number for number, line in enumerate(lines) if json.loads(line).get("first_index") == 15)
    lines[fifth] = lines[fifth].replace('"applied":true', '"applied":false')
    path.write_text("\n".join(lines) + "\n")
    start = np.arange(0, 160, 32)
    subset = next(subset for _, subset in by_heart.sources.values())
    assert subset is not None
    before, after = (exposures(run, 0, subset, start) for run in (by_heart, open_run(copy, device="cpu")))
    # Steps of three windows of five: 3 of them lost one.
    assert sorted(before - after) == [0] * 2 + [1] * 3
    plan = RunFolder.open(copy).plan.mixture_plan()
    assert sorted(start[before - after == 1]) == sorted(plan.locate(np.arange(15, 18)).start)
