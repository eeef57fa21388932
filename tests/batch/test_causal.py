import torch
from made_batches import windows

from reptrain.batch.objectives import IGNORE, Causal


def test_causal_predicts_every_token_once() -> None:
    tokens = torch.arange(1, 13).view(2, 6)
    example = Causal(start_id=0).example(windows(tokens, [6, 6]))
    assert torch.equal(example.targets_BT, tokens)
    assert torch.equal(example.inputs["tokens_BT"][:, 1:], tokens[:, :-1])
    assert example.inputs["tokens_BT"][:, 0].tolist() == [0, 0]
    assert list(example.inputs) == ["tokens_BT", "is_token_BT"]
    assert example.is_raw_BT.all()


def test_causal_ignores_padding() -> None:
    tokens = torch.ones(3, 5, dtype=torch.int64)
    example = Causal(start_id=0).example(windows(tokens, [5, 1, 0]))
    assert (example.targets_BT != IGNORE).sum(dim=1).tolist() == [5, 1, 0]
    assert torch.equal(example.is_raw_BT, example.targets_BT != IGNORE)
    assert int(example.inputs["tokens_BT"].min()) >= 0


def test_causal_handles_windows_of_one_token() -> None:
    example = Causal(start_id=0).example(windows(torch.tensor([[7]]), [1]))
    assert (example.inputs["tokens_BT"].tolist(), example.targets_BT.tolist()) == ([[0]], [[7]])


def test_causal_with_document_mask_begins_each_document_with_the_start_token() -> None:
    tokens = torch.tensor([[5, 6, 1, 7, 1, 8]])
    example = Causal(start_id=0, document_eos_id=1).example(windows(tokens, [6]))
    assert example.inputs["tokens_BT"].tolist() == [[0, 5, 6, 0, 7, 0]]
    assert example.inputs["segments_BT"].tolist() == [[1, 1, 1, 2, 2, 3]]
    assert torch.equal(example.targets_BT, tokens)
