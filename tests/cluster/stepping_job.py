"""Stands in for a training: it counts steps, stops at SIGTERM with a checkpoint, and resumes.

``python stepping_job.py FOLDER STEPS [CODE]`` ends with CODE after STEPS steps of a fifth of a second. Its
folder gets ``checkpoints/latest`` and ``starts.txt``, a line for each start: the step and the rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

STEP_S = 0.2


def main(folder: Path, steps: int, code: int) -> int:
    """Count to ``steps``; returns 3 if stopped before."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    latest = folder / "checkpoints" / "latest"
    latest.parent.mkdir(parents=True, exist_ok=True)
    done = int(latest.read_text().removeprefix("step-")) if latest.exists() else 0
    ranks = [os.environ.get(name, "-") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    with (folder / "starts.txt").open("a") as file:
        file.write(" ".join([str(done), *ranks]) + "\n")
    while done < steps and not stopped:
        time.sleep(STEP_S)
        done += 1
    if os.environ.get("RANK", "0") == "0":
        latest.write_text(f"step-{done}")
    return 3 if done < steps else code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, [*sys.argv[2:], "0"][:2])))
