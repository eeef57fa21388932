"""The input digest: its definition, and its cost: few operations, no sync and no collective."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reptrain.config.model import DecoderConfig, DropoutConfig, T5Config
from reptrain.model import DropoutContext, Witness, build_model
from reptrain.model.input_digest import row_digests
from reptrain_kernels.ops.linear_cross_entropy import IGNORE, Targets

MASK, G = 2**64 - 1, 0x9E3779B97F4A7C15
VECTORS: list[tuple[dict[str, Any], str]] = [
    (
        {"g": 5, "ids": [0, 11, 12, 7], "targets": [11, 12, 13, -100], "token": [1, 1, 1, 0]},
        "07df9d3da68f4506",
    ),
    (
        {
            **{"g": 123456789012, "ids": [7, 99, 8, 99], "targets": [-100, 5, -100, 6], "weight": 2.5},
            **{"segments": [1, 1, 2, 2], "token": [1, 1, 1, 1], "prefix": 4},
        },
        "f3723173c26c17f1",
    ),
    (
        {"g": 5, "ids": [3, 4, 9], "segments": [1, 2, 0], "token": [1, 1, 0], "encoder": True},
        "61a66cebe821b862",
    ),
]  # fmt: skip


def mix(x: int) -> int:
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def defined(
    g: int, ids: list[int], token: list[int], targets: list[int] | None = None, weight: float = 1.0,
    segments: list[int] | None = None, prefix: int = 0, encoder: bool = False,
) -> int:  # fmt: skip
    """The definition of docs/format.md, in Python's integers."""
    row = mix((mix((g + 1) * G) + (1 if encoder else 2) + 4 * prefix) * G)
    bits, total = int(np.float32(weight).view(np.int32)), 0
    for place, (index, is_token) in enumerate(zip(ids, token, strict=True)):
        target = targets[place] if targets else IGNORE
        if is_token or target != IGNORE:
            segment = segments[place] if segments else 0
            word = mix((row ^ place) * G + index + 2**32 * target)
            total += mix(word + bits * (target != IGNORE) + 2**32 * (2 * segment + is_token))
    return total & MASK


def digest(case: dict[str, Any], part: slice = slice(None)) -> int:
    named = ("ids", "targets", "segments")
    row = {name: torch.tensor([case[name]])[:, part] for name in named if name in case}
    targets = row.get("targets")
    weighted = (
        None if targets is None else Targets(targets, torch.full(targets.shape, case.get("weight", 1.0)))
    )
    found = row_digests(
        torch.tensor([case["g"]]),
        row["ids"],
        is_token_BT=torch.tensor([case["token"]]).bool()[:, part],
        position_T=torch.arange(len(case["ids"]))[part],
        causal=not case.get("encoder"),
        segments_BT=row.get("segments"),
        prefix_B=torch.tensor([case["prefix"]]) if "prefix" in case else None,
        targets=weighted,
    )
    return found.item() % 2**64


@pytest.mark.parametrize(("case", "expected"), VECTORS, ids=["decoder", "diffusion", "encoder"])
def test_digest_has_the_published_values(case: dict[str, Any], expected: str) -> None:
    assert f"{defined(**case):016x}" == f"{digest(case):016x}" == expected


@pytest.mark.parametrize("case", [case for case, _ in VECTORS], ids=["decoder", "diffusion", "encoder"])
def test_digests_of_parts_of_a_row_add_up(case: dict[str, Any]) -> None:
    parts = [digest(case, slice(0, 1)), digest(case, slice(1, 3)), digest(case, slice(3, None))]
    assert sum(parts) % 2**64 == digest(case)


def test_digest_changes_with_every_value_that_counts() -> None:
    base, _ = VECTORS[1]
    changes = [{"g": 7}, {"weight": 0.0}, {"prefix": 3}, {"token": [0, 1, 1, 1]}]
    for name in ("ids", "targets", "segments"):
        for place in range(4):
            values = list(base[name])
            values[place] += 1
            changes.append({name: values})
    found = {digest(base), *(digest(base | change) for change in changes)}
    assert len(found) == 1 + len(changes)


