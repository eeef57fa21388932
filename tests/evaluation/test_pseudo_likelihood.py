"""Pseudo-log-likelihoods against the model's probabilities, and through lm-eval on our own minimal pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, RunError
from reptrain.evaluation.evaluate import ScoredRun, open_run
from reptrain.evaluation.lm_eval import score_by_lm_eval
from reptrain.evaluation.pseudo_likelihood import PseudoLikelihood
from reptrain.training.loop import train

T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48}"
)
SETTINGS = {
    "t5": ("objective.name=span_corruption", T5),
    "diffusion": ("objective.name=masked_diffusion",),
    "causal": (),
}
PAIRS = [
    ("The list is sorted in place.", "The list are sorted in place."),
    ("Return the name of the module.", "Return the name of the the module."),
    ("This function returns a value.", "This function return a value."),
]


@pytest.fixture(scope="module")
def runs(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("runs")

    def of(kind: str) -> Path:
        if not (folder / kind).exists():
            short = ("train.total_tokens=800", "evaluate.every_fraction=1", "optimizer.lr=1e-2")
            train(tiny(*short, *SETTINGS[kind]), folder / kind)
        return folder / kind

    return of


@torch.no_grad()
def log_probability(run: ScoredRun, kind: str, ids: list[int], place: int) -> float:
    """Log-probability of one token given the others, from inputs written by hand."""
    given, token = list(ids), ids[place]
    if kind == "t5":
        sentinel = run.tokenizer.sentinel_ids[0]
        given[place] = sentinel
        source_BS = torch.tensor([[*given, run.tokenizer.eos_id]])
        inputs_BT = torch.tensor([[0, sentinel]])
        logits_BTV = run.model(
            source_BS,
            inputs_BT,
            source_segments_BS=torch.ones_like(source_BS),
            segments_BT=torch.ones_like(inputs_BT),
        )
        return float(logits_BTV[0, 1].log_softmax(-1)[token])
    given[place] = run.tokenizer.sentinel_ids[-1]
    logits_BTV = run.model(torch.tensor([given]), prefix_B=torch.tensor([len(given)]))
    return float(logits_BTV[0, place].log_softmax(-1)[token])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["t5", "diffusion"])
def test_each_token_is_predicted_from_all_others(
    kind: str, runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(runs(kind), device="cpu")
    (ids,) = [each.tolist() for each in run.tokenizer.encode([PAIRS[0][0]])]
    expected = [log_probability(run, kind, ids, place) for place in range(len(ids))]
    scorer = PseudoLikelihood(run)
    assert -scorer.nats(ids) == pytest.approx(sum(expected), rel=1e-4)
    # The first tokens are context.
    assert -scorer.nats(ids, first=3) == pytest.approx(sum(expected[3:]), rel=1e-4)
    # In forward passes of other sizes too.
    monkeypatch.setattr("reptrain.evaluation.evaluate._ROWS", 3)
    assert -scorer.nats(ids) == pytest.approx(sum(expected), rel=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_a_long_text_is_cut_to_its_last_window(runs: Callable[[str], Path]) -> None:
    run = open_run(runs("diffusion"), device="cpu")
    ids = [index % 200 + 100 for index in range(3 * run.config.window_tokens)]
    scorer = PseudoLikelihood(run)
    assert scorer.nats(ids) == pytest.approx(scorer.nats(ids[-run.config.window_tokens :]), rel=1e-6)


def test_causal_models_have_no_pseudo_likelihood(runs: Callable[[str], Path]) -> None:
    with pytest.raises(RunError, match="Leave --pseudo out"):
        PseudoLikelihood(open_run(runs("causal"), device="cpu"))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task in the form of BLiMP, with our own pairs."""
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"good": good, "bad": bad}) + "\n" for good, bad in PAIRS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pairs.yaml").write_text(
        "task: our_pairs\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{validation: {rows}}}}}\n"
        "output_type: multiple_choice\n"
        "validation_split: validation\n"
        'doc_to_text: ""\n'
        "doc_to_target: 0\n"
        'doc_to_choice: "{{[good, bad]}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
    return tmp_path / "tasks"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "diffusion"])
def test_lm_eval_prefers_the_sentence_of_higher_pseudo_likelihood(
    kind: str, tasks: Path, runs: Callable[[str], Path]
) -> None:
    run = open_run(runs(kind), device="cpu")
    scorer = PseudoLikelihood(run)
    right = 0
    for pair in PAIRS:
        # lm-eval puts a space between an empty context and the text.
        good, bad = (scorer.nats(ids.tolist()) for ids in run.tokenizer.encode([f" {text}" for text in pair]))
        right += good < bad
    (score,) = score_by_lm_eval(runs(kind), ["our_pairs"], include=tasks, pseudo=True)
    assert (score.metric, score.value) == ("acc", pytest.approx(right / len(PAIRS)))
    command = ["lm-eval", str(runs(kind)), "--tasks", "our_pairs", "--include", str(tasks), "--pseudo"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)[0]["value"] == score.value


@pytest.mark.slow
def test_lm_eval_scores_causal_models_by_log_likelihood(tasks: Path, runs: Callable[[str], Path]) -> None:
    (score,) = score_by_lm_eval(runs("causal"), ["our_pairs"], include=tasks)
    assert 0 <= score.value <= 1
    generating = (tasks / "pairs.yaml").read_text().replace("our_pairs", "writes")
    generating = generating.replace("multiple_choice", "generate_until").replace(
        "doc_to_target: 0", 'doc_to_target: "{{good}}"'
    )
    (tasks / "writes.yaml").write_text(generating.replace("metric: acc", "metric: exact_match"))
    with pytest.raises(ConfigError, match="--pseudo"):
        score_by_lm_eval(runs("diffusion"), ["writes"], include=tasks, pseudo=True)
