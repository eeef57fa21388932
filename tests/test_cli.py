"""The commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from forked import Server, login_server, run_forked
from time_limits import START_S

import reptrain
from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain.store import MAX_OVERLAP


def run(*words: object, code: int = 0, columns: int = 120) -> subprocess.CompletedProcess[str]:
    """Run a command with torch blocked, and hold its exit code."""
    return start(words, code, columns=columns, server=login_server())


def start(
    words: Sequence[object], code: int, *, columns: int = 120, server: Server | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns)}
    ended = run_forked(["-m", "reptrain", *words], server=server, environment=environment, timeout=START_S)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert code == 1 or "Traceback" not in ended.stderr, ended.stderr
    return ended


@pytest.fixture(scope="module")
def config_file(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config = tiny("data.unique_tokens=1000", "train.total_tokens=1epochs")
    path.write_text(dump_yaml(config.model_dump(mode="json")))
    return path


def test_config_show_shows_what_was_understood(config_file: Path) -> None:
    shown = run("config", "show", config_file, "train.total_tokens=2**20", "data.unique_tokens=1e3").stdout
    assert "total_tokens: 1048576" in shown
    assert "unique_tokens: 1000" in shown
    assert "config fingerprint" in shown
    as_json = run("config", "show", config_file, "train.total_tokens=64epochs", "--json").stdout
    assert json.loads(as_json)["train"]["total_tokens"] == "64epochs"


@pytest.mark.parametrize(
    ("kind", "key"), [("run", "data"), ("finetune", "epochs"), ("task", "answers"), ("study", "axes")]
)
def test_config_schema_is_json_schema(kind: str, key: str) -> None:
    assert json.loads(run("config", "schema", kind).stdout)["properties"][key]


def test_config_schema_is_a_runs_unless_it_is_said_and_a_finetuning_shows_no_refused_key() -> None:
    assert run("config", "schema").stdout == run("config", "schema", "run").stdout
    train = json.loads(run("config", "schema", "finetune").stdout)["$defs"]["FinetuneTrainConfig"]
    assert "zero_stage" in train["properties"]
    assert not {"total_tokens", "on_nonfinite", "expert_parallel_size", "sequence_parallel_size"} & set(
        train["properties"]
    )
    shown = run("finetune", "-h").stdout
    assert "epochs=2" in shown and "total_tokens" not in shown


def test_version_and_short_help() -> None:
    assert run("--version").stdout == f"reptrain {reptrain.__version__}\n"
    for words in ([], ["train"], ["config", "show"], ["tasks", "prepare"]):
        assert run(*words, "-h").stdout == run(*words, "--help").stdout


@pytest.mark.parametrize("words", [["runs", ""], ["runs", "--sort="], ["train", "x.yaml", "--out", ""]])
def test_an_empty_argument_is_not_the_working_directory(words: list[str]) -> None:
    """As from ``--out "$FOLDER"``, where the shell's variable is not set."""
    assert "must not be empty, but got an empty text" in run(*words, code=2).stderr


