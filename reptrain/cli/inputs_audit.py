"""The audits that need torch: those at level `inputs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptrain.auditing.report import AuditReport
from reptrain.errors import ConfigError

if TYPE_CHECKING:
    from reptrain.tasks.audit import FinetuneAudit


def inputs_audit(asked_by: str) -> Callable[..., AuditReport]:
    """`reptrain.audit_inputs`.

    Args:
        asked_by: The option or key that asks for the level, for the error message.

    Raises:
        ConfigError: If torch is not installed.
    """
    try:
        from reptrain.training.rebuilt_inputs import audit_inputs
    except ImportError as error:
        raise _without_torch(asked_by, error, "Install it, or use the level windows.") from error
    return audit_inputs


def is_finetuning(folder: Path) -> bool:
    """Whether a folder is that of a fine-tuning run, or of one of its seeds."""
    if (folder / "plan.json").exists():
        return False
    places = [folder, *([folder.parent] if folder.name.startswith("seed-") else [])]
    return any((place / "data.json").exists() and (place / "parent.json").exists() for place in places)


def finetuning_audit(folder: Path, options: Mapping[str, Any]) -> FinetuneAudit:
    """The audit of a fine-tuning.

    Args:
        folder: Its folder, or that of a seed.
        options: Options of `reptrain audit`, by name, that do not apply to fine-tuning.

    Raises:
        ReptrainError: If one of them is set, or torch is not installed, or the folder cannot be read.
    """
    for name, value in options.items():
        if value:
            raise ConfigError(
                name,
                got=f"the fine-tuning run {folder}",
                rule="must be used with a run on a store: a fine-tuning run has no store and no ledger",
                remedy="Leave it out.",
            )
    try:
        from reptrain.tasks.audit import audit_finetuning
    except ImportError as error:
        raise _without_torch("audit of a fine-tuning", error, "Install it.") from error
    return audit_finetuning(folder)


def _without_torch(what: str, error: ImportError, remedy: str) -> ConfigError:
    return ConfigError(what, got=error, rule="needs torch to rebuild the model's inputs", remedy=remedy)
