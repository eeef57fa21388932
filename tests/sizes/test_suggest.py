"""Settings that fit into the memory of a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.errors import ReptrainError
from reptrain.sizes import Subject, load_subject, suggest
from reptrain.sizes.rank_memory import RankSettings, rank_memory

LARGE = """
model: {d_model: 1024, num_layers: 24, num_heads: 16, d_ff: 4096, vocab_size: 32000}
data: {store: none, unique_tokens: 1000000, window_tokens: 2048}
train: {total_tokens: 1epochs, batch_windows: 64}
"""
GIB = 1 << 30
COST = ["none", "selective", "full"]


@pytest.fixture
def large(tmp_path: Path) -> Callable[..., Subject]:
    path = tmp_path / "large.yaml"
    path.write_text(LARGE)
    return lambda *overrides: load_subject(path, overrides)


@pytest.mark.parametrize("gib", [4, 6, 8, 10, 16, 24, 40, 80, 400])
@pytest.mark.parametrize("ranks", [1, 8])
def test_suggestion_is_the_largest_micro_batch_that_fits(
    large: Callable[..., Subject], gib: int, ranks: int
) -> None:
    subject = large()
    found = suggest(subject, world_size=ranks, device="cuda", device_bytes=gib * GIB)
    chosen = found.chosen
    if chosen is None:
        assert found.smallest.needed > 0.9 * gib * GIB
        return
    assert chosen.needed <= 0.9 * gib * GIB
    share = 64 // ranks
    larger = [size for size in range(chosen.windows + 1, share + 1) if share % size == 0]
    for windows in larger[:1]:
        memory = rank_memory(
            subject, RankSettings(ranks, chosen.stage, windows, chosen.recompute, "bf16", "cuda")
        )
        assert memory is not None and sum(memory) > 0.9 * gib * GIB
    assert all(not setting.fits for setting in found.tried)
    # bf16 needs an fp32 copy of the weights, and stage 3 gathers weights within a recomputed layer.
    assert chosen.stage >= 1
    assert (chosen.stage, chosen.recompute) != (3, "selective")


def test_more_memory_never_costs_more(large: Callable[..., Subject]) -> None:
    last = (len(COST), 4)
    for gib in range(4, 90, 2):
        chosen = suggest(large(), world_size=4, device="cuda", device_bytes=gib * GIB).chosen
        if chosen is None:
            assert last == (len(COST), 4)
            continue
        step = (COST.index(chosen.recompute), chosen.stage)
        assert step[0] <= last[0]
        last = step
    assert last == (0, 1)


def test_suggestion_respects_what_the_other_settings_need(large: Callable[..., Subject]) -> None:
    muon = suggest(large("optimizer.name=muon"), world_size=8, device="cuda", device_bytes=60 * GIB)
    assert muon.chosen is not None and muon.chosen.stage == 0 and muon.precision == "fp32"
    experts = ("model.moe={num_experts: 8, every: 2}", "train.expert_parallel_size=4", "train.zero_stage=1")
    spread = suggest(large(*experts), world_size=8, device="cuda", device_bytes=20 * GIB)
    stages = {setting.stage for setting in (*spread.tried, spread.smallest)}
    assert stages <= {1, 2}


def test_a_window_that_is_too_long_for_a_rank_fits_on_several(large: Callable[..., Subject]) -> None:
    long = ("data.window_tokens=2**18", "train.batch_windows=8")
    gpus = {"world_size": 8, "device": "cuda", "device_bytes": 24 * GIB}
    alone = suggest(large(*long), **gpus)
    assert alone.chosen is None and alone.ranks_needed is None
    assert "train.sequence_parallel_size" in alone.text()
    shared = suggest(large(*long, "train.sequence_parallel_size=8"), **gpus)
    assert shared.chosen is not None and shared.share == 8
    with pytest.raises(ReptrainError, match=r"a multiple of train\.sequence_parallel_size 16"):
        suggest(large(*long, "train.sequence_parallel_size=16"), **gpus)


def test_offloaded_states_do_not_count_on_a_gpu(large: Callable[..., Subject]) -> None:
    kept, offloaded = large("train.zero_stage=1"), large("train.zero_stage=1", "train.offload_optimizer=cpu")
    for ranks, stage in ((1, 1), (8, 2), (8, 3)):
        settings = RankSettings(ranks, stage, 1, "none", "bf16", "cuda")
        more, less = (rank_memory(subject, settings) for subject in (kept, offloaded))
        assert more is not None and less is not None
        # The fp32 weights and two moments.
        assert more.state - less.state == -(-12 * kept.parameters.total // ranks)
        on_cpu = replace(settings, device="cpu")
        assert rank_memory(offloaded, on_cpu) == rank_memory(kept, on_cpu)
    found = suggest(offloaded, world_size=8, device="cuda", device_bytes=80 * GIB)
    assert found.chosen is not None and found.chosen.stage >= 1


def test_offloaded_weights_and_smaller_buckets_take_less_of_a_gpu(large: Callable[..., Subject]) -> None:
    settings = RankSettings(8, 3, 1, "none", "bf16", "cuda")
    kept, offloaded, small = (
        large("train.zero_stage=3", *more)
        for more in ((), ("train.offload_parameters=cpu",), ("train.bucket_elements=2**20",))
    )
    plain, without_weights, with_small = (rank_memory(each, settings) for each in (kept, offloaded, small))
    assert plain and without_weights and with_small
    # bf16 weights.
    assert plain.state - without_weights.state == -(-2 * kept.parameters.total // 8)
    assert with_small.state == plain.state and with_small.buffers < plain.buffers
    overlapped = large(
        "train.zero_stage=2", "train.overlap_communication=true", "train.bucket_elements=2**20"
    )
    one, two = (
        rank_memory(each, replace(settings, stage=2))
        for each in (large("train.bucket_elements=2**20"), overlapped)
    )
    assert one and two and two.buffers - one.buffers == 4 * 2**20


def test_suggestion_names_a_number_of_ranks_that_is_enough(large: Callable[..., Subject]) -> None:
    subject, gpu = large(), {"device": "cuda", "device_bytes": 8 * GIB}
    found = suggest(subject, world_size=2, **gpu)
    assert found.chosen is None and found.ranks_needed is not None
    assert f"{found.ranks_needed} ranks are enough" in found.text()
    assert suggest(subject, world_size=found.ranks_needed, **gpu).chosen
    assert not suggest(subject, world_size=found.ranks_needed // 2, **gpu).chosen


def _run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["launch", *map(str, arguments), "--suggest"])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_launch_suggest_counts_the_ranks_of_every_launcher(tmp_path: Path) -> None:
    path, hosts = tmp_path / "large.yaml", tmp_path / "hosts"
    path.write_text(LARGE)
    hosts.write_text("a slots=8\nb slots=8\n")
    with_gpu = (path, "--gpu", "A100", "--json")
    cases = [
        (("--gpus", 8), 8),
        (("--hostfile", hosts), 16),
        (("--hostfile", hosts, "--exclude", "b"), 8),
        (("--slurm", "time=1:00:00", "--slurm", "nodes=4", "--slurm", "gpus-per-node=2"), 8),
    ]
    for arguments, ranks in cases:
        data = json.loads(_run(*with_gpu, *arguments))
        assert data["world_size"] == ranks and data["fits"]
        assert data["chosen"]["bytes"]["usable"] == int(0.9 * 80 * GIB)
    # Nothing is written, as no launch was prepared.
    assert not list(tmp_path.glob("runs*")) and not Path("runs/large.launch.sh").exists()
    assert "Nothing fits" in _run(path, "--gpu", "4", "--gpus", 2, code=1)


def test_launch_suggest_reads_the_memory_of_this_machines_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hosts, smi = tmp_path / "large.yaml", tmp_path / "hosts", tmp_path / "nvidia-smi"
    path.write_text(LARGE)
    hosts.write_text("a slots=8\n")
    smi.write_text("#!/bin/sh\nprintf '40960\\n40960\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    data = json.loads(_run(path, "--hostfile", hosts, "--json"))
    assert data["chosen"]["bytes"]["usable"] == int(0.9 * 40 * GIB)
    smi.write_text("#!/bin/sh\nexit 9\n")
    result = CliRunner().invoke(app, ["launch", str(path), "--hostfile", str(hosts), "--suggest"])
    assert "must name the GPU" in str(result.exception)
    wrong = CliRunner().invoke(app, ["launch", str(path), "--gpu", "Z9", "--suggest"])
    assert "must be one of" in str(wrong.exception)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--gpus", "0", "--suggest"], "--gpus: must be at least 1, but got 0"),
        (["--gpus", "-2", "--gpu", "A100", "--suggest"], "--gpus: must be at least 1"),
        (["--gpus", "9", "--hostfile", "HOSTS", "--suggest"], "--gpus: must be at most the 8 slots of a"),
        (["--gpus", "2", "--gpu", "A100"], "--gpu: needs --suggest"),
        (["--gpus", "2", "--json"], "--json: needs --suggest"),
        (["--gpus", "2", "--vocab-size", "512"], "--vocab-size: needs --suggest"),
    ],
)
def test_wrong_options_of_a_suggestion_are_refused(tmp_path: Path, arguments: list[str], rule: str) -> None:
    path, hosts = tmp_path / "large.yaml", tmp_path / "hosts"
    path.write_text(LARGE)
    hosts.write_text("a slots=8\n")
    words = [str(hosts) if word == "HOSTS" else word for word in arguments]
    result = CliRunner().invoke(app, ["launch", str(path), *words])
    assert isinstance(result.exception, ReptrainError) and rule in str(result.exception)


def test_copy_for_saving_in_the_background_is_counted_on_a_cpu(large: Callable[..., Subject]) -> None:
    settings = RankSettings(2, 1, 1, "none", "fp32", "cpu")
    plain = rank_memory(large(), settings)
    copied = rank_memory(large("checkpoint.background=true"), settings)
    on_device = rank_memory(large("checkpoint.background=true"), replace(settings, device="cuda"))
    assert plain is not None and copied is not None and on_device is not None
    assert plain.saving == on_device.saving == 0
    assert copied.saving == 6 * large().parameters.total
    assert sum(copied) == sum(plain) + copied.saving