@pytest.mark.parametrize("columns", [60, 140])
def test_help_is_as_wide_as_the_terminal(columns: int) -> None:
    shown = run("tokenize", "-h", columns=columns).stdout
    longest = max(map(len, shown.splitlines()))
    assert columns - 25 < longest <= columns


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_than_linux_are_refused_in_one_sentence(
    platform: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reptrain.cli import main

    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: operating system: must be Linux, but got {platform}. Use a Linux")


def test_shell_completion_is_there() -> None:
    assert "--install-completion" in run("--help").stdout
    words = {"_REPTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "reptrain tok", "COMP_CWORD": "1"}
    # As the script that --install-completion writes asks for it; the program's name makes the variable's.
    code = "import sys; sys.argv[0] = 'reptrain'; from reptrain.cli import main; main()"
    command, environment = [sys.executable, "-c", code], {**os.environ, **words}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["tokenize"], ended


def test_defaults_are_documented() -> None:
    assert "runs/NAME" in run("train", "-h").stdout and "runs/NAME" in run("study", "run", "-h").stdout
    assert f"default: ({MAX_OVERLAP})" in run("store", "verify", "-h").stdout


def test_counts_of_the_command_line_are_those_of_a_configuration(config_file: Path) -> None:
    shown = run("sizes", config_file, "--vocab-size", "2k", "model.num_layers=1", "data.store=nowhere").stdout
    assert (
        shown
        == run("sizes", config_file, "--vocab-size", 2000, "model.num_layers=1", "data.store=nowhere").stdout
    )
    assert "decimal" in run("sizes", config_file, "--vocab-size", "2Ki", code=2).stderr
    assert "at least 1" in run("sizes", config_file, "--vocab-size", 0, code=2).stderr


def test_a_missing_store_is_named_with_the_option_that_the_command_has(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("data: {sources: {a: {store: nowhere}, b: {store: other}}}")
    (tmp_path / "one.yaml").write_text("data: {store: nowhere}")
    refused = start(["train", tmp_path / "one.yaml"], 2).stderr
    assert "data.store=FOLDER" in refused and "--store" not in refused and str(Path.cwd()) in refused
    refused = start(["train", tmp_path / "mix.yaml"], 2).stderr
    assert "data.sources.a.store=FOLDER" in refused
    plotted = run("config", "show", tmp_path / "one.yaml", "--plot", tmp_path / "x.png", code=2).stderr
    assert "data.store=FOLDER" in plotted
    assert "FOLDER" not in run("store", "show", "nowhere", code=2).stderr


def test_unknown_key_is_one_line_and_exit_code_2(config_file: Path) -> None:
    ended = run("config", "show", config_file, "train.zero_stag=1", code=2)
    assert ended.stderr == (
        "error: train.zero_stag: must be a known key, but got 'zero_stag'. Did you mean train.zero_stage?\n"
    )


def test_tokenize_show_and_verify(tmp_path: Path) -> None:
    source, store = tmp_path / "text.jsonl", tmp_path / "store"
    rows = ({"text": f"the number {n} and its square {n * n} stand here " * 3} for n in range(300))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run("tokenize", source, "--out", store, "--vocab-size", 120, "--processes", 1, "--json")
    assert json.loads(made.stdout)["documents"]["kept"] == 300
    assert "train" in run("store", "show", store).stdout
    assert "matches its manifest" in run("store", "verify", store).stdout
    refused = json.loads(run("store", "verify", store, "--max-overlap", 0, "--json", code=1).stdout)
    assert not refused["ok"] and refused["max_overlap"] == 0
    assert "above the limit 0.00%" in refused["overlap_problems"][0] and not refused["problems"]
    shard = next(store.glob("train-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert shard.name in run("store", "verify", store, code=4).stdout


def test_tokenize_takes_near_settings_and_passages(tmp_path: Path) -> None:
    source, store = tmp_path / "text.jsonl", tmp_path / "store"
    rows = ({"text": f"number {n} of the many that stand here, {n * n} squared"} for n in range(300))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tokenize", source, "--out", store, "--vocab-size", 120, "--processes", 1]
    wide = ["--dedup", "minhash", "--near", "shingle_words=2", "--near", "threshold=0.9", "--passages", 9]
    made = json.loads(run(*command, *wide, "--json").stdout)
    assert made["options"]["near"]["shingle_words"] == 2 and made["options"]["passages"] == 9
    assert made["documents"]["passages"] > made["documents"]["kept"]
    assert run(*command, "--near", "shingles=2", code=2).stderr.startswith("error: near-duplicates shingles:")


@pytest.mark.parametrize("name", ["none.txt", "none"])
def test_tokenize_refuses_a_missing_file(tmp_path: Path, name: str) -> None:
    ended = run("tokenize", tmp_path / name, "--out", tmp_path / "store", code=2)
    assert ended.stderr.count("\n") == 1 and f"{name}: must be a readable file, but got No" in ended.stderr
    assert not (tmp_path / "store").exists()


def test_sizes_and_match_need_no_store(tmp_path: Path) -> None:
    models = Path(__file__).parents[1] / "configs" / "models"
    told = run("sizes", models / "moe-base.yaml", "--precision", "bf16", "--world-size", 8).stdout
    assert "total                    700,636,416" in told and "by train.zero_stage" in told
    words = ["--to", models / "t5-1.1-large.yaml", "--vary", "width", "--out", tmp_path / "wide.yaml"]
    found = json.loads(run("match", models / "moe-base.yaml", *words, "--json").stdout)
    assert found["changes"]["model.d_model"] == {"before": 768, "after": 1280}
    again = run("match", models / "moe-base.yaml", *words, code=2)
    assert "--out: must be a new file" in again.stderr
    flops = json.loads(run("sizes", tmp_path / "wide.yaml", "--json").stdout)["flops"]["all_pairs"]
    assert flops["training_per_token"] == found["got"] == pytest.approx(found["wanted"], rel=0.01)


def test_train_and_audit(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = start(["train", config_file, "--out", out], 0)
    assert "done: 3 steps" in trained.stdout
    audited = json.loads(run("audit", out, "--json").stdout)
    assert audited["exact"] and audited["exposures"] == {"1": 1000}
    (row,) = json.loads(run("runs", out, "--json").stdout)
    assert (row["audit_verdict"], row["audit_level"]) == ("exact", "windows")
    # Commands of this file run as on a login node, without torch.
    assert "needs torch" in run("audit", out, "--level", "inputs", code=2).stderr
    run("audit", out, "--signature", out / "ledger.sig", code=2)
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    assert "must end with the line of its last checkpoint" in run("audit", out, code=4).stdout
    ledger.write_text("".join(lines).replace('"epoch":0', '"epoch":1', 1))
    assert "cannot say" in run("audit", out, code=4).stdout


def test_train_refuses_on_every_road_with_exit_code_2(config_file: Path, tmp_path: Path) -> None:
    ended = start(["train", config_file, "data.unique_tokens=1e8", "--out", tmp_path / "run"], 2)
    assert "100000000" in ended.stderr and not (tmp_path / "run").exists()


def test_launch_dry_run_prints_the_command(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "somewhere"
    options = ["--out", out, "--dry-run", "--env", "HF_TOKEN=hidden", "--env", "MINE=a b"]
    printed = run("launch", config_file, "train.zero_stage=1", "--gpus", 2, *options).stdout
    assert "deepspeed.launcher.launch" in printed and "MINE='a b'" in printed
    assert printed.rstrip().endswith(f"reptrain train {config_file} train.zero_stage=1 --out {out}")
    script = tmp_path / "somewhere.launch.sh"
    assert printed.rstrip() in script.read_text() and os.access(script, os.X_OK)
    # A run folder is made by the run itself, and secrets are in no file.
    assert [*tmp_path.iterdir()] == [script] and "hidden" not in script.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--torchrun", "--gpus", 2], "torch.distributed.run --nnodes=1 --nproc-per-node=2"),
        (["--mpi", "--gpus", 2], "mpirun -np 2"),
        (["--slurm", "time=60", "--slurm", "nodes=2"], "#SBATCH --nodes=2"),
        (["--slurm", "time=60", "--preflight"], "-m reptrain doctor"),
        (["--hostfile", "hosts", "--exclude", "b", "--master-addr", "10.0.0.7"], "--master_addr=10.0.0.7"),
    ],
)
def test_launch_writes_the_script_of_each_launcher(
    config_file: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb slots=8\nc slots=8\n")
    options = [hosts if option == "hosts" else option for option in options]
    printed = run("launch", config_file, *options, "--out", tmp_path / "run", "--dry-run").stdout
    assert words in printed and printed.rstrip() in (tmp_path / "run.launch.sh").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--slurm", "time=1", "--torchrun"],
        ["--slurm", "time=1", "--hostfile", "hosts"],
        ["--torchrun", "--mpi", "--gpus", "2"],
        ["--slurm", "nodes=2"],
        ["--torchrun"],
        ["--mpi"],
        ["--gpus", "2", "--env", "no name=1"],
    ],
)
def test_launch_refuses_options_that_exclude_each_other(
    config_file: Path, tmp_path: Path, options: list[str]
) -> None:
    printed = run("launch", config_file, *options, "--out", tmp_path / "run", code=2)
    assert "error:" in printed.stderr and not [*tmp_path.iterdir()]


def test_doctor_examines_this_machine(config_file: Path, tmp_path: Path) -> None:
    report = json.loads(run("doctor", config_file, "--out", tmp_path / "run", "--json").stdout)
    assert report["ready"] and not [line for line in report["checks"] if line["state"] == "fault"]
    printed = run("doctor", "--hostfile", tmp_path / "no-such-file", code=1).stdout
    assert "FAULT: hostfile" in printed and "NOT READY: hostfile" in printed
    assert "DeepSpeed trains on this machine alone" in printed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["demo"],
        ["train"],
        ["audit"],
        ["tokenize"],
        ["launch"],
        ["config", "show"],
        ["store", "verify"],
        ["study", "run"],
    ],
    ids=" ".join,
)
def test_every_command_has_help(words: list[str]) -> None:
    assert "Usage: " in run(*words, "--help").stdout
