from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reptrain.batch.loader import Loader
from reptrain.config import RunConfig
from reptrain.training.setup import open_data


@pytest.fixture(params=["fixed", "repacked"])
def loader(tiny: Callable[..., RunConfig], request: pytest.FixtureRequest) -> Loader:
    data = open_data(tiny("train.total_tokens=2.3epochs", f"data.cut={request.param}"))
    return Loader(
        data.stream, data.plan, data.steps, data.objective, rank=0, world_size=1, micro_batch_windows=5
    )


def rows_of(loader: Loader, step: int) -> dict[int, list[int]]:
    """Tokens of one rank's micro-batches by row of the global batch, without padding."""
    return {
        int(row): tokens[:length].tolist()
        for batch in loader.batch(step).micro_batches
        for row, tokens, length in zip(batch.row_B, batch.tokens_BL, batch.length_B, strict=True)
        if length
    }


@given(world_size=st.integers(1, 5), micro=st.integers(1, 7), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loader_rows_do_not_depend_on_the_number_of_ranks(
    loader: Loader, world_size: int, micro: int, seed: int
) -> None:
    step = seed % loader.steps.num_steps
    expected = rows_of(loader, step)
    actual: dict[int, list[int]] = {}
    for rank in range(world_size):
        share = rows_of(replace(loader, rank=rank, world_size=world_size, micro_batch_windows=micro), step)
        assert not actual.keys() & share.keys()
        actual |= share
    assert actual == expected
    assert len(expected) == loader.steps.window_range(step)[1]


def test_loader_follows_the_plan(loader: Loader) -> None:
    batch = loader.batch(1).micro_batches[0]
    start, length = int(batch.start_B[2]), int(batch.length_B[2])
    assert batch.tokens_BL[2, :length].tolist() == loader.stream.read(start, length).tolist()


def test_iterate_from_a_step_equals_the_rest_of_the_run(loader: Loader) -> None:
    whole = [batch.micro_batches[0].tokens_BL for batch in loader.iterate()]
    assert len(whole) == loader.steps.num_steps
    for first in (1, loader.steps.num_steps - 1, loader.steps.num_steps):
        again = [(b.step, b.micro_batches[0].tokens_BL) for b in loader.iterate(first, ahead=3)]
        assert [step for step, _ in again] == list(range(first, loader.steps.num_steps))
        assert all(torch.equal(tokens, whole[step]) for step, tokens in again)


def test_iterate_raises_errors_of_its_thread(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(type(loader.stream), "tokens", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader.iterate())


@pytest.mark.parametrize("block_tokens", [1, 300, 2000, 10**9])
@pytest.mark.parametrize("located_windows", [1, 7, 10**6])
def test_blocks_of_any_size_give_the_same_batches(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, block_tokens: int, located_windows: int
) -> None:
    expected = [replace(loader).batch(step) for step in range(loader.steps.num_steps)]
    monkeypatch.setattr("reptrain.batch.loader._BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr("reptrain.batch.loader._LOCATED_WINDOWS", located_windows)
    for found, one in zip(replace(loader).iterate(), expected, strict=True):
        assert found.step == one.step
        # Under `causal`, every token of a window is a target.
        tokens = sum(int(batch.length_B.sum()) for batch in one.micro_batches)
        assert found.loss_tokens == one.loss_tokens == tokens
        for ours, theirs in zip(found.micro_batches, one.micro_batches, strict=True):
            for name in ("tokens_BL", "length_B", "start_B", "row_B"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_blocks_grow_from_one_step(loader: Loader) -> None:
    blocks = list(loader._blocks(2))
    assert blocks[0] == (2, 1)
    assert [step for first, size in blocks for step in range(first, first + size)] == list(
        range(2, loader.steps.num_steps)
    )
