"""Exposures of training windows before a step, as `reptrain memorization` counts them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from audited_runs import UNIQUE, replaced, rewrite, trained

from reptrain.evaluation.memorization import exposures
from reptrain.plan import Stream, Subset
from reptrain.store import open_store


@pytest.mark.parametrize(
    ("order", "cut"), [("reshuffle", "fixed"), ("mixed", "shifted"), ("reshuffle", "repacked")]
)
@pytest.mark.parametrize("step", [0, 3, 6])
def test_exposures_before_a_step_are_those_of_its_ledger(store_path, tmp_path, order, cut, step):
    store = open_store(store_path)
    folder = trained(store, tmp_path / "run", order=order, cut=cut)
    rewrite(folder, lambda records: replaced(records, 2, applied=False))
    subset, plan = Subset.open(store, unique_tokens=UNIQUE), folder.plan.mixture_plan()
    stream = Stream([subset], plan.plans)
    position = np.arange(0, UNIQUE, 37)
    wanted = np.zeros_like(position)
    for record in folder.ledger.records():
        if not record.applied or record.step >= step:
            continue
        found = plan.locate(np.arange(record.first_index, record.first_index + record.windows))
        for epoch, start, length in zip(found.epoch, found.start, found.length, strict=True):
            own = stream.parts[0].in_epoch(position, int(epoch))
            wanted += (start <= own) & (own < start + length)
    run = SimpleNamespace(path=folder.path, step=step)
    assert exposures(run, 0, subset, position).tolist() == wanted.tolist()
