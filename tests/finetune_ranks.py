"""Fine-tunes in several ways within one start of ranks. Started by rank_starts.py, on every rank.

Usage: finetune_ranks.py OUT CASES.json, where the JSON maps the name of a folder below OUT to

    {"run": the parent, "task": its folder, "overrides": [...], "stop_after": step or null}

If the folder of a case exists, its fine-tuning resumes. Writes OUT/NAME-rankR.json: for each scored
checkpoint, the elements of the weights that the rank holds, and the elements of the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rank_matrix import StopAfter, partition_everything

from reptrain.distributed import partition
from reptrain.distributed.world import choose_device, join
from reptrain.tasks.finetune import finetune, load_finetune
from reptrain.tasks.scoring import Scorer
from reptrain.training import loop

HELD: list[list[int]] = []


def partition_small_weights() -> None:
    """Let the scored models have no whole weights either (see `partition_everything`)."""
    plain = partition.evaluation_settings

    def with_threshold(world_size: int) -> dict[str, Any]:
        settings = plain(world_size)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings

    partition.evaluation_settings = with_threshold


def note_what_is_held() -> None:
    """Count the elements of each model that is scored."""
    score = Scorer.score

    def counted(self: Scorer, model: Any, rows: Sequence[Any]) -> Any:
        parameters = list(model.parameters())
        own = sum(p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in parameters)
        HELD.append([own, sum(getattr(p, "ds_numel", p.numel()) for p in parameters)])
        return score(self, model, rows)

    Scorer.score = counted


def main(out: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Carry out all cases."""
    partition_everything()
    partition_small_weights()
    note_what_is_held()
    world = join(choose_device("cpu"))
    step = loop.train_step
    for name, case in cases.items():
        HELD.clear()
        stop = StopAfter(case.get("stop_after"))

        def counting(*arguments: Any, stop: StopAfter = stop) -> Any:
            stop.seen += 1
            return step(*arguments)

        loop.train_step = counting
        config = load_finetune(Path(case["task"]), case["overrides"])
        finetune(Path(case["run"]), config, out / name, stop=stop)
        (out / f"{name}-rank{world.rank}.json").write_text(json.dumps(HELD))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
