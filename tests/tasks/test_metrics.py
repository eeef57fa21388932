"""Texts are judged as SQuAD's script, sacrebleu and rouge-score judge them."""

from __future__ import annotations

import doctest
import sys

import pytest

from reptrain.errors import ConfigError
from reptrain.tasks import metrics
from reptrain.tasks.metrics import accuracy, exact_match, f1, generation_metrics, normalize_answer, qa_metrics

# Text, answers, exact match, F1: by hand from the published rules.
CASES = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the  Denver\tBroncos!", ["Denver Broncos."], 1, 1),
    ("DENVER", ["Denver Broncos"], 0, 2 / 3),
    ("Denver Denver", ["Denver Broncos"], 0, 0.5),
    ("an apple a day", ["apple day"], 1, 1),
    # An article within a word stays; one between hyphens goes with them into a word.
    ("theatre", ["atre"], 0, 0),
    ("well-a-day", ["welladay"], 1, 1),
    ("$12", ["nearly $12", "12"], 1, 1),
    ("in the year 1973", ["1973", "October 1973"], 0, 0.5),
    ("", ["the"], 1, 0),
    ("the", ["a"], 1, 0),
    ("", ["word"], 0, 0),
    ("naïve café", ["Naïve Café"], 1, 1),
    ("“quoted”", ["quoted"], 0, 0),
]


@pytest.mark.parametrize(("text", "answers", "exact", "overlap"), CASES)
def test_squad_rules_by_hand(text: str, answers: list[str], exact: float, overlap: float) -> None:
    assert exact_match(text, answers) == exact
    assert f1(text, answers) == pytest.approx(overlap)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(metrics).failed == 0 and doctest.testmod(metrics).attempted > 1


@pytest.mark.slow
def test_squad_rules_are_those_of_torchmetrics() -> None:
    squad = pytest.importorskip("torchmetrics.functional.text.squad").squad
    # Theirs is the rule of SQuAD 2.0, where two empty texts are of F1 1; in 1.1 they have no word in common.
    cases = [case for case in CASES if normalize_answer(case[1][0])]
    assert len(cases) == len(CASES) - 2
    texts = [case[0] for case in cases] + [
        "Saint Bernadette Soubirous",
        "a copper statue of the Christ, twice",
    ]
    answers = [case[1] for case in cases] + [
        ["Bernadette", "Saint Bernadette"],
        ["a copper statue of Christ"],
    ]
    predictions = [{"prediction_text": text, "id": str(n)} for n, text in enumerate(texts)]
    targets = [
        {"answers": {"answer_start": [0] * len(given), "text": given}, "id": str(n)}
        for n, given in enumerate(answers)
    ]
    theirs = squad(predictions, targets)
    ours = qa_metrics(texts, answers)
    assert ours["exact_match"] == pytest.approx(float(theirs["exact_match"]), rel=1e-6)
    assert ours["f1"] == pytest.approx(float(theirs["f1"]), rel=1e-6)
    assert 0 < ours["exact_match"] < ours["f1"] < 100


def test_generation_figures() -> None:
    perfect = generation_metrics(["a cat sat on the mat"], [["a dog ran", "a cat sat on the mat"]])
    assert perfect == {name: pytest.approx(100) for name in ("bleu", "chrf", "rouge_l")}
    # Longest common subsequence `the cat the mat`: 4 of 6 and 4 of 5 words. The best reference counts.
    texts, answers = ["the cat sat on the mat"], [["a dog", "the cat is the mat"]]
    assert generation_metrics(texts, answers)["rouge_l"] == pytest.approx(100 * 2 * 4 / (6 + 5))
    # Texts may have different numbers of references, which are not mixed up.
    more = generation_metrics([*texts, "a cat sat on the mat"], [*answers, ["a cat sat on the mat"]])
    assert all(value > generation_metrics(texts, answers)[name] for name, value in more.items())


def test_generation_case() -> None:
    texts, answers = ["The Blue Spice is a pub"], [["the blue spice is a pub"]]
    folded = generation_metrics(texts, answers, lowercase=True)
    assert [folded["bleu"], folded["chrf"]] == pytest.approx([100, 100])
    assert generation_metrics(texts, answers)["bleu"] < 50


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"pip install 'reptrain\[tasks\]'"):
        generation_metrics(["a"], [["a"]])


def test_accuracy_counts_what_is_right() -> None:
    assert accuracy([" yes", "no", "no", "maybe"], ["yes", "no", "yes", "no"]) == {"accuracy": 50.0}


def test_normal_form_is_idempotent() -> None:
    for text, *_ in CASES:
        assert normalize_answer(normalize_answer(text)) == normalize_answer(text)
