"""The test vectors of docs/format.md, as reptrain computes them.

python tests/format/format_vectors.py        # rewrite docs/format-vectors.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives import (
    UL2,
    AugmentedCausal,
    Causal,
    Denoising,
    FillInTheMiddle,
    MaskedDiffusion,
    MiddleIds,
    NoisePlaces,
    Objective,
    PrefixLM,
    SpanCorruption,
)
from reptrain.checkpoint.state_hash import name_key, values_hash
from reptrain.config.model import DecoderConfig, T5Config
from reptrain.config.objectives import (
    AugmentedCausalConfig,
    FillInTheMiddleConfig,
    PrefixLMConfig,
    UL2Config,
)
from reptrain.model.dropout import Site, site_keys
from reptrain.model.init import initial_weights
from reptrain.model.input_digest import row_digests
from reptrain.plan import EpochPlan, Interleaving, Subset, source_seed
from reptrain.plan.digest import window_digest
from reptrain.plan.document_order import DocumentOrder
from reptrain.plan.repacked import Repacked
from reptrain.runs.ledger import line_hash
from reptrain_kernels import counter
from reptrain_kernels.ops.linear_cross_entropy import Targets

FILE = Path(__file__).parents[2] / "docs" / "format-vectors.json"

WINDOW = [11, 12, 13, 14, 1, 21, 22, 23, 1, 31, 32, 33]
"""Tokens of two documents and a half; 1 is EOS, 0 the start token."""
CUTS = ("fixed", "shifted", "repacked")
SENTINELS = (99, 98, 97, 96, 95, 94, 93, 92)


def vectors() -> dict[str, Any]:
    """All test vectors, as JSON."""
    return {
        "random": _random(),
        "documents": {"seed": 3, "count": 12, "place": _permutation(12, random.key(3, "documents"))},
        "windows": list(_windows()),
        "orders": list(_orders()),
        "repacked": list(_repacked()),
        "mixtures": _mixtures(),
        "windows_digest": list(_digests()),
        "objectives": list(_objectives()),
        "input_digest": list(_input_digests()),
        "weights_hash": list(_weights_hashes()),
        "ledger_chain": list(_ledger_chain()),
        "dropout": list(_dropout()),
        "initial_weights": list(_initial_weights()),
    }


def _hex(value: Any) -> str:
    return f"{int(value):016x}"


def _permutation(n: int, key: random.UInt64s) -> list[int]:
    return list(random.permute(np.arange(n), n, key).tolist())


def _random() -> dict[str, Any]:
    cases: list[tuple[int, str, tuple[int, ...]]] = [
        (0, "order", (0,)), (7, "cut", (3,)), (2**63 + 1, "documents", ()), (5, "split", (5, 2, 2**33)),
    ]  # fmt: skip
    keys = [
        {"seed": seed, "name": name, "parts": list(parts), "key": _hex(random.key(seed, name, *parts))}
        for seed, name, parts in cases
    ]
    key = random.key(7, "cut", 3)
    draws = [{"counter": c, "draw": _hex(random.uint64(key, c))} for c in (0, 1, 2**32, 2**40 + 5)]
    permutations: list[dict[str, Any]] = [
        {"n": n, "index": list(range(n)), "image": _permutation(n, key)} for n in (1, 2, 3, 10, 21)
    ]
    for n in (4095, 4096, 10**6, 2**40 + 9):
        index = [0, 1, n // 2, n - 1]
        image = random.permute(np.asarray(index), n, key).tolist()
        permutations.append({"n": n, "index": index, "image": image})
    return {"keys": keys, "key_of_draws_and_permutations": _hex(key), "draws": draws,
            "permutations": permutations}  # fmt: skip


def _windows() -> Iterator[dict[str, Any]]:
    for unique, length in ((10, 4), (12, 4), (21, 8), (23, 8), (5, 1), (6, 6)):
        for cut in CUTS:
            # In the order `same` the windows of an epoch are the same set in each epoch.
            plan = EpochPlan(unique, length, 40, "same", cut, seed=2)
            per_epoch = plan.windows_per_epoch
            epochs = []
            for epoch in range(3):
                found = plan.locate(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch))
                spans = zip(found.window.tolist(), found.start.tolist(), found.length.tolist(), strict=True)
                epochs.append([[start, size] for _, start, size in sorted(spans)])
            yield {"unique_tokens": unique, "window_tokens": length, "cut": cut, "seed": 2, "W": per_epoch,
                   "epochs_of_start_and_length": epochs}  # fmt: skip


def _orders() -> Iterator[dict[str, Any]]:
    for order in ("reshuffle", "same", "mixed"):
        for cut in CUTS[: 2 + (order != "mixed")]:
            plan = EpochPlan(50, 8, 18, order, cut, seed=9)
            found = plan.locate(np.arange(18))
            rows = np.stack([found.epoch, found.start, found.length], axis=1).tolist()
            yield {"unique_tokens": 50, "window_tokens": 8, "total_windows": 18, "order": order, "cut": cut,
                   "seed": 9, "epoch_start_length": rows}  # fmt: skip


def _repacked() -> Iterator[dict[str, Any]]:
    for lengths, unique in (([3, 4, 2], 9), ([3, 4, 2], 8), ([5, 0, 1, 6, 2, 2, 7], 21), ([9], 9)):
        subset = Subset(
            SimpleNamespace(),
            DocumentOrder(np.cumsum([0, *lengths]), np.arange(len(lengths))),
            seed=0,
            unique_tokens=unique,
            fingerprint="",
        )
        part = Repacked(subset, seed=6, epochs=3)
        spans = [part.spans(np.asarray([epoch * unique]), np.asarray([unique])) for epoch in range(3)]
        rows = [
            [[start, size] for start, size in zip(*map(np.ndarray.tolist, span), strict=True) if size]
            for span in spans
        ]
        yield {"lengths": lengths, "unique_tokens": unique, "seed": 6,
               "epochs_of_start_and_length_in_the_subset": rows}  # fmt: skip


def _mixtures() -> dict[str, Any]:
    orders = []
    for counts, indices in (
        ((4, 2), range(6)),
        ((7, 5, 3), range(15)),
        ((9000, 1000, 37), [0, 1, 10, 4095, 4096, 4097, 8191, 8192, 10036]),
    ):
        turns = Interleaving(tuple(counts)).locate(np.asarray(indices))
        orders.append({"counts": list(counts), "index": list(indices), "source": turns.source.tolist(),
                       "window": turns.local.tolist()})  # fmt: skip
    seeds = [{"run_seed": 0, "name": name, "seed": source_seed(0, name)} for name in ("books", "web")]
    return {"orders": orders, "seeds": seeds}


def _digests() -> Iterator[dict[str, Any]]:
    for tokens, start in (([], 0), ([5], 0), ([5, 6, 7], 100), ([2**31, 0, 65535], 2**40)):
        row = np.asarray([tokens], dtype=np.int64).reshape(1, -1)
        digest = window_digest(row, np.asarray([start]), np.asarray([len(tokens)]))
        yield {"tokens": tokens, "start": start, "digest": _hex(digest[0])}


def _objectives() -> Iterator[dict[str, Any]]:
    """Each objective on a full window and a short one, at two epochs."""
    length, seed = len(WINDOW), 4
    common: dict[str, Any] = {"start_id": 0, "window_tokens": length, "noise_seed": seed}
    spans: dict[str, Any] = {**common, "eos_id": 1, "noise_density": 0.4, "mean_span_tokens": 2.0}
    hidden: dict[str, Any] = {**common, "eos_id": 1, "sentinel_ids": SENTINELS, "mode_ids": (89, 88, 87)}
    made: list[tuple[str, str, dict[str, Any], Objective]] = []
    views = AugmentedCausalConfig(name="augmented_causal", max_offset=3, right_to_left=0.5)
    start_ids = (0, *range(84, 89))
    augmented = AugmentedCausal(views, start_ids, noise_seed=seed)
    shown = {"document_mask": False, "max_offset": 3, "right_to_left": 0.5, "start_ids": list(start_ids)}
    made.append(("augmented_causal", "decoder", shown, augmented))
    for mask in (None, 1):
        made.append(("causal", "decoder", {"document_mask": bool(mask)}, Causal(0, mask)))
        for family in ("decoder", "t5"):
            shape: dict[str, Any] = {"document_eos_id": mask, "in_one_row": family == "decoder"}
            for fraction in (None, 0.3):
                prefix = PrefixLMConfig(name="prefix_lm", prefix_fraction=fraction)
                settings = {"document_mask": bool(mask), "prefix_fraction": fraction}
                made.append(("prefix_lm", family, settings, PrefixLM(prefix, **common, **shape)))
            settings = {"document_mask": bool(mask), "noise_density": 0.4, "mean_span_tokens": 2.0}
            corrupted = SpanCorruption(**spans, **shape, sentinel_ids=SENTINELS)
            made.append(("span_corruption", family, settings, corrupted))
            made.append(
                ("denoising", family, settings | {"mask_id": 90}, Denoising(**spans, **shape, mask_id=90))
            )
    for family in ("decoder", "t5"):
        ul2 = UL2(UL2Config(name="ul2"), **hidden, in_one_row=family == "decoder")
        made.append(("ul2", family, {"mode_ids": [89, 88, 87]}, ul2))
    for exact in (True, False):
        diffusion = MaskedDiffusion(90, exact=exact, stratified=False, noise_seed=seed)
        made.append(("masked_diffusion", "decoder", {"mask_id": 90, "exact": exact}, diffusion))
    middle = FillInTheMiddle(
        FillInTheMiddleConfig(name="fill_in_the_middle", rate=1.0), MiddleIds(86, 85, 84), eos_id=1, **common
    )
    made.append(("fill_in_the_middle", "decoder", {"sentinel_ids": [86, 85, 84]}, middle))
    for name, family, settings, objective in made:
        # UL2 draws one of seven denoisers, so it takes more epochs.
        epochs = range(8 if name == "ul2" else 2)
        for size, epoch in ((5, 0), *((length, epoch) for epoch in epochs)):
            place = {"run_seed": seed, "source_seed": 8, "epoch": epoch, "start": 24}
            yield {"objective": name, "family": family, **settings, **place, "window": WINDOW[:size],
                   **_example(objective, size, epoch)}  # fmt: skip


def _example(objective: Objective, size: int, epoch: int) -> dict[str, Any]:
    tokens = np.zeros((1, len(WINDOW)), dtype=np.int64)
    tokens[0, :size] = WINDOW[:size]
    places = NoisePlaces(*(np.asarray([value]) for value in (8, epoch, 24, size)))
    noise = objective.noise(places, width=len(WINDOW))
    batch = MicroBatch(
        torch.from_numpy(tokens), torch.tensor([size]), *torch.zeros(2, 1, dtype=torch.int64),
        {key: torch.from_numpy(value) for key, value in noise.items()},
    )  # fmt: skip
    example = objective.example(batch)
    shown = {key.partition("_B")[0]: value for key, value in example.inputs.items()}
    shown["targets"] = example.targets_BT
    if example.weight_BT is not None:
        shown["weights"] = example.weight_BT
    return {key: value[0].tolist() for key, value in sorted(shown.items())}


def _input_digests() -> Iterator[dict[str, Any]]:
    """Rows of a decoder, of a decoder with a prefix and documents, and of an encoder."""
    rows: list[dict[str, Any]] = [
        {"ids": [0, 11, 12, 7], "targets": [11, 12, 13, -100], "segments": [0] * 4, "tokens": [1, 1, 1, 0]},
        {"ids": [0, 11, 0, 12], "targets": [-100, 1, 12, 13], "segments": [1, 1, 2, 2], "tokens": [1] * 4},
        {"ids": [11, 99, 1, 0], "targets": [-100] * 4, "segments": [1, 1, 1, 0], "tokens": [1, 1, 1, 0]},
    ]
    for row, g, prefix, is_encoder in zip(rows, (5, 2**40, 5), (0, 2, 0), (False, False, True), strict=True):
        has_segments = bool(sum(row["segments"]))
        digest = row_digests(
            torch.tensor([g]),
            torch.tensor([row["ids"]]),
            is_token_BT=torch.tensor([row["tokens"]], dtype=torch.bool),
            causal=not is_encoder,
            segments_BT=torch.tensor([row["segments"]]) if has_segments else None,
            prefix_B=torch.tensor([prefix]) if prefix else None,
            targets=None if is_encoder else Targets(torch.tensor([row["targets"]])),
        )
        yield {"g": g, "prefix": prefix, "encoder": is_encoder, **row, "digest": _hex(int(digest) % 2**64)}


def _weights_hashes() -> Iterator[dict[str, Any]]:
    for name, first, values in (
        ("weight:norm.weight", 0, [1.0, 1.0]),
        ("exp_avg:embedding.weight", 5, [-0.5, 0.0, 1e-30]),
    ):
        total = values_hash(name_key(name), torch.tensor(values), first)
        yield {"name": name, "first_index": first, "values": values, "hash": _hex(total)}
    yield {"name": "counter:step", "first_index": 0, "integers": [7],
           "hash": _hex(values_hash(name_key("counter:step"), torch.tensor([7])))}  # fmt: skip


def _ledger_chain() -> Iterator[dict[str, Any]]:
    line = '{"event":"checkpoint","step":4,"state":"76bad442dde90d52","previous":"' + "0" * 32 + '"}'
    yield {"line": line, "hash": line_hash(line.encode() + b"\n")}


def _dropout() -> Iterator[dict[str, Any]]:
    row = torch.tensor([0, 5])
    for layer, site in ((0, Site.EMBEDDING), (3, Site.MLP_HIDDEN), (1, Site.ATTENTION_WEIGHTS)):
        keys = site_keys(counter.row_keys(11, 2, row), layer, 1)[0]
        key, head = keys[site], None
        if site == Site.ATTENTION_WEIGHTS:
            key, head = counter.fold(key, 1), 1
        words = (counter.random_words(key, 2, 3).long() + 2**31).tolist()
        yield {"seed": 11, "step": 2, "rows": row.tolist(), "layer": layer, "site": int(site), "head": head,
               "words_of_row_position_unit": words}  # fmt: skip


def _initial_weights() -> Iterator[dict[str, Any]]:
    decoder = DecoderConfig(d_model=8, num_layers=2, num_heads=2, d_ff=12)
    t5 = T5Config(
        family="t5", d_model=8, num_encoder_layers=1, num_decoder_layers=1, num_heads=2, head_dim=4, d_ff=12
    )
    shapes = {
        "embedding.weight": (5, 8),
        "blocks.0.attention.output.weight": (8, 8),
        "blocks.1.mlp.down.weight": (8, 12),
    }
    more = {"decoder.blocks.0.attention.query.weight": (8, 8), "encoder.relative_bias.table.weight": (32, 2)}
    for family, config, wanted in (("decoder", decoder, shapes), ("t5", t5, more)):
        for name, shape in wanted.items():
            values = initial_weights(config, name, torch.Size(shape), seed=6).flatten()[:4]
            yield {"family": family, "d_model": 8, "num_layers": 2, "head_dim": 4, "seed": 6, "name": name,
                   "shape": list(shape), "first": [float(value).hex() for value in values]}  # fmt: skip


def text() -> str:
    """The file: one case per line."""
    parts = []
    for name, value in vectors().items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(case) for case in value)
            parts.append(f' "{name}": [\n  {lines}]')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text())
