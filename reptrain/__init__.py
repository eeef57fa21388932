"""reptrain: the trainer and the laboratory for language models that must repeat their data.

The names below are loaded when they are asked for: `import reptrain` alone loads neither torch nor pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "audit": "reptrain.auditing.audit",
    "audit_inputs": "reptrain.training.rebuilt_inputs",
    "build_report": "reptrain.report",
    "evaluate": "reptrain.evaluation.evaluate",
    "export_model": "reptrain.hub.export",
    "finetune": "reptrain.tasks.finetune",
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

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
