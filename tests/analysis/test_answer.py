"""Questions of a study, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from forked import login_server, run_forked
from made_tables import TRUTH, made_table
from threadpoolctl import threadpool_info, threadpool_limits
from time_limits import START_S
from typer.main import get_command

from reptrain.analysis.answer import FitOptions, answer_fit, compare_laws, curves
from reptrain.analysis.answers import FitAnswer
from reptrain.analysis.compare import cross_validate, folds
from reptrain.analysis.fit import fit_law
from reptrain.analysis.laws import find_law
from reptrain.analysis.one_thread import one_thread
from reptrain.analysis.points import points_of
from reptrain.analysis.questions import FitQuestion
from reptrain.analysis.text import short_count
from reptrain.errors import AnalysisError

COLUMNS = {"N": "size", "D": "tokens", "U": "unique"}
QUICK = FitOptions(num_starts=4, num_bootstraps=10)


def small_study() -> pa.Table:
    """Five arms by three seeds, one varied key, as a study's table of runs has them."""
    unique = np.repeat([2**14, 2**15, 2**16, 2**17, 2**18], 3)
    rng = np.random.default_rng(0)
    loss = 30.0 * unique**-0.15 * np.exp(rng.normal(0, 0.01, len(unique)))
    return pa.table(
        {
            "run": [f"u{u}-seed{i % 3}" for i, u in enumerate(unique)],
            "cluster": [f"u{u}-seed{i % 3}" for i, u in enumerate(unique)],
            "seed": [i % 3 for i in range(15)],
            "set.data.unique_tokens": unique,
            "status": ["done"] * 15,
            "loss_report_final_nats": loss,
        }
    )


def test_answer_fit_answers_a_power_law_with_few_points() -> None:
    question = FitQuestion(
        name="loss-by-unique-tokens", law="power", columns={"x": "data.unique_tokens"}, holdout={"largest": 3}
    )
    answer = answer_fit(question, small_study(), QUICK)
    assert answer.refusal is None and answer.fit is not None
    assert answer.fit.values["alpha"] == pytest.approx(0.15, abs=0.01)
    assert answer.fit.holdout is not None and answer.fit.holdout.num_points == 3
    assert answer.fit.seed_deviation_nats is not None
    (curve,) = answer.curves
    assert curve.variable == "x" and curve.x[0] == 2**14 and curve.x[-1] == pytest.approx(2**17)
    assert dict(answer.checklist)["FLOP convention"].startswith("none")
    assert FitAnswer.model_validate_json(answer.model_dump_json()) == answer


def test_answer_fit_of_runs_that_branch_from_one_has_no_interval() -> None:
    """All short runs share the prefix of seed 0: a third of the samples would have one setting."""
    tokens = [2**15, 2**16, 2**17, *[2**18] * 5]
    loss = 3.0 + 900.0 * np.array(tokens, float) ** -0.5
    table = pa.table(
        {
            "run": [f"run-{place}" for place in range(8)],
            "cluster": ["a"] * 4 + ["b", "c", "d", "e"],
            "consumed_tokens": tokens,
            "loss_report_final_nats": loss + 0.01 * np.array([0, 0, 0, 0, 1, -1, 2, -2]),
        }
    )
    question = FitQuestion(name="by-tokens", law="power-constant", columns={"x": "consumed_tokens"})
    fit = answer_fit(question, table, QUICK._replace(num_starts=32)).fit
    assert fit is not None and fit.num_bootstraps == 0
    assert fit.values["E"] == pytest.approx(3.0, abs=0.2)
    assert any("fewer settings than the law needs" in warning for warning in fit.warnings)


def test_answer_fit_selects_runs_and_says_why_it_refuses() -> None:
    question = FitQuestion(
        name="few",
        law="power",
        columns={"x": "data.unique_tokens"},
        where={"data.unique_tokens": [2**14, 2**15]},
    )
    answer = answer_fit(question, small_study(), QUICK)
    assert answer.fit is None and answer.refusal is not None
    assert "must be at least 3 distinct settings" in answer.refusal
    unknown = answer_fit(question.model_copy(update={"law": "guess"}), small_study(), QUICK)
    assert unknown.refusal is not None and "must be one of" in unknown.refusal


def test_answer_fit_uses_main_runs_unless_it_names_the_role() -> None:
    main = small_study()
    tuning = main.set_column(5, "loss_report_final_nats", pa.array([9.0] * len(main)))
    table = pa.concat_tables(
        one.append_column("role", pa.array([role] * len(main)))
        for one, role in ((main, "main"), (tuning, "tune"))
    )
    question = FitQuestion(name="f", law="power", columns={"x": "data.unique_tokens"})
    fit = answer_fit(question, table, QUICK).fit
    assert fit is not None and len(fit.residuals) == len(main)
    assert fit.values["alpha"] == pytest.approx(0.15, abs=0.01)
    asked = answer_fit(question.model_copy(update={"where": {"role": "tune"}}), table, QUICK).fit
    assert asked is not None and {residual.loss for residual in asked.residuals} == {9.0}


