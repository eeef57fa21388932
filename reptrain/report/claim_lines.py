"""The claims of a study as the lines of a table, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reptrain.analysis.claims import ClaimResult, Judgment
from reptrain.analysis.proxy import ProxyPair

_UNITS = {"nats": "nats", "bits_per_byte": "bits/byte"}


@dataclass(frozen=True)
class ClaimLine:
    """One claim as text.

    Attributes:
        name: Name of the claim.
        statement: The claim in one sentence.
        verdict: Its verdict.
        cells: (heading, value) pairs, the same headings in every line.
        facts: (name, value) pairs about how the verdict was reached.
        excluded: (run or seed, reason) of each exclusion.
        seeds: (unit, effect) pairs.
    """

    name: str
    statement: str
    verdict: str
    cells: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    excluded: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, str], ...]


def claim_lines(results: Sequence[ClaimResult]) -> list[ClaimLine]:
    """The lines of the claims table, in the order of the claims."""
    return [_line(result) for result in results]


def claim_sentence(result: ClaimResult, *, with_study: bool = False) -> str:
    """A verdict on one line of a terminal: ``repeats: supported, 0.31 [0.25, 0.37] nats, n = 6``.

    Args:
        result: The claim with its verdict.
        with_study: Whether the name of the study precedes that of the claim.
    """
    judged = result.judged
    parts: list[str] = [judged.verdict]
    if judged.effect is not None:
        parts.append(f"{_interval(judged)} {_unit(judged)}".strip())
    if judged.seeds_used:
        parts.append(f"n = {judged.seeds_used}")
    if judged.look is not None and result.claim.max_seeds is not None:
        parts.append(f"look {judged.look} of 2")
    if judged.seeds_needed:
        parts.append(f"{judged.seeds_needed} more seed{'s' * (judged.seeds_needed > 1)} needed")
    reason = f" ({judged.reason})" if judged.reason else ""
    name = full_name(result) if with_study else result.claim.name
    return f"{name}: {', '.join(parts)}{reason}"


def pair_sentence(pair: ProxyPair) -> str:
    """The comparison of a proxy with its target on one line."""
    rank = "unknown" if pair.rank_correlation is None else f"{pair.rank_correlation:.2f}"
    shift = "" if pair.shift_doublings is None else f" ({pair.shift_doublings:+.2f} doublings)"
    outside = ", outside the target's values" if pair.outside else ""
    cost = "unknown" if pair.cost_ratio is None else f"{pair.cost_ratio:.2f}x"
    return (
        f"{pair.target} | {pair.proxy}: best {pair.target_best:.3g},"
        f" pick {pair.proxy_pick:.3g}{shift}{outside}, regret {pair.regret:.4f},"
        f" rank correlation {rank} at {pair.num_common} values, cost {cost}"
    )


def full_name(result: ClaimResult) -> str:
    """The claim's name after that of its study, if there are several."""
    return f"{result.study}/{result.claim.name}" if result.study else result.claim.name


def _line(result: ClaimResult) -> ClaimLine:
    claim, judged, other = result.claim, result.judged, result.other_checkpoint
    return ClaimLine(
        name=full_name(result),
        statement=claim.statement,
        verdict=judged.verdict,
        cells=(
            ("effect", _interval(judged)),
            ("minimum effect", _minimum(result)),
            ("seeds", _seeds(judged)),
            (_checkpoint(other), f"{other.verdict} {_effect(other)}".strip() if other is not None else "–"),
        ),
        facts=tuple(_facts(result)),
        excluded=tuple(judged.excluded.items()),
        seeds=tuple((unit.unit, _number(unit.effect)) for unit in judged.units),
    )


def _checkpoint(other: Judgment | None) -> str:
    return "other checkpoint" if other is None or "best" in other.metric else "final checkpoint"


def _interval(judged: Judgment) -> str:
    if judged.effect is None:
        return "–"
    if judged.coverage is None:
        return _number(judged.effect)
    low, high = ("…" if bound is None else _number(bound) for bound in (judged.low, judged.high))
    return f"{_number(judged.effect)} [{low}, {high}]"


def _effect(judged: Judgment) -> str:
    return "" if judged.effect is None else _number(judged.effect)


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _minimum(result: ClaimResult) -> str:
    claim = result.claim
    sign = {"greater": "> ", "less": "< −", "equal": "± "}[claim.direction]
    return f"{sign}{claim.minimum_effect:g}"


def _seeds(judged: Judgment) -> str:
    if not judged.seeds_used:
        return "–"
    return f"{judged.seeds_used}" + (f" ({judged.seeds_needed:,} more needed)" if judged.seeds_needed else "")


def _unit(judged: Judgment) -> str:
    return next((unit for part, unit in _UNITS.items() if part in judged.metric), "")


def _facts(result: ClaimResult) -> list[tuple[str, str]]:
    claim, judged = result.claim, result.judged
    facts = [("metric", judged.metric), ("family", claim.family)]
    if judged.reason:
        facts.append(("reason", judged.reason))
    if judged.method is not None and judged.coverage is not None:
        facts += [("method", judged.method), ("coverage", f"{100 * judged.coverage:.4g} %")]
    if judged.p is not None:
        facts += [("p", f"{judged.p:.2g}"), ("p after Holm", f"{judged.p_adjusted:.2g}")]
    if judged.look is not None and claim.max_seeds is not None:
        facts.append(("look", f"{judged.look} of 2, at {judged.seeds_used} seeds"))
    return facts
