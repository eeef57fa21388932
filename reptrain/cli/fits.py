"""Fits of laws to tables of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, NumBootstraps, count_option

if TYPE_CHECKING:
    from reptrain.analysis.answers import Comparison, FitAnswer
    from reptrain.analysis.laws import Law
    from reptrain.analysis.questions import FitQuestion

_ALL = "all"


Table = Annotated[
    str | None,
    typer.Argument(
        metavar="TABLE", help="A Parquet or CSV table with a row per run, also at a URL, or a study's folder."
    ),
]
LawNames = Annotated[
    list[str] | None,
    typer.Option(
        "--law",
        metavar="NAME",
        help="Law to fit; repeatable. `all` compares all laws.",
        show_default="the fits of the study",
    ),
]
ListLaws = Annotated[bool, typer.Option("--laws", help="List the laws and exit.")]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="COLUMN", help="Column of the loss.", show_default="loss_report_final_nats"
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="N=COLUMN,...",
        help="Column of each variable.",
        show_default="a study's columns",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="COLUMN=VALUE", help="Use only these rows; repeatable."),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="NAME[=VALUE],...",
        help="Fix these parameters at the given or the published value; `all` for all.",
    ),
]
OwnStarts = Annotated[
    list[str] | None,
    typer.Option(
        "--start", metavar="NAME=VALUE,...", help="Additional starting point of the optimizer; repeatable."
    ),
]
NumStarts = Annotated[
    int, count_option("--starts", help="Number of starting points, computed by variable projection.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="COLUMN",
        help="Column of the units that the bootstrap resamples.",
        show_default="cluster, else each run",
    ),
]
Holdout = Annotated[
    str | None,
    typer.Option(
        "--holdout",
        metavar="largest:K|COLUMN",
        help="Hold out the K runs with the most FLOPs, or those where a column is true.",
    ),
]
ComputeBudget = Annotated[
    float | None,
    typer.Option("--compute", metavar="FLOPS", help="Compute budget in FLOPs for which to choose a size."),
]
UniqueTokens = Annotated[
    int | None, count_option("--unique-tokens", help="Available unique tokens, with --compute.")
]
Statements = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="ITEM=TEXT",
        help="State an item of the checklist: tuned, warm-up, checkpoints, parameters, flops, optimizer.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the starting points and the bootstrap.")]


@app.command()
def fit(
    table: Table = None,
    laws: LawNames = None,
    list_laws: ListLaws = False,
    metric: Metric = None,
    columns: Columns = None,
    where: Where = None,
    fixed: Fixed = None,
    own_starts: OwnStarts = None,
    num_starts: NumStarts = 128,
    num_bootstraps: NumBootstraps = 200,
    cluster: Cluster = None,
    holdout: Holdout = None,
    compute: ComputeBudget = None,
    unique_tokens: UniqueTokens = None,
    stated: Statements = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit scaling laws to the losses of runs.

    Prints the parameters with intervals, local optima, the hold-out error, and a checklist of the fit.

    For the folder of a study, --law is not needed: the `fits` of its study file are computed.
    """
    from reptrain.analysis.answer import FitOptions, fit_laws, fit_study
    from reptrain.analysis.tables import read_table

    if list_laws:
        _print_laws(as_json=as_json)
        return
    if table is None:
        raise typer.BadParameter("a table or the folder of a study is missing", param_hint="TABLE")
    study_fits = [] if laws or not (Path(table) / "study.yaml").is_file() else _study_fits(Path(table))
    if study_fits and (metric or columns or where or holdout or fixed or own_starts):
        raise typer.BadParameter(
            "is missing; the study's fits have a metric, columns, rows and hold-out of their own",
            param_hint="--law",
        )
    chosen = _laws([question.law for question in study_fits] or laws or [])
    options = FitOptions(
        fixed=_fixed(chosen, fixed or []),
        own_starts=tuple(_numbers("--start", start) for start in own_starts or []),
        num_starts=num_starts,
        num_bootstraps=num_bootstraps,
        cluster=cluster,
        budget=_budget(compute, unique_tokens),
        seed=seed,
    )
    statements = _statements(stated)
    if study_fits:
        _show_fits(fit_study(study_fits, read_table(table), options, statements), None, as_json=as_json)
        return
    questions = _questions(chosen, metric=metric, columns=columns, where=where, holdout=holdout)
    answers, comparison = fit_laws(questions, read_table(table), options, statements)
    _show_fits(answers, comparison, as_json=as_json)


