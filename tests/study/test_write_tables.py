"""The Parquet tables of a study."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forked import login_server, run_forked
from run_folders import write_run
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.study import StudyConfig, arms
from reptrain.study.build import build_graph
from reptrain.study.paths import result_path, run_path
from reptrain.study.schema import save_study
from reptrain.study.tuning import tuned_arms
from reptrain.study.write_tables import write_tables

STUDY = StudyConfig(
    name="s",
    base={
        "data": {"store": "s", "window_tokens": 64},
        "train": {"total_tokens": 8192},
        "model": {"vocab_size": 512},
    },
    axes={"data.unique_tokens": [4096, 1024], "optimizer.weight_decay": [0, 0.1]},
    seeds=[0, 1],
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A study with a run of each kind, not all of them done."""
    save_study(STUDY, tmp_path)
    done, failed, damaged, other, old, *_ = arms(STUDY)
    write_run(done.config, run_path(tmp_path, done.name), exact=True)
    write_run(failed.config, run_path(tmp_path, failed.name), state="failed", reason="loss is nan")
    (write_run(damaged.config, run_path(tmp_path, damaged.name)).path / "plan.json").write_text("{}")
    write_run(done.config, run_path(tmp_path, other.name))
    plan = write_run(old.config, run_path(tmp_path, old.name)).path / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"numerics_version": 1}))
    return tmp_path


def test_every_planned_run_is_a_row(out: Path) -> None:
    written = write_tables(STUDY, out)
    rows = pq.read_table(written.runs).to_pylist()
    assert [row["status"] for row in rows] == [
        "done", "failed", "damaged", "other config", "done", "not run", "not run", "not run",
    ]  # fmt: skip
    assert {row["study"] for row in rows} == {"s"}
    assert [row["seed"] for row in rows] == [0, 1] * 4
    assert rows[0]["arm"] == rows[1]["arm"] == "unique_tokens-4096.weight_decay-0.0"
    assert rows[0]["run"] == rows[0]["cluster"] == f"{rows[0]['arm']}.seed-0"
    # Of a planned run too, typed: one value of optimizer.weight_decay was an integer.
    assert [row["set.data.unique_tokens"] for row in rows] == [4096] * 4 + [1024] * 4
    assert [row["set.optimizer.weight_decay"] for row in rows] == [0.0, 0.0, 0.1, 0.1] * 2
    assert [row["numerics_version"] for row in rows[3:6]] == [None, 1, None]
    assert rows[3]["loss_report_best_nats"] is None


def test_roles_tell_tuning_branches_and_main_runs_apart(tmp_path: Path) -> None:
    study = StudyConfig.model_validate(
        {
            **STUDY.model_dump(exclude={"axes"}),
            "base": STUDY.base | {"schedule": {"name": "constant", "warmup_fraction": 0}},
            "set": {"data.unique_tokens": 4096},
            "axes": {"train.total_tokens": [8192, 4096]},
            "tune": {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "extend": 0, "per": ["arm"]},
            "seeds": [0],
        }
    )
    _, groups = tuned_arms(study, tmp_path)
    trials = [trial for group in groups for trial in group.trials]
    for trial in trials:
        write_run(trial.config, run_path(tmp_path, trial.name))
    rows = pq.read_table(write_tables(study, tmp_path).runs).to_pylist()
    assert [row["role"] for row in rows] == ["tune"] * len(trials) + ["main"] * 2
    branch = next(row for row in rows if row["branch_of"])
    assert branch["set.train.total_tokens"] == 4096 and branch["branch_of"] == branch["cluster"]
    evaluations = pq.read_table(tmp_path / "tables" / "evaluations.parquet").to_pylist()
    assert {row["role"] for row in evaluations} == {"tune"}


def test_evaluations_carry_the_identity_of_their_run(out: Path) -> None:
    written = write_tables(STUDY, out)
    runs = {row["run"]: row for row in pq.read_table(written.runs).to_pylist()}
    rows = pq.read_table(written.evaluations).to_pylist()
    assert len(rows) == written.num_evaluations == 27
    for row in rows:
        run = runs[row["run"]]
        assert all(row[key] == run[key] for key in ("study", "arm", "seed", "cluster", "numerics_version"))
    reported = [row for row in rows if row["split"] == "report" and row["run"] == rows[0]["run"]]
    last = max(reported, key=lambda row: int(row["step"]))
    assert last["loss_nats"] == runs[last["run"]]["loss_report_final_nats"]


def test_scores_of_nodes_are_rows_too(out: Path) -> None:
    nodes = [{"name": "scores", "do": "evaluate"}, {"name": "together", "do": "ensemble", "over": "seeds"}]
    study = StudyConfig.model_validate({**STUDY.model_dump(), "then": nodes})
    run, other = (f"unique_tokens-4096.weight_decay-0.0.seed-{seed}" for seed in (0, 1))
    score = {
        "run": str(out / "runs" / run), "step": 3, "objective": "span_corruption", "set": "report",
        "nats": 5.5, "bits_per_byte": 2.0, "gap_nats": 0.1, "accuracy": 0.2, "scored_tokens": 100,
    }  # fmt: skip
    both = score | {"run": f"{out / 'runs' / run} + {out / 'runs' / other}", "nats": 5.0}
    graph = build_graph(study, out)
    for name, output in ((f"scores.{run}", [score]), ("together." + run.rpartition(".")[0], [score, both])):
        path = result_path(out, name)
        path.parent.mkdir(exist_ok=True)
        record = {"fingerprint": graph.by_name[name].fingerprint, "output": output}
        path.write_text(json.dumps(record))
    # The result of another version of the node, and a damaged one.
    result_path(out, f"scores.{other}").write_text(json.dumps({"fingerprint": "0", "output": [score]}))
    result_path(out, "scores.unique_tokens-1024.weight_decay-0.0.seed-0").write_text("{")

    rows = pq.read_table(write_tables(study, out).evaluations).to_pylist()
    alone, member, together = (row for row in rows if row["node"] != "train")
    assert (alone["run"], alone["seed"], alone["objective"], alone["epoch"]) == (
        run,
        0,
        "span_corruption",
        2.0,
    )
    assert (alone["node"], alone["loss_nats"], member["loss_nats"]) == (f"scores.{run}", 5.5, 5.5)
    assert (together["run"], together["seed"], together["loss_nats"]) == (f"{run} + {other}", None, 5.0)
    assert together["arm"] == "unique_tokens-4096.weight_decay-0.0" and together["epoch"] is None


def test_command_writes_where_it_says(out: Path, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["study", "collect", str(out), "--out", str(tmp_path / "t"), "--json"])
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    assert told["num_runs"] == pq.read_table(told["runs"]).num_rows == 8
    assert Path(told["evaluations"]).parent == tmp_path / "t"


def test_works_without_torch(out: Path) -> None:
    code = (
        "from reptrain.cli import app\n"
        f"app(['study', 'collect', {str(out)!r}], standalone_mode=False)\n"
        f"app(['runs', {str(out)!r}], standalone_mode=False)\n"
    )
    ended = run_forked(["-c", code], server=login_server())
    assert ended.returncode == 0, ended.stderr
