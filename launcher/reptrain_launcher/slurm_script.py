"""The batch script of `reptrain launch --slurm`: srun starts the ranks, and a stopped job requeues itself."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reptrain.errors import LaunchError, ReptrainError
from reptrain_launcher.slurm_task import MOST_STALLS

_OWN = {
    "requeue": "jobs are always requeued",
    "signal": "use signal-delay-s=SECONDS",
    "output": "the output is written next to the run folder",
    "error": "the output is written next to the run folder",
    "open-mode": "output is appended",
    "export": "all variables are sent",
}
_TASK = "%a"
_SCRIPT = """\
#!/bin/bash
# Written by `reptrain launch --slurm`. Submit it with sbatch.
{directives}

cd {folder} || exit 2
{exports}
run={run}
stops="$run.stops"
# A signal to the job must not end this script before srun ends.
trap : TERM
{preflight}
code=0
srun --kill-on-bad-exit=0 --wait=120 --export=ALL {command} || code=$?

# Exit code 3: stopped with a checkpoint, before the time limit or by a preemption.
if [ "$code" -eq 3 ]; then
    newest=$(cat "$run/checkpoints/latest" 2>/dev/null)
    read -r count last < "$stops" 2>/dev/null
    if [ "$newest" = "$last" ]; then count=$((count + 1)); else count=1; fi
    echo "$count $newest" > "$stops"
    # A canceled job is not requeued.
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
    if [ "$count" -ge {most_stalls} ]; then
        echo "error: $count stops in a row without a new checkpoint; the job ends" >&2
    elif [ "$state" = RUNNING ] || [ "$state" = PREEMPTED ]; then
        scontrol requeue "$SLURM_JOB_ID" && sleep 60
    fi
fi
[ "$code" -eq 0 ] && rm -f "$stops"
exit "$code"
"""


@dataclass(frozen=True)
class SlurmJob:
    """Resources of a job.

    Attributes:
        time: The time limit in the format of sbatch. A run that needs longer is requeued with a checkpoint.
        nodes: Nodes.
        ranks_per_node: Ranks on each node: one per GPU.
        gpus_per_node: GPUs on each node; None: none are requested.
        signal_delay_s: Seconds before the time limit at which the run stops with a checkpoint.
        array: Tasks of a job array in the format of sbatch; None: one job.
        others: Other options of sbatch by their long names.
    """

    time: str
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int | None = None
    signal_delay_s: int = 120
    array: str | None = None
    others: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str], *, gpus: int | None = None) -> SlurmJob:
        """Read ``time=4:00:00``, ``nodes=2``, ``gpus-per-node=8`` and any other long option of sbatch.

        Args:
            texts: The options, each ``KEY=VALUE``, or ``KEY`` for one without a value.
            gpus: Ranks on each node if the options contain neither ``ntasks-per-node`` nor ``gpus-per-node``.

        Raises:
            LaunchError: If one is malformed or reserved, or ``time`` is missing.
        """
        given = read_options(texts, _wrong)
        for key in (key for key in given if key in _OWN):
            raise _wrong(key, "must leave this option to the launcher", f"Remove it: {_OWN[key]}.")
        if not given.get("time"):
            raise _wrong(
                ", ".join(texts) or "no options",
                "must give the time limit of a job",
                "Add --slurm time=4:00:00; a run that needs longer is requeued with a checkpoint.",
            )
        devices = _count(given, "gpus-per-node")
        return cls(
            time=given.pop("time"),
            nodes=_count(given, "nodes") or 1,
            ranks_per_node=_count(given, "ntasks-per-node") or devices or gpus or 1,
            gpus_per_node=devices,
            signal_delay_s=_count(given, "signal-delay-s") or 120,
            array=given.pop("array", None),
            others=given,
        )


def slurm_script(
    job: SlurmJob,
    train: Sequence[str],
    *,
    run: Path,
    folder: Path,
    variables: Mapping[str, str],
    preflight: Sequence[str] = (),
) -> str:
    """The text of a batch script.

    Args:
        job: The resources.
        train: The arguments of ``reptrain``. In an array, ``%a`` is replaced by the array task id.
        run: The run folder.
        folder: The working folder.
        variables: Variables to set in the job, in addition to the environment of sbatch.
        preflight: A command that must succeed before the ranks start; empty: none.

    Raises:
        LaunchError: If the tasks of an array would share one run folder.
    """
    if job.array is not None and _TASK not in str(run):
        raise LaunchError(
            "--out",
            got=str(run),
            rule="must contain %a in an array, for the array task id",
            remedy="Pass for example --out runs/seed-%a, and seed=%a among the overrides.",
        )
    # %j and %a in the name of the log are filled in by Slurm.
    log = f"{run}.slurm-{'%A_' + _TASK if job.array is not None else '%j'}.log"
    options = {"job-name": run.name.replace(_TASK, "array"), "nodes": str(job.nodes)}
    options |= {"ntasks-per-node": str(job.ranks_per_node), "time": job.time}
    if job.gpus_per_node is not None:
        options["gpus-per-node"] = str(job.gpus_per_node)
    options |= {"output": log, "open-mode": "append", "signal": f"USR1@{job.signal_delay_s}"}
    options |= {"requeue": "", "export": "ALL", **job.others}
    if job.array is not None:
        options["array"] = job.array
    check = f"{_shell(preflight, job)} || exit $?" if preflight else ""
    return _SCRIPT.format(
        directives="\n".join(
            f"#SBATCH --{name}" + (f"={_directive(value)}" if value else "")
            for name, value in options.items()
        ),
        folder=shlex.quote(str(folder)),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        run=_shell([str(run)], job),
        preflight=check,
        command=_shell([sys.executable, "-m", "reptrain", *train], job),
        most_stalls=MOST_STALLS,
    )


def _shell(words: Sequence[str], job: SlurmJob) -> str:
    """The words quoted for the shell; in an array, ``%a`` is replaced by the array task id."""
    if job.array is None:
        return shlex.join(words)
    task = '"$SLURM_ARRAY_TASK_ID"'
    return " ".join(task.join(part and shlex.quote(part) for part in word.split(_TASK)) for word in words)


def _directive(value: str) -> str:
    return value if re.fullmatch(r"[^\s'\"#]+", value) else '"' + value.replace('"', r"\"") + '"'


def _count(given: dict[str, str], key: str) -> int | None:
    text = given.pop(key, None)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 10**6:
        raise _wrong(f"{key}={text}", "must be a positive integer", "Fix the number.")
    return int(text)


def read_options(texts: Sequence[str], wrong: Callable[[str, str, str], ReptrainError]) -> dict[str, str]:
    """Options of sbatch by their long name; empty for one without a value.

    Args:
        texts: The options, each ``KEY=VALUE`` or ``KEY``.
        wrong: Returns the error of a malformed option, from what was given, the rule and the remedy.
    """
    given: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        key = key.strip().lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
            raise wrong(text, "must be KEY=VALUE", "For example --slurm time=4:00:00.")
        given[key] = value.strip()
    return given


def _wrong(got: str, rule: str, remedy: str) -> LaunchError:
    return LaunchError("--slurm", got=got, rule=rule, remedy=remedy)
