"""Stands in for ``reptrain train CONFIG --out RUN``: the selection loss is lowest at the rate 2e-3."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from run_folders import LOSSES, write_run

from reptrain.config import load_run_config

config = load_run_config(Path(sys.argv[1]))
if config.optimizer.lr > 0.5:
    sys.exit("diverged")
nats = 5.0 + abs(math.log(config.optimizer.lr / 2e-3)) + 0.01 * config.seed
write_run(config, Path(sys.argv[3]), losses=dict(LOSSES) | {"select": [8.0, nats, 9.0]})
