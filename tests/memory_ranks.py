"""Peak memory of initializing, saving and loading at ZeRO 3, on every rank. Started by rank_starts.py.

Usage: memory_ranks.py OUT CASES.json, where the JSON maps names to {"overrides": [...], "load": name}.
Writes OUT/NAME-rankR.json: bytes beyond those before the model existed, by phase.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from reptrain import checkpoint
from reptrain.config import load_run_config
from reptrain.distributed import partition
from reptrain.distributed.world import World, choose_device, join
from reptrain.training import setup
from reptrain.training.setup import open_data, prepare


def reset_peak() -> None:
    """Let the peak of this process begin at what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmHWM is the peak, VmRSS the current size."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def measure(
    config_path: Path, case: dict[str, object], out: Path, name: str, world: World, process: int
) -> None:
    """Initialize a model, save it in one case or load it in another, and write the peaks.

    DeepSpeed's engines are never freed, so each case is measured from what the process holds before it.
    """
    overrides = case["overrides"]
    assert isinstance(overrides, list)
    config = load_run_config(config_path, overrides)
    data = open_data(config)
    gc.collect()
    reset_peak()
    before, peaks = status_bytes("VmRSS"), {}

    def partitioned(*arguments: object) -> None:
        plain(*arguments)
        peaks["partition"] = status_bytes("VmHWM") - before

    plain = partition.partition_weights
    setup.partition_weights = partitioned
    engine = prepare(config, data, world).trainer.engine
    setup.partition_weights = plain
    peaks["initialize"] = status_bytes("VmHWM") - before
    folder = out / str(case.get("load") or name) / "checkpoints"
    if case.get("load"):
        found = checkpoint.find(folder, world=world)
        assert found.path is not None and found.manifest is not None
        reset_peak()
        checkpoint.load(engine, found.path, found.manifest)
        peaks["load"] = status_bytes("VmHWM") - before
    else:
        reset_peak()
        checkpoint.save(engine, folder, 0, world=world, keep_last=1)
        peaks["save"] = status_bytes("VmHWM") - before
    engine.destroy()
    (out / f"{name}-rank{world.rank}.json").write_text(json.dumps(peaks | {"process": process}))


def main(out: Path, cases: dict[str, dict[str, object]]) -> None:
    """Carry out all cases."""
    world = join(choose_device("cpu"))
    process = status_bytes("VmRSS")
    for name, case in cases.items():
        measure(out / "config.yaml", case, out, name, world, process)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
