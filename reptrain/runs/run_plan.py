"""The plan in a run folder: it determines every window of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from reptrain.config import RunConfig, config_fingerprint
from reptrain.config.base import Int64, PathText, Seed
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.runs.records import FrozenRecord

if TYPE_CHECKING:
    from reptrain.plan import MixturePlan, StepPlan, Stream
    from reptrain.store import Store


Order = Literal["reshuffle", "same", "mixed"]
_Positive = Annotated[Int64, Field(gt=0)]
RUN_FORMAT = 3
"""Format of a run folder's files. In format 2 the ledger has no input digests and is no chain; format 1 lacks
`format` and `numerics_version` in plan.json too. Both can be read."""


class SourcePlan(FrozenRecord):
    """The part of a plan for one source."""

    name: str
    """Name of the source; `data` in a run on one store."""
    store: PathText
    """Folder of the token store."""
    store_fingerprint: str
    """Fingerprint of the store's content."""
    subset_fingerprint: str
    """Fingerprint of store, split, seed and size of the subset."""
    unique_tokens: _Positive
    """U, the number of tokens of the subset."""
    windows_per_epoch: _Positive
    """W, the number of windows per epoch."""
    total_windows: _Positive
    """Windows of the source in the run."""
    epochs: str
    """k = total_windows / W, as a fraction."""
    order: Order
    """Order of the windows."""
    cut: Literal["fixed", "shifted", "repacked"]
    """Window boundaries."""
    seed: Seed
    """Seed of order and cut."""
    subset_seed: Seed
    """Seed of the order of documents."""


class RunPlan(FrozenRecord):
    """`plan.json`."""

    format: Int64 = 1
    """`RUN_FORMAT` of the version that wrote the folder."""
    numerics_version: Int64 = 1
    """`NUMERICS_VERSION` of the version that started the run."""
    sources: Annotated[tuple[SourcePlan, ...], Field(min_length=1)]
    """One for each source, in the order of the configuration."""
    config_fingerprint: str
    """Fingerprint of the numerics version and the settings that change the results."""
    window_tokens: _Positive
    """L, the tokens of a window."""
    total_windows: _Positive
    """Number of global indices of the run."""
    seed: Seed
    """Seed of the run."""
    batch_windows: _Positive
    """Windows per step."""
    teacher: str | None = None
    """Fingerprint of the weights of the teacher (`distill.teacher`); None without one."""

    @classmethod
    def of(
        cls, config: RunConfig, *, stores: Mapping[str, Store], stream: Stream, teacher: str | None = None
    ) -> Self:
        """The plan of a configuration and its stores.

        Args:
            config: The run.
            stores: Its open stores by source.
            stream: Their subsets in the same order.
            teacher: Fingerprint of the weights of the teacher.

        Raises:
            PlanError: If a window is longer than a subset.
        """
        from reptrain.plan import plan_mixture

        subsets = dict(zip(config.sources, stream.subsets, strict=True))
        mixture = plan_mixture(config, {name: subset.unique_tokens for name, subset in subsets.items()})
        sources = [
            SourcePlan(
                name=name,
                store=stores[name].address,
                store_fingerprint=stores[name].fingerprint,
                subset_fingerprint=subsets[name].fingerprint,
                unique_tokens=plan.unique_tokens,
                windows_per_epoch=plan.windows_per_epoch,
                total_windows=plan.total_windows,
                epochs=str(plan.epochs),
                order=plan.order,
                cut=plan.cut,
                seed=plan.seed,
                subset_seed=source.subset_seed or 0,
            )
            for (name, source), plan in zip(config.sources.items(), mixture.plans, strict=True)
        ]
        return cls(
            format=RUN_FORMAT,
            numerics_version=NUMERICS_VERSION,
            sources=tuple(sources),
            config_fingerprint=config_fingerprint(config),
            window_tokens=mixture.window_tokens,
            total_windows=mixture.total_windows,
            seed=config.seed,
            batch_windows=config.train.batch_windows,
            teacher=teacher,
        )

    def text(self) -> str:
        """The content of plan.json; a plan without a teacher does not mention one."""
        return self.model_dump_json(indent=2, exclude=None if self.teacher else {"teacher"})

    @property
    def unique_tokens(self) -> int:
        """Tokens of all subsets together."""
        return sum(source.unique_tokens for source in self.sources)

    @property
    def is_mixture(self) -> bool:
        """Whether there are several sources."""
        return len(self.sources) > 1

    def mixture_plan(self) -> MixturePlan:
        """The order of the windows.

        Raises:
            PlanError: If a window is longer than a subset.
        """
        from reptrain.plan import EpochPlan, MixturePlan

        return MixturePlan(
            tuple(
                EpochPlan(
                    source.unique_tokens,
                    self.window_tokens,
                    source.total_windows,
                    source.order,
                    source.cut,
                    source.seed,
                )
                for source in self.sources
            )
        )

    def step_plan(self) -> StepPlan:
        """The steps of the run."""
        from reptrain.plan import StepPlan

        return StepPlan(self.batch_windows, self.total_windows)

    def facts(self) -> dict[str, Any]:
        """The values that identify the run, by key, such as `order` or, in a mixture, `books.order`.

        Paths, versions and the config fingerprint are left out: a later release may compute the fingerprint
        differently.
        """
        facts = self.model_dump(exclude={"format", "numerics_version", "sources", "config_fingerprint"})
        for source in self.sources:
            prefix = f"{source.name}." if self.is_mixture else ""
            values = source.model_dump(exclude={"store"} if self.is_mixture else {"store", "total_windows"})
            if not self.is_mixture:
                # The key `seed` is the run's own.
                values["order_seed"] = values.pop("seed")
            facts |= {f"{prefix}{key}": value for key, value in values.items()}
        return facts
