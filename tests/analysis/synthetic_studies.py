"""Tables of runs with known effects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa


def runs_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with the columns that every table of runs has; the given values replace the defaults."""
    full = []
    for row in rows:
        arm = ".".join(f"{key.removeprefix('set.')}-{row[key]}" for key in row if key.startswith("set."))
        run = f"{arm}.seed-{row['seed']}"
        full.append(
            {"run": run, "arm": arm, "cluster": run, "status": "done", "audit_verdict": "exact", **row}
        )
    names = dict.fromkeys(name for row in full for name in row)
    return pa.table({name: [row.get(name) for row in full] for name in names})


def paired_rows(
    effect: float, *, seeds: int, sd: float = 0.03, key: str = "set.data.unique_tokens"
) -> list[dict[str, Any]]:
    """A control (2**20) and a treatment (2**14) per seed whose losses differ by `effect` plus noise."""
    noise = np.random.default_rng(7).normal(0, sd, seeds)
    rows = []
    for seed in range(seeds):
        base = 4.0 + 0.2 * seed
        for value, loss in ((2**20, base), (2**14, base + effect + noise[seed])):
            rows.append(
                {
                    "seed": seed,
                    key: value,
                    "loss_report_final_nats": loss,
                    "loss_report_best_nats": loss - 0.01,
                    "loss_select_best_nats": loss,
                }
            )
    return rows
