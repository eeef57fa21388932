"""What two ledgers have in common: all but the links of the chain, or less."""

from __future__ import annotations

from reptrain.runs import Ledger, LedgerRecord

_OF_THE_WEIGHTS = {"slice": None, "grad_norm": None}
_OF_THE_INPUTS = {"inputs": None, "targets": None}


def steps_of(ledger: Ledger, **cleared: None) -> list[LedgerRecord]:
    """The steps, weights included: equal after resuming on the same ranks."""
    return [record.model_copy(update={"previous": None} | cleared) for record in ledger.records()]


def data_of(ledger: Ledger) -> list[LedgerRecord]:
    """The steps without the weights: equal on any ranks."""
    return steps_of(ledger, **_OF_THE_WEIGHTS)


def windows_of(ledger: Ledger) -> list[LedgerRecord]:
    """The steps with the raw windows alone: equal for any objective."""
    return steps_of(ledger, **_OF_THE_WEIGHTS, **_OF_THE_INPUTS)
