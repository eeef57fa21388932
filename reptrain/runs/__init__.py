"""Run folders: plan, ledger, metrics, events and status."""

from reptrain.runs.folder import RunFolder, RunStatus
from reptrain.runs.ledger import Ledger, LedgerRecord
from reptrain.runs.metrics import MetricsLog, TrainRecord, ValidRecord
from reptrain.runs.run_plan import RunPlan

__all__ = [
    "Ledger",
    "LedgerRecord",
    "MetricsLog",
    "RunFolder",
    "RunPlan",
    "RunStatus",
    "TrainRecord",
    "ValidRecord",
]
