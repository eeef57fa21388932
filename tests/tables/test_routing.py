"""How unequally experts are used, in the table of runs."""

from __future__ import annotations

from types import SimpleNamespace

from reptrain.tables.read_run import _routing


def step(*layers: tuple[str, float, int]) -> SimpleNamespace:
    return SimpleNamespace(routing=[SimpleNamespace(layer=n, load=load, unused=u) for n, load, u in layers])


def test_routing_is_that_of_the_worst_layer() -> None:
    steps = [step(("1", 1.0, 2), ("3", 2.0, 1)), step(("1", 1.5, 0), ("3", 3.0, 1))]
    assert _routing(steps) == {"expert_load": 2.5, "experts_unused": 1}
    assert _routing([SimpleNamespace(routing=None)]) == {}
