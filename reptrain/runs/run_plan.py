"""The plan of a run as its folder keeps it: enough to derive every window again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from reptrain.config import RunConfig, config_fingerprint
from reptrain.config.base import PathText
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.plan import EpochPlan, MixturePlan, StepPlan, Stream, plan_mixture
from reptrain.runs.records import FrozenRecord

if TYPE_CHECKING:
    from reptrain.store import Store


Order = Literal["reshuffle", "same", "mixed"]
RUN_FORMAT = 2
"""Format of a run folder's files. Format 1 had neither `format` nor `numerics_version` in plan.json; it is
read."""


class SourcePlan(FrozenRecord):
    """What a run takes of one store."""

    name: str
    """Of the source; `data` where there is but one store."""
    store: PathText
    """Folder of the token store."""
    store_fingerprint: str
    """Of its content."""
    subset_fingerprint: str
    """Of store, split, seed and size of the subset."""
    unique_tokens: int
    """U, the tokens of the subset."""
    windows_per_epoch: int
    """W."""
    total_windows: int
    """Its windows in the run."""
    epochs: str
    """k = total_windows / W, as a fraction."""
    order: Order
    """Order of the windows."""
    cut: Literal["fixed", "shifted"]
    """Window boundaries."""
    seed: int
    """Keys order and cut."""
    subset_seed: int
    """Keys the order of documents."""


class RunPlan(FrozenRecord):
    """`plan.json`."""

    format: int = 1
    """`RUN_FORMAT` of the version that wrote the folder."""
    numerics_version: int = 1
    """`NUMERICS_VERSION` of the version that started the run."""
    sources: tuple[SourcePlan, ...]
    """One for each store, in the order of the configuration."""
    config_fingerprint: str
    """Of the numerics version and the settings that change what a run computes."""
    window_tokens: int
    """L, the tokens of a window."""
    total_windows: int
    """Global indices of the run."""
    seed: int
    """Of the run."""
    batch_windows: int
    """Windows of a step."""

    @classmethod
    def of(cls, config: RunConfig, *, stores: Mapping[str, Store], stream: Stream) -> Self:
        """The plan that follows from a configuration and its text.

        Args:
            config: The run.
            stores: Its open stores by the name of the source.
            stream: Their subsets in the same order.

        Raises:
            PlanError: If a window is longer than a subset.
        """
        subsets = dict(zip(config.sources, stream.subsets, strict=True))
        mixture = plan_mixture(config, {name: subset.unique_tokens for name, subset in subsets.items()})
        sources = [
            SourcePlan(
                name=name,
                store=str(stores[name].path.resolve()),
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
        )

    @property
    def unique_tokens(self) -> int:
        """Tokens of all subsets together."""
        return sum(source.unique_tokens for source in self.sources)

    @property
    def is_mixture(self) -> bool:
        """Whether there are several sources, so that what concerns one has to name it."""
        return len(self.sources) > 1

    def mixture_plan(self) -> MixturePlan:
        """The order of the windows.

        Raises:
            PlanError: If a window is longer than a subset.
        """
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
        """The steps."""
        return StepPlan(self.batch_windows, self.total_windows)

    def facts(self) -> dict[str, Any]:
        """What makes the run by key, such as `order` or, in a mixture, `books.order`.

        The stores' paths, the versions and the config fingerprint are left out: a later release may compute
        the fingerprint differently.
        """
        facts = self.model_dump(exclude={"format", "numerics_version", "sources", "config_fingerprint"})
        for source in self.sources:
            prefix = f"{source.name}." if self.is_mixture else ""
            found = source.model_dump(exclude={"store"} if self.is_mixture else {"store", "total_windows"})
            if not self.is_mixture:
                # Beside the run's own seed.
                found["order_seed"] = found.pop("seed")
            facts |= {f"{prefix}{key}": value for key, value in found.items()}
        return facts
