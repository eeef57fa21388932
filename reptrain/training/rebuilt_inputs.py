"""The audit's level `inputs`: rebuild the model's inputs of every step, and compare their digests.

The objective and its noise are pure functions of configuration and global index, and so are the regularizers
`input_noise` and `masked_inputs`. The batches are therefore rebuilt from plan and store, on the CPU, and
hashed in the same way as the inputs of the model. The work is linear in the tokens that the run saw.

Shapes: B rows, N windows of the records, R records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain.auditing.audit import audit, open_run
from reptrain.auditing.ledger_columns import Columns
from reptrain.auditing.rebuilt import Rebuild, RebuiltInputs
from reptrain.auditing.report import AuditReport
from reptrain.batch.collate import collate
from reptrain.batch.objectives import Example, Objective, build_objective
from reptrain.checkpoint.saved_state import saved_state
from reptrain.config import RunConfig
from reptrain.model import DropoutContext
from reptrain.model.input_digest import row_digests
from reptrain.plan import MixturePlan, StepPlan, Stream
from reptrain.plan.position import position_at
from reptrain.runs.folder import RunFolder
from reptrain.store import Store
from reptrain.training.masked_inputs import MaskedInputs
from reptrain.training.regularize import InputNoise, Settings
from reptrain.training.targets import targets_of

Int64s = npt.NDArray[np.int64]

# Tokens of the windows that are rebuilt at a time: their tensors fit in a few hundred MiB.
_TASK_TOKENS = 1 << 17


def audit_inputs(run: Path, *, processes: int = 1, **options: Any) -> AuditReport:
    """The audit at level `inputs`: recount a run, and check what entered the model in every step.

    Also hashes the state files of the run's checkpoints.

    Args:
        run: The run folder.
        processes: Number of processes that rebuild the inputs.
        options: Those of `reptrain.audit`.

    Raises:
        ReptrainError: As `reptrain.audit` does.
    """
    options |= {"saved_state": saved_state}
    if processes == 1:
        return audit(run, rebuild=lambda *opened: Rebuilder.of(*opened).rebuild, **options)
    with _Pool(processes) as pool:
        return audit(run, rebuild=pool.over, **options)


class _Pool(ProcessPoolExecutor):
    """Processes that rebuild inputs."""

    def __init__(self, processes: int) -> None:
        # Not forked: threads of torch and pyarrow do not survive a fork.
        super().__init__(processes, mp_context=get_context("spawn"))

    def over(self, folder: RunFolder, stores: Mapping[str, Store], stream: Stream) -> Rebuild:
        """Rebuilds records in the processes."""
        places = {name: store.path for name, store in stores.items()}
        window_tokens = folder.plan.window_tokens

        def rebuild(records: Columns) -> RebuiltInputs:
            tasks = [records.at(part) for part in _tasks(records, window_tokens)]
            opened = [(folder.path, places)] * len(tasks)
            return RebuiltInputs.joined(list(self.map(_rebuild_task, opened, tasks)))

        return rebuild


_opened: dict[tuple[Path, tuple[Path, ...]], Rebuilder] = {}


def _rebuild_task(place: tuple[Path, dict[str, Path]], records: Columns) -> RebuiltInputs:
    """Rebuild records in a process of the pool, which opens the run once."""
    path, stores = place
    key = path, tuple(stores.values())
    if key not in _opened:
        torch.set_num_threads(1)
        folder = RunFolder.open(path)
        _opened[key] = Rebuilder.of(folder, *open_run(folder.plan, stores))
    return _opened[key].rebuild(records)


def _tasks(records: Columns, window_tokens: int) -> Iterator[slice]:
    """Adjacent records of about `_TASK_TOKENS` tokens."""
    ends = np.cumsum(records.windows) * window_tokens // _TASK_TOKENS
    stops = [*(np.flatnonzero(np.diff(ends)) + 1).tolist(), records.step.size]
    return (slice(first, stop) for first, stop in zip([0, *stops], stops, strict=False))


class _Places(NamedTuple):
    """The windows of some records, int64 [N] each."""

    index_N: Int64s
    row_N: Int64s
    step_N: Int64s


@dataclass(frozen=True)
class Rebuilder:
    """Rebuilds the inputs of steps."""

    config: RunConfig
    stream: Stream
    plan: MixturePlan
    steps: StepPlan
    objective: Objective
    input_noise: InputNoise
    masked_inputs: MaskedInputs

    @classmethod
    def of(cls, folder: RunFolder, stores: Mapping[str, Store], stream: Stream) -> Rebuilder:
        """The rebuilder of a run.

        Args:
            folder: The run.
            stores: Its stores by source.
            stream: Their subsets.
        """
        config, tokenizer = folder.config, next(iter(stores.values())).tokenizer()
        return cls(
            config,
            stream,
            folder.plan.mixture_plan(),
            folder.plan.step_plan(),
            build_objective(config, tokenizer, noise_seed=config.seed_of("noise")),
            InputNoise.of(config.regularize, tokenizer),
            MaskedInputs.of(config.regularize, tokenizer),
        )

    def rebuild(self, records: Columns) -> RebuiltInputs:
        """The input digest and the number of targets of every window of some records."""
        parts = _tasks(records, self.plan.window_tokens)
        return RebuiltInputs.joined([self._rebuild(records.at(part)) for part in parts])

    @torch.no_grad()
    def _rebuild(self, records: Columns) -> RebuiltInputs:
        offset_R = np.cumsum(records.windows) - records.windows
        row_N = np.arange(int(records.windows.sum())) - np.repeat(offset_R, records.windows)
        index_N = np.repeat(records.first_index, records.windows) + row_N
        batch = collate(self.stream, self.plan, self.objective, index_N, row_N)
        example = self.objective.example(batch)
        regularize = self.config.regularize
        if regularize.input_noise.largest or regularize.masked_inputs.largest:
            places = _Places(index_N, row_N, np.repeat(records.step, records.windows))
            return self._regularized(example, places)
        digest_N = example_digests(example, torch.from_numpy(index_N))
        return RebuiltInputs(digest_N.numpy().view(np.uint64), example.is_scored_BT.sum(1).numpy())

    def _regularized(self, example: Example, places: _Places) -> RebuiltInputs:
        """The inputs of the model after the input regularizers, which depend on the step."""
        regularize, decay = self.config.regularize, self.config.optimizer.weight_decay
        digest_N = torch.empty(places.index_N.size, dtype=torch.int64)
        targets_N = torch.empty_like(digest_N)
        for step in np.unique(places.step_N).tolist():
            is_own_N = torch.from_numpy(places.step_N == step)
            own = rows_of(example, is_own_N)
            index_B, row_B = (torch.from_numpy(x_N)[is_own_N] for x_N in (places.index_N, places.row_N))
            context = DropoutContext(self.config.seed_of("dropout"), step, row_B)
            settings = Settings.at(position_at(self.plan, self.steps, step), regularize, decay)
            own = replace(own, inputs=self.input_noise(own.inputs, settings.input_noise, context))
            copies = 1
            if settings.masked_inputs > 0:
                own, copies = self.masked_inputs(own, settings.masked_inputs, context), 2
            parts = example_digests(own, torch.cat([index_B] * copies)), own.is_scored_BT.sum(1)
            digest_N[is_own_N], targets_N[is_own_N] = (part.view(copies, -1).sum(0) for part in parts)
        return RebuiltInputs(digest_N.numpy().view(np.uint64), targets_N.numpy())


def rows_of(example: Example, chosen_B: Tensor) -> Example:
    """Some rows of an example; ``chosen_B`` is bool."""
    weight_BT, bounded_B = example.weight_BT, example.bounded_B
    return Example(
        {name: value[chosen_B] for name, value in example.inputs.items()},
        example.targets_BT[chosen_B],
        example.is_raw_BT[chosen_B],
        example.num_inputs_B[chosen_B],
        None if weight_BT is None else weight_BT[chosen_B],
        None if bounded_B is None else bounded_B[chosen_B],
    )


def example_digests(example: Example, index_B: Tensor) -> Tensor:
    """The part of each row in the input digest, as `Decoder` and `EncoderDecoder` compute it: int64 [B].

    Args:
        example: Inputs and targets.
        index_B: int64, global index of each row's window.
    """
    inputs, targets = example.inputs, targets_of(example, Settings())
    if "tokens_BT" in inputs:
        return row_digests(
            index_B,
            inputs["tokens_BT"],
            is_token_BT=inputs["is_token_BT"],
            causal=True,
            segments_BT=inputs.get("segments_BT"),
            prefix_B=inputs.get("prefix_B"),
            targets=targets,
        )
    source_segments_BS, segments_BT = inputs["source_segments_BS"], inputs["segments_BT"]
    return row_digests(
        index_B,
        inputs["source_BS"],
        is_token_BT=source_segments_BS > 0,
        causal=False,
        segments_BT=source_segments_BS,
    ) + row_digests(
        index_B,
        inputs["inputs_BT"],
        is_token_BT=segments_BT > 0,
        causal=True,
        segments_BT=segments_BT,
        targets=targets,
    )
