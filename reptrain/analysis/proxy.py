"""A cheap model as a stand-in for an expensive one: whether a setting that is tuned on it can be used.

A sweep is the loss at each value of one setting, the best over all others. A proxy's sweep is compared with
the target's by the rank correlation of the losses, by the shift of the best value, by the regret of the
proxy's pick, and by the cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from reptrain.analysis.claims import ClaimResult, judge_effects
from reptrain.analysis.effects import Effects
from reptrain.analysis.picks import vertex
from reptrain.analysis.questions import Claim, Regret, Tuning
from reptrain.analysis.rows import Run, grouped, matches, mean_of, runs_for, runs_of, words
from reptrain.analysis.views import query
from reptrain.config.base import Frozen
from reptrain.errors import AnalysisError

_FEWEST_VALUES = 3
# Values of one grid that differ by rounding only.
_SAME_VALUE = 0.03


@dataclass(frozen=True)
class Sweep:
    """The losses of one model over the values of a setting.

    Attributes:
        name: The model.
        unit: Sweeps of one unit are not independent.
        losses: Lowest loss by value of the setting.
        cost: What all runs of the sweep cost.
        cost_of_one: Cost of one value of the setting, summed over the seeds.
        match: Pairs are formed of sweeps that are close in these quantities.
    """

    name: str
    unit: str
    losses: Mapping[float, float]
    cost: float
    cost_of_one: float
    match: Mapping[str, float]

    @property
    def pick(self) -> float:
        """The value with the lowest loss."""
        return min(self.losses, key=lambda value: self.losses[value])


class ProxyPair(Frozen):
    """A target with its proxy."""

    target: str
    proxy: str
    unit: str
    target_best: float
    """The target's best value."""
    proxy_pick: float
    """The proxy's best value."""
    shift_doublings: float | None
    """Logarithm to base 2 of the proxy's optimum over the target's, both by a parabola. None if a value is
    zero."""
    rank_correlation: float | None
    """Spearman's correlation of the losses at the values that both were run at; None below three."""
    num_common: int
    regret: float
    """The target's loss at the proxy's pick minus its lowest loss."""
    outside: bool
    """The pick lies outside the target's values: the regret is that of the nearest one."""
    cost_ratio: float | None
    """Cost of the proxy sweep plus the target at one value, over that of the target sweep. None: unknown."""


class ProxyAnswer(Frozen):
    """Whether the proxy's pick can be used for the target."""

    setting: str
    pairs: list[ProxyPair]
    shift: ClaimResult
    """The claim that the best values agree."""
    regret: ClaimResult
    """The claim that using the proxy's pick costs less than the margin."""


def compare(proxy: Sweep, target: Sweep) -> ProxyPair:
    """Compare a proxy's sweep with its target's.

    Where the target was not run at the proxy's pick, its loss there is interpolated linearly.
    """
    common = [
        (loss, target.losses[near])
        for value, loss in proxy.losses.items()
        if (near := _near(value, target.losses)) is not None
    ]
    ordered = sorted(target.losses)
    at_pick = float(np.interp(proxy.pick, ordered, [target.losses[value] for value in ordered]))
    ratio = (proxy.cost + target.cost_of_one) / target.cost if target.cost else math.nan
    return ProxyPair(
        target=target.name,
        proxy=proxy.name,
        unit=target.unit,
        target_best=target.pick,
        proxy_pick=proxy.pick,
        shift_doublings=_shift(proxy, target),
        rank_correlation=_rank_correlation(common),
        num_common=len(common),
        regret=at_pick - target.losses[target.pick],
        outside=not ordered[0] * (1 - _SAME_VALUE) <= proxy.pick <= ordered[-1] * (1 + _SAME_VALUE),
        cost_ratio=ratio if math.isfinite(ratio) else None,
    )


def _near(value: float, losses: Mapping[float, float]) -> float | None:
    closest = min(losses, key=lambda other: abs(other - value))
    return closest if math.isclose(closest, value, rel_tol=_SAME_VALUE) else None