def _questions(
    laws: list[Law],
    *,
    metric: str | None,
    columns: list[str] | None,
    where: list[str] | None,
    holdout: str | None,
) -> list[FitQuestion]:
    """One question for each law, from the text of the options."""
    from reptrain.analysis.questions import FitQuestion

    known = list(dict.fromkeys(name for law in laws for name in law.variables))
    settings: dict[str, Any] = {"columns": parse_columns(columns, known), "holdout": _holdout(holdout)}
    settings["where"] = {name: _scalar(value) for name, value in _pairs("--where", where).items()}
    if metric is not None:
        settings["metric"] = metric
    return [FitQuestion(name=law.name, law=law.name, **settings) for law in laws]


def _budget(compute: float | None, unique_tokens: int | None) -> tuple[float, float] | None:
    if (compute is None) != (unique_tokens is None):
        raise typer.BadParameter("--compute and --unique-tokens go together", param_hint="--compute")
    return None if compute is None or unique_tokens is None else (compute, float(unique_tokens))


def _statements(stated: list[str] | None) -> dict[str, str]:
    """The stated items of the checklist."""
    from reptrain.analysis.checklist import STATEMENTS
    from reptrain.errors import check_choice

    statements = _pairs("--state", stated)
    for item in statements:
        check_choice("item of --state", item, STATEMENTS)
    return statements


def _show_fits(answers: list[FitAnswer], comparison: Comparison | None, *, as_json: bool) -> None:
    from reptrain.analysis.text import laws_text

    data = {
        "fits": [answer.model_dump(mode="json") for answer in answers],
        "comparison": None if comparison is None else comparison.model_dump(mode="json"),
    }
    show(data, laws_text(answers, comparison), as_json=as_json)


def _print_laws(*, as_json: bool) -> None:
    from reptrain.analysis.laws import LAWS

    data = [
        {
            "name": law.name,
            "formula": law.formula,
            "source": law.source,
            "parameters": {p.name: p.meaning for p in law.parameters},
            "published": {name: dict(values) for name, values in law.published.items()},
        }
        for law in LAWS.values()
    ]
    text = "\n".join(f"{law.name}\n    {law.formula}\n    {law.source}" for law in LAWS.values())
    show(data, text, as_json=as_json)


def _study_fits(folder: Path) -> list[FitQuestion]:
    """The fits of a study.

    Raises:
        StudyError: If the study cannot be read.
    """
    from reptrain.study import open_study

    return list(open_study(folder).fits)


def _laws(names: list[str]) -> list[Law]:
    """The laws of these names; `all` stands for every law in N and D."""
    from reptrain.analysis.laws import LAWS, find_law

    if not names:
        raise typer.BadParameter(
            "missing, and TABLE is no study with fits of its own; --laws lists the laws", param_hint="--law"
        )
    every = [name for name, law in LAWS.items() if {"N", "D"} <= set(law.variables)]
    wanted = [each for name in names for each in (every if name == _ALL else [name])]
    return [find_law(name) for name in dict.fromkeys(wanted)]


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """NAME=VALUE options as a mapping."""
    result: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise typer.BadParameter(f"{text!r} must be written NAME=VALUE", param_hint=option)
        if name.strip() in result:
            raise typer.BadParameter(f"{name.strip()!r} is given twice", param_hint=option)
        result[name.strip()] = value.strip()
    return result


def parse_columns(texts: list[str] | None, known: list[str]) -> dict[str, str]:
    """N=COLUMN,... options as a mapping."""
    columns = _pairs("--columns", [part for text in texts or [] for part in text.split(",")])
    for name in columns:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not among {', '.join(known)}", param_hint="--columns")
    return columns


def _numbers(option: str, text: str) -> dict[str, float]:
    return {name: _number(option, value) for name, value in _pairs(option, text.split(",")).items()}


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number", param_hint=option) from error


def _scalar(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fixed(laws: list[Law], texts: list[str]) -> dict[str, float]:
    """Values of the fixed parameters. A parameter without a value, or `NAME=SET`, has the published one."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    if parts and len(laws) > 1:
        raise typer.BadParameter("works with one law, whose parameters it names", param_hint="--fix")
    result: dict[str, float] = {}
    for part in parts:
        name, _, value = part.partition("=")
        sets = laws[0].published
        if value and value not in sets:
            names, values = [name], {name: _number("--fix", value)}
        elif sets:
            values = dict(sets[value or next(iter(sets))])
            names = list(values) if name == _ALL else [name]
        else:
            raise typer.BadParameter(f"{laws[0].name} has no published constants", param_hint="--fix")
        for each in names:
            if each not in laws[0].names:
                known = ", ".join(laws[0].names)
                raise typer.BadParameter(f"{each!r} is not a parameter: {known}", param_hint="--fix")
            result[each] = values[each]
    return result


def _holdout(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    if text.startswith("largest:"):
        count = text.removeprefix("largest:")
        if not count.isdecimal() or int(count) < 1:
            raise typer.BadParameter(f"{count!r} must be a count of runs", param_hint="--holdout")
        return {"largest": int(count)}
    return {"column": text.removeprefix("column:")}
