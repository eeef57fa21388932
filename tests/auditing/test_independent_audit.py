"""The independent auditor agrees with `reptrain audit` on sound and on damaged runs."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import mixture_runs
import pytest
from audited_runs import replaced, rewrite, trained
from typer.testing import CliRunner

from reptrain.auditing.audit import audit
from reptrain.cli import app
from reptrain.errors import CannotSayError
from reptrain.runs.folder import RunFolder

TOOLS = Path(__file__).parents[2] / "tools"
TOOL = TOOLS / "independent_audit.py"
ALLOWED = {
    "numpy",
    "pyarrow",
    "independent_evidence",
    "independent_inputs",
    "independent_tokenizer",
    "independent_windows",
}
ORDERS_AND_CUTS = [
    (order, cut)
    for order in ("reshuffle", "same", "mixed")
    for cut in ("fixed", "shifted", "repacked")
    if (order, cut) != ("mixed", "repacked")
]
QUICK_ORDERS = [("reshuffle", "repacked"), ("mixed", "shifted")]
sys.path.insert(0, str(TOOLS))

from independent_audit import main  # noqa: E402


def independent(folder, capsys, *words):
    """Exit code and report of the independent auditor."""
    code = main([str(folder), *map(str, words), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else said.err


def agree(folder, capsys):
    """Both auditors have the same verdict and count the same exposures."""
    theirs = audit(folder.path)
    code, report = independent(folder.path, capsys)
    assert code == theirs.exit_code, (report, theirs.text())
    assert (report["exact"], report["as_planned"]) == (theirs.exact, theirs.as_planned), theirs.text()
    if theirs.as_planned:
        assert (report["windows"], report["complete"]) == (theirs.windows, theirs.complete)
        for source in theirs.sources:
            wanted = {str(times): tokens for times, tokens in source.exposures.items()}
            assert report["exposures"][source.name] == wanted
    return theirs


@pytest.mark.parametrize(("order", "cut"), ORDERS_AND_CUTS)
@pytest.mark.parametrize("budget", ["3epochs", "2.5epochs", "1/3epochs", 1700])
def test_auditors_agree_on_sound_runs(store, tmp_path, capsys, order, cut, budget):
    folder = trained(store, tmp_path / "run", budget=budget, order=order, cut=cut, seed=5)
    assert agree(folder, capsys).as_planned


def other_tokens(records):
    return replaced(records, 2, digest=f"{int(records[2].digest, 16) ^ 1:016x}")


def retried(records):
    return [*records[:3], records[3].model_copy(update={"applied": False}), *records[3:]]


DAMAGES = {
    "nothing": lambda records: records,
    "a step left out": lambda records: [*records[:3], *records[4:]],
    "a step twice": lambda records: [*records[:4], records[3], *records[4:]],
    "two steps exchanged": lambda records: [*records[:3], records[4], records[3], *records[5:]],
    "the last step lost": lambda records: records[:-1],
    "other tokens": other_tokens,
    "wrong count of tokens": lambda records: replaced(records, 0, tokens=383),
    "wrong epoch": lambda records: replaced(records, 0, epoch=7),
    "other first index": lambda records: replaced(records, 2, first_index=17),
    "fewer windows": lambda records: replaced(records, 2, windows=7),
    "more windows": lambda records: replaced(records, 2, windows=16),
    "an index beyond 64 bits": lambda records: replaced(records, 2, first_index=10**30),
    "a step beyond the run": lambda records: replaced(records, 2, step=10**15),
    "a step retried": retried,
    "a step not applied": lambda records: replaced(records, 3, applied=False),
    "the last step not applied": lambda records: replaced(records, len(records) - 1, applied=False),
}


# Every damage in two orders; in the others it is found in mixtures, below.
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("order", "cut"),
    [
        pytest.param(*both, marks=[] if both in QUICK_ORDERS else [pytest.mark.slow])
        for both in ORDERS_AND_CUTS
    ],
)
def test_auditors_agree_on_damaged_ledgers(store, tmp_path, capsys, order, cut, damage):
    folder = trained(store, tmp_path / "run", order=order, cut=cut, budget="3epochs")
    rewrite(folder, DAMAGES[damage])
    assert agree(folder, capsys).exact == (damage in ("nothing", "a step retried"))


def other_shares(records):
    shares = records[2].sources
    changed = shares["real"].model_copy(update={"windows": shares["real"].windows + 1})
    return replaced(records, 2, sources=shares | {"real": changed})


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return mixture_runs.make_stores(tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize(("order", "cut"), ORDERS_AND_CUTS)
def test_auditors_agree_on_mixtures(mixture, tmp_path, capsys, order, cut):
    folder = mixture_runs.trained(mixture, tmp_path / "run", real={"order": order, "cut": cut})
    records = list(folder.ledger.records())
    for name, damage in (DAMAGES | {"other shares": other_shares}).items():
        rewrite(folder, lambda _, damage=damage: damage(records))
        sound = name in ("nothing", "a step retried")
        assert agree(folder, capsys).as_planned == sound, name


def test_parts_of_the_independent_auditor_are_short():
    parts = {
        ("independent_audit", "independent_windows"): 400,
        ("independent_inputs", "independent_tokenizer"): 500,
    }
    for names, most in parts.items():
        assert sum(len((TOOLS / f"{name}.py").read_text().splitlines()) for name in names) <= most


def test_auditors_agree_on_an_unfinished_run(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run", state="running")
    rewrite(folder, lambda records: replaced(records[:4], 3, applied=False))
    assert agree(folder, capsys).exact


def test_auditors_agree_on_a_record_of_another_seed(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    other = list(trained(store, tmp_path / "other", seed=1).ledger.records())
    rewrite(folder, lambda records: [*records[:3], other[3], *records[4:]])
    assert not agree(folder, capsys).exact


@pytest.mark.parametrize(
    "edit",
    [
        *({"batch_windows": 9}, {"total_windows": 40}, {"window_tokens": 47}, {"seed": 1}),
        {"sources": {"cut": "shifted"}}, {"sources": {"cut": "repacked"}},
        {"sources": {"order": "same"}}, {"sources": {"seed": 5}},
        {"sources": {"subset_seed": 3}}, {"sources": {"windows_per_epoch": 20}}, {"sources": {"epochs": "2"}},
    ],
    ids=str,
)  # fmt: skip
def test_independent_audit_finds_an_edited_plan(store, tmp_path, capsys, edit):
    folder = trained(store, tmp_path / "run")
    # Without the checksum of plan.json, its contents must show the edit.
    start, *rest = (line.record for line in folder.ledger.lines())
    folder.ledger.remove()
    for record in (start.model_copy(update={"files": None}), *rest):
        folder.ledger.append(record)
    path = folder.path / "plan.json"
    plan = json.loads(path.read_text())
    plan["sources"][0] |= edit.get("sources", {})
    path.write_text(json.dumps(plan | {key: value for key, value in edit.items() if key != "sources"}))
    code, report = independent(folder.path, capsys)
    assert code == 1 and not report["as_planned"]


def test_auditors_cannot_say_with_a_plan_of_another_checksum(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    path = folder.path / "plan.json"
    path.write_text(path.read_text() + "\n")
    assert agree(folder, capsys).exit_code == 4


def test_independent_audit_finds_a_config_of_another_order(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    path = folder.path / "config.yaml"
    path.write_text(path.read_text().replace("order: reshuffle", "order: same"))
    assert not agree(folder, capsys).exact


def test_independent_audit_cannot_say_on_a_damaged_store(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    moved = Path(shutil.copytree(store.path, tmp_path / "moved"))
    assert independent(folder.path, capsys, "--store", moved)[0] == 0
    shard = next(moved.glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, said = independent(folder.path, capsys, "--store", moved)
    assert code == 4 and shard.name in said


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("ledger.jsonl", b"{}\n", 4), ("ledger.jsonl", b"nonsense\n", 4), ("plan.json", b"{", 4),
        ("plan.json", b"{}", 4),
        ("plan.json", None, 2), ("config.yaml", None, 4), ("status.json", b"[]", 4),
    ],
)  # fmt: skip
def test_independent_audit_tells_damage_from_wrong_input(store, tmp_path, capsys, file, content, code):
    folder = trained(store, tmp_path / "run")
    path = folder.path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert independent(folder.path, capsys)[0] == code


def test_independent_audit_refuses_another_store(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    moved = Path(shutil.copytree(store.path, tmp_path / "moved"))
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 32}))
    assert independent(folder.path, capsys, "--store", moved)[0] == 2
    assert independent(folder.path, capsys, "--store", tmp_path / "nowhere")[0] == 4


def without_link(line):
    return line.partition(b',"previous"')[0] + b"}"


BROKEN_CHAINS = {
    "a line removed": lambda lines: [*lines[:3], *lines[4:]],
    "a line changed": lambda lines: [*lines[:3], lines[3].replace(b"true", b"false"), *lines[4:]],
    "a line without a link": lambda lines: [*lines[:3], without_link(lines[3]), *lines[4:]],
}


@pytest.mark.parametrize("damage", BROKEN_CHAINS)
def test_auditors_agree_on_a_broken_chain(store, tmp_path, capsys, damage):
    folder = trained(store, tmp_path / "run")
    lines = folder.ledger.path.read_bytes().splitlines()
    folder.ledger.path.write_bytes(b"".join(line + b"\n" for line in BROKEN_CHAINS[damage](lines)))
    assert agree(folder, capsys).exit_code == 4


def chained(records):
    """Ledger lines of JSON objects, each with the hash of the line before it."""
    lines, previous = [], "0" * 32
    for record in records:
        lines.append(json.dumps(record | {"previous": previous}).encode())
        previous = sha256(lines[-1]).hexdigest()[:32]
    return b"".join(line + b"\n" for line in lines)


def edited(**values):
    """The fourth line with other values; None removes a key."""

    def edit(records):
        record = {key: value for key, value in (records[3] | values).items() if value is not None}
        return [*records[:3], record, *records[4:]]

    return edit


RESUMED = {"event": "resume", "step": 3, "state": "0" * 16}
CHAINED_DAMAGES = {
    "a key that is not in the format": edited(colour="red"),
    "a key that is missing": edited(tokens=None),
    "a step that is not an integer": edited(step=2.0),
    "a count that is a string": edited(tokens="384"),
    "a step below 0": edited(step=-1),
    "applied that is a string": edited(applied="true"),
    "applied that is a number": edited(applied=1),
    "a digest in capitals": edited(digest="A" * 16),
    "a short digest": edited(digest="1" * 15),
    "an unknown event": lambda records: [*records[:4], {"event": "party", "step": 3}, *records[4:]],
    "an event whose key is not first": lambda records: [dict(reversed(records[0].items())), *records[1:]],
    "no start": lambda records: records[1:],
    "two starts": lambda records: [records[0], *records],
    "a start in between": lambda records: [*records[:4], records[0], *records[4:]],
    "a resumption without a checkpoint": lambda records: [*records[:4], RESUMED, *records[4:]],
    "no checkpoint at the end": lambda records: records[:-1],
    "half of the steps": lambda records: records[: len(records) // 2],
    "no line": lambda records: [],
}


@pytest.mark.parametrize("damage", CHAINED_DAMAGES)
def test_auditors_cannot_say_on_a_ledger_that_no_run_writes(store, tmp_path, capsys, damage):
    folder = trained(store, tmp_path / "run")
    records = [json.loads(line) for line in folder.ledger.path.read_bytes().splitlines()]
    for record in records:
        del record["previous"]
    folder.ledger.path.write_bytes(chained(records))
    assert agree(folder, capsys).exact
    folder.ledger.path.write_bytes(chained(CHAINED_DAMAGES[damage](records)))
    assert codes(folder, capsys) == (4, 4)


def codes(folder, capsys):
    """Exit codes of `reptrain audit` and of the independent auditor."""
    result = CliRunner().invoke(app, ["audit", str(folder.path)])
    code = 4 if isinstance(result.exception, CannotSayError) else result.exit_code
    return code, independent(folder.path, capsys)[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ledger.jsonl", None), ("ledger.jsonl", "a folder"), ("plan.json", '{"format": 9}'),
        ("plan.json", "half"), ("plan.json", {"batch_windows": 0}), ("plan.json", {"sources": []}),
        ("status.json", '{"state": "sleeping"}'), ("status.json", "{"),
    ],
    ids=str,
)  # fmt: skip
def test_auditors_cannot_say_on_a_missing_or_damaged_file(store, tmp_path, capsys, name, content):
    folder = trained(store, tmp_path / "run")
    path = folder.path / name
    whole = path.read_text()
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content == "half":
        path.write_text(whole[: len(whole) // 2])
    elif isinstance(content, dict):
        path.write_text(json.dumps(json.loads(whole) | content))
    elif content is not None:
        path.write_text(content)
    assert codes(folder, capsys) == (4, 4)


def test_auditors_accept_a_run_folder_that_was_renamed(store, tmp_path, capsys):
    folder = trained(store, tmp_path / "run")
    moved = RunFolder(folder.path.rename(tmp_path / "another name"))
    assert codes(moved, capsys) == (0, 0)


def test_independent_audit_imports_numpy_and_pyarrow_only():
    for path in TOOLS.glob("independent_*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        names = {
            name.partition(".")[0]
            for node in tree
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert names <= ALLOWED | set(sys.stdlib_module_names), path


def test_independent_audit_runs_where_reptrain_is_not_installed(store, tmp_path):
    folder = trained(store, tmp_path / "run")
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['reptrain', 'reptrain_kernels', 'torch']));"
        f"sys.argv = ['audit', {str(folder.path)!r}]; runpy.run_path({str(TOOL)!r}, None, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(TOOLS)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "exact (level windows)"), done.stderr
