"""Compares a run folder with its independent replay.

    python tests/format/replay.py RUN

prints what differs in the first steps, and answers with exit code 1 if anything does.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parent)]

from independent_trainer import Replay, saved_state  # noqa: E402 - scripts, no packages

TOLERANCE = 1e-5
"""Of losses, rates and norms (relative), and of weights (absolute)."""
MOMENTS = 1e-3
"""Of moments, relative to the largest of a parameter: they hold the rounding of small gradients."""


def differences(path: Path, steps: int = 20) -> list[str]:
    """What differs between a run and its replay.

    Compares losses, rates and norms of each step, and weights, moments and averages of each checkpoint.

    Args:
        path: The run folder.
        steps: How many steps to replay, from the first.
    """
    replay, found = Replay(path), []
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained = {record["step"]: record for record in records if record["kind"] == "train"}
    steps = min(steps, len(trained))
    if sorted(trained) != list(range(len(trained))) or not steps:
        return ["metrics.jsonl does not hold each step once"]
    for step in range(steps):
        for key, wanted in replay.step(step).items():
            got = float(trained[step][key])
            if not math.isclose(got, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE * (key == "loss_nats")):
                found.append(f"step {step}: {key} {got}, where the replay has {wanted}")
        folder = path / "checkpoints" / f"step-{step + 1}"
        if folder.exists():
            found += _differing_state(folder, replay)
    if not any((path / "checkpoints" / f"step-{step + 1}").exists() for step in range(steps)):
        found.append(f"no checkpoint in the first {steps} steps")
    return found


def _differing_state(folder: Path, replay: Replay) -> list[str]:
    saved, wanted = saved_state(folder), replay.state()
    if saved.keys() != wanted.keys():
        return [f"{folder.name} holds other tensors: {sorted(saved.keys() ^ wanted.keys())[:3]}"]
    found = []
    for name, values in saved.items():
        expected = wanted[name].flatten()
        is_weight = name.startswith(("weight:", "average:"))
        allowed = TOLERANCE if is_weight else MOMENTS * float(expected.abs().max())
        if values.shape != expected.shape:
            found.append(f"{folder.name}: {name} has {values.numel()} elements")
        elif not (error := float((values - expected).abs().max())) <= allowed:
            found.append(f"{folder.name}: {name} differs by {error:.1e}")
    return found


if __name__ == "__main__":
    lines = differences(Path(sys.argv[1]))
    print("\n".join(lines[:20]) or "as replayed")
    sys.exit(1 if lines else 0)
