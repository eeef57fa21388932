"""Check the arms of a study before the first one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from reptrain.config import RunConfig
from reptrain.errors import ReptrainError, StudyError
from reptrain.plan import plan_mixture
from reptrain.plan.stream import unique_tokens_setting
from reptrain.store import Store, open_store
from reptrain.text.tokenizer import first_other_piece

Stores = Mapping[str, Store]


class Planned(Protocol):
    """A training to check: a node, or an arm."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def run(self) -> RunConfig:
        """Its configuration."""

    @property
    def parent(self) -> str | None:
        """The training whose weights it starts from; None if there is none."""


def total_tokens_of(config: RunConfig, stores: Stores) -> int:
    """Planned tokens of a run, over all its sources, to within a window of each.

    Args:
        config: The run.
        stores: Its open stores by their path in the configuration.
    """
    total = 0
    for source in config.sources.values():
        unique = source.unique_tokens or stores[source.store].split("train").num_tokens
        total += round(source.total_tokens.epochs_over(unique) * unique)
    return total


def check_arms(arms: Sequence[Planned]) -> dict[str, Store]:
    """Refuse a study with an arm that cannot be planned on its store.

    Args:
        arms: All arms of the study.

    Returns:
        The open stores by their path in the configurations.

    Raises:
        StudyError: If a store cannot be opened or is too small for an arm, or its epochs cannot be planned.
    """
    stores: dict[str, Store] = {}
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        try:
            for name, source in arm.run.sources.items():
                if source.store not in stores:
                    setting = f"{arm.run.store_setting(name)}=FOLDER"
                    stores[source.store] = open_store(source.store, named_by=setting)
            _check_arm(arm, stores)
            if arm.parent is not None:
                _check_vocabulary(arm, by_name[arm.parent], stores)
        except StudyError:
            raise
        except ReptrainError as error:
            raise StudyError(
                f"arm {arm.name}: {error.what}", got=error.got, rule=error.rule, remedy=error.remedy
            ) from error
    return stores


def _check_vocabulary(arm: Planned, parent: Planned, stores: Mapping[str, Store]) -> None:
    """Refuse an arm whose store has other tokens than that of the run that it starts from."""
    (path, known), *_ = _stores_of(parent, stores)
    for other_path, store in _stores_of(arm, stores):
        if other_path == path or store.manifest.tokenizer == known.manifest.tokenizer:
            continue
        if differing := first_other_piece(known.tokenizer(), store.tokenizer()):
            raise StudyError(
                f"arm {arm.name}: {other_path}",
                got=f"a tokenizer with {differing.other!r} as id {differing.id}",
                rule=f"must have {differing.one!r} as this id, like the store of its parent {parent.name}",
                remedy="Create the store with `reptrain tokenize --tokenizer` and that store's tokenizer.",
            )


def _stores_of(arm: Planned, stores: Mapping[str, Store]) -> list[tuple[str, Store]]:
    return [(source.store, stores[source.store]) for source in arm.run.sources.values()]


def _check_arm(arm: Planned, stores: Stores) -> None:
    unique_tokens = {}
    for name, source in arm.run.sources.items():
        held = stores[source.store].split("train").num_tokens
        unique_tokens[name] = source.unique_tokens or held
        if unique_tokens[name] > held:
            raise StudyError(
                f"arm {arm.name}: {unique_tokens_setting(arm.run, name)}",
                got=unique_tokens[name],
                rule=f"must be at most the {held} training tokens of {source.store}",
                remedy="Tokenize more text or ask for fewer unique tokens.",
            )
    plan_mixture(arm.run, unique_tokens)
