"""Rows, ratios, gates and the page of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

from reptrain.bench import page
from reptrain.bench.check import worse
from reptrain.bench.data import corrupting
from reptrain.bench.goals import PEERS, Goal, verdicts
from reptrain.bench.measure import (
    GateError,
    Measurement,
    Metric,
    Missing,
    compared,
    gate,
    installed,
    interleaved,
    torch_threads,
)
from reptrain.bench.peers.megatron import megatron_first_batch
from reptrain.bench.peers.spans import corrupted
from reptrain.bench.rows import OURS, Row, append, latest, read, table
from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.load import validate

RATE = Metric("speed", "tokens/s")
SECONDS = Metric("time", "s", larger_is_better=False)


def fixed(*values: float) -> Measurement:
    """A measurement that returns the given values, after a first value that is not counted."""
    remaining = iter([0.5, *values])
    return lambda: next(remaining)


def measured(metric: Metric = RATE) -> list[Row]:
    ways = {OURS: fixed(6.0, 8.0, 9.0), "other": fixed(3.0, 2.0, 3.0), "absent": Missing("not installed")}
    return compared("data", "a case", metric, ways, 3)


def test_interleaved_runs_every_way_in_each_repetition() -> None:
    calls = []

    def called(name: str) -> Measurement:
        return lambda: calls.append(name) or float(len(calls))

    assert interleaved({"a": called("a"), "b": called("b")}, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3


def test_ratios_are_taken_within_each_repetition() -> None:
    ours, other, absent = measured()
    assert (ours.median, ours.low, ours.high, ours.ratio) == ("8", "6", "9", "")
    assert (other.ratio, other.ratio_low, other.ratio_high) == ("3", "2", "4")
    assert (absent.median, absent.repetitions, absent.note) == ("", "0", "not installed")


def test_ratios_of_times_are_above_one_where_ours_is_shorter() -> None:
    ways = {OURS: fixed(2.0), "other": fixed(6.0)}
    assert compared("start", "a case", SECONDS, ways, 1)[1].ratio == "3"


def test_rows_survive_the_file_and_the_last_one_counts(tmp_path: Path) -> None:
    rows = measured()
    append(rows, table("data", tmp_path))
    append([rows[1]._replace(median="7")], table("data", tmp_path))
    found = read(table("data", tmp_path))
    assert found[:3] == rows
    assert [row.median for row in latest(found)] == ["8", "7", ""]


def test_an_interrupted_benchmark_keeps_the_rows_of_its_finished_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measured()

    def run(**_: object) -> Iterator[Row]:
        yield from rows
        gate(False, bench="proof", what="other", rule="must agree")

    monkeypatch.setattr("reptrain.bench.proof.run", run)
    result = CliRunner().invoke(get_command(app), ["bench", "proof", "--out", str(tmp_path)])
    assert isinstance(result.exception, GateError)
    assert read(table("proof", tmp_path)) == rows


def test_a_red_gate_leaves_no_result() -> None:
    gate(True, bench="data", what="other", rule="must agree")
    with pytest.raises(GateError, match="bench data: must agree, but got another result from other"):
        gate(False, bench="data", what="other", rule="must agree")


def test_worse_reports_only_ratios_below_the_recorded_range() -> None:
    recorded = measured()
    overlapping = recorded[1]._replace(ratio="1.9", ratio_low="1.5", ratio_high="2.1")
    assert list(worse(recorded, [recorded[0], overlapping])) == []
    below = recorded[1]._replace(ratio="1.8", ratio_low="1.5", ratio_high="1.9")
    (message,) = worse(recorded, [below])
    assert "1.8 (1.5 to 1.9) times that of other, where 3 (2 to 4) is on record" in message
    slower = recorded[0]._replace(median="0.1", low="0.1", high="0.1")
    assert list(worse(recorded, [slower])) == []


def test_verdicts_take_the_fastest_alternative() -> None:
    rows = [*measured(), measured()[1]._replace(what="faster", ratio="1.5")]
    rows.append(measured()[1]._replace(what="NumPy gather", ratio="0.2"))
    goals = [Goal("data", "a case", "speed", bound, PEERS) for bound in (1.2, 2.0)]
    found = verdicts(
        rows, [*goals, Goal("data", "a case", "speed", 8.0), Goal("data", "no case", "speed", 1.0)]
    )
    assert [(v.what, v.measured, v.met) for v in found] == [
        ("faster", 1.5, True),
        ("faster", 1.5, False),
        (OURS, 8.0, True),
    ]


def test_a_row_that_is_added_later_joins_the_table_of_its_case() -> None:
    later = [measured()[0]._replace(case="another"), measured()[1]._replace(what="later")]
    text = page.markdown([*measured(), *later])
    assert text.count("| reptrain |") == 2 and text.index("| later |") < text.index("**another**")


def test_the_page_equals_the_rows() -> None:
    text = page.PAGE.read_text()
    assert page.rebuilt(text) == text, "run `reptrain bench page`"


def test_the_page_has_a_table_for_each_benchmark(tmp_path: Path) -> None:
    append(measured(), table("data", tmp_path))
    text = page.rebuilt(
        "<!-- bench data -->\nold\n<!-- end data -->\n<!-- goals -->\n<!-- end goals -->", tmp_path
    )
    assert "old" not in text
    assert "| reptrain | 8 (6 to 9) |  |  |" in text
    assert "| other | 3 (2 to 3) | 3 (2 to 4) |  |" in text
    assert "| absent |  |  | not installed |" in text
    for bench in page.BENCHES:
        assert f"<!-- bench {bench} -->" in page.PAGE.read_text()


def test_peers_of_the_bench_extra_train_and_read(tmp_path: Path) -> None:
    if any(installed(package) is None for package in ("litgpt", "lightning", "megatron-core")):
        pytest.skip("LitGPT and Megatron-core are installed by `make bench`")
    from reptrain.bench.peers.litgpt_loop import litgpt_loop

    model = {"vocab_size": 64, "d_model": 32, "num_layers": 1, "num_heads": 1, "d_ff": 64}
    settings = {"data": {"store": "s", "unique_tokens": 64, "window_tokens": 16}, "model": model}
    settings |= {"train": {"total_tokens": 64, "batch_windows": 2, "precision": "fp32"}}
    steps = litgpt_loop(validate(RunConfig, settings))
    assert not isinstance(steps, Missing)
    first, *_, last = (next(steps) for _ in range(20))
    assert last < first
    measure = megatron_first_batch(
        tmp_path, 4096, document_tokens=100, window_tokens=64, epochs=3, batch_windows=8
    )
    assert not isinstance(measure, Missing) and measure() > 0


def test_usual_span_corruption_keeps_every_token() -> None:
    import numpy as np

    tokens = np.arange(100, 100 + 4 * 568).reshape(4, 568)
    source, target = corrupted(tokens, np.random.default_rng(0), sentinel=99, eos=1)
    assert source.shape == (4, 512)
    assert target.shape == (4, 114)
    both = np.sort(np.concatenate([source, target], axis=1)[:, :], axis=1)
    assert all(set(tokens[row]) <= set(both[row].tolist()) for row in range(4))


@pytest.mark.slow
def test_bench_data_measures_span_corruption() -> None:
    with torch_threads(1):
        rows = corrupting(1)
    assert {row.what for row in rows} == {OURS, "batched NumPy"}
    assert all(float(row.median) > 0 for row in rows)
