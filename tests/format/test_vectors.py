"""The vectors of docs/format.md: they are what reptrain computes, and the independent auditor agrees."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import independent_evidence as evidence
import independent_inputs as inputs
import independent_trainer as trainer
import independent_windows as windows
import numpy as np
import pytest
from format_vectors import FILE, SENTINELS, WINDOW, text
from independent_windows import U64, G

VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def test_vectors_are_what_reptrain_computes() -> None:
    assert FILE.read_text() == text(), "run `make format-vectors`, and raise the version of docs/format.md"


def test_random_functions() -> None:
    random = VECTORS["random"]
    for case in random["keys"]:
        key = windows.make_key(case["seed"], case["name"], *case["parts"])
        assert f"{int(key[0]):016x}" == case["key"]
    key = np.asarray([int(random["key_of_draws_and_permutations"], 16)], U64)
    for case in random["draws"]:
        assert f"{int(windows.block(key, case['counter'])[0]):016x}" == case["draw"]
    for case in random["permutations"]:
        assert windows.permute(np.asarray(case["index"]), case["n"], key).tolist() == case["image"]


def test_document_order() -> None:
    case = VECTORS["documents"]
    key = windows.make_key(case["seed"], "documents")
    assert windows.permute(np.arange(case["count"]), case["count"], key).tolist() == case["place"]


def make_source(case: dict[str, Any], **given: Any) -> windows.Source:
    data = {"name": "data", "total_windows": 40, "order": "same", **case, **given}
    return windows.Source(data, data["window_tokens"], 0)


def test_windows() -> None:
    for case in VECTORS["windows"]:
        source = make_source(case)
        assert case["W"] == source.W
        for epoch, wanted in enumerate(case["epochs_of_start_and_length"]):
            _, start, length = source.locate(np.arange(epoch * source.W, (epoch + 1) * source.W))
            assert sorted(zip(start.tolist(), length.tolist(), strict=True)) == [tuple(w) for w in wanted]


def test_orders() -> None:
    for case in VECTORS["orders"]:
        located = make_source(case).locate(np.arange(case["total_windows"]))
        assert np.stack(located, axis=1).tolist() == case["epoch_start_length"]


def test_repacked_epochs() -> None:
    for case in VECTORS["repacked"]:
        source = make_source(case, cut="repacked", window_tokens=1)
        source.lengths = np.asarray(case["lengths"])
        for epoch, wanted in enumerate(case["epochs_of_start_and_length_in_the_subset"]):
            places = [start + i for start, size in wanted for i in range(size)]
            assert source.places(epoch).tolist() == places


def test_mixtures() -> None:
    for case in VECTORS["mixtures"]["orders"]:
        for g, source, window in zip(case["index"], case["source"], case["window"], strict=True):
            sources, numbers = windows.turns(tuple(case["counts"]), g // windows.BLOCK)
            assert (sources[g % windows.BLOCK], numbers[g % windows.BLOCK]) == (source, window)
    for case in VECTORS["mixtures"]["seeds"]:
        assert int(windows.make_key(case["run_seed"], f"source {case['name']}")[0]) >> 1 == case["seed"]


def test_windows_digest() -> None:
    for case in VECTORS["windows_digest"]:
        tokens, start = np.asarray(case["tokens"], U64), case["start"]
        hashed = windows.mix(tokens + (np.arange(tokens.size, dtype=U64) + U64(start + 1)) * U64(G))
        place = windows.mix(np.asarray([start], U64) * U64(G)) + U64(tokens.size)
        digest = windows.mix(hashed.sum(dtype=U64) + windows.mix(place * U64(G)))[0]
        assert f"{int(digest) if tokens.size else 0:016x}" == case["digest"]


def make_examples(case: dict[str, Any]) -> inputs.Examples:
    """The auditor's examples of one window at the vector's place."""
    size = len(case["window"])
    examples = object.__new__(inputs.Examples)
    located = (np.asarray([value]) for value in (0, case["epoch"], case["start"], size))
    parts = tuple(located)
    examples.run = SimpleNamespace(
        L=len(WINDOW),
        locate=lambda g: parts,
        sources=[SimpleNamespace(begin=-case["start"], seed=case["source_seed"])],
        stream=np.asarray(case["window"]),
    )
    examples.seed = case["run_seed"]
    examples.settings = {f"objective.{key}": value for key, value in case.items()}
    examples.settings["objective.bidirectional"] = True
    examples.eos, examples.start, examples.sentinels = 1, 0, list(SENTINELS)
    if "start_ids" in case:
        # The start tokens of views are the last sentinels, the very last first.
        examples.sentinels = case["start_ids"][:0:-1]
    examples.objective, examples.is_t5 = case["objective"], case["family"] == "t5"
    examples.masks, examples.frozen = case["document_mask"], False
    return examples


def widened(row: np.ndarray, wanted: list[int]) -> list[int]:
    """A row with the padding of the vector's row."""
    fill = wanted[len(row) :]
    assert set(fill) <= {0, inputs.NO_TARGET}
    return [*row.tolist(), *fill]


