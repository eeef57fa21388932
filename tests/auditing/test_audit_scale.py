"""What an audit may cost, and that its memory does not follow the tokens consumed."""

from __future__ import annotations

import pytest
from large_runs import make_run, make_store, measure_audit

BILLION = 10**9
MIB = 1 << 20


def test_audit_takes_no_more_memory_for_more_epochs(tmp_path):
    store = make_store(tmp_path, 1 << 16)
    few, many = (
        measure_audit(make_run(tmp_path / str(k), store, unique_tokens=1 << 16, epochs=k, cut="shifted").path)
        for k in (4, 400)
    )
    assert few["exact"] and many["exact"] and many["tokens"] == 100 * few["tokens"]
    assert many["anonymous_mib"] - few["anonymous_mib"] < 64


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cut", ["fixed", "shifted"])
@pytest.mark.parametrize(("unique", "epochs"), [(1 << 20, 1000), (10**8, 10)])
def test_audit_of_a_billion_tokens_keeps_within_its_budget(tmp_path, unique, epochs, cut):
    run = make_run(
        tmp_path / "run", make_store(tmp_path, unique), unique_tokens=unique, epochs=epochs, cut=cut
    )
    cost = measure_audit(run.path, exposures=tmp_path / "exposures.arrow")
    assert cost["exact"] and cost["tokens"] >= BILLION
    # CPU time, as the machine may have other work: 60 s on two cores.
    assert cost["cpu_s"] < 120
    assert cost["peak_mib"] < 1024
