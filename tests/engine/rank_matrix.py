"""Trains the same run in several ways within one start of ranks. Started by test_ranks.py, on every rank.

Usage: rank_matrix.py OUT OVERRIDES.json, where the JSON maps a name to a list of overrides.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reptrain.config import load_run_config
from reptrain.engine.distributed import choose_device, join
from reptrain.engine.loop import train


def main(out: Path, cases: dict[str, list[str]]) -> None:
    world = join(choose_device("cpu"))
    for name, overrides in cases.items():
        config = load_run_config(out / "config.yaml", overrides)
        train(config, out / f"{name}-ranks{world.world_size}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
