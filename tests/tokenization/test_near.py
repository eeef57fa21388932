"""Near-duplicates: found, dropped or held together, and everything else left alone."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import StoreError
from reptrain.store import Store, open_store, verify
from reptrain.text import stdlib_documents
from reptrain.text.documents import Fields
from reptrain.text.sources import expand_sources
from reptrain.tokenization import near_settings, tokenize
from reptrain.tokenization.clusters import decide_near, find_clusters, unite
from reptrain.tokenization.jobs import plan_jobs
from reptrain.tokenization.near import SignatureWriter, sign
from reptrain.tokenization.scan import KEPT, NEAR_DUPLICATE, Scan, ScanTask, decide, scan_job
from reptrain.tokenization.strata import find_strata
from reptrain.tokenization.work import Work
from reptrain.tokenize_options import Dedup, NearSettings

GOLDEN = [
    [3314923851, 3422554085, 3535250984, 3243807544],
    [3312132684, 3226896347, 3296019251, 3406454473],
    [3771175840, 4006114177, 4012323285, 4255853291],
]
FilesOf = Callable[[Path], dict[str, bytes]]
NEAR = NearSettings()


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """The plain definition, for ASCII."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return {tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, min(len(words), 1)))}


def similarity(one: str, other: str, size: int = 5) -> float:
    a, b = shingles(one, size), shingles(other, size)
    return len(a & b) / len(a | b)


def edit(text: str, draw: random.Random, share: float = 0.01) -> str:
    """A copy with a few other words, at least one."""
    words = text.split()
    for place in draw.sample(range(len(words)), max(1, int(share * len(words)))):
        words[place] = f"changed{draw.randrange(10**6)}"
    return " ".join(words)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """Thirty of Python's help topics of 80 words and more, far from one another."""
    topics = itertools.takewhile(lambda document: document.source == "topics", stdlib_documents())
    texts: list[str] = []
    seen: list[set[tuple[str, ...]]] = []
    for text in (topic.text for topic in topics if 80 <= len(topic.text.split()) < 500):
        mine = shingles(text, 5)
        if len(texts) < 30 and all(len(mine & other) < 0.5 * len(mine | other) for other in seen):
            texts.append(text)
            seen.append(mine)
    assert len(texts) == 30
    return texts


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t, "id": str(i)}) + "\n" for i, t in enumerate(texts)))
    return path


def members(store: Store) -> dict[str, str]:
    """The split of each document that stayed, by id."""
    return {
        split.document_id(index): name
        for name in ("train", "select", "report")
        for split in [store.split(name)]
        for index in range(split.num_documents)
    }


