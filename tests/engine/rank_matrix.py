"""Trains the same run in several ways within one start of ranks. Started by test_ranks.py, on every rank.

Usage: rank_matrix.py OUT OVERRIDES.json, where the JSON maps a name to a list of overrides.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reptrain.config import load_run_config
from reptrain.engine.distributed import choose_device, joined
from reptrain.engine.loop import train_as_rank
from reptrain.engine.setup import open_data


def main(out: Path, cases: dict[str, list[str]]) -> None:
    with joined(choose_device("cpu")) as world:
        for name, overrides in cases.items():
            config = load_run_config(out / "config.yaml", overrides)
            train_as_rank(config, out / f"{name}-ranks{world.world_size}", open_data(config), world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
