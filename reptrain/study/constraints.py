"""Constraints on the arms of a study: those to leave out, and those to match to a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reptrain.errors import ConfigError, StudyError
from reptrain.sizes.match import match
from reptrain.sizes.subject import subject_of
from reptrain.study.point import Point
from reptrain.study.schema import StudyConfig
from reptrain.study.sections import Drop, Equal


def constrain(study: StudyConfig, points: Sequence[Point]) -> list[Point]:
    """Apply the constraints of a study in their order.

    Args:
        study: The study.
        points: Its arms before their seeds.

    Raises:
        StudyError: If a constraint names no reference, or an arm cannot be matched.
    """
    kept = [*points]
    for constraint in study.constraints:
        if isinstance(constraint, Drop):
            kept = [point for point in kept if not point.satisfies(constraint.drop)]
        else:
            kept = [_matched(point, constraint, kept) for point in kept]
    return kept


def _matched(point: Point, constraint: Equal, points: Sequence[Point]) -> Point:
    """A point with the size or budget of its reference."""
    if point.satisfies(dict(constraint.to)) or not point.satisfies(constraint.where):
        return point
    reference = _reference(point, constraint, points)
    if constraint.equal == "tokens":
        return _with_tokens(point, _total_tokens(reference, constraint))
    try:
        subject, other = (subject_of(one.data, None) for one in (point, reference))
        found = match(
            subject, other, by=constraint.equal, vary=constraint.vary, tolerance=constraint.tolerance
        )
    except ConfigError as error:
        raise point.error(error) from error
    return replace(point, data=dict(found.subject.data))


def _reference(point: Point, constraint: Equal, points: Sequence[Point]) -> Point:
    """The reference whose axes, other than those that the constraint names, are the point's."""
    candidates = [other for other in points if other.satisfies(dict(constraint.to))]
    named = constraint.to.keys()

    def agrees(other: Point) -> bool:
        shared = [key for key in other.axes if key in point.axes and key not in named]
        return all(other.axes[key] == point.axes[key] for key in shared)

    found = [other for other in candidates if agrees(other)]
    if len(found) != 1:
        wanted = ", ".join(f"{key}={value}" for key, value in constraint.to.items())
        raise StudyError(
            f"study {point.study}, constraint equal {constraint.equal} to {wanted}",
            got=f"{len(found)} arms for {point.where or 'the base'}",
            rule="must name one reference for each arm that is changed",
            remedy="Name the arm in `to`, or narrow `to` and `where`.",
        )
    return found[0]


def _total_tokens(reference: Point, constraint: Equal) -> int:
    budget, config = None, reference.config
    if config.data.store is not None:
        (source,) = config.sources.values()
        if source.total_tokens.tokens is not None:
            budget = source.total_tokens.tokens
        elif source.unique_tokens is not None:
            budget = round(source.total_tokens.epochs_over(source.unique_tokens) * source.unique_tokens)
    if budget is None:
        raise StudyError(
            f"study {reference.study}, constraint equal tokens",
            got=f"a reference whose budget depends on its store: {reference.where or 'the base'}",
            rule="must have a reference with a number of tokens",
            remedy="Set train.total_tokens or data.unique_tokens of it.",
        )
    return budget


def _with_tokens(point: Point, tokens: int) -> Point:
    data: dict[str, Any] = dict(point.data)
    data["train"] = {**(data.get("train") or {}), "total_tokens": tokens}
    return replace(point, data=data)
