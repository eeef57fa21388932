"""How unequally experts are used, in the table of runs."""

from __future__ import annotations

from types import SimpleNamespace

from reptrain.tables.read_run import _routing, _routing_between


def step(*layers: tuple[str, float, int]) -> SimpleNamespace:
    return SimpleNamespace(routing=[SimpleNamespace(layer=n, load=load, unused=u) for n, load, u in layers])


def test_routing_is_that_of_the_worst_layer() -> None:
    steps = [step(("1", 1.0, 2), ("3", 2.0, 1)), step(("1", 1.5, 0), ("3", 3.0, 1))]
    assert _routing(steps) == {"expert_load": 2.5, "experts_unused": 1}
    assert _routing([SimpleNamespace(routing=None)]) == {}


def test_routing_of_an_evaluation_is_that_since_the_one_before() -> None:
    steps = [step(("1", float(number), number)) for number in range(4)]
    for number, record in enumerate(steps):
        record.step = number
    assert _routing_between(steps, [0, 1, 4]) == {
        0: {}, 1: {"expert_load": 0.0, "experts_unused": 0}, 4: {"expert_load": 2.0, "experts_unused": 1},
    }  # fmt: skip
    assert _routing_between([SimpleNamespace(routing=None, step=0)], [0, 1]) == {}