COVERED = [case for case in VECTORS["objectives"] if case["objective"] in inputs.COVERED]


@pytest.mark.parametrize("number", range(len(COVERED)))
def test_objectives(number: int) -> None:
    case = COVERED[number]
    streams = make_examples(case).streams(np.asarray([0]))
    decoder = streams[-1]
    name = "tokens" if case["family"] == "decoder" else "inputs"
    assert widened(decoder.ids[0], case[name]) == case[name]
    assert widened(decoder.targets[0], case["targets"]) == case["targets"]
    assert decoder.prefix[0] == case.get("prefix", 0)
    segments = case.get("segments") or [int(token) for token in case["is_token"]]
    assert widened(decoder.segments[0], segments) == segments
    if case["family"] == "t5":
        encoder = streams[0]
        assert encoder.is_encoder and (encoder.targets == inputs.NO_TARGET).all()
        assert widened(encoder.ids[0], case["source"]) == case["source"]
        assert widened(encoder.segments[0], case["source_segments"]) == case["source_segments"]


def test_input_digest() -> None:
    for case in VECTORS["input_digest"]:
        rows = {key: np.asarray([case[key]]) for key in ("ids", "targets", "segments", "tokens")}
        has_segments = bool(rows["segments"].any())
        stream = inputs.Stream(
            rows["ids"],
            rows["targets"],
            # The auditor's segments are those of a document mask, or mark tokens.
            rows["segments"] if has_segments else rows["tokens"],
            np.asarray([case["prefix"]]),
            case["encoder"],
        )
        masks = SimpleNamespace(masks=has_segments, is_t5=case["encoder"])
        hashed = inputs.input_digest(stream, np.asarray([case["g"]]), masks)
        assert f"{int(hashed.sum(dtype=U64)):016x}" == case["digest"]


def test_weights_hash() -> None:
    for case in VECTORS["weights_hash"]:
        values = np.asarray(case.get("integers", case.get("values")))
        bits = values if "integers" in case else values.astype(np.float32).view(np.int32).astype(np.int64)
        assert f"{evidence.hash_tensor(case['name'], bits, case['first_index']):016x}" == case["hash"]


def test_ledger_chain() -> None:
    (case,) = VECTORS["ledger_chain"]
    assert hashlib.sha256(case["line"].encode()).hexdigest()[:32] == case["hash"]


def test_dropout() -> None:
    for case in VECTORS["dropout"]:
        key = trainer.fold(np.zeros(1, U64), case["seed"])
        key = trainer.fold(trainer.fold(key, case["step"]), np.asarray(case["rows"]))
        key = trainer.fold(key, 16 * case["layer"] + case["site"])
        key = key if case["head"] is None else trainer.fold(key, case["head"])
        assert trainer.words(key, 2, 3).tolist() == case["words_of_row_position_unit"]


def test_initial_weights() -> None:
    for case in VECTORS["initial_weights"]:
        settings = {"model.family": case["family"], "seed": case["seed"], "model.init_std": 0.02}
        settings |= {f"model.{key}": case[key] for key in ("d_model", "num_layers", "head_dim")}
        weights = trainer.initial_weight(settings | {"model.init_scale": 1.0}, case["name"], case["shape"])
        assert [float(value).hex() for value in weights.flatten()[:4]] == case["first"]


def test_vectors_hold_every_objective() -> None:
    names = {case["objective"] for case in VECTORS["objectives"]}
    assert names == {
        *inputs.COVERED,
        *("denoising", "ul2", "masked_diffusion", "fill_in_the_middle"),
    }
