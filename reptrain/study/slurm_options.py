"""The options of `study run --slurm`: those of sbatch, as KEY=VALUE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from reptrain.errors import StudyError

_OWN = {
    "array": "the study makes the arrays",
    "dependency": "the graph of the study gives the dependencies",
    "output": "output goes to the study's folder logs",
    "error": "output goes to the study's folder logs",
    "signal": "use signal_delay_s=SECONDS",
    "requeue": "jobs are always requeued",
}
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class SlurmOptions:
    """Resources of each job.

    Attributes:
        minutes: Time limit. A run that needs longer is requeued with a checkpoint.
        nodes: Nodes.
        ranks_per_node: Ranks on each node: one per GPU.
        gpus_per_node: GPUs on each node; None: none are requested.
        signal_delay_s: Seconds before the time limit at which a job stops with a checkpoint.
        parallel: Jobs of one array at once.
        others: Further options of sbatch by their long name.
    """

    minutes: int
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int | None = None
    signal_delay_s: int = 120
    parallel: int = 256
    others: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, texts: Sequence[str], *, gpus: int | None = None, parallel: int | None = None
    ) -> SlurmOptions:
        """Read ``time=4:00:00``, ``nodes=2``, ``ntasks-per-node=8`` and any other option of sbatch.

        Args:
            texts: The options, each ``KEY=VALUE``, or ``KEY`` for one without a value.
            gpus: GPUs of each run on a node, unless ``gpus-per-node`` is among the options.
            parallel: Jobs of one array at once, unless ``array-parallelism`` is among the options.

        Raises:
            StudyError: If one is malformed, reserved, or ``time`` is missing.
        """
        given: dict[str, str] = {}
        for text in texts:
            key, _, value = text.partition("=")
            key = key.strip().lstrip("-").replace("_", "-")
            if not re.fullmatch(r"[a-z][a-z-]*", key):
                raise _wrong(
                    text, "must be KEY=VALUE", "For example --slurm time=4:00:00 --slurm partition=gpu."
                )
            if key in _OWN:
                raise _wrong(text, "must leave this option to the study", f"Remove it: {_OWN[key]}.")
            given[key] = value.strip()
        if "time" not in given:
            raise _wrong(
                ", ".join(texts) or "no options", "must give the time limit of a job",
                "Add --slurm time=4:00:00; a run that needs longer is requeued with a checkpoint.",
            )  # fmt: skip
        minutes = _minutes(given.pop("time"))
        devices = _count(given, "gpus-per-node", gpus)
        return cls(
            minutes=minutes,
            nodes=_count(given, "nodes", 1) or 1,
            ranks_per_node=_count(given, "ntasks-per-node", devices or 1) or 1,
            gpus_per_node=devices,
            signal_delay_s=_count(given, "signal-delay-s", 120) or 120,
            parallel=_count(given, "array-parallelism", parallel) or 256,
            others=given,
        )


def _minutes(text: str) -> int:
    """Minutes of a time limit as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; rounded up."""
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise _wrong(f"time={text}", "must be a time limit", "Write minutes, or H:M:S, or D-H:M:S.")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = ((days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise _wrong(f"time={text}", "must be at least one minute", "Raise it.")
    return total


def _count(given: dict[str, str], key: str, default: int | None) -> int | None:
    text = given.pop(key, None)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 10**6:
        raise _wrong(f"{key}={text}", "must be a positive integer", "Fix the number.")
    return int(text)


def _wrong(got: str, rule: str, remedy: str) -> StudyError:
    return StudyError("--slurm", got=got, rule=rule, remedy=remedy)
