"""The ledger as a chain: damage, rewriting, published and signed heads, and checks of the updates."""

from __future__ import annotations

import json
import shutil
import subprocess
from hashlib import sha256

import pytest
from audited_runs import replaced, rewrite, trained

from reptrain.auditing.audit import audit
from reptrain.auditing.head_check import Signed, sign_head
from reptrain.errors import ConfigError
from reptrain.runs.ledger import Ledger, LedgerEvent, LedgerHead

SLICE = ("1" * 16, "2" * 16)


def edited(run, number, old, new):
    """Change one line of the ledger, and nothing else."""
    lines = run.ledger.path.read_text().splitlines(keepends=True)
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    run.ledger.path.write_text("".join(lines))


def test_audit_reports_the_head_and_that_it_is_not_signed(run):
    report = audit(run.path)
    last = run.ledger.path.read_bytes().splitlines()[-1]
    assert report.exact and report.ledger.head == sha256(last).hexdigest()[:32]
    assert (report.ledger.chained_from, report.ledger.compared_with) == (1, None)
    assert f"head {report.ledger.head}, not signed" in report.text()


def test_a_line_changed_after_it_was_written_is_damage(run):
    edited(run, 4, '"tokens":384', '"tokens":383')
    report = audit(run.path)
    assert report.exit_code == 4 and not report.exact
    (reason,) = report.cannot_say
    assert reason.startswith("ledger.jsonl, line 5 follows a line of the hash")


@pytest.mark.parametrize("number", [1, 3])
def test_a_line_that_was_removed_is_damage(run, number):
    lines = run.ledger.path.read_text().splitlines(keepends=True)
    run.ledger.path.write_text("".join(lines[: number - 1] + lines[number:]))
    assert audit(run.path).exit_code == 4


def test_a_line_without_a_hash_within_the_chain_is_damage(run):
    line = json.loads(run.ledger.path.read_text().splitlines()[3])
    edited(run, 4, f',"previous":"{line["previous"]}"', "")
    assert any("line 4 has no hash" in reason for reason in audit(run.path).cannot_say)


def test_a_rewritten_chain_is_not_damaged_but_has_another_head(run):
    head = audit(run.path).ledger.head
    assert f"checked against the head {head}" in audit(run.path, head=head).text()
    middle = list(run.ledger.lines())[3].hash
    assert "as far as line 4" in audit(run.path, head=middle).ledger.compared_with
    # The same windows, and so the same digests: only the head tells.
    rewrite(run, lambda records: replaced(records, 2, grad_norm=1.0))
    assert audit(run.path).exact
    report = audit(run.path, head=head)
    assert report.exit_code == 4 and f"no line of the hash {head}" in report.cannot_say[0]


def test_a_ledger_of_an_earlier_version_is_audited_without_a_chain(run):
    plain = [record.model_copy(update={"previous": None}) for record in run.ledger.records()]
    lines = [record.model_dump_json(exclude_none=True) + "\n" for record in plain]
    run.ledger.path.write_text("".join(lines))
    report = audit(run.path)
    assert report.exact and report.ledger.chained_from is None and "not a chain" in report.text()
    # A later version continues the run: the chain begins with its first line.
    Ledger(run.ledger.path).append(LedgerEvent(event="checkpoint", step=7, state="0" * 16))
    report = audit(run.path)
    assert report.exact and report.ledger.chained_from == len(plain) + 1


def test_a_branch_begins_with_a_line_of_its_parent(run):
    (start, *rest) = (line.record for line in run.ledger.lines())
    parent = LedgerHead(head="a" * 32, step=12)
    run.ledger.remove()
    for record in (start.model_copy(update={"parent": parent}), *rest):
        run.ledger.append(record)
    report = audit(run.path)
    assert report.exact and report.ledger.parent == "a" * 32


@pytest.mark.parametrize("name", ["plan.json", "config.yaml"])
def test_a_file_of_the_run_that_was_changed_is_damage(run, name):
    with (run.path / name).open("a") as file:
        file.write("\n")
    report = audit(run.path)
    assert report.exit_code == 4
    assert report.cannot_say == (f"{name} differs from the checksum in ledger.jsonl",)


