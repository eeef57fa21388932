"""The text that a run prints before its first step and after its last."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from reptrain.config import RunConfig
from reptrain.config.sections import TrainConfig
from reptrain.distributed.precision import precision_text
from reptrain.distributed.world import World
from reptrain.plan.stream import unique_tokens_setting
from reptrain.runs.folder import RunFolder
from reptrain.runs.metrics import TrainRecord, ValidRecord
from reptrain.runs.pace import pace_text, tokens_per_s
from reptrain.runs.run_plan import SourcePlan
from reptrain.sizes import count_parameters
from reptrain.training.setup import Data

_SMALL_SHARE = Fraction(1, 4)
Facts = list[tuple[str, str]]


def facts_text(facts: Facts) -> str:
    """Format names and values, one pair per line."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in facts)


def run_header(config: RunConfig, out: Path, data: Data, world: World) -> str:
    """Summary of a run before it starts, with a warning if most of a store stays unused.

    Args:
        config: The run.
        out: Its folder.
        data: Its open stores and plan.
        world: The ranks.
    """
    facts: Facts = []
    warnings = []
    for name, source in zip(data.stores, data.run_plan.sources, strict=True):
        prefix = f"{name}: " if data.run_plan.is_mixture else ""
        available = data.stores[name].split("train").num_tokens
        facts += _source_facts(source, prefix, available)
        read = source.unique_tokens * min(Fraction(1), Fraction(source.epochs))
        if read < _SMALL_SHARE * available:
            remedy = f"{unique_tokens_setting(config, name)}=null uses all of them."
            if source.unique_tokens == available or Fraction(source.epochs) < 1:
                remedy = "It ends within its first epoch."
            share = f"{_share(read, available)} of the store's training tokens"
            warnings.append(f"WARNING: {prefix}the run uses {share}. {remedy}")
    micro = config.micro_batch_windows(world.data_ranks)
    facts += [
        ("model", _model(config, data.tokenizer.vocab_size)),
        ("objective", _objective(config)),
        ("steps", f"{data.steps.num_steps:,} over {data.plan.total_tokens:,} tokens"),
        (
            "batch",
            f"{config.train.batch_windows} windows of {config.window_tokens} tokens, {micro} at a time",
        ),
        *machine_facts(config.train, world),
        ("output", str(out)),
    ]
    return "\n".join(["training", facts_text(facts), *warnings])


def _source_facts(source: SourcePlan, prefix: str, available: int) -> Facts:
    share = _share(source.unique_tokens, available)
    part = f"{source.unique_tokens:,} of {available:,} training tokens ({share})"
    epochs = f"{float(Fraction(source.epochs)):.6g} over the subset, order {source.order}, cut {source.cut}"
    return [
        ("store", f"{prefix}{source.store}"),
        ("subset", f"{prefix}{part}"),
        ("epochs", f"{prefix}{epochs}"),
    ]


def machine_facts(train: TrainConfig, world: World) -> Facts:
    """Device and precision.

    Args:
        train: The settings `train`.
        world: The ranks.
    """
    if world.device.type == "cuda":
        device = torch.cuda.get_device_name(world.device)
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' * (threads > 1)}" + " a rank" * (world.world_size > 1)
    ranks = f"{world.world_size} x {device}" if world.world_size > 1 else device
    ranks += f", {world.sequence_ranks} for each window" if world.sequence_ranks > 1 else ""
    compiled = "" if train.compile == "none" else f", torch.compile of each {train.compile}"
    precision = f"{precision_text(train, world.device)}, ZeRO {train.zero_stage}{compiled}"
    return [("device", ranks), ("precision", precision)]


def _model(config: RunConfig, vocab_size: int) -> str:
    count = count_parameters(config.model, vocab_size)
    active = f", {count.active:,} active" if count.active != count.total else ""
    start = f", weights of {config.init_from}" if config.init_from else ""
    return f"{config.model.family}, {count.total:,} parameters{active}{start}"


def _objective(config: RunConfig) -> str:
    if config.distill is None:
        return config.objective.name
    teacher = ", ".join(config.distill.teacher) or "the previous cycle"
    return f"{config.objective.name}, distilled from {teacher}"


def _share(part: Fraction | int, whole: int) -> str:
    share = 100 * float(part) / max(whole, 1)
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def closing_text(run: Path) -> str:
    """Summary of a finished run: tokens, speed, losses, and the next commands.

    Args:
        run: The run folder.
    """
    folder = RunFolder.open(run)
    seconds, last, scores = 0.0, None, list[ValidRecord]()
    for record in folder.metrics.records():
        if isinstance(record, TrainRecord):
            seconds, last = seconds + record.step_ms / 1000, record
        elif record.weights == "own":
            scores.append(record)
    facts: Facts = [] if last is None else [("trained", _trained(last, seconds))]
    end = max((score.step for score in scores), default=None)
    facts += [(score.set, _score(score)) for score in scores if score.step == end]
    best = _best(scores)
    if best is not None and best.step != end:
        facts.append(("best", f"{best.set} {_score(best)} after step {best.step}"))
    name = shlex.quote(str(run))
    commands = [f"reptrain audit {name}", f"reptrain evaluate {name}"]
    if folder.config.objective.reading(folder.config.model.family) != "unordered":
        commands.append(f'reptrain generate {name} --prompt "TEXT"')
    return facts_text(facts + next_facts(commands))


def next_facts(commands: Sequence[str]) -> Facts:
    """The next commands, one per line."""
    return [("" if place else "next", command) for place, command in enumerate(commands)]


def _trained(last: TrainRecord, seconds: float) -> str:
    devices = round(last.tokens_per_s / last.tokens_per_s_per_device)
    minutes, rest = divmod(math.ceil(seconds), 60)
    took = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    pace = pace_text(tokens_per_s(last.tokens, seconds), devices)
    return f"{last.tokens:,} tokens, {last.epoch:.6g} epoch{'s' * (last.epoch != 1)}, {took} of steps, {pace}"


def _score(score: ValidRecord) -> str:
    return f"{score.nats:.4f} nats/token, {score.scores['bits_per_byte']:.4f} bits/byte"


def _best(scores: list[ValidRecord]) -> ValidRecord | None:
    """The best score of the selection split by a trained model."""
    chosen = [record for record in scores if record.set.split("/")[0] == "select" and record.step > 0]
    if not chosen or any(record.set != chosen[0].set for record in chosen):
        return None
    return min(chosen, key=lambda record: record.nats)
