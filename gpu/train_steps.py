"""Training steps of published models, as `reptrain bench train` measures them, and one profile.

The losses before the first step are compared with a model in fp32 whose every operation is the definition in
torch, and the first digest with the CPU's golden. The MoE is compared with its dense twin.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

from goldens import FILE
from rows import KIT, Arguments, out_folder, run_cases
from runs import TimedRun, config_of, rehearsed, timed_runs, train_steps

PART = "training steps"
WARM_UP = 2
PROFILED = "t5-base batch 16"


def measure(run: TimedRun, asked: Arguments) -> dict[str, Any]:
    """One run: the rows of `reptrain bench train` into train.csv, and what is compared with goldens."""
    import torch

    from reptrain.bench.rows import append
    from reptrain.bench.train import measured_steps, rows_of
    from reptrain.distributed.world import choose_device, join

    config = config_of(run.settings, KIT / "store", run.batch_windows, run.steps)
    device = choose_device(asked.device)
    config = config.on_device(device.type).model_copy(update={"name": run.model})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    world = join(device)
    found = measured_steps(config, world, min(WARM_UP, run.steps - 1))
    rows = rows_of(config, found, world, name)
    append(rows, out_folder() / "train.csv")
    figures: dict[str, Any] = {row.metric: float(row.median) for row in rows}
    figures["precision"] = config.train.precision
    figures["losses"] = [round(result.loss_nats, 4) for result in found.results]
    figures["applied"] = all(result.applied for result in found.results)
    if not asked.rehearse:
        golden = json.loads(FILE.read_text())["first_digests"].get(run.name)
        figures["digest_is_golden"] = str(found.results[0].digest) == golden
    return figures


def profile(run: TimedRun, asked: Arguments) -> dict[str, Any]:
    """Write the kernels of one step, by time, to profile.txt."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    config = config_of(run.settings, KIT / "store", run.batch_windows, 4)
    steps = train_steps(config, asked.device)
    for _ in range(3):
        next(steps)
    kinds = [ProfilerActivity.CPU, *([] if asked.rehearse else [ProfilerActivity.CUDA])]
    with profiler(activities=kinds) as found:
        next(steps)
    steps.close()
    by = "cpu_time_total" if asked.rehearse else "cuda_time_total"
    table = found.key_averages().table(sort_by=by, row_limit=60, max_name_column_width=70)
    host = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=70)
    (out_folder() / "profile.txt").write_text(f"{run.name}: one step\n\n{table}\n\nby host time\n\n{host}\n")
    return {"of": run.name, "events": len(found.events())}


def main() -> int:
    """Measure all runs, and profile one; returns the exit code."""
    asked = Arguments(__doc__)
    cases = []
    for run in timed_runs()[:2] + timed_runs()[5:6] if asked.rehearse else timed_runs():
        small = rehearsed(run) if asked.rehearse else run
        cases.append((run.name, partial(measure, small, asked)))
        if run.name == PROFILED:
            cases.append(("profile", partial(profile, small, asked)))
    return run_cases(PART, cases, asked)


if __name__ == "__main__":
    sys.exit(main())
