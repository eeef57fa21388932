"""Writes docs/examples/runs.csv: made-up runs that follow a known law, for the page on fits.

python tools/example_runs.py
"""

from __future__ import annotations

import csv
import sys
from itertools import product
from pathlib import Path

import numpy as np

from reptrain.analysis.laws import find_law

FILE = Path(__file__).parents[1] / "docs" / "examples" / "runs.csv"
LAW = "excess-saturating"
TRUTH = {
    "E": 1.9,
    "A": 480.0,
    "B": 2100.0,
    "alpha": 0.35,
    "beta": 0.37,
    "P": 0.8,
    "kappa": 0.6,
    "R_P": 40.0,
}
NOISE = 0.004
"""Standard deviation of log loss between seeds."""
SIZES, UNIQUE, EPOCHS, SEEDS = (10e6, 40e6, 160e6), (50e6, 400e6), (1, 4, 16, 64), 2


def example_runs() -> list[dict[str, object]]:
    """The rows of the table."""
    law, rng = find_law(LAW), np.random.default_rng(2024)
    rows: list[dict[str, object]] = []
    for size, unique, epochs in product(SIZES, UNIQUE, EPOCHS):
        exact = float(law.loss(TRUTH, {"N": size, "D": epochs * unique, "U": unique}))
        for seed in range(SEEDS):
            rows.append(
                {
                    "run": f"{size / 1e6:.0f}m-{unique / 1e6:.0f}m-x{epochs}-seed{seed}",
                    "seed": seed,
                    "parameters_nonembedding": int(size),
                    "consumed_tokens": int(epochs * unique),
                    "unique_tokens": int(unique),
                    "loss_report_final_nats": round(exact * float(np.exp(rng.normal(0.0, NOISE))), 4),
                }
            )
    return rows


def main() -> None:
    rows = example_runs()
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.write(f"{FILE}: {len(rows)} runs\n")


if __name__ == "__main__":
    main()
