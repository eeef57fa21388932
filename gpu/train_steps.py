"""Training steps of published models, timed: wall time, tokens/s, MFU, memory, first loss, and one profile.

Each run's first loss is compared with a model whose every operation is the definition in torch, in fp32, and
its first digest with the CPU's golden. The MoE is compared with its dense twin.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from goldens import FILE, LOSS_TOLERANCE
from rows import KIT, RESTART, Arguments, add, done_before, is_fatal, out_folder, said
from runs import TimedRun, config_of, rehearsed, timed_runs, train_steps

PART = "training steps"
WARM_UP = 2
PROFILED = "t5-base batch 16"


def plain_loss(config: Any, device: str) -> float:
    """The first step's nats per token of the first 8 windows, by the definitions in fp32 without dropout."""
    import torch

    from reptrain.distributed.world import World
    from reptrain.evaluation.score import score
    from reptrain.model import build_model
    from reptrain.training.setup import open_data
    from reptrain_kernels.implementation import assume

    data = open_data(config)
    model = (
        build_model(config.model, vocab_size=data.tokenizer.vocab_size, seed=config.seed).to(device).eval()
    )
    from reptrain.batch.loader import Loader

    loader = Loader(data.stream, data.plan, data.steps, data.objective, 0, 1, 8)
    world = World(0, 1, 0, torch.device(device))
    # The loss alone is used, so the bytes of the text do not matter.
    no_bytes_V = torch.zeros(data.tokenizer.vocab_size, device=device)
    with assume(impl="torch"):
        scored = score(
            model,
            loader.batch(0).micro_batches,
            world=world,
            objective=data.objective,
            byte_length_V=no_bytes_V,
        )
    return scored.nats_per_token


def rates_of(device: str, config: Any) -> Any:
    """What turns tokens and seconds into rates."""
    import torch

    from reptrain.training.throughput import throughput_of

    return throughput_of(
        config.model,
        config.train,
        shape=config.example_shape,
        window_tokens=config.window_tokens,
        vocab_size=config.model.vocab_size,
        world_size=1,
        device=torch.device(device),
    )


def measure(run: TimedRun, asked: Arguments) -> dict[str, Any]:
    """One run: the figures of its steps."""
    import torch

    from reptrain.runs.pace import tokens_per_s

    config = config_of(run.settings, KIT / "store", run.batch_windows, run.steps)
    config = config.on_device(asked.device)
    on_gpu = asked.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    results, seconds = [], []
    for result, spent in train_steps(config, asked.device):
        results.append(result)
        seconds.append(spent)
    steady = seconds[min(WARM_UP, len(seconds) - 1) :]
    median = statistics.median(steady)
    throughput = rates_of(asked.device, config)
    tokens = run.batch_windows * config.window_tokens
    rate = tokens_per_s(tokens, median)
    figures = {
        "step_ms": 1e3 * median,
        "fastest_ms": 1e3 * min(steady),
        "first_step_s": seconds[0],
        "tokens_per_s": rate,
        "mfu": throughput.mfu(rate),
        "precision": config.train.precision,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "losses": [round(result.loss_nats, 4) for result in results],
        "applied": all(result.applied for result in results),
    }
    if not asked.rehearse:
        golden = json.loads(FILE.read_text())["first_digests"].get(run.name)
        figures["digest_is_golden"] = str(results[0].digest) == golden
    if "compiled" not in run.name:
        plain = plain_loss(config, asked.device)
        figures["plain_loss"] = plain
        figures["loss_ok"] = abs(plain - results[0].loss_nats) <= LOSS_TOLERANCE
    return figures


def profile(run: TimedRun, asked: Arguments) -> None:
    """The kernels of one step, by time, into profile.txt."""
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
    add(PART, "profile", of=run.name, events=len(found.events()))


def main() -> int:
    """All runs; one that fails leaves the others."""
    asked = Arguments(__doc__)
    before, bad = done_before(PART), 0
    runs = timed_runs()[:2] + timed_runs()[5:6] if asked.rehearse else timed_runs()
    for run in runs:
        if run.name in before:
            continue
        if asked.is_late():
            add(PART, run.name, said="not begun: out of time")
            continue
        # A crash that ends the process must not be repeated by the next one.
        add(f"{PART} begun", run.name)
        small = rehearsed(run) if asked.rehearse else run
        try:
            add(PART, run.name, **measure(small, asked))
            if run.name == PROFILED:
                profile(small, asked)
        except Exception as error:
            add(PART, run.name, said=said(error))
            bad += 1
            if is_fatal(error):
                return RESTART
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
