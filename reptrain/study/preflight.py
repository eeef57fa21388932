"""What can be known to fail before the first arm starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reptrain.config import RunConfig
from reptrain.errors import ReptrainError, StudyError
from reptrain.plan.epochs import plan_epochs
from reptrain.store import Store, open_store
from reptrain.study.grid import Arm


def unique_tokens_of(config: RunConfig, store: Store) -> int:
    """U of a run: as configured, or every training token of its store."""
    return config.data.unique_tokens or store.split("train").num_tokens


def check_arms(arms: Sequence[Arm]) -> dict[str, Store]:
    """Refuse a study of which some arm could not be planned on its store.

    Args:
        arms: All arms of the study.

    Returns:
        The open stores by the path that the configurations name.

    Raises:
        StudyError: If a store cannot be opened or is too small for an arm, or its epochs cannot be planned.
    """
    stores: dict[str, Store] = {}
    for arm in arms:
        try:
            path = arm.config.data.store
            if path not in stores:
                stores[path] = open_store(Path(path))
            _check_arm(arm, stores[path])
        except StudyError:
            raise
        except ReptrainError as error:
            raise StudyError(
                f"arm {arm.name}: {error.what}", got=error.got, rule=error.rule, remedy=error.remedy
            ) from error
    return stores


def _check_arm(arm: Arm, store: Store) -> None:
    data = arm.config.data
    held = store.split("train").num_tokens
    unique = unique_tokens_of(arm.config, store)
    if unique > held:
        raise StudyError(
            f"arm {arm.name}: data.unique_tokens",
            got=unique,
            rule=f"must be at most the {held} training tokens of {data.store}",
            remedy="Tokenize more text or ask for fewer unique tokens.",
        )
    plan_epochs(
        unique_tokens=unique,
        window_tokens=data.window_tokens,
        budget=arm.config.train.total_tokens,
        order=data.order,
        cut=data.cut,
        seed=arm.config.seed,
    )
