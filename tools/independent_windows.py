"""The windows of a run and their exposures, recounted without reptrain: the level `windows`.

Written from docs/format.md; the names of its quantities are used. See independent_audit.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

G, U64 = 0x9E3779B97F4A7C15, np.uint64
RUN_FORMATS, ORDERS = (1, 2, 3), ("reshuffle", "same", "mixed")
STORE_FORMAT, CUTS = "reptrain-store-2", ("fixed", "shifted", "repacked")
BLOCK, CHUNK_WINDOWS, LARGEST = 4096, 1 << 18, 2**62


class WrongInputError(Exception):
    """The arguments name no run, or another store."""


class CannotSayError(Exception):
    """A file that the proof needs is damaged, missing, or of an unknown format."""


def mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def block(key: Any, counter: Any, w2: int = 0, w3: int = 0) -> np.ndarray:
    """The first 64 bits of a Philox4x32-10 block, whose first two words are the halves of the counter."""
    low, half = U64(2**32 - 1), U64(32)
    key, counter = (np.atleast_1d(np.asarray(x)).astype(U64) for x in (key, counter))
    k0, k1 = key & low, key >> half
    c0, c1, c2, c3 = counter & low, counter >> half, U64(w2), U64(w3)
    for _ in range(10):
        p0, p1 = U64(0xD2511F53) * c0, U64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + U64(0x9E3779B9)) & low, (k1 + U64(0xBB67AE85)) & low
    return c0 | (c1 << half)


def make_key(seed: int, name: str, *parts: Any) -> np.ndarray:
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    key = block(U64(seed), U64(number), len(parts), 1)
    for place, part in enumerate(parts, start=1):
        key = block(key, part, place, 1)
    return key


def permute(x: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """The keyed bijection on [0, n); one key, or one for each index."""
    a = math.isqrt(n - 1) + 1
    a += a % 2
    sides = (U64(a), U64(-(-n // a)))
    x = np.asarray(x).astype(U64)
    key, todo = np.broadcast_to(key, x.shape), np.arange(x.size)
    while todo.size:
        halves, k = list(np.divmod(x[todo], sides[1])), key[todo]
        for i in range(24 if n < 4096 else 10):
            s = mix(k + U64((i + 1) * G % 2**64))
            moved = mix(s + (halves[1 - i % 2] + U64(1)) * U64(G)) >> U64(1)
            halves[i % 2] = (halves[i % 2] + moved) % sides[i % 2]
        x[todo] = halves[0] * sides[1] + halves[1]
        todo = todo[x[todo] >= n]
    return x.astype(np.int64)


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """[start, start + length) of each, concatenated."""
    return np.arange(int(length.sum())) + np.repeat(start + length - np.cumsum(length), length)


def fingerprint(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class Store:
    """The split `train` of a token store; hashed again unless it is trusted."""

    def __init__(self, folder: Path, expected: str, *, trusted: bool) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        if self.manifest["format"] != STORE_FORMAT:
            raise CannotSayError(f"{folder} has the format {self.manifest['format']}, not {STORE_FORMAT}")
        if self.manifest["fingerprint"] != expected:
            raise WrongInputError(f"{folder} is not the run's store, of fingerprint {expected}")
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        for shard in self.manifest["splits"]["train"]["shards"]:
            path = folder / shard["file"]
            if not trusted and hashlib.sha256(path.read_bytes()).hexdigest() != shard["sha256"]:
                raise CannotSayError(f"{path} does not match its SHA-256")
            columns = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["tokens"].chunks
            self.batches += [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]
        self.lengths = np.concatenate([np.diff(offsets) for offsets, _ in self.batches]).astype(np.int64)
        if not trusted and self._content() != expected:
            raise CannotSayError(f"the tokens of {folder} do not have its fingerprint")

    def _content(self) -> str:
        digest = hashlib.sha256()
        little = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        for offsets, tokens in self.batches:
            data = memoryview(tokens.astype(little).tobytes())
            for a, b in pairwise((offsets * little.itemsize).tolist()):
                digest.update(hashlib.blake2b(data[a:b], digest_size=16, person=b"reptrain.tokens").digest())
        sealed = self.manifest["splits"]
        splits = {name: [info["documents"], info["tokens"], info["digest"]] for name, info in sealed.items()}
        splits["train"] = [self.lengths.size, int(self.lengths.sum()), digest.hexdigest()]
        return fingerprint({**{k: self.manifest[k] for k in ("format", "tokenizer")}, "splits": splits})

    def stream(self, unique_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The subset: the documents in their keyed order, cut to `unique_tokens`; and their full lengths."""
        count = self.lengths.size
        by_place = np.argsort(permute(np.arange(count), count, make_key(seed, "documents")))
        start = np.empty(count, np.int64)
        start[by_place] = np.cumsum(self.lengths[by_place]) - self.lengths[by_place]
        length = np.clip(unique_tokens - start, 0, self.lengths)
        out, first = np.empty(unique_tokens, self.manifest["dtype"]), 0
        for offsets, tokens in self.batches:
            mine = slice(first, first := first + offsets.size - 1)
            out[ranges(start[mine], length[mine])] = tokens[
                ranges(offsets[:-1].astype(np.int64), length[mine])
            ]
        return out, self.lengths[by_place][start[by_place] < unique_tokens]


