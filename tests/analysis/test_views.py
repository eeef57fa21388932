"""Queries behind the figures, on small tables."""

from __future__ import annotations

import pyarrow as pa
import pytest

from reptrain.analysis.views import by_epochs, cost, curve_keys, expert_load, loss_against_tokens, loss_map


def runs() -> pa.Table:
    rows = [
        {
            "run": f"{width}-{unique}-{seed}",
            "arm": f"{width}-{unique}",
            "seed": seed,
            "status": "done",
            "scored_source": None,
            "set.entry": f"e{width}",
            "set.model.d_model": width,
            "set.data.unique_tokens": unique,
            "parameters_nonembedding": width * width,
            "consumed_tokens": 1024,
            "unique_tokens": unique,
            "epochs": 1024 / unique,
            "loss_report_final_nats": width / 100 + 100 / unique + seed,
            "train_seconds": 3600.0,
            "num_devices": 2,
            "train_flops": 1e9,
            "tokens_per_second": 100.0,
            "cost_usd": None,
        }
        for width in (64, 128)
        for unique in (1024, 256)
        for seed in (0, 1)
    ]
    rows[-1]["status"] = "failed"
    return pa.Table.from_pylist(rows)


def test_curve_keys_leave_out_what_follows_from_others() -> None:
    # The width follows from the named arm, and the subset's size is the horizontal axis.
    assert curve_keys(runs()) == ["set.entry"]


def test_curve_keys_leave_out_a_rate_that_is_tuned_for_each_size_and_subset() -> None:
    table = runs()
    rates = [
        w * u / 1e6
        for w, u in zip(
            table["set.model.d_model"].to_pylist(), table["unique_tokens"].to_pylist(), strict=True
        )
    ]
    assert curve_keys(table.append_column("set.optimizer.lr", pa.array(rates))) == ["set.entry"]
    # A key that varies within a size and a subset names curves.
    halves = [seed / 2 for seed in table["seed"].to_pylist()]
    assert curve_keys(table.append_column("set.x", pa.array(halves))) == ["set.entry", "set.x"]


def test_by_epochs_averages_the_seeds_of_finished_runs() -> None:
    view = by_epochs(runs(), "loss", "loss_report_final_nats")
    rows = {(row["set.entry"], row["epochs"]): row for row in view.table.to_pylist()}
    assert rows["e64", 1.0]["mean"] == pytest.approx(0.64 + 100 / 1024 + 0.5)
    assert [rows["e128", epochs]["seeds"] for epochs in (1.0, 4.0)] == [2, 1]


def test_loss_map_needs_two_quantities() -> None:
    view = loss_map(runs())
    assert view is not None and view.table.num_rows == 4
    one_size = runs().filter(pa.compute.equal(runs()["set.model.d_model"], 64))
    assert loss_map(one_size) is None


def test_expert_load_is_that_of_sparse_models() -> None:
    rows = [
        {"run": f"{arm}-{seed}", "arm": arm, "split": "report", "source": None, "weights": "own",
         "node": "train", "consumed_tokens": tokens, "epoch": tokens / 1024, "loss_nats": 5.0,
         "expert_load": 1.0 + seed + tokens / 1024 if tokens and arm == "64-1024" else None,
         "experts_unused": seed if tokens and arm == "64-1024" else None}
        for arm in ("64-1024", "128-1024") for seed in (0, 1) for tokens in (0, 512, 1024)
    ]  # fmt: skip
    view = expert_load(runs(), pa.Table.from_pylist(rows))
    assert view is not None
    assert [tuple(row.values()) for row in view.table.to_pylist()] == [
        ("64-1024", 512, 0.5, 2.0, 1.5, 2.5, 1, 2),
        ("64-1024", 1024, 1.0, 2.5, 2.0, 3.0, 1, 2),
    ]
    dense = [row for row in rows if row["arm"] != "64-1024"]
    assert expert_load(runs(), pa.Table.from_pylist(dense)) is None
    # A table of an earlier version.
    assert expert_load(runs(), pa.Table.from_pylist(rows).drop_columns(["expert_load"])) is None


def test_cost_counts_devices() -> None:
    assert {row["device_hours"] for row in cost(runs()).table.to_pylist()} == {4.0}


def test_loss_against_tokens_takes_the_source_that_is_scored() -> None:
    rows = [
        {"run": "64-1024-0", "arm": "64-1024", "split": split, "source": source, "weights": weights,
         "node": "train", "consumed_tokens": tokens, "epoch": 1.0, "loss_nats": loss}
        for split, source, weights, tokens, loss in (
            ("report", None, "own", 0, 5.0), ("report", None, "own", 10, 4.0),
            ("report", "x", "own", 10, 9.0), ("report", None, "average", 10, 9.0),
            ("select", None, "own", 10, 9.0),
        )
    ]  # fmt: skip
    view = loss_against_tokens(runs(), pa.Table.from_pylist(rows))
    assert [row["loss_nats"] for row in view.table.to_pylist()] == [5.0, 4.0]
