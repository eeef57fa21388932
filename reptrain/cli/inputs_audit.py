"""The audit at level `inputs`, which needs torch."""

from __future__ import annotations

from collections.abc import Callable

from reptrain.auditing.report import AuditReport
from reptrain.errors import ConfigError


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
        raise ConfigError(
            asked_by,
            got=error,
            rule="needs torch to rebuild the model's inputs",
            remedy="Install it, or use the level windows.",
        ) from error
    return audit_inputs
