"""Text metrics in percent: SQuAD's exact match and F1, BLEU, chrF, ROUGE-L, and accuracy."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from reptrain.errors import ConfigError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces.

    >>> normalize_answer("The  Great-Sichuan earthquake, a.k.a. an ‘event’")
    'greatsichuan earthquake aka ‘event’'

    Source:
        Rajpurkar et al., "SQuAD: 100,000+ questions for machine comprehension of text", 2016, and its
        evaluation script.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if the normalized text equals a normalized answer, else 0."""
    return float(any(normalize_answer(text) == normalize_answer(answer) for answer in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers, between bags of normalized words; 0 without a common word.

    >>> f1("the cat sat", ["cat", "a dog"])
    0.6666666666666666
    """
    return max(_word_f1(text, answer) for answer in answers)


def _word_f1(text: str, answer: str) -> float:
    written, right = normalize_answer(text).split(), normalize_answer(answer).split()
    common = sum((Counter(written) & Counter(right)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(written), common / len(right)
    return 2 * precision * recall / (precision + recall)


def qa_metrics(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean exact match and F1."""
    judged = {"exact_match": exact_match, "f1": f1}
    return {name: _mean_percent(judge, texts, answers) for name, judge in judged.items()}


def _mean_percent(
    judge: Callable[[str, Sequence[str]], float], texts: Sequence[str], answers: Sequence[Sequence[str]]
) -> float:
    return 100 * sum(map(judge, texts, answers)) / len(texts)


def generation_metrics(
    texts: Sequence[str], answers: Sequence[Sequence[str]], *, lowercase: bool = False
) -> dict[str, float]:
    """BLEU and chrF of all texts together, by sacrebleu's defaults, and mean ROUGE-L.

    Args:
        texts: Texts of the model.
        answers: References of each text, one or more.
        lowercase: Whether BLEU and chrF ignore case; ROUGE-L always does.

    Returns:
        `bleu` (up to 4-grams, tokenizer 13a, exponential smoothing), `chrf` (chrF2: characters up to 6-grams)
        and `rouge_l` (F1 of the longest common subsequence of words, without stemming, best reference).

    Raises:
        ConfigError: If the libraries are not installed.
    """
    metrics, scorer = _libraries()
    most = max(map(len, answers))
    # sacrebleu expects the n-th references of all texts as one list, with None if a text has fewer.
    references = [[given[n] if n < len(given) else None for given in answers] for n in range(most)]
    judges = {"bleu": metrics.BLEU(lowercase=lowercase), "chrf": metrics.CHRF(lowercase=lowercase)}
    found = {name: judge.corpus_score(list(texts), references).score for name, judge in judges.items()}
    rouge = [
        max(scorer.score(answer, text)["rougeL"].fmeasure for answer in given)
        for text, given in zip(texts, answers, strict=True)
    ]
    return found | {"rouge_l": 100 * sum(rouge) / len(rouge)}


def _libraries() -> tuple[Any, Any]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import metrics
    except ImportError as error:
        raise ConfigError(
            "task.kind",
            got=f"generation, and no package {error.name}",
            rule="needs sacrebleu and rouge-score",
            remedy="Install them: pip install 'reptrain[tasks]'.",
        ) from error
    return metrics, RougeScorer(["rougeL"])


def accuracy(guesses: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Percentage of correct guesses, ignoring surrounding spaces."""
    right = sum(guess.strip() == target.strip() for guess, target in zip(guesses, targets, strict=True))
    return {"accuracy": 100 * right / len(targets)}