def _shift(proxy: Sweep, target: Sweep) -> float | None:
    if min(*proxy.losses, *target.losses) <= 0:
        return None
    proxy_best, target_best = (
        vertex([(math.log2(value), loss) for value, loss in sweep.losses.items()])
        for sweep in (proxy, target)
    )
    return proxy_best - target_best


def _rank_correlation(common: Sequence[tuple[float, float]]) -> float | None:
    from scipy.stats import spearmanr

    if len(common) < _FEWEST_VALUES:
        return None
    result = float(spearmanr([a for a, _ in common], [b for _, b in common]).statistic)
    return result if math.isfinite(result) else None


def read_sweeps(
    table: pa.Table,
    *,
    over: str,
    metric: str,
    groups: Sequence[str],
    unit: str,
    cost: str,
    match: Mapping[str, str],
) -> list[Sweep]:
    """The sweeps of a table of runs: one for each group.

    Args:
        table: One row for each run.
        over: Column of the setting.
        metric: Column of the loss.
        groups: Columns that name a model.
        unit: Column that names the unit of independence.
        cost: SQL expression of the cost of one run.
        match: SQL expressions of the quantities by which pairs are formed, by name.

    Raises:
        AnalysisError: If the table lacks a column or an expression is wrong.
    """
    import duckdb

    keys = ", ".join(f'"{name}"' for name in groups)
    quantities = "".join(f', any_value({sql}) AS "match.{name}"' for name, sql in match.items())
    statement = f"""WITH chosen AS (
    SELECT *, CAST({cost} AS DOUBLE) AS run_cost FROM runs WHERE isfinite("{metric}")
)
SELECT {keys}, any_value("{unit}") AS unit, "{over}" AS value, min("{metric}") AS loss,
       sum(run_cost) AS cost, avg(run_cost) AS cost_of_one{quantities}
FROM chosen GROUP BY {keys}, "{over}" ORDER BY {keys}, "{over}\""""
    try:
        rows = query(statement, runs=table).to_pylist()
    except duckdb.Error as error:
        raise AnalysisError(
            "table of sweeps",
            got=str(error).splitlines()[0],
            rule=f"must have the columns {over}, {metric}, {', '.join(groups)} and those of the expressions",
            remedy=f"Its columns are {', '.join(table.column_names)}.",
        ) from error
    found: dict[tuple[object, ...], list[dict[str, float]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in groups), []).append(row)
    return [
        Sweep(
            name=", ".join(f"{name} {_short(value)}" for name, value in zip(groups, key, strict=True)),
            unit=f"{unit} {_short(of_group[0]['unit'])}",
            losses={float(row["value"]): float(row["loss"]) for row in of_group},
            cost=sum(row["cost"] for row in of_group),
            cost_of_one=float(np.mean([row["cost_of_one"] for row in of_group])),
            match={name: float(of_group[0][f"match.{name}"]) for name in match},
        )
        for key, of_group in found.items()
        if len(of_group) >= _FEWEST_VALUES
    ]


def sweeps_of_claim(table: pa.Table, claim: Claim) -> tuple[Sweep, Sweep]:
    """The sweeps of proxy and target that a claim of the kind ``regret`` compares, as means over the seeds.

    Raises:
        AnalysisError: If the claim is of another kind, tunes several settings, or its runs are not there.
    """
    contrast = claim.contrast
    if not isinstance(contrast, Regret) or len(contrast.tuned.over) != 1:
        raise AnalysisError(
            f"claim {claim.name}",
            got=f"the kind {contrast.kind}",
            rule="must be of the kind regret and tune one setting",
            remedy="Set contrast.kind to regret and list one key in contrast.tuned.over.",
        )
    runs = [run for run in runs_for(runs_of(table), claim) if run["status"] in (None, "done")]
    return (
        _mean_sweep(runs, "proxy", contrast.proxy, contrast.tuned, contrast.tuned.by),
        _mean_sweep(runs, "target", contrast.target, contrast.tuned, claim.metric),
    )


