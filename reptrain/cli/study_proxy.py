"""The command that judges a proxy: a cheap model on which a setting is tuned for an expensive one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import show, study_app
from reptrain.cli.options import AsJson
from reptrain.errors import ConfigError

ProxyRuns = Annotated[
    Path, typer.Argument(metavar="PROXY", help="Runs of the proxy: a Parquet or CSV file, or a study.")
]
TargetRuns = Annotated[
    Path | None, typer.Argument(metavar="TARGET", help="Runs of the target.", show_default="the study's")
]
Setting = Annotated[
    str, typer.Option("--over", metavar="COLUMN", help="Column of the setting that is tuned.")
]
LossColumn = Annotated[str, typer.Option("--metric", metavar="COLUMN", help="Column of the loss.")]
ProxyGroups = Annotated[
    str, typer.Option("--proxy-groups", metavar="COLUMN,...", help="Columns that name a proxy.")
]
TargetGroups = Annotated[
    str,
    typer.Option(
        "--target-groups",
        metavar="COLUMN,...",
        help="Columns that name a target. Targets that agree in the first count as one independent unit.",
    ),
]
ProxySize = Annotated[
    str,
    typer.Option(
        "--proxy-size", metavar="SQL", help="Active parameters of a proxy: a column or an expression."
    ),
]
TargetSize = Annotated[
    str,
    typer.Option(
        "--target-size", metavar="SQL", help="Active parameters of a target: a column or an expression."
    ),
]
RunTokens = Annotated[
    str, typer.Option("--tokens", metavar="SQL", help="Tokens of a run: a column or an expression.")
]
TokensWithin = Annotated[
    float,
    typer.Option("--tokens-within", min=1.0, help="Largest ratio of the tokens of a proxy and a target."),
]
Nearest = Annotated[
    bool,
    typer.Option("--nearest/--all", help="Compare with the proxy nearest in size only, or with all proxies."),
]
MostRegret = Annotated[
    float,
    typer.Option("--most-regret", min=0.0, help="Claim: the regret is less than this many nats."),
]
MostShift = Annotated[
    float,
    typer.Option(
        "--most-shift", min=0.0, help="Claim: the best values differ by at most this many doublings."
    ),
]


@study_app.command("proxy")
def study_proxy(
    proxy: ProxyRuns,
    target: TargetRuns = None,
    over: Setting = "lr",
    metric: LossColumn = "loss",
    proxy_groups: ProxyGroups = "",
    target_groups: TargetGroups = "",
    proxy_size: ProxySize = "parameters_active",
    target_size: TargetSize = "parameters_active",
    tokens: RunTokens = "consumed_tokens",
    tokens_within: TokensWithin = 1.5,
    nearest: Nearest = False,
    most_regret: MostRegret = 0.01,
    most_shift: MostShift = 0.5,
    as_json: AsJson = False,
) -> None:
    """Test whether a proxy predicts the best setting of a target.

    With two tables, every target is compared with the proxies of about as many tokens. With a study alone,
    each of its claims of the kind `regret` is shown. Losses are the lowest over all other settings.
    """
    from reptrain.analysis.proxy import judge_proxy, pair_up, read_sweeps
    from reptrain.analysis.tables import read_table
    from reptrain.report.claim_lines import claim_sentence, pair_sentence

    if target is None:
        show_study(proxy, as_json=as_json)
        return
    sweeps = []
    for file, groups, size in ((proxy, proxy_groups, proxy_size), (target, target_groups, target_size)):
        names = _names(groups, "--proxy-groups" if file is proxy else "--target-groups")
        sweeps.append(
            read_sweeps(
                read_table(file),
                over=over,
                metric=metric,
                groups=names,
                unit=names[0],
                cost=f"6.0 * ({size}) * ({tokens})",
                match={"tokens": tokens, "size": size},
            )
        )
    pairs = pair_up(*sweeps, within={"tokens": tokens_within}, nearest="size" if nearest else None)
    answer = judge_proxy(
        pairs, setting=over, most_regret=most_regret, most_shift=most_shift, metric="regret in nats"
    )
    lines = [pair_sentence(pair) for pair in answer.pairs]
    lines += [claim_sentence(answer.shift), claim_sentence(answer.regret)]
    show(answer.model_dump(mode="json"), "\n".join(lines), as_json=as_json)


def _names(text: str, option: str) -> Sequence[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise ConfigError(
            option,
            got="nothing",
            rule="must name a column",
            remedy="Name the columns that identify a model.",
        )
    return names


def show_study(folder: Path, *, as_json: bool) -> None:
    """Print the claims of kind `regret` of a study, each with its comparison of proxy and target."""
    from reptrain.analysis.claims import judge
    from reptrain.analysis.proxy import compare, sweeps_of_claim
    from reptrain.analysis.tables import read_table
    from reptrain.report.claim_lines import claim_sentence, pair_sentence
    from reptrain.study import open_study

    study, table = open_study(folder), read_table(folder)
    results = [result for result in judge(table, study.claims) if result.claim.contrast.kind == "regret"]
    pairs = [compare(*sweeps_of_claim(table, result.claim)) for result in results]
    text = [
        f"{claim_sentence(result)}\n  {pair_sentence(pair)}"
        for result, pair in zip(results, pairs, strict=True)
    ]
    shown = [
        {"claim": result.model_dump(mode="json"), "pair": pair.model_dump(mode="json")}
        for result, pair in zip(results, pairs, strict=True)
    ]
    show(shown, "\n".join(text) or "The study has no claim of the kind regret.", as_json=as_json)