def test_digest_ignores_what_is_behind_the_tokens() -> None:
    base, _ = VECTORS[0]
    assert digest(base) == digest(base | {"ids": [0, 11, 12, 999]})
    empty = base | {"token": [0] * 4, "targets": [IGNORE] * 4}
    assert digest(empty) == digest(empty | {"g": 77, "ids": [1, 2, 3, 4]}) == 0


class Operations(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def decoder(recompute: str = "none") -> Any:
    config = DecoderConfig(
        d_model=16, num_layers=2, num_heads=2, d_ff=16, dropout=DropoutConfig(residual=0.1)
    )
    model = build_model(config, vocab_size=50, seed=0)
    model.recompute = recompute
    return model


def inputs_of_decoder() -> dict[str, Any]:
    tokens = torch.arange(2 * 8).reshape(2, 8)
    return {
        "tokens_BT": tokens,
        "segments_BT": torch.ones_like(tokens),
        "prefix_B": torch.tensor([3, 4]),
        "targets": Targets(tokens + 1, torch.ones(2, 8), wants_correct=False),
    }


def inputs_of_t5() -> dict[str, Any]:
    tokens = torch.arange(2 * 8).reshape(2, 8)
    return {
        **{"source_BS": tokens, "inputs_BT": tokens, "targets": Targets(tokens + 1, torch.ones(2, 8))},
        **{"source_segments_BS": torch.ones_like(tokens), "segments_BT": torch.ones_like(tokens)},
    }


def operations(model: Any, inputs: dict[str, Any], witness: Witness | None) -> list[str]:
    with Operations() as seen:
        model(**inputs, witness=witness)
    return seen.names


@pytest.mark.parametrize(("family", "most"), [("decoder", 96), ("t5", 176)])
def test_digest_adds_few_operations_and_none_that_waits(family: str, most: int) -> None:
    if family == "decoder":
        model, inputs = decoder(), inputs_of_decoder()
    else:
        sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_ff": 16}
        model = build_model(T5Config(family="t5", num_heads=2, head_dim=8, **sizes), vocab_size=50, seed=0)
        inputs = inputs_of_t5()
    plain = operations(model, inputs, None)
    witness = Witness(torch.tensor([4, 5]))
    added = list(operations(model, inputs, witness))
    for name in plain:
        added.remove(name)
    assert 0 < len(added) <= most, len(added)
    waits = ("_local_scalar_dense", "nonzero", "c10d")
    assert not [name for name in added if any(word in name for word in waits)]
    assert witness.num_targets is not None and witness.num_targets.item() == 16


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_digest_is_taken_once_whatever_is_recomputed(recompute: str) -> None:
    model, inputs = decoder(recompute), inputs_of_decoder()
    witness, filled = Witness(torch.tensor([4, 5])), []
    fill = witness.fill

    def filled_again(*parts: torch.Tensor, targets: torch.Tensor) -> None:
        filled.append(1)
        fill(*parts, targets=targets)

    witness.fill = filled_again  # type: ignore[method-assign]
    context = DropoutContext(seed=0, step=0, row_B=torch.arange(2))
    model(**inputs, witness=witness, dropout=context).loss.backward()
    assert filled == [1]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_digest_equals_the_eager_one_and_breaks_no_graph(backend: str) -> None:
    model, inputs = decoder(), inputs_of_decoder()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for first in (4, 2**40):
        found, expected = (Witness(torch.tensor([first, first + 1])) for _ in range(2))
        compiled(**inputs, witness=found)
        model(**inputs, witness=expected)
        assert found.digest is not None and expected.digest is not None
        assert found.digest.item() == expected.digest.item() != 0