def _mean_sweep(
    runs: Sequence[Run], name: str, selection: Mapping[str, Any], tuning: Tuning, metric: str
) -> Sweep:
    chosen = [run for run in runs if matches(run, selection) and math.isfinite(run.number(metric))]
    values = grouped(chosen, tuning.over)
    if len(values) < 2:
        raise AnalysisError(
            f"sweep of the {name}",
            got=f"{len(values)} values of {tuning.over[0]}",
            rule="must have at least two values that finished",
            remedy="Run the missing arms.",
        )
    costs = [run.number("train_flops") for run in chosen]
    return Sweep(
        name=words(selection),
        unit="study",
        losses={group[0].number(tuning.over[0]): mean_of(group, metric) for group in values.values()},
        cost=sum(costs),
        cost_of_one=sum(costs) / len(values),
        match={},
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def pair_up(
    proxies: Sequence[Sweep], targets: Sequence[Sweep], *, within: Mapping[str, float], nearest: str | None
) -> list[ProxyPair]:
    """Each target with its proxies.

    Args:
        proxies: The proxies' sweeps.
        targets: The targets' sweeps.
        within: Largest ratio of a pair in each of these quantities.
        nearest: Of several proxies, take the nearest in this quantity; None: all of them.
    """
    pairs = []
    for target in targets:
        fitting = [
            proxy
            for proxy in proxies
            if all(
                abs(math.log(proxy.match[name] / target.match[name])) <= math.log(ratio) + 1e-9
                for name, ratio in within.items()
            )
        ]
        if nearest is not None and fitting:
            fitting = [
                min(fitting, key=lambda proxy: abs(math.log(proxy.match[nearest] / target.match[nearest])))
            ]
        pairs += [compare(proxy, target) for proxy in fitting]
    return pairs


def judge_proxy(
    pairs: Sequence[ProxyPair], *, setting: str, most_regret: float, most_shift: float, metric: str
) -> ProxyAnswer:
    """Judge two claims over all pairs: the best values agree, and the pick costs little.

    Pairs of one unit are averaged, since they share runs.

    Args:
        pairs: The pairs.
        setting: The setting that is tuned.
        most_regret: The regret must be below this, in the metric's unit.
        most_shift: The best values must agree within this many doublings.
        metric: The loss.

    Raises:
        AnalysisError: If there are no pairs.
    """
    if not pairs:
        raise AnalysisError(
            "pairs of proxy and target",
            got="none",
            rule="must include at least one",
            remedy="Allow a larger ratio, or match by other quantities.",
        )
    claims = [
        _claim(
            "best-values-agree", f"The proxy's best {setting} is the target's.", "shift_doublings", most_shift
        ),
        _claim(
            "pick-is-good", f"Training the target at the proxy's {setting} costs little.", metric, most_regret
        ),
    ]
    found = [_by_unit(pairs, "shift_doublings"), _by_unit(pairs, "regret")]
    shift, regret = (
        ClaimResult(claim=claim, judged=judged)
        for claim, judged in zip(claims, judge_effects(claims, found), strict=True)
    )
    return ProxyAnswer(setting=setting, pairs=list(pairs), shift=shift, regret=regret)


def _claim(name: str, statement: str, metric: str, margin: float) -> Claim:
    return Claim.model_validate(
        {
            "name": name,
            "statement": statement,
            "metric": metric,
            "contrast": {"treatment": "proxy", "control": "target"},
            "direction": "equal",
            "minimum_effect": margin,
        }
    )


def _by_unit(pairs: Sequence[ProxyPair], quantity: str) -> Effects:
    units: dict[str, list[float]] = {}
    for pair in pairs:
        if (value := getattr(pair, quantity)) is not None:
            units.setdefault(pair.unit, []).append(value)
    return Effects(
        units=tuple(units),
        values=tuple(float(np.mean(values)) for values in units.values()),
        seeds=tuple((index,) for index in range(len(units))),
    )