class Source:
    """One source of a plan: which window comes g-th. Its stream is the subset, or if repacked its epochs."""

    def __init__(self, data: dict[str, Any], window_tokens: int, begin: int) -> None:
        self.name, self.seed, self.begin = str(data["name"]), int(data["seed"]), begin
        self.order, self.cut, self.lengths = str(data["order"]), str(data["cut"]), np.zeros(0, np.int64)
        if self.order not in ORDERS or self.cut not in CUTS[: 2 + (self.order != "mixed")]:
            raise CannotSayError(f"plan.json has the order {self.order} and the cut {self.cut}")
        self.unique, self.total = (int(data[k]) for k in ("unique_tokens", "total_windows"))
        self.L, (q, self.r) = window_tokens, divmod(self.unique, window_tokens)
        self.few, self.many = self.L - max(self.r, 1) + (self.r > 0), max(self.r - 1, 0)
        self.shifts, self.repacks = self.cut == "shifted" and self.L > 1, self.cut == "repacked"
        self.W = q + (1 + (self.many > self.few) if self.shifts else self.r > 0)
        self.epochs = -(-self.total // self.W) if self.repacks else 1

    def locate(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Epoch, start in the source's stream, and length of its windows g."""
        if self.order == "mixed":
            n = -(-self.total // self.W) * self.W
            epoch, window = np.divmod(permute(g, n, make_key(self.seed, "mixed")), self.W)
        else:
            epoch, place = np.divmod(g, self.W)
            window = permute(place, self.W, make_key(self.seed, "order", epoch * (self.order != "same")))
        start = np.where((offset := self._offset(epoch)) > 0, offset - self.L, 0) + window * self.L
        start, end = np.maximum(start, 0), np.minimum(start + self.L, self.unique)
        return epoch, start + epoch * self.unique * self.repacks, end - start

    def places(self, epoch: int) -> Any:
        """The position in the subset of each token of an epoch. A document that is cut stays last."""
        if not self.repacks:
            return slice(None)
        begin, m = np.cumsum(self.lengths) - self.lengths, self.lengths.size
        n = m - (int(self.lengths.sum()) > self.unique)
        key = mix(make_key(self.seed, "repack", epoch) + np.arange(1, n + 1, dtype=U64) * U64(G))
        order = np.append(np.argsort(key >> U64(max(n - 1, 0).bit_length()), kind="stable"), np.arange(n, m))
        return ranges(begin[order], np.minimum(self.lengths, self.unique - begin)[order])

    def _offset(self, epoch: np.ndarray) -> np.ndarray:
        if not self.shifts:
            return np.zeros_like(epoch)
        d = (block(make_key(self.seed, "cut", epoch), 0) % U64(max(self.few, self.many))).astype(np.int64)
        return d + 1 if self.many > self.few or self.r == 0 else np.where(d == 0, 0, d + self.r - 1)


@lru_cache(maxsize=64)
def webster(counts: tuple[int, ...], place: int) -> tuple[int, ...]:
    total = sum(counts)
    c = [(2 * place * n + total) // (2 * total) for n in counts]
    while sum(c) > place:
        c[max(range(len(c)), key=lambda i: (Fraction(2 * c[i] - 1, counts[i]), i))] -= 1
    while sum(c) < place:
        c[min(range(len(c)), key=lambda i: (Fraction(2 * c[i] + 1, counts[i]), i))] += 1
    return tuple(c)


@lru_cache(maxsize=64)
def turns(counts: tuple[int, ...], number: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each window of a block, and its number within the source."""
    low = webster(counts, BLOCK * number)
    m = np.subtract(webster(counts, min(BLOCK * (number + 1), sum(counts))), low)
    source, local = np.repeat(np.arange(m.size), m), ranges(np.zeros_like(m), m)
    order = np.argsort(((2 * local + 1) << 30) // np.repeat(m, m), kind="stable")
    return source[order], local[order] + np.asarray(low)[source[order]]


class Run:
    """A run folder: its plan, its stream and its ledger."""

    def __init__(self, path: Path, moved: dict[str, Path], *, trusted: bool = False) -> None:
        if not (path / "plan.json").is_file():
            raise WrongInputError(f"{path} is not the folder of a run: it has no plan.json")
        self.path, self.plan = path, (plan := json.loads((path / "plan.json").read_bytes()))
        if plan.get("format", 1) not in RUN_FORMATS:
            raise CannotSayError(f"{path} has the format {plan['format']}; known are {RUN_FORMATS}")
        self.L, self.B, self.N = (int(plan[k]) for k in ("window_tokens", "batch_windows", "total_windows"))
        self.sources, self.stores = list[Source](), list[Store]()
        self.stream = np.empty(0, np.uint16)
        for data in plan["sources"]:
            folder = moved.get("" if len(plan["sources"]) == 1 else data["name"], Path(data["store"]))
            store = Store(folder, data["store_fingerprint"], trusted=trusted)
            source = Source(data, self.L, self.stream.size)
            if not 1 <= self.L <= source.unique <= store.lengths.sum() or min(source.total, self.B) < 1:
                raise CannotSayError("plan.json asks for more tokens than the store has, or for none")
            subset, source.lengths = store.stream(source.unique, data["subset_seed"])
            epochs = (subset[source.places(e)] for e in range(source.epochs))
            self.stream = np.concatenate([self.stream, *epochs])
            self.sources, self.stores = [*self.sources, source], [*self.stores, store]
        self.counts, self.is_mixture = tuple(one.total for one in self.sources), len(self.sources) > 1

    def locate(self, g: np.ndarray) -> tuple[np.ndarray, ...]:
        """Source, epoch, start in the source's stream, and length of the windows at global indices."""
        source, local = np.zeros_like(g), g.copy()
        for number in np.unique(g // BLOCK).tolist() if self.is_mixture else []:
            mine = g // BLOCK == number
            source[mine], local[mine] = (part[g[mine] % BLOCK] for part in turns(self.counts, number))
        parts = np.empty((3, g.size), np.int64)
        for i, one in enumerate(self.sources):
            parts[:, source == i] = one.locate(local[source == i])
        return source, *parts

    def before(self, g: int) -> np.ndarray:
        """Windows of each source before a global index below N."""
        number, place = divmod(g, BLOCK)
        within = np.bincount(turns(self.counts, number)[0][:place], minlength=len(self.counts))
        return np.asarray(webster(self.counts, BLOCK * number)) + within

    def ledger(self) -> Iterator[dict[str, Any]]:
        path = self.path / "ledger.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for record in (found for found in map(json.loads, lines) if "event" not in found):
            numbers = {k: min(int(record[k]), LARGEST) for k in ("step", "first_index", "windows", "epoch")}
            yield record | numbers | {"applied": bool(record["applied"]), "sum": int(record["digest"], 16)}


class Audit:
    """Recounts steps, tokens, windows digests and exposures: the level `windows`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # `unchecked`, `unproved`: of other levels; `damage`: changed files. The last two give "cannot say".
        self.problems, self.unchecked, self.unproved, self.damage = (list[str]() for _ in range(4))
        place = (np.arange(run.stream.size, dtype=U64) + U64(1)) * U64(G)
        self.sums = np.concatenate([np.zeros(1, U64), np.cumsum(mix(run.stream.astype(U64) + place))])
        self.change = np.zeros(run.stream.size + 1, np.int64)
        self.applied = np.zeros(len(run.sources), np.int64)
        # Checks of further levels, called with records that have the plan's indices.
        self.more: list[Callable[[list[dict[str, Any]]], None]] = []

    def report(self) -> dict[str, Any]:
        planned = self._planned()
        while records := list(islice(planned, max(1, CHUNK_WINDOWS // self.run.B))):
            self._check(records)
        return self._verdict()

    def _planned(self) -> Iterator[dict[str, Any]]:
        """The records that have the plan's indices. Notes the others, and steps out of place."""
        run, step, self.applies = self.run, 0, True
        for record in run.ledger():
            if not self.applies and record["step"] != step:
                self.problems.append(f"step {step} was not applied and not retried")
                step += 1
            if record["step"] != step:
                self.problems.append(f"step {record['step']} comes instead of step {step}")
            self.applies = record["applied"]
            step, first = record["step"] + self.applies, record["step"] * run.B
            count = min(run.B, run.N - first)
            if count < 1 or (record["first_index"], record["windows"]) != (first, count):
                self.problems.append(f"step {record['step']} has indices that the plan does not give it")
            else:
                yield record

    def _check(self, records: list[dict[str, Any]]) -> None:
        run, size = self.run, len(self.run.sources)
        first, count = (np.asarray([r[key] for r in records]) for key in ("first_index", "windows"))
        offset = np.cumsum(count) - count
        source, _, start, length = run.locate(ranges(first, count))
        start = start + np.asarray([one.begin for one in run.sources])[source]
        digest = np.add.reduceat(self._digests(start, length), offset)
        for i, record in enumerate(records):
            mine = slice(offset[i], offset[i] + count[i])
            windows = np.bincount(source[mine], minlength=size)
            tokens = np.bincount(source[mine], weights=length[mine], minlength=size).astype(int)
            epoch = run.before(record["first_index"]) // [one.W for one in run.sources]
            planned = (tokens.sum(), epoch[source[offset[i]]], int(digest[i]))
            if (record["tokens"], record["epoch"], record["sum"]) != planned:
                self.problems.append(f"step {record['step']} has other tokens, or another epoch or digest")
            shares = zip(windows.tolist(), tokens.tolist(), epoch.tolist(), strict=True)
            named = (dict(zip(("windows", "tokens", "epoch"), share, strict=True)) for share in shares)
            wanted = dict(zip((one.name for one in run.sources), named, strict=True))
            if run.is_mixture and record.get("sources") != wanted:
                self.problems.append(f"step {record['step']} has other shares of the sources")
            if record["applied"]:
                self.applied += windows
                np.add.at(self.change, start[mine], 1)
                np.subtract.at(self.change, start[mine] + length[mine], 1)
        for check in self.more:
            check(records)

    def _digests(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        a, n = start.astype(U64), length.astype(U64)
        place = mix((mix(a * U64(G)) + n) * U64(G))
        return np.where(n > 0, mix(self.sums[start + length] - self.sums[start] + place), U64(0))

    def _verdict(self) -> dict[str, Any]:
        run, path, exact = self.run, self.run.path / "status.json", True
        status = json.loads(path.read_bytes()) if path.exists() else {}
        done, windows = status.get("state") == "done", int(self.applied.sum())
        if done and not self.applies:
            self.problems.append("the last step was not applied")
        if done and status.get("reason") is None and windows < run.N:
            self.problems.append(f"the run is done, but applied {windows} windows of {run.N}")
        times, exposures = np.cumsum(self.change), {}
        for one, applied in zip(run.sources, self.applied.tolist(), strict=True):
            seen = np.zeros(one.unique, np.int64)
            for epoch in range(one.epochs):
                seen[one.places(epoch)] += times[one.begin + epoch * one.unique :][: one.unique]
            value, tokens = np.unique(seen, return_counts=True)
            whole, rest = divmod(applied, one.W)
            uniform = bool(np.isin(value, [whole, whole + (rest > 0)]).all())
            if not uniform and one.order != "mixed":
                self.problems.append(f"tokens of {one.name} were consumed {value.tolist()} times")
            exact &= uniform
            exposures[one.name] = dict(zip(value.tolist(), tokens.tolist(), strict=True))
        clean = not self.problems and not self.damage
        verdict = {"exact": exact and clean, "as_planned": clean, "complete": done and windows == run.N}
        verdict |= {"windows": windows, "exposures": exposures, "num_problems": len(self.problems)}
        verdict |= {"problems": self.problems[:10], "cannot_say": [*self.damage, *self.unproved]}
        return verdict | {"not_independently_checked": self.unchecked}