def test_an_update_that_changes_no_weight_is_found(run):
    fields = {"grad_norm": 0.5, "slice": SLICE, "optimizer_step": 3}
    rewrite(run, lambda records: replaced(records, 2, **fields))
    assert audit(run.path).exact
    rewrite(run, lambda records: replaced(records, 2, **fields | {"slice": SLICE[:1] * 2}))
    (problem,) = audit(run.path).problems
    assert problem.step == 2 and "changed none of the hashed weights" in problem.message
    rewrite(run, lambda records: replaced(records, 2, **fields | {"slice": SLICE[:1] * 2, "grad_norm": 0.0}))
    assert audit(run.path).exact


def test_a_step_after_the_plan_has_no_rate_that_could_change_weights(run):
    def one_more(records):
        fields = {"step": records[-1].step + 1, "grad_norm": 0.5, "slice": SLICE[:1] * 2}
        return [*records, records[-1].model_copy(update=fields)]

    rewrite(run, one_more)
    messages = [problem.message for problem in audit(run.path).problems]
    assert messages and not any("hashed weights" in message for message in messages)


def test_weights_that_change_without_an_update_are_found(run):
    rewrite(run, lambda records: replaced(records, 6, applied=False, slice=SLICE))
    messages = [problem.message for problem in audit(run.path).problems]
    assert "weights changed in a step that was not applied" in messages


def test_an_update_that_the_optimizer_did_not_count_is_found(run):
    def counted(records):
        return [r.model_copy(update={"optimizer_step": min(r.step + 1, 4)}) for r in records]

    rewrite(run, counted)
    problems = audit(run.path).problems
    assert [problem.step for problem in problems] == [4, 5, 6]
    assert "the optimizer counts 4 updates after this step, 4 before it" in problems[0].message


def test_a_resumption_with_another_state_is_found(run):
    (start, *steps, end) = (line.record for line in run.ledger.lines())
    for loaded, problems in (("1" * 16, 0), ("2" * 16, 1)):
        run.ledger.remove()
        saved = LedgerEvent(event="checkpoint", step=3, state="1" * 16)
        resumed = LedgerEvent(event="resume", step=3, state=loaded, discarded="b" * 32)
        for record in (start, *steps[:3], saved, resumed, *steps[3:], end):
            run.ledger.append(record)
        report = audit(run.path)
        assert report.num_problems == problems and not report.cannot_say
    assert "weights, optimizer state or counters were not loaded" in report.problems[0].message


@pytest.fixture
def key(tmp_path):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    (tmp_path / "signers").write_text(f"ada {path.with_suffix('.pub').read_text()}")
    return path


def test_a_signature_shows_who_vouches_for_the_ledger(run, key, tmp_path):
    signature, signers = tmp_path / "ledger.sig", tmp_path / "signers"
    sign_head(audit(run.path).ledger.head, key, signature)
    signed = Signed(signature, signers)
    assert audit(run.path, signature=signed).ledger.compared_with == "the signature by ada"
    rewrite(run, lambda records: replaced(records, 2, grad_norm=1.0))
    assert audit(run.path, signature=signed).exit_code == 4
    signature.write_text(signature.read_text().replace("ledger ", "ledger 0", 1))
    with pytest.raises(ConfigError, match="must be a signature that `reptrain audit --sign` wrote"):
        audit(run.path, signature=signed)
    with pytest.raises(ConfigError, match="must be files"):
        audit(run.path, signature=Signed(signature, tmp_path / "nobody"))
    with pytest.raises(ConfigError, match="must be a key"):
        sign_head("0" * 32, signers, signature)


def test_a_ledger_that_differs_from_its_checkpoint_is_damage(store, tmp_path):
    run = trained(store, tmp_path / "run")
    content = run.ledger.path.read_bytes()
    folder = run.checkpoints / "step-7"
    folder.mkdir()

    def save(state, recorded):
        copy = {"bytes": len(recorded), "sha256": sha256(recorded).hexdigest()}
        body = json.dumps({"state": state, "records": {"ledger.jsonl": copy}})
        (folder / "manifest.json").write_text(f"{body}\n{sha256(body.encode()).hexdigest()}\n")

    save("0" * 16, content)
    assert audit(run.path).exact
    save("1" * 16, content)
    assert "step-7 has the state 1111111111111111" in audit(run.path).cannot_say[0]
    save("0" * 16, content.replace(b"1", b"2"))
    assert audit(run.path).cannot_say == ("ledger.jsonl differs from its copy in step-7",)
    (folder / "manifest.json").write_text("{}")
    assert audit(run.path).exact
