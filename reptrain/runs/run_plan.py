"""The plan of a run as its folder keeps it: enough to derive every window again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from reptrain.config import RunConfig, config_fingerprint
from reptrain.plan import EpochPlan, StepPlan, Subset, plan_epochs
from reptrain.runs.files import FrozenRecord


class RunPlan(FrozenRecord):
    """`plan.json`."""

    store: str
    """Folder of the token store."""
    store_fingerprint: str
    """Of its content."""
    subset_fingerprint: str
    """Of store, split, seed and size of the subset."""
    config_fingerprint: str
    """Of the settings that change the mathematics."""
    unique_tokens: int
    """U, the tokens of the subset."""
    window_tokens: int
    """L, the tokens of a window."""
    windows_per_epoch: int
    """W."""
    total_windows: int
    """Global indices of the run."""
    epochs: str
    """k = total_windows / W, as a fraction."""
    order: Literal["reshuffle", "same", "mixed"]
    """Order of the windows."""
    cut: Literal["fixed", "shifted"]
    """Window boundaries."""
    seed: int
    """Keys order and cut."""
    subset_seed: int
    """Keys the order of documents."""
    batch_windows: int
    """Windows of a step."""

    @classmethod
    def of(cls, config: RunConfig, *, store: Path, store_fingerprint: str, subset: Subset) -> Self:
        """The plan that follows from a configuration and its subset.

        Raises:
            PlanError: If a window is longer than the subset.
        """
        epochs = plan_epochs(
            unique_tokens=subset.unique_tokens,
            window_tokens=config.window_tokens,
            budget=next(iter(config.sources.values())).total_tokens,
            order=config.data.order,
            cut=config.data.cut,
            seed=config.seed,
        )
        return cls(
            store=str(store.resolve()),
            store_fingerprint=store_fingerprint,
            subset_fingerprint=subset.fingerprint,
            config_fingerprint=config_fingerprint(config),
            unique_tokens=epochs.unique_tokens,
            window_tokens=epochs.window_tokens,
            windows_per_epoch=epochs.windows_per_epoch,
            total_windows=epochs.total_windows,
            epochs=str(epochs.epochs),
            order=epochs.order,
            cut=epochs.cut,
            seed=epochs.seed,
            subset_seed=config.data.subset_seed,
            batch_windows=config.train.batch_windows,
        )

    def epoch_plan(self) -> EpochPlan:
        """The order of the windows.

        Raises:
            PlanError: If a window is longer than the subset.
        """
        return EpochPlan(
            self.unique_tokens, self.window_tokens, self.total_windows, self.order, self.cut, self.seed
        )

    def step_plan(self) -> StepPlan:
        """The steps."""
        return StepPlan(self.batch_windows, self.total_windows)
