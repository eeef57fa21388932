"""reptrain: trains language models on limited data, and studies what repetition does to them.

The names below are loaded on first use: `import reptrain` alone loads neither torch nor pyarrow.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "advise": "reptrain.analysis.advise",
    "audit": "reptrain.auditing.audit",
    "audit_inputs": "reptrain.training.rebuilt_inputs",
    "build_report": "reptrain.report",
    "claims": "reptrain.study.ask",
    "cost": "reptrain.analysis.cost",
    "evaluate": "reptrain.evaluation.evaluate",
    "export_model": "reptrain.hub.export",
    "finetune": "reptrain.tasks.finetune",
    "fit": "reptrain.study.ask",
    "generate": "reptrain.generation",
    "import_model": "reptrain.hub.export",
    "load_run_config": "reptrain.config",
    "load_study": "reptrain.study",
    "open_store": "reptrain.store",
    "open_saved_model": "reptrain.hub.saved_model",
    "run_study": "reptrain.study",
    "tokenize": "reptrain.tokenization",
    "train": "reptrain.training.loop",
    "verify": "reptrain.store",
}

_FORMER = {"open_trained": "open_saved_model"}
"""Names of 0.1.0 and their names since; reading a former one warns."""

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warnings.warn(
            f"reptrain.{name} is now reptrain.{_FORMER[name]}; version 0.3 removes the former name",
            DeprecationWarning,
            stacklevel=2,
        )
        name = _FORMER[name]
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
