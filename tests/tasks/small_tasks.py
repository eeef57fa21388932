"""Rows of a small task, and the runs that are tuned on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reptrain.config import RunConfig

MakeConfig = Callable[..., RunConfig]
MakeTask = Callable[..., Path]
T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2,"
    " head_dim: 16, d_ff: 64}"
)
READINGS = {
    "t5": ("objective.name=span_corruption", T5),
    "causal": (),
    "prefix": ("objective.name=prefix_lm",),
    "inputs": ("objective.name=span_corruption",),
}
_NAMES = {
    "list": ("append", "the name", "a loop", "it", "an item", "the end", "a class", "range", "index", "all"),
    "module": ("sys", "os", "re", "json", "time", "string", "math", "random", "types", "copy"),
}
ROWS = [
    {"input": f"what is {name}?", "target": kind, "answers": [kind, f"the {kind}"], "page": str(place // 2)}
    for place, (name, kind) in enumerate((name, kind) for kind, names in _NAMES.items() for name in names)
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
