"""The inputs of the model, rebuilt without reptrain, for the level `inputs`.

Covers causal language modeling, also with augmented views or a prefix, and span corruption.

Written from docs/format.md; see independent_audit.py. N: windows; T: positions; L: tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from independent_evidence import seed_of
from independent_tokenizer import special_ids, unknown_id
from independent_windows import U64, Audit, G, Run, Store, block, make_key, mix

CHUNK_TOKENS = 1 << 20
NOISES = ("input_noise", "masked_inputs")
NO_TARGET = -100
COVERED = ("causal", "augmented_causal", "prefix_lm", "span_corruption")


@dataclass
class Stream:
    """The rows of an encoder or of a decoder: [N, T] each, rows padded at their end."""

    ids: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    """0 for padding; otherwise the document in the window, from 1, or 1 without a document mask."""
    prefix: np.ndarray
    """[N], positions at the start that all positions attend to."""
    is_encoder: bool = False
    weights: Any = 1.0
    """Weights of the targets, fp32 [N, T], or one number."""


class Examples:
    """Model inputs and targets of the windows of a run.

    Args:
        run: The run.
        settings: Its configuration by dotted key.
    """

    def __init__(self, run: Run, settings: dict[str, Any]) -> None:
        self.run, self.settings = run, settings
        self.eos = int(run.stores[0].manifest["eos_id"])
        pad, self.sentinels = special_ids(run.stores[0])
        self.start = pad if pad >= 0 else self.eos
        self.objective = settings["objective.name"]
        self.is_t5 = settings["model.family"] == "t5"
        self.masks = bool(settings["data.document_mask"])
        self.frozen = settings.get("objective.noise") == "frozen"
        self.seed = seed_of(settings, "noise")

    def streams(self, g: np.ndarray) -> list[Stream]:
        """The rows of the windows at global indices: the decoder's, or the encoder's and the decoder's."""
        source, epoch, start, length = self.run.locate(g)
        begin = np.asarray([one.begin for one in self.run.sources])[source]
        column = np.arange(self.run.L)
        token = column < length[:, None]
        place = np.where(token, (begin + start)[:, None] + column, 0)
        windows = np.where(token, self.run.stream[place].astype(np.int64), 0)
        seeds = np.asarray([one.seed for one in self.run.sources])[source]
        parts = (seeds, epoch * (not self.frozen), start)
        segments = self._segments(windows, token)
        if self.objective == "causal":
            return [self._decoder(np.where(token, windows, NO_TARGET), segments)]
        if self.objective == "augmented_causal":
            return [self._view(windows, segments, length, parts)]
        if self.objective == "prefix_lm":
            return self._prefix(windows, segments, length, parts)
        return self._spans(windows, segments, length, parts)

    def _segments(self, windows: np.ndarray, token: np.ndarray) -> np.ndarray:
        ends = (windows == self.eos) & token if self.masks else np.zeros_like(token)
        return np.where(token, 1 + np.cumsum(ends, axis=1) - ends, 0)

    def _noise_key(self, name: str, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        return make_key(self.seed, name, *parts)

    def _decoder(self, targets: np.ndarray, segments: np.ndarray) -> Stream:
        """A decoder that predicts these targets from those before them."""
        return Stream(self._shifted(targets, segments), targets, segments, np.zeros(len(targets), np.int64))

    def _shifted(self, targets: np.ndarray, segments: np.ndarray) -> np.ndarray:
        before = np.roll(targets, 1, axis=1)
        starts = np.ones_like(targets, bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return np.where(starts | (segments == 0), self.start, before)

    # Views of causal language modeling.

    def _view(
        self, windows: np.ndarray, segments: np.ndarray, length: np.ndarray, parts: tuple[np.ndarray, ...]
    ) -> Stream:
        most, share = (self.settings[f"objective.{key}"] for key in ("max_offset", "right_to_left"))
        key, size = self._noise_key("view", parts), length[:, None]
        skipped = (block(key, 0) % np.clip(length, 1, most).astype(U64)).astype(np.int64)
        is_reversed = (block(key, 1) >> U64(11)) * 2.0**-53 < share
        column = np.broadcast_to(np.arange(self.run.L), windows.shape)
        backwards = is_reversed[:, None] & (column < size)
        ordered = np.take_along_axis(windows, np.where(backwards, size - 1 - column, column), 1)
        starts = np.asarray([self.start, *reversed(self.sentinels)])
        stream = self._decoder(np.where(segments > 0, ordered, NO_TARGET), segments)
        stream.ids[:, 0] = np.where(length > 0, starts[skipped + most * is_reversed], self.start)
        place = column + skipped[:, None]
        later = np.take_along_axis(ordered, np.minimum(place, self.run.L - 1), 1)
        stream.targets = np.where(place < size, later, NO_TARGET)
        return stream

    # Prefix language modeling.

    def _prefix(
        self, windows: np.ndarray, segments: np.ndarray, length: np.ndarray, parts: tuple[np.ndarray, ...]
    ) -> list[Stream]:
        fraction = self.settings.get("objective.prefix_fraction")
        if fraction is None:
            drawn = block(self._noise_key("split", parts), 0) % np.maximum(length - 1, 1).astype(U64)
            split = 1 + drawn.astype(np.int64)
        else:
            split = np.clip([round(fraction * n) for n in length.tolist()], 1, np.maximum(length - 1, 1))
        split = np.where(length < 2, 0, split)
        behind = np.arange(self.run.L) >= split[:, None]
        targets = np.where(segments > 0, windows, NO_TARGET)
        if not self.is_t5:
            stream = self._decoder(targets, segments)
            stream.targets = np.where(behind, targets, NO_TARGET)
            if self.settings["objective.bidirectional"]:
                stream.prefix = np.where(length > 0, split + 1, 0)
            return [stream]
        first = [(row[:n], seg[:n]) for row, seg, n in zip(windows, segments, split, strict=True)]
        spans = zip(windows, segments, split, length, strict=True)
        rest = [(row[n:end], seg[n:end]) for row, seg, n, end in spans]
        return self._pair(first, rest)

    # Span corruption.

    def _spans(
        self, windows: np.ndarray, segments: np.ndarray, length: np.ndarray, parts: tuple[np.ndarray, ...]
    ) -> list[Stream]:
        counts = np.asarray([self._counts(n) for n in length.tolist()]).reshape(-1, 2)
        hidden, spans = counts.T
        kept_runs = compose(length - hidden, spans, self._noise_key("spans kept", parts))
        hidden_runs = compose(hidden, spans, self._noise_key("spans hidden", parts))
        sources, targets = [], []
        for row, seg, n, number, kept, gone in zip(
            windows, segments, length, spans, kept_runs, hidden_runs, strict=True
        ):
            source, target = corrupt(row[:n], seg[:n], kept[:number], gone[:number], self.sentinels, self.eos)
            sources.append(source)
            targets.append(target)
        return self._pair(sources, targets)

    def _counts(self, n: int) -> tuple[int, int]:
        """Hidden tokens and spans of a window of n tokens."""
        if n == 0:
            return 0, 0
        density, mean = (
            float(self.settings[f"objective.{k}"]) for k in ("noise_density", "mean_span_tokens")
        )
        hidden = min(max(round(n * density), 1), max(n - 1, 1))
        return hidden, max(1, min(round(hidden / mean), hidden, n - hidden))

    # Rows.

    def _pair(self, sources: list[Any], targets: list[Any]) -> list[Stream]:
        """An encoder and a decoder of these rows; for a decoder-only model, both in one row."""
        source, source_segments = padded(sources, 0)
        target, segments = padded(targets, NO_TARGET)
        inputs = self._shifted(target, segments)
        prefix = np.asarray([len(values) for values, _ in sources], np.int64)
        none = np.zeros(len(sources), np.int64)
        if self.is_t5:
            nothing = np.full_like(source, NO_TARGET)
            encoder = Stream(source, nothing, source_segments, none, is_encoder=True)
            return [encoder, Stream(inputs, target, segments, none)]
        joined, masked = [], []
        for (first, marks), row, (rest, more) in zip(sources, inputs, targets, strict=True):
            both = np.append(marks, more)
            joined.append((np.append(first, row[: len(rest)]), both))
            masked.append((np.append(np.full(len(first), NO_TARGET), rest), both))
        ids, segments = padded(joined, 0)
        return [Stream(ids, padded(masked, NO_TARGET)[0], segments, prefix)]


def compose(total: np.ndarray, parts: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Random lengths of `parts` parts of `total` units, [N, largest number of parts]; 0 after the last."""
    places = max(int(total.max(initial=1)) - 1, 0)
    drawn = block(key[:, None], np.arange(places)) >> U64(1)
    drawn = np.where(np.arange(places) < total[:, None] - 1, drawn, U64(2**63))
    order = np.argsort(drawn, axis=1, kind="stable")
    lengths = np.zeros((total.size, max(int(parts.max(initial=1)), 1)), np.int64)
    for row, (units, number) in enumerate(zip(total.tolist(), parts.tolist(), strict=True)):
        cuts = np.sort(order[row, : max(number - 1, 0)]) + 1
        lengths[row, :number] = np.diff(np.concatenate([[0], cuts, [units]]))[:number]
    return lengths


def corrupt(
    tokens: np.ndarray,
    segments: np.ndarray,
    kept: np.ndarray,
    hidden: np.ndarray,
    sentinels: list[int],
    eos: int,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Source and targets of a window, each with its segments."""
    source: list[int] = []
    source_segments: list[int] = []
    target: list[int] = []
    target_segments: list[int] = []
    ids, marks, place = tokens.tolist(), segments.tolist(), 0
    for number, (stay, go) in enumerate(zip(kept.tolist(), hidden.tolist(), strict=True)):
        begin, end = place + stay, place + stay + go
        source += [*ids[place:begin], sentinels[number]]
        source_segments += [*marks[place:begin], marks[begin]]
        target += [sentinels[number], *ids[begin:end]]
        target_segments += [marks[begin], *marks[begin:end]]
        place = end
    if ids:
        for values, segs in ((source, source_segments), (target, target_segments)):
            values.append(eos)
            segs.append(max(marks))
    pairs = ((source, source_segments), (target, target_segments))
    first, second = ((np.asarray(v, np.int64), np.asarray(s, np.int64)) for v, s in pairs)
    return first, second


def padded(rows: list[Any], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of values and segments as [N, T], with `fill` and 0 after their ends."""
    width = max((len(values) for values, _ in rows), default=0)
    out = np.full((len(rows), width), fill, np.int64), np.zeros((len(rows), width), np.int64)
    for row, pair in enumerate(rows):
        for array, values in zip(out, pair, strict=True):
            array[row, : len(values)] = values
    return out


def fold(key: np.ndarray, word: Any) -> np.ndarray:
    return mix((key ^ np.asarray(word).astype(U64)) + U64(G))


def words(key: np.ndarray, num_positions: int, num_units: int) -> np.ndarray:
    """The 32-bit words of the units of each key: [..., positions, units]."""
    line = fold(key[..., None], np.arange(num_positions))[..., None]
    low, high = line & U64(2**32 - 1), (line >> U64(32)) | U64(1)
    x = ((np.arange(num_units).astype(U64) ^ low) * high) & U64(2**32 - 1)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> U64(shift))) * U64(factor)) & U64(2**32 - 1)
    return ((x ^ (x >> U64(16))) + U64(2**31)) & U64(2**32 - 1)


class Noise:
    """The regularizers `input_noise` and `masked_inputs` at constant rates.

    Args:
        store: A store of the run, whose tokenizer names the special ids.
        settings: Configuration of the run by dotted key.
    """

    def __init__(self, store: Store, settings: dict[str, Any]) -> None:
        self.rate, self.masks = (float(settings.get(f"regularize.{key}", 0)) for key in NOISES)
        self.is_random = settings.get("regularize.input_noise_by") == "random"
        self.ratio = round(float(settings.get("regularize.masked_inputs_ratio", 0)) * 2**31)
        self.seed = seed_of(settings, "dropout")
        path = store.folder / store.manifest["tokenizer_file"]
        self.unknown = unknown_id(path)
        pad, sentinels = special_ids(store)
        self.mask = sentinels[-1] if sentinels else self.unknown
        self.is_text = np.ones(int(store.manifest["vocab_size"]), bool)
        special = [pad, int(store.manifest["eos_id"]), self.unknown, *sentinels]
        self.is_text[[i for i in special if i >= 0]] = False

    def __call__(self, streams: list[Stream], step: int, row: np.ndarray) -> list[Stream]:
        """The streams of some rows of a step's global batch, with noise, and followed by masked copies."""
        key = fold(fold(fold(np.zeros(1, U64), self.seed), step), row)
        # The decoder's stream is number 0.
        numbered = [*enumerate(reversed(streams))][::-1]
        if self.rate:
            text = np.flatnonzero(self.is_text)
            for number, stream in numbered:
                word, chosen = self._words(stream, fold(key, 16 * number + 13), round(self.rate * 2**32))
                drawn = text[((word * U64(text.size)) >> U64(32)).astype(np.int64)]
                stream.ids = np.where(chosen, drawn if self.is_random else self.unknown, stream.ids)
        return [self._doubled(s, fold(key, 16 * n + 45)) for n, s in numbered] if self.masks else streams

    def _words(self, stream: Stream, key: np.ndarray, threshold: Any) -> tuple[np.ndarray, np.ndarray]:
        """Word 1 of each position, and the text whose word 0 is below a threshold, or a share of word 1 of
        its row's first position."""
        word = words(key, stream.ids.shape[1], 2)
        if threshold is None:
            threshold = (word[:, :1, 1] * U64(self.ratio)) // U64(2**31)
        return word[..., 1], (word[..., 0] < threshold) & self.is_text[stream.ids]

    def _doubled(self, stream: Stream, key: np.ndarray) -> Stream:
        masked = np.where(self._words(stream, key, None)[1], self.mask, stream.ids)
        twice = [np.concatenate([x, x]) for x in (stream.targets, stream.segments, stream.prefix)]
        weights = np.ones(twice[0].shape, np.float32)
        weights[len(masked) :] = self.masks
        return Stream(np.concatenate([stream.ids, masked]), *twice, stream.is_encoder, weights)


class Inputs:
    """Compares the input digests and the numbers of targets of a ledger."""

    def __init__(self, audit: Audit, settings: dict[str, Any]) -> None:
        self.audit, self.examples = audit, None
        is_scheduled = any(f"regularize.{name}.value" in settings for name in NOISES)
        is_noisy = is_scheduled or any(settings.get(f"regularize.{name}", 0) != 0 for name in NOISES)
        # A tokenizer.json may use one id for unknown text and for the end of a document.
        is_plain = audit.run.stores[0].manifest["tokenizer_file"].endswith(".model")
        if settings["objective.name"] not in COVERED:
            audit.unproved.append(
                f"inputs of the objective {settings['objective.name']}: not independently checked"
            )
        elif is_noisy and (is_scheduled or not is_plain):
            audit.unproved.append(
                "noise or masks on a schedule, or with a tokenizer.json: not independently checked"
            )
        else:
            self.noise = Noise(audit.run.stores[0], settings)
            self.examples = Examples(audit.run, settings)

    def check(self, records: list[dict[str, Any]]) -> None:
        """Check records that have the plan's indices."""
        if self.examples is None:
            return
        if not all("inputs" in record for record in records):
            self.examples = None
            self.audit.unproved.append("the ledger has no input digests")
            return
        for record in records:
            digest, targets = 0, 0
            for g in pieces(record["first_index"], record["windows"], self.audit.run.L):
                streams = self.examples.streams(g)
                for stream in self.noise(streams, record["step"], g - record["first_index"]):
                    index = np.resize(g, len(stream.ids))
                    digest += int(input_digest(stream, index, self.examples).sum(dtype=U64))
                    targets += int((stream.targets != NO_TARGET).sum())
            if (int(record["inputs"], 16), record["targets"]) != (digest % 2**64, targets):
                self.audit.problems.append(
                    f"step {record['step']}: other inputs or targets entered the model"
                )


def pieces(first: int, count: int, window_tokens: int) -> Iterator[np.ndarray]:
    size = max(1, CHUNK_TOKENS // window_tokens)
    for low in range(first, first + count, size):
        yield np.arange(low, min(low + size, first + count))


def input_digest(stream: Stream, g: np.ndarray, examples: Examples) -> np.ndarray:
    """The hashes of the positions that count, 0 elsewhere: [N, T]."""
    kind = np.where(stream.is_encoder, 1, 2) + 4 * stream.prefix
    row = mix((mix((g + 1).astype(U64) * U64(G)) + kind.astype(U64)) * U64(G))
    place = np.arange(stream.ids.shape[1]).astype(U64)
    has_target, token = stream.targets != NO_TARGET, stream.segments > 0
    segments = stream.segments if examples.masks or examples.is_t5 else np.zeros_like(stream.segments)
    values = stream.ids.astype(U64) + (stream.targets.astype(U64) << U64(32))
    bits = np.where(has_target, stream.weights, 0).astype(np.float32).view(np.int32).astype(U64)
    marks = (2 * segments + token).astype(U64) << U64(32)
    hashed = mix(mix((row[:, None] ^ place) * U64(G) + values) + bits + marks)
    return np.where(token | has_target, hashed, U64(0))