def test_curves_follow_size_and_unique_tokens() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=1)
    question = FitQuestion(name="f", law="chinchilla", metric="loss", columns={"N": "size", "D": "tokens"})
    answer = answer_fit(question, table, QUICK._replace(num_bootstraps=0))
    assert 2 <= len(answer.curves) <= 8
    sizes = {f"N = {short_count(size)}": size for size in table["size"].to_pylist()}
    for curve in answer.curves:
        size = sizes[curve.label]
        expected = find_law("chinchilla").loss(TRUTH["chinchilla"], {"N": size, "D": np.array(curve.x)})
        np.testing.assert_allclose(curve.loss, expected, rtol=0.02)


def test_curves_go_along_the_variable_that_varies() -> None:
    rows = [
        {"run": f"{u}-{seed}", "seed": seed, "unique": u, "loss": 3 + 1e5 / u + seed / 1e3}
        for u in (1e5, 2e5, 4e5, 8e5) for seed in (0, 1)
    ]  # fmt: skip
    fit = answer_fit(
        FitQuestion(name="f", law="power", metric="loss", columns={"x": "unique"}),
        pa.Table.from_pylist(rows),
        QUICK._replace(num_bootstraps=0),
    ).fit
    assert fit is not None
    residuals = [
        residual.model_copy(update={"variables": {"N": 1e6, "D": 1e6, "U": residual.variables["x"]}})
        for residual in fit.residuals
    ]
    law = fit.model_copy(update={"law": "data-constrained", "residuals": residuals})
    parameters = [
        fit.parameters[0].model_copy(update={"name": name, "value": value})
        for name, value in TRUTH["data-constrained"].items()
    ]
    (curve,) = curves(law.model_copy(update={"parameters": parameters}))
    assert curve.variable == "U" and curve.label == "data-constrained"
    assert (curve.x[0], curve.x[-1]) == pytest.approx((1e5, 8e5))


def test_folds_hold_out_the_largest_sizes_and_tokens() -> None:
    table = made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=1)
    law = find_law("chinchilla")
    points = points_of(table, law, metric="loss", columns={"N": "size", "D": "tokens"})
    parts = folds(points)
    assert [int(part.sum()) for part in parts] == [6, 12, 24] * 2
    for part in parts[:3]:
        assert points.variables["N"][part].min() > points.variables["N"][~part].max()


def test_compare_laws_prefers_the_true_one() -> None:
    table = made_table("excess-2", TRUTH["excess-2"], noise=0.005, seed=1)
    questions = [
        FitQuestion(
            name=law,
            law=law,
            metric="loss",
            columns={name: COLUMNS[name] for name in find_law(law).variables},
        )
        for law in ("chinchilla", "excess-2", "excess-1")
    ]
    comparison = compare_laws(questions, table, QUICK)
    assert comparison.chosen == "excess-2"
    assert [score.law for score in comparison.scores][-1] == "chinchilla"


def call(*words: object) -> Result:
    from reptrain.cli import app

    return CliRunner().invoke(get_command(app), [str(word) for word in words])


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    """A study's folder with its table of runs."""
    folder = tmp_path / "study"
    (folder / "tables").mkdir(parents=True)
    pyarrow.parquet.write_table(small_study(), folder / "tables" / "runs.parquet")
    return folder


def test_fit_command_prints_the_fit_of_a_study(table_file: Path) -> None:
    options = ("--columns", "x=data.unique_tokens", "--starts", 4, "--bootstraps", 10)
    shown = call("fit", table_file, "--law", "power", "--state", "tuned=at 2**16", *options)
    assert shown.exit_code == 0, shown.output
    for words in ("alpha", "objective", "hyper-parameters tuned for each run: at 2**16", "not stated"):
        assert words in shown.output
    data = json.loads(call("fit", table_file, "--law", "power", "--json", *options).output)
    assert data["fits"][0]["fit"]["parameters"][1]["name"] == "alpha"
    assert data["comparison"] is None


