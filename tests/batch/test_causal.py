import doctest

import torch

from reptrain.batch.objectives import causal
from reptrain.batch.objectives.causal import IGNORE, causal_inputs_and_targets


def test_docstring_example_is_true() -> None:
    assert doctest.testmod(causal).attempted == 4
    assert doctest.testmod(causal).failed == 0


def test_causal_predicts_every_token_once() -> None:
    tokens = torch.arange(1, 13).view(2, 6)
    inputs, targets = causal_inputs_and_targets(tokens, torch.tensor([6, 6]), start_id=0)
    assert torch.equal(targets, tokens)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs[:, 0].tolist() == [0, 0]


def test_causal_ignores_what_lies_behind_a_row() -> None:
    tokens = torch.ones(3, 5, dtype=torch.int64)
    _, targets = causal_inputs_and_targets(tokens, torch.tensor([5, 1, 0]), start_id=0)
    assert (targets != IGNORE).sum(dim=1).tolist() == [5, 1, 0]


def test_causal_handles_windows_of_one_token() -> None:
    inputs, targets = causal_inputs_and_targets(torch.tensor([[7]]), torch.tensor([1]), start_id=0)
    assert (inputs.tolist(), targets.tolist()) == ([[0]], [[7]])
