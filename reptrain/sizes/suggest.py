"""Settings of a run that fit into the memory of a device: ZeRO stage, micro-batch, recomputation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from reptrain.config.load import set_dotted, validate
from reptrain.config.model import Recompute
from reptrain.config.schema import RunConfig
from reptrain.errors import ConfigError
from reptrain.sizes.flops import Precision
from reptrain.sizes.rank_memory import RankMemory, RankSettings, check_ranks, rank_memory
from reptrain.sizes.subject import Subject, trainable

# Of a GPU's memory: the rest is for CUDA, NCCL and gaps between tensors.
_USABLE = 0.9
# A CPU rank besides its model: Python, PyTorch and DeepSpeed.
_PROCESS_BYTES = 800 << 20
# Fewer tokens leave the matrix products of a GPU short.
_ENOUGH_TOKENS = 4096
_MOST_RANKS = 1 << 14
# From the cheapest: stage 3 gathers the weights in every pass, which is half more communication; selective
# recomputation repeats no matrix products; full recomputation is a fourth forward pass.
_TIERS: tuple[tuple[tuple[int, ...], Recompute], ...] = (
    ((0, 1, 2), "none"),
    ((0, 1, 2), "selective"),
    ((3,), "none"),
    ((0, 1, 2), "full"),
    ((3,), "full"),
)


@dataclass(frozen=True)
class MemorySetting:
    """One setting and what it needs."""

    stage: int
    windows: int
    """Windows of a micro-batch."""
    recompute: Recompute
    memory: RankMemory
    usable: int
    """Bytes that a rank may use."""

    @property
    def needed(self) -> int:
        """Bytes that a rank needs."""
        return sum(self.memory)

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.needed <= self.usable

    @property
    def overrides(self) -> list[str]:
        """The setting as ``key=value`` texts."""
        return [
            f"train.zero_stage={self.stage}",
            f"train.micro_batch_windows={self.windows}",
            f"train.activation_checkpointing={self.recompute}",
        ]


@dataclass(frozen=True)
class Suggestion:
    """A setting that fits, and why it was chosen."""

    chosen: MemorySetting | None
    """None if none fits."""
    smallest: MemorySetting
    """The setting that needs the least memory."""
    tried: list[MemorySetting]
    """Cheaper settings that do not fit."""
    world_size: int
    share: int
    """Windows of a batch for each rank."""
    precision: Precision
    device: str
    ranks_needed: int | None
    """If nothing fits: a number of ranks that is enough, from doubling; None: none is."""

    def data(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "fits": self.chosen is not None,
            "world_size": self.world_size,
            "device": self.device,
            "precision": self.precision,
            "chosen": None if self.chosen is None else _data(self.chosen),
            "smallest": _data(self.smallest),
            "too_large": [_data(setting) for setting in self.tried],
            "ranks_needed": self.ranks_needed,
            "why": self.why(),
        }

    def why(self) -> list[str]:
        """The reasons, a line each."""
        chosen = self.chosen
        if chosen is None:
            least = self.smallest
            more = (
                "No number of ranks is enough: one layer and one window are too large. With a larger"
                " train.sequence_parallel_size, several ranks share a window of a dense model."
            )
            if self.ranks_needed is not None:
                more = f"{self.ranks_needed} ranks are enough."
            return [
                f"Nothing fits: {' '.join(least.overrides)} needs {_gib(least.needed)} of"
                f" {_gib(least.usable)}. {more}"
            ]
        lines = [f"train.zero_stage={chosen.stage}: {self._why_stage(chosen)}"]
        passes = -(-self.share // chosen.windows)
        whole = "the whole share of a rank, in one pass" if passes == 1 else f"{passes} passes a step"
        lines.append(
            f"train.micro_batch_windows={chosen.windows}: {whole}"
            + ("" if passes == 1 else "; the next larger number of windows does not fit")
        )
        lines.append(f"train.activation_checkpointing={chosen.recompute}: {_WHY_RECOMPUTE[chosen.recompute]}")
        tried = [f"{' '.join(setting.overrides)} needs {_gib(setting.needed)}" for setting in self.tried]
        return lines + [f"does not fit: {text}" for text in tried]

    def _why_stage(self, chosen: MemorySetting) -> str:
        if chosen.stage == 3:
            return "stages 0 to 2 do not fit, since each rank holds all weights"
        if chosen.stage == 0:
            return "everything fits on each rank, which needs the least communication"
        if chosen.stage == 1 and self.precision != "fp32":
            return f"the lowest stage for {self.precision}, and it fits"
        return "a lower stage does not fit"

    def text(self) -> str:
        """As text."""
        setting = self.chosen or self.smallest
        memory = setting.memory
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        kept = f", kept by the process {_gib(memory.retained)}" if memory.retained else ""
        kept += f", copy for saving {_gib(memory.saving)}" if memory.saving else ""
        return "\n".join(
            [
                *([" ".join(setting.overrides)] if self.chosen else []),
                f"{ranks}, {self.precision}: {_gib(setting.needed)} of {_gib(setting.usable)} on each"
                f" (state {_gib(memory.state)}, buffers {_gib(memory.buffers)},"
                f" activations {_gib(memory.activations)}{kept})",
                *self.why(),
            ]
        )


_WHY_RECOMPUTE: dict[Recompute, str] = {
    "none": "the activations fit",
    "selective": "the activations do not fit; selective recomputation repeats no matrix products",
    "full": "selective recomputation does not fit; the forward pass is computed twice",
}


def _data(setting: MemorySetting) -> dict[str, Any]:
    return {
        "overrides": setting.overrides,
        "zero_stage": setting.stage,
        "micro_batch_windows": setting.windows,
        "activation_checkpointing": setting.recompute,
        "bytes": setting.memory._asdict() | {"needed": setting.needed, "usable": setting.usable},
    }


def suggest(subject: Subject, *, world_size: int, device: str, device_bytes: int) -> Suggestion:
    """The cheapest setting of a run that fits.

    The tiers are tried in order. The first where 4096 tokens, or a rank's whole share, fit is taken with the
    largest micro-batch that fits; if there is none, the first where anything fits. The batch stays as
    configured, and so do the results.

    Args:
        subject: The run.
        world_size: Number of ranks.
        device: "cuda" or "cpu".
        device_bytes: Memory of one rank's device.

    Raises:
        ConfigError: If the model can only be counted.
    """
    run, _ = trainable(subject, "the file")
    run = run.on_device(device)
    subject = replace(subject, run=run)
    precision = cast(Precision, run.train.precision)
    check_ranks(world_size, run.train)
    usable = int(device_bytes * _USABLE) if device == "cuda" else device_bytes - _PROCESS_BYTES
    rows = _micro_batches(run, world_size)
    share = rows[0]
    tokens_of_rank = subject.window_tokens / run.train.sequence_parallel_size
    enough = next(
        (windows for windows in reversed(rows) if windows * tokens_of_rank >= _ENOUGH_TOKENS), share
    )
    chosen: MemorySetting | None = None
    smallest: MemorySetting | None = None
    tried: list[MemorySetting] = []
    for least in dict.fromkeys((enough, rows[-1])):
        tried = []
        for stage, recompute in _allowed(subject, world_size):
            settings = [
                _setting(
                    subject,
                    RankSettings(world_size, stage, windows, recompute, precision, device),
                    usable,
                )
                for windows in rows
                if windows >= least
            ]
            if smallest is None or settings[-1].needed < smallest.needed:
                smallest = settings[-1]
            chosen = next((setting for setting in settings if setting.fits), None)
            if chosen is not None:
                break
            tried.append(settings[-1])
        if chosen is not None:
            break
    assert smallest is not None
    more = None if chosen else _ranks_needed(subject, world_size, device, usable, precision)
    return Suggestion(chosen, smallest, tried, world_size, share, precision, device, more)


def _setting(subject: Subject, settings: RankSettings, usable: int) -> MemorySetting:
    memory = rank_memory(subject, settings)
    assert memory is not None
    return MemorySetting(settings.stage, settings.windows, settings.recompute, memory, usable)


def _micro_batches(run: RunConfig, world_size: int) -> list[int]:
    """Sizes of a micro-batch, from a rank's whole share down, with the fewest padding rows for each."""
    group = run.model.moe.group_windows if run.model.moe else 1
    data_ranks = world_size // run.train.sequence_parallel_size
    groups = -(-run.train.batch_windows // (data_ranks * group))
    sizes = dict.fromkeys(-(-groups // passes) * group for passes in range(1, groups + 1))
    return sorted(sizes, reverse=True)


def _allowed(subject: Subject, world_size: int) -> Iterator[tuple[int, Recompute]]:
    """Stages and recomputations that the run's other settings allow, from the cheapest."""
    found = 0
    for stages, recompute in _TIERS:
        for stage in stages:
            if world_size == 1 and stage > 1:
                # Partitioned over one rank, the state is the same.
                continue
            data = dict(subject.run.model_dump(mode="json")) if subject.run else {}
            set_dotted(data, "train.zero_stage", stage)
            set_dotted(data, "train.activation_checkpointing", recompute)
            try:
                validate(RunConfig, data)
            except ConfigError:
                continue
            found += 1
            yield stage, recompute
    assert found


def _ranks_needed(
    subject: Subject, world_size: int, device: str, usable: int, precision: Precision
) -> int | None:
    ranks = 2 * world_size
    while ranks <= _MOST_RANKS:
        assert subject.run is not None
        windows = _micro_batches(subject.run, ranks)[-1]
        for stage, recompute in _allowed(subject, ranks):
            settings = RankSettings(ranks, stage, windows, recompute, precision, device)
            if _setting(subject, settings, usable).fits:
                return ranks
        ranks *= 2
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
