"""The results of `reptrain sizes` and `reptrain match`, as data and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from reptrain.config.load import dump_yaml
from reptrain.config.model import DecoderConfig, Recompute
from reptrain.errors import check_choice
from reptrain.files import write_atomically
from reptrain.sizes.flops import Precision, published_flops_per_token
from reptrain.sizes.match import By, Match
from reptrain.sizes.parameters import ParameterCount
from reptrain.sizes.rank_memory import (
    check_ranks,
    rank_buffer_bytes,
    rank_copy_bytes,
    rank_offloaded_bytes,
    rank_retained_bytes,
    rank_state_bytes,
    run_activation_bytes,
    teacher_bytes,
)
from reptrain.sizes.step_flops import has_masked_inputs, step_flops
from reptrain.sizes.subject import Subject

_PARAMETERS = {
    "total": "all parameters, shared layers once",
    "active": "parameters used per token",
    "non_embedding": "total without embedding and head",
    "run": "parameters used per token, shared layers each time they run",
}
_FLOPS = {
    "all_pairs": "matrix products, attention over all pairs of positions",
    "visible_pairs": "matrix products, attention over the visible pairs",
    "no_scores": "matrix products without attention scores",
    "six_n": "6 N + 12 L H Q T, N includes the input embedding (PaLM)",
}


def describe_sizes(subject: Subject, *, world_size: int, precision: Precision | None) -> dict[str, Any]:
    """Parameters, FLOPs and memory of a model.

    Args:
        subject: The model.
        world_size: Number of GPUs that ZeRO partitions over.
        precision: Precision of weights and activations; None: the run's on a GPU.
    """
    if precision is None:
        precision = _precision_on_gpu(subject)
    check_choice("precision", precision, get_args(Precision))
    count, shape = subject.parameters, subject.shape
    described = {
        "family": subject.model.family,
        "vocab_size": subject.vocab_size,
        "parameters": {key: getattr(count, key) for key in _PARAMETERS},
        "window": {
            "raw_tokens": subject.window_tokens,
            "input_tokens": shape.input_tokens,
            "target_tokens": shape.target_tokens,
        },
        "flops": _flops(subject),
        "memory": _memory(subject, count, world_size, precision),
    }
    return described | _step(subject)


def _precision_on_gpu(subject: Subject) -> Precision:
    chosen = subject.run.on_device("cuda").train.precision if subject.run else "fp32"
    return "fp32" if chosen == "auto" else chosen


def _flops(subject: Subject) -> dict[str, dict[str, float]]:
    forward, tokens = subject.forward, subject.window_tokens
    of_window = {
        "all_pairs": forward.total,
        "visible_pairs": forward.causal,
        "no_scores": forward.products,
    }
    if isinstance(subject.model, DecoderConfig):
        per_token = published_flops_per_token(subject.model, subject.vocab_size, tokens)
        of_window["six_n"] = per_token * tokens // 3
    return {
        key: {
            "forward_per_window": flops,
            "training_per_window": 3 * flops,
            "forward_per_token": flops / tokens,
            "training_per_token": 3 * flops / tokens,
        }
        for key, flops in of_window.items()
    }


def _step(subject: Subject) -> dict[str, Any]:
    """FLOPs of a step for one window, if it has masked copies or a teacher."""
    run = subject.run
    if run is None or not (has_masked_inputs(run) or run.distill is not None):
        return {}
    flops = step_flops(run, subject.vocab_size)
    parts = {name: getattr(flops, name) for name in ("model", "masked_inputs", "teacher", "total")}
    return {"step_flops_per_window": parts}


def _memory(subject: Subject, count: ParameterCount, world_size: int, precision: Precision) -> dict[str, Any]:
    groups = subject.run.train.expert_parallel_size if subject.run else 1
    train = subject.run.train if subject.run else None
    if train is not None:
        check_ranks(world_size, train)
    memory: dict[str, Any] = {"precision": precision, "world_size": world_size}
    memory["expert_parallel_size"] = groups
    given: dict[str, Any] = {"world_size": world_size, "groups": groups, "precision": precision}
    memory["state_bytes"] = {
        f"stage_{stage}": rank_state_bytes(count, stage=stage, **given) for stage in range(4)
    }
    memory["buffer_bytes"] = {
        device: {
            f"stage_{stage}": rank_buffer_bytes(count, stage=stage, device=device, train=train, **given)
            for stage in range(4)
        }
        for device in ("cuda", "cpu")
    }
    memory["cpu_retained_bytes"] = {
        f"stage_{stage}": rank_retained_bytes(count, stage=stage, groups=groups) for stage in range(4)
    }
    memory["offloaded_bytes"] = {
        f"stage_{stage}": rank_offloaded_bytes(count, stage=stage, world_size=world_size, groups=groups)
        for stage in range(4)
    }
    average = subject.run is not None and subject.run.average is not None
    memory["background_save_bytes"] = rank_copy_bytes(count, world_size=world_size, average=average)
    if subject.run is None:
        return memory
    sequence_ranks = subject.run.train.sequence_parallel_size
    windows = subject.run.micro_batch_windows(world_size // sequence_ranks)
    memory["sequence_parallel_size"], memory["micro_batch_windows"] = sequence_ranks, windows
    memory["activation_bytes"] = {
        recompute: run_activation_bytes(
            subject.run,
            subject.vocab_size,
            subject.shape,
            windows=windows,
            precision=precision,
            recompute=recompute,
        )._asdict()
        for recompute in get_args(Recompute)
    }
    if subject.run.distill is not None:
        memory["teacher_bytes"] = teacher_bytes(subject.run, subject.vocab_size)
    return memory


def sizes_text(data: dict[str, Any]) -> str:
    """The same as text."""
    lines = ["parameters"]
    count = data["parameters"]
    for key, words in _PARAMETERS.items():
        if key == "run" and count["run"] == count["active"]:
            continue
        lines.append(f"  {key:<14}{count[key]:>22,}  {words}")
    window = data["window"]
    read = f"{window['input_tokens']:,} in the encoder, " if window["input_tokens"] else ""
    lines += [
        "",
        f"FLOPs per window of {window['raw_tokens']:,} tokens ({read}{window['target_tokens']:,} in the"
        " decoder); training is three forward passes",
    ]
    lines.append(f"  {'forward':>10} {'training':>10} {'per token':>10}")
    for key, flops in data["flops"].items():
        figures = (flops["forward_per_window"], flops["training_per_window"], flops["training_per_token"])
        lines.append("  " + " ".join(f"{figure:>10.4g}" for figure in figures) + f"  {_FLOPS[key]}")
    if "step_flops_per_window" in data:
        lines += _step_lines(data["step_flops_per_window"])
    return "\n".join([*lines, "", *_memory_lines(data["memory"])])


def _step_lines(step: dict[str, int | None]) -> list[str]:
    lines = [f"a step with all losses: {step['total']:.4g} per window", f"  {step['model']:>10.4g}  model"]
    if step["masked_inputs"]:
        lines.append(f"  {step['masked_inputs']:>10.4g}  masked copies (regularize.masked_inputs)")
    if step["teacher"] is None:
        lines.append("     unknown  teacher (distill.teacher): it is no run folder, and is not in the sum")
    elif step["teacher"]:
        lines.append(f"  {step['teacher']:>10.4g}  teacher (distill), forward passes")
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    gpus = "1 GPU" if memory["world_size"] == 1 else f"{memory['world_size']} GPUs"
    lines = [f"memory per GPU, {gpus}, {memory['precision']}"]
    columns = ("state", "of it offloaded", "buffers on CUDA", "buffers on a CPU", "extra on a CPU")
    lines.append("  " + "  ".join(f"{column:>16}" for column in columns) + "  by train.zero_stage")
    for stage, size in memory["state_bytes"].items():
        shown = [_gib(memory["buffer_bytes"][device][stage]) for device in ("cuda", "cpu")]
        shown = [_gib(memory["offloaded_bytes"][stage]), *shown, _gib(memory["cpu_retained_bytes"][stage])]
        shown = ["not supported", "", "", "", ""] if size is None else [_gib(size), *shown]
        lines.append("  " + "  ".join(f"{text:>16}" for text in shown) + f"  {stage[-1]}")
    lines.append("  state: weights, gradients, AdamW; buffers: buckets and copies of gradients, at most")
    lines.append("  of it offloaded: in the memory of the host with train.offload_optimizer=cpu")
    lines.append("  extra on a CPU: freed memory that the process keeps without reusing it, at most")
    lines.append(
        f"  checkpoints in the background: {_gib(memory['background_save_bytes'])} of the host's memory for"
        " each rank, at most"
    )
    if "micro_batch_windows" in memory:
        ranks = memory["sequence_parallel_size"]
        shared = f", shared by {ranks} ranks" if ranks > 1 else ""
        lines.append(f"activations of a micro-batch of {memory['micro_batch_windows']} windows{shared}")
        lines.append(f"  {'fused, on CUDA':>16}  {'plain, on a CPU':>16}  by train.activation_checkpointing")
        for recompute, size in memory["activation_bytes"].items():
            lines.append(f"  {_gib(size['fused']):>16}  {_gib(size['plain']):>16}  {recompute}")
    if "teacher_bytes" in memory:
        size = memory["teacher_bytes"]
        lines.append(f"teacher: {'unknown' if size is None else _gib(size)} of weights on each rank")
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:,.3f} GiB"


def describe_match(found: Match, *, by: By) -> dict[str, Any]:
    """The changes, and the remaining difference."""
    return {
        "by": by,
        "wanted": found.wanted,
        "got": found.got,
        "off": found.off,
        "changes": {
            key: {"before": before, "after": after} for key, (before, after) in found.changes.items()
        },
    }


def match_text(found: Match, *, to: Path, by: By, out: Path | None) -> str:
    """The same as text."""
    lines = [f"{key}: {before} -> {after}" for key, (before, after) in found.changes.items()]
    lines = lines or ["no change"]
    if out is not None:
        lines.append(f"written to {out}")
    return "\n".join([*lines, _difference(found, to, by)])


def _difference(found: Match, to: Path, by: By) -> str:
    unit = "training FLOPs per token" if by == "flops" else f"{by.removesuffix('-params')} parameters"
    return f"{found.got:,.0f} {unit}, {found.off:+.3%} off those of {to}"


def write_match(found: Match, out: Path, *, config: Path, to: Path, by: By) -> None:
    """Write the changed configuration, with overrides and extended files merged."""
    text = f"# {config} changed by `reptrain match`: {_difference(found, to, by)}.\n"
    write_atomically(out, text + dump_yaml(found.subject.data))