def planted(texts: Sequence[str], seed: int) -> tuple[list[str], list[list[int]]]:
    """The texts with edited copies of every third, shuffled; and the clusters by index."""
    draw = random.Random(seed)
    copies = [
        (origin, edited)
        for origin, text in enumerate(texts)
        for edited in [text, *(edit(text, draw) for _ in range(draw.randint(1, 3) * (origin % 3 == 0)))]
    ]
    draw.shuffle(copies)
    clusters = [[i for i, (from_, _) in enumerate(copies) if from_ == origin] for origin in range(len(texts))]
    return [text for _, text in copies], clusters


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("aB1 .\n"), max_size=80),
    size=st.integers(1, 6),
    piece=st.sampled_from([1 << 18, 97]),
)
def test_sign_depends_on_words_and_their_order_only(text: str, size: int, piece: int) -> None:
    tidy = " ".join("".join(c.lower() if c.isalnum() else " " for c in text).split())
    near = NearSettings(shingle_words=size, permutations=64, bands=8, rows=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrain.tokenization.near._PIECE_CHARACTERS", piece)
        one, other, twice = sign([text, tidy, "x y", text], near).signatures[[0, 1, 3]]
        assert np.array_equal(one, other) and np.array_equal(one, twice)
        assert np.array_equal(one, sign([text], near).signatures[0])
        assert sign([text], near).has_words[0] == bool(tidy)
        if tidy:
            assert not np.array_equal(one, sign([f"{tidy} q"], near).signatures[0])


def test_sign_estimates_the_similarity_of_the_shingles(real_texts: list[str]) -> None:
    draw = random.Random(1)
    wide = NearSettings(permutations=1024)
    for text in real_texts[:10]:
        for share in (0.01, 0.05, 0.2):
            copy = edit(text, draw, share)
            left, right = sign([text, copy], wide).signatures
            # Four standard deviations of a share of 1024.
            assert abs((left == right).mean() - similarity(text, copy)) < 4 * 0.5 / 32


def test_sign_is_the_same_on_every_machine() -> None:
    found = sign(["The quick brown fox jumps over the lazy dog.", "你好世界,再见。", "x"], NEAR).signatures
    assert found[:, :4].tolist() == GOLDEN


def test_sign_cuts_scripts_without_spaces_into_characters() -> None:
    one = "我们今天在北京的图书馆里读了很多关于历史和文学的书籍" * 2
    other = one.replace("北京", "上海", 1)
    left, right = sign([one, other], NearSettings(permutations=1024)).signatures
    assert 0.6 < (left == right).mean() < 0.95


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_unite_makes_connected_components(pairs: list[tuple[int, int]]) -> None:
    expected = list(range(30))
    for left, right in pairs * 30:
        expected[left] = expected[right] = min(expected[left], expected[right])
    root = np.arange(30)
    for part in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
        unite(root, *np.array(part, np.int64).reshape(-1, 2).T)
    for _ in range(30):
        root = root[root]
    assert root.tolist() == expected


def cluster(texts: Sequence[str], jobs: int, near: NearSettings, folder: Path) -> list[int]:
    work = Work(folder)
    work.folder.mkdir(parents=True)
    parts = [list(part) for part in np.array_split(np.array(texts, object), jobs)]
    for job, part in enumerate(parts):
        with SignatureWriter(work.signatures(job), work.bands(job), near) as writer:
            for text in part:
                writer.add(text)
            writer.close()
    scans = [Scan(len(part), 0, (), (len(part),), "") for part in parts]
    distinct = np.ones(len(texts), np.bool_)
    return find_clusters(work, scans, near, distinct, lambda *_: None).tolist()


def test_find_clusters_joins_chains_and_counts_through_all_jobs(tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(260)]
    # Windows of 200 words, moved by 15: neighbors have 0.86 in common, the ends 0.53.
    chain = [" ".join(words[start : start + 200]) for start in (0, 30, 15, 45)]
    assert similarity(chain[0], chain[3]) < 0.7 < 0.85 < similarity(chain[0], chain[2])
    other = " ".join(f"v{index}" for index in range(200))
    texts = [chain[1], other, chain[0], "", "...", chain[3], "", chain[2]]
    for jobs in (1, 3, 8):
        assert cluster(texts, jobs, NEAR, tmp_path / str(jobs)) == [0, 1, 0, 3, 4, 0, 6, 0]


def test_find_clusters_joins_a_group_larger_than_its_neighborhood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reptrain.tokenization.clusters._NEIGHBORS", 2)
    monkeypatch.setattr("reptrain.tokenization.clusters._BUCKET_DOCUMENTS", 7)
    monkeypatch.setattr("reptrain.tokenization.clusters._PAIRS", 5)
    words = [f"w{index}" for index in range(300)]
    texts = [" ".join([*words[:150], f"x{number}", *words[150:]]) for number in range(40)]
    assert cluster(texts, 3, NEAR, tmp_path) == [0] * 40


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dedup=st.sampled_from(["minhash", "group"]),
    job=st.sampled_from([3000, 10**6]),
)
def test_decide_near_gives_a_cluster_one_status_for_any_seed(seed: int, dedup: Dedup, job: int) -> None:
    draw = random.Random(seed)
    plain = [" ".join(f"w{draw.randrange(999)}" for _ in range(100)) for _ in range(20)]
    texts, clusters = planted(plain, seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        patch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", job)
        work = Work(Path(folder))
        work.folder.mkdir()
        jobs = plan_jobs(expand_sources([write(Path(folder) / "web.jsonl", texts)]), Fields())
        scans = [scan_job(ScanTask(job, Fields(), work, NEAR)) for job in jobs]
        strata = find_strata(jobs, [scan.slice_documents for scan in scans])
        decide(work, scans, strata, dedup=dedup, held_out_fraction=0.5)
        options: dict[str, Any] = {"dedup": dedup, "held_out_fraction": 0.5, "progress": lambda *_: None}
        found = decide_near(work, scans, NEAR, strata, **options)
        statuses = np.concatenate([np.load(work.statuses(job.index)) for job in jobs])
    for first, *others in clusters:
        assert statuses[first] >= KEPT
        assert set(statuses[others]) <= {NEAR_DUPLICATE if dedup == "minhash" else statuses[first]}
    assert found.counts.tolist() == np.bincount(statuses, minlength=KEPT + 3).tolist()
    assert found.largest == max(map(len, clusters))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dedup", ["minhash", "group"])
def test_tokenize_keeps_planted_clusters_on_one_side(
    real_texts: list[str], model: Path, tmp_path: Path, dedup: str, seed: int
) -> None:
    texts, clusters = planted(real_texts, seed)
    source = write(tmp_path / "real.jsonl", texts)
    manifest = tokenize([source], tmp_path / "s", tokenizer=model, dedup=dedup, held_out_fraction=0.4)
    split = members(open_store(tmp_path / "s"))
    for ids in clusters:
        stayed = [split[str(index)] for index in ids if str(index) in split]
        assert len(set(stayed)) == 1
        assert len(stayed) == (1 if dedup == "minhash" else len(ids))
        assert str(ids[0]) in split
    counts = manifest.counts
    assert counts.near_duplicates == (len(texts) - len(real_texts)) * (dedup == "minhash")
    assert counts.clusters == sum(len(ids) > 1 for ids in clusters)
    assert counts.largest_cluster == max(map(len, clusters))
    assert verify(tmp_path / "s").ok


def test_tokenize_minhash_holds_out_a_cluster_whatever_its_first(
    real_texts: list[str], model: Path, tmp_path: Path
) -> None:
    texts, clusters = planted(real_texts, 7)
    splits = []
    for number, order in enumerate((list(range(len(texts))), list(reversed(range(len(texts)))))):
        source = write(tmp_path / f"{number}.jsonl", [texts[index] for index in order])
        out = tmp_path / f"s{number}"
        tokenize([source], out, tokenizer=model, dedup="minhash", held_out_fraction=0.5)
        stayed = {order[int(name)]: split for name, split in members(open_store(out)).items()}
        splits.append([next(stayed[i] for i in ids if i in stayed) for ids in clusters])
    assert splits[0] == splits[1]


def test_tokenize_holds_out_large_clusters_no_more_often_than_single_documents(
    model: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    plain = [" ".join([*draw.choices(["run", "plan", "store"], k=3), str(index)]) for index in range(200)]
    # One shingle each, in other letters: the cluster of a text has five members.
    texts = [form for text in plain for form in (text, text.upper(), f"{text}!", f"({text})", text.title())]
    source = write(tmp_path / "five.jsonl", texts)
    options: dict[str, Any] = {"tokenizer": model, "held_out_fraction": 0.3}
    counts = tokenize([source], tmp_path / "s", dedup="group", **options).counts
    assert (counts.clusters, counts.largest_cluster, counts.near_duplicates) == (200, 5, 0)
    held_out = sum(split != "train" for split in members(open_store(tmp_path / "s")).values())
    # Four standard deviations; by the smallest of five draws it would be 83 %.
    assert abs(held_out / 1000 - 0.3) < 4 * (0.21 / 200) ** 0.5


def test_tokenize_gives_the_same_near_duplicates_and_passages_for_any_number_of_processes(
    real_texts: list[str], model: Path, tmp_path: Path, files_of: FilesOf
) -> None:
    source = write(tmp_path / "real.jsonl", planted(real_texts, 0)[0])
    options: dict[str, Any] = {"tokenizer": model, "dedup": "minhash", "held_out_fraction": 0.4}
    for processes in (1, 3):
        tokenize([source], tmp_path / f"s{processes}", processes=processes, passages=100, **options)
    assert files_of(tmp_path / "s1") == files_of(tmp_path / "s3")


@pytest.mark.parametrize(("stage", "count"), [("scan", 3), ("find near-duplicates", 4)])
def test_tokenize_resumes_with_near_duplicates(
    real_texts: list[str], model: Path, tmp_path: Path, files_of: FilesOf, stage: str, count: int
) -> None:
    source = write(tmp_path / "real.jsonl", planted(real_texts, 0)[0])
    left = count

    def stop(name: str, done: int, total: int) -> None:
        nonlocal left
        left -= name == stage
        if left == 0:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"tokenizer": model, "dedup": "group", "held_out_fraction": 0.4}
    tokenize([source], tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        tokenize([source], tmp_path / "s", progress=stop, **options)
    tokenize([source], tmp_path / "s", **options)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("dedup", ["exact", "minhash", "group"])
def test_tokenize_drops_equal_and_keeps_very_short_documents(model: Path, tmp_path: Path, dedup: str) -> None:
    short = ["run", "Run!", "run run", "?!", "...", "?!", "run", " "]
    texts = [*short, *(f"token {index}" for index in range(60))]
    source = write(tmp_path / "short.jsonl", texts)
    counts = tokenize([source], tmp_path / "s", tokenizer=model, dedup=dedup, held_out_fraction=0.4).counts
    near = int(dedup == "minhash")
    # "Run!" is "run" in other letters; "?!" and "..." have no word and are never near anything.
    assert (counts.empty, counts.duplicates, counts.near_duplicates) == (1, 2, near)
    assert counts.clusters == (0 if dedup == "exact" else 1)


@pytest.mark.parametrize("same", [["one text"], ["one text"] * 9, ["One text."] * 4 + ["one text"] * 4])
def test_tokenize_refuses_one_text_however_often_it_occurs(
    model: Path, tmp_path: Path, same: list[str]
) -> None:
    source = write(tmp_path / "one.jsonl", same)
    with pytest.raises(StoreError, match="must get at least one document"):
        tokenize([source], tmp_path / "s", tokenizer=model, dedup="minhash")
    assert not (tmp_path / "s" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": 22}, "bands x rows: must be at most the 128 permutations, but got 22 x 6"),
        ({"threshold": 0.0}, "threshold: must be above 0"),
        ({"shingle_words": 0}, "shingle_words: must be at least 1"),
        ({"rows": 0}, "rows: must be at least 1"),
        ({"seed": -1}, "seed: must be at least 0"),
    ],
)
def test_tokenize_refuses_settings_that_cannot_work(
    corpus: Path, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        tokenize([corpus], tmp_path / "s", dedup="minhash", near=NearSettings(**change))
    assert not (tmp_path / "s").exists()


def test_tokenize_refuses_a_store_of_other_near_settings(corpus: Path, model: Path, tmp_path: Path) -> None:
    tokenize([corpus], tmp_path / "s", tokenizer=model, dedup="group", held_out_fraction=0.3)
    with pytest.raises(StoreError, match="near="):
        near = NearSettings(threshold=0.9)
        tokenize([corpus], tmp_path / "s", tokenizer=model, dedup="group", near=near, held_out_fraction=0.3)


def test_signature_writer_signs_a_job_without_words() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert cluster(["", "?"], 2, NEAR, Path(folder) / "w") == [0, 1]
        assert cluster([""], 1, NEAR, Path(folder) / "v") == [0]


def test_tokenize_refuses_near_settings_without_near_duplicates(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="near: must be omitted"):
        tokenize([corpus], tmp_path / "s", dedup="exact", near=NEAR)


def test_near_settings_reads_pairs_and_names_what_it_does_not_know() -> None:
    assert near_settings(["threshold=0.7", "rows=3"]) == NearSettings(threshold=0.7, rows=3)
    with pytest.raises(StoreError, match="near-duplicates bnads: must be a setting and its value"):
        near_settings(["bnads=3"])
    with pytest.raises(StoreError, match=r"near-duplicates rows: .* but got 'many'"):
        near_settings(["rows=many"])