def test_fit_command_lists_and_compares_laws(tmp_path: Path) -> None:
    assert "excess-saturating" in call("fit", "--laws").output
    file = tmp_path / "runs.parquet"
    pyarrow.parquet.write_table(made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=1), file)
    shown = call(
        *("fit", file, "--metric", "loss", "--columns", "N=size,D=tokens,U=unique", "--starts", 4),
        *("--bootstraps", 0, "--law", "chinchilla", "--law", "excess-1", "--holdout", "largest:10"),
    )
    assert shown.exit_code == 0, shown.output
    assert "chosen: " in shown.output and "hold-out R^2" in shown.output


def test_fit_command_fixes_published_constants(tmp_path: Path) -> None:
    file = tmp_path / "runs.parquet"
    pyarrow.parquet.write_table(made_table("chinchilla", TRUTH["chinchilla"], noise=0.0, seed=1), file)
    shown = call(
        *("fit", file, "--metric", "loss", "--columns", "N=size,D=tokens", "--law", "chinchilla"),
        *("--fix", "all=besiroglu2024", "--json"),
    )
    values = json.loads(shown.output)["fits"][0]["fit"]["optima"][0]["values"]
    assert values["B"] == pytest.approx(2085.43)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--law", "chinchila"), "must be one of"),
        (("--law", "power", "--columns", "x=nothing"), "column nothing: must be a column of the table"),
        (("--law", "power"), "none for x"),
        (("--law", "power", "--columns", "y=run"), "'y' is not among x"),
        (("--law", "power", "--columns", "x=run"), "must hold numbers"),
        (("--law", "power", "--columns", "x=data.unique_tokens", "--fix", "alpha"), "no published constants"),
        (
            ("--law", "power", "--columns", "x=data.unique_tokens", "--holdout", "largest:0"),
            "a count of runs",
        ),
        (
            ("--law", "power", "--columns", "x=data.unique_tokens", "--state", "luck=good"),
            "must be one of tuned",
        ),
        (("--law", "power", "--columns", "x=data.unique_tokens", "--compute", "1e20"), "go together"),
        ((), "--laws lists the laws"),
    ],
)
def test_fit_command_refuses_bad_input(table_file: Path, words: tuple[str, ...], message: str) -> None:
    ended = call("fit", table_file, *words)
    assert ended.exit_code != 0
    assert message in ended.output + str(ended.exception)
    assert isinstance(ended.exception, SystemExit | AnalysisError | ValueError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a Parquet file, or a CSV file with a header"),
        ("x,loss\n", "must have at least one run"),
        ("x,x\n1,2\n", "must have each column once"),
        ("x,loss_report_final_nats\n1,nan\n2,3\n", "got nan in row 1"),
        ("x,loss_report_final_nats\n1,0\n2,3\n", "got 0 in row 1"),
    ],
)
def test_fit_command_refuses_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(text)
    ended = call("fit", file, "--law", "power", "--columns", "x=x")
    assert isinstance(ended.exception, AnalysisError) and message in str(ended.exception)


def test_cost_and_advise_commands_print_both_forms() -> None:
    words = ("--tokens", "1.4T", "--gpus", 2048, "--device", "A100", "--tokens-per-second", 380)
    shown = call("cost", "--parameters", 65_285_660_672, *words)
    assert "20.82 days" in shown.output and "47.7%" in shown.output and "$4,021,930" in shown.output
    data = json.loads(call("cost", "--parameters", 65_285_660_672, *words, "--json").output)
    assert data["gpu_hours"] == pytest.approx(1_023_392, abs=1)
    words = ("--unique-tokens", "1B", "--gpus", 8, "--hours", 100, "--device", "H100", "--mfu", 0.4)
    shown = call("advise", *words, "--price", 2)
    assert "proxy to tune on" in shown.output and "money: $" in shown.output
    assert json.loads(call("advise", *words, "--json").output)["cost"]["usd"] is None


def test_analysis_commands_work_without_torch(table_file: Path) -> None:
    program = f"""
from click.testing import CliRunner
from typer.main import get_command
from reptrain.cli import app
for words in (
    ["fit", {str(table_file)!r}, "--law", "power", "--columns", "x=data.unique_tokens", "--starts", "4"],
    ["advise", "--unique-tokens", "1B", "--compute", "1e20"],
    ["cost", "--parameters", "7B", "--tokens", "1T", "--tokens-per-second", "3000"],
):
    result = CliRunner().invoke(get_command(app), words)
    assert result.exit_code == 0, (result.output, result.exception)
"""
    ended = run_forked(["-c", program], server=login_server(), timeout=START_S)
    assert ended.returncode == 0, ended.stderr


def test_fits_run_on_one_thread_of_blas() -> None:
    @one_thread
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        before = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        assert before == {2}, "this BLAS does not take limits"
        assert threads() == {1}
    assert all(hasattr(function, "__wrapped__") for function in (fit_law, cross_validate))
