"""Dropout by counter: its layout, its algebra, its implementations."""

from __future__ import annotations

import shutil
from pathlib import Path

import platformdirs
import pytest
import torch
from interpreted import results_of
from torch._dynamo.testing import CompileCounterWithBackend

from reptrain_kernels import counter, counter_native, rates
from reptrain_kernels.bench.compilation import compile_launch, launches
from reptrain_kernels.implementation import Implementation, choose_implementation

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def scalar_mix32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK32
    return x ^ (x >> 16)


def scalar_word(key: int, position: int, unit: int) -> int:
    """The written layout, one unit at a time, in Python's own integers."""
    line_key = counter.fold_int(key, position)
    return scalar_mix32((unit ^ (line_key & MASK32)) * (line_key >> 32 | 1) & MASK32)


def keys(num_rows: int = 4) -> torch.Tensor:
    return counter.row_keys(11, 5, torch.arange(num_rows))


def test_fold_int_gives_the_published_outputs_of_splitmix64() -> None:
    # The second output of a seed is the first one of the seed advanced by gamma.
    gamma = 0x9E3779B97F4A7C15
    assert [counter.fold_int(steps * gamma & MASK64, 0) for steps in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert counter.fold_int(1234567, 0) == 6457827717110365317
    assert counter.fold_int(1234567 ^ 89, 89) == 6457827717110365317


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**40 + 3, 2**63 - 2])
def test_fold_of_tensors_equals_fold_of_ints(word: int) -> None:
    for key in (0, 1, 2**63 - 1, 2**64 - 5):
        key_tensor = torch.tensor([key - 2**64 if key >= 2**63 else key])
        for folded in (counter.fold(key_tensor, word), counter.fold(key_tensor, torch.tensor([word]))):
            assert folded.item() & MASK64 == counter.fold_int(key, word)


def test_random_words_follow_the_written_layout() -> None:
    key = keys(3)
    words = counter.random_words(key, 5, 7)
    for row in range(3):
        row_key = counter.fold_int(counter.fold_int(counter.fold_int(0, 11), 5), row)
        for position in range(5):
            for unit in range(7):
                expected = scalar_word(row_key, position, unit)
                assert words[row, position, unit].item() & MASK32 == expected


def test_random_words_stay_the_same_in_all_versions() -> None:
    words = counter.random_words(counter.row_keys(3, 5, torch.tensor([7])), 2, 2)
    golden = [0x38366421, 0xC33C76BC, 0x0305069D, 0x45A60F44]
    assert [word & MASK32 for word in words.flatten().tolist()] == golden


def test_random_words_do_not_depend_on_the_sizes_asked() -> None:
    key = keys(6)
    words = counter.random_words(key, 9, 33)
    assert torch.equal(counter.random_words(key[2:4], 4, 8), words[2:4, :4, :8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dropout_scales_what_it_keeps(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, 32, dtype=dtype)
    y = counter.dropout(x, keys(), 0.2)
    assert y.dtype == dtype
    kept = y != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(y[kept], (x * 1.25)[kept])


def test_dropout_of_rate_zero_is_the_identity() -> None:
    x = torch.randn(4, 8, 32)
    assert torch.equal(counter.dropout(x, keys(), 0.0), x)


def test_dropout_drops_infinities() -> None:
    y = counter.dropout(torch.full((4, 8, 32), torch.inf), keys(), 0.5)
    assert set(y.unique().tolist()) == {0.0, torch.inf}


def test_dropout_gradient_has_the_same_mask_and_stores_none() -> None:
    x = torch.randn(4, 8, 32, requires_grad=True)
    stored: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        y = counter.dropout(x, keys(), 0.3)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(x.grad, counter.dropout(grad, keys(), 0.3))
    # The keys and the two numbers of the rate.
    assert sum(tensor.numel() for tensor in stored) == 4 + 2


def test_dropout_passes_gradcheck_twice() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: counter.dropout(x, keys(2), 0.4), x)
    assert torch.autograd.gradgradcheck(lambda x: counter.dropout(x, keys(2), 0.4), x)


def test_a_part_of_the_positions_gets_its_part_of_the_mask() -> None:
    x, grad = torch.randn(4, 9, 32, requires_grad=True), torch.randn(4, 9, 32)
    position_P = torch.tensor([2, 7, 8])
    whole, part = (
        counter.dropout(x, keys(), 0.3),
        counter.dropout(x[:, position_P], counter.position_keys(keys(), position_P), 0.3),
    )
    assert torch.equal(part, whole[:, position_P])
    (expected,) = torch.autograd.grad(whole, x, grad)
    (found,) = torch.autograd.grad(part, x, grad[:, position_P])
    assert torch.equal(found[:, position_P], expected[:, position_P])


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.slow), "aot_eager"])
def test_dropout_compiled_once_equals_eager_at_any_rate(backend: str) -> None:
    def model(x: torch.Tensor, key: torch.Tensor, rate: rates.Rate) -> torch.Tensor:
        key = counter.fold(counter.fold(key, 17)[:, None], torch.arange(3))
        return counter.dropout(x * 2, key, rate)

    # Sizes that do not fill a vector register, for which generated code has extra loops.
    shape = (4, 3, 13, 12)
    compilations = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=compilations)
    for rate in (0.1, 0.5, 0.75, 0.0, 1 - 2**-40):
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        y, expected = compiled(x, keys(), rates.packed(rate)), model(x, keys(), rate)
        assert torch.equal(y, expected)
        assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])
    assert compilations.frame_count == 1


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1 - 2**-40])
def test_a_packed_rate_is_exact(rate: float) -> None:
    assert rates.unpacked(rates.packed(rate)) == rates.threshold_and_scale(rate)
    assert rates.unpacked(None) == rates.threshold_and_scale(0.0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_refuses_a_rate_outside_its_range(rate: float) -> None:
    with pytest.raises(ValueError, match="rate: must be in"):
        counter.dropout(torch.ones(4, 2, 2), keys(), rate)


def test_dropout_refuses_keys_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="key: must be int64 of shape"):
        counter.dropout(torch.ones(3, 2, 2), keys(4), 0.1)
    with pytest.raises(ValueError, match="key: must be int64"):
        counter.dropout(torch.ones(4, 2, 2), keys(4).int(), 0.1)


def test_choose_implementation_goes_by_the_device_unless_asked() -> None:
    assert choose_implementation(torch.device("cpu")) == "torch"
    assert choose_implementation(torch.device("cuda")) == "triton"
    assert choose_implementation(torch.device("cuda"), "torch") == "torch"
    with pytest.raises(ValueError, match="impl: must be one of"):
        choose_implementation(torch.device("cpu"), "cuda")  # type: ignore[arg-type]


def test_dropout_in_triton_equals_torch_under_the_interpreter() -> None:
    assert results_of("counter_interpreted.py") == "equal"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_kernel_compiles_without_spills(capability: int, dtype: torch.dtype) -> None:
    from reptrain_kernels.counter_triton import launch_dropout

    x = torch.empty(4, 128, 256, dtype=dtype, device="meta")
    key = torch.empty(4, dtype=torch.int64, device="meta")
    (launch,) = launches(lambda: launch_dropout(x, key, rates.packed(0.1)), capability=capability)
    resources = compile_launch(launch, capability=capability)
    assert resources.spill_bytes == 0
    # Enough warps to hide the loads.
    assert resources.warps >= 48


@pytest.mark.parametrize("capability", [80, 90])
def test_jitter_kernel_compiles_without_spills(capability: int) -> None:
    from reptrain_kernels.counter_triton import launch_jitter

    x, key = torch.empty(4, 128, 256, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    (launch,) = launches(lambda: launch_jitter(x, key, 0.1), capability=capability)
    resources = compile_launch(launch, capability=capability)
    assert resources.spill_bytes == 0 and resources.warps >= 48


def test_dropout_kernel_takes_the_rate_at_run_time() -> None:
    from reptrain_kernels import counter_triton

    at_run_time = {p.name for p in counter_triton.dropout_kernel.params if p.do_not_specialize}
    assert {"threshold", "scale"} <= at_run_time


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 129, 1000), (2, 4, 65, 65)])
def test_dropout_on_a_gpu_equals_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    key = torch.randint(-(2**63), 2**63 - 1, shape[:-2])
    expected = counter.dropout(x, key, 0.3, impl="torch")
    for impl in ("torch", "triton"):
        assert torch.equal(counter.dropout(x.cuda(), key.cuda(), 0.3, impl=impl).cpu(), expected)


@pytest.mark.gpu
def test_jitter_on_a_gpu_equals_the_cpu() -> None:
    x, key = torch.randn(4, 129, 1000), keys()
    expected = counter.jitter(x, key, 0.25)
    for impl in ("torch", "triton"):
        y = counter.jitter(x.cuda(), key.cuda(), 0.25, impl=impl).cpu()
        torch.testing.assert_close(y, expected, rtol=2e-7, atol=0)


@pytest.mark.gpu
def test_dropout_on_a_gpu_keeps_its_mask_when_compiled() -> None:
    x, key = torch.randn(4, 33, 130, device="cuda"), keys().cuda()
    compiled = torch.compile(lambda x, key: counter.dropout(x * 2, key, 0.4), fullgraph=True)
    assert torch.equal(compiled(x, key), counter.dropout(x * 2, key, 0.4))


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_dropout_on_a_gpu_compiled_once_takes_any_packed_rate(impl: Implementation) -> None:
    x, key = torch.randn(4, 33, 130, device="cuda"), keys().cuda()
    compilations = CompileCounterWithBackend("inductor")
    compiled = torch.compile(counter.dropout, fullgraph=True, backend=compilations)
    for rate in (0.1, 0.5, 0.75):
        expected = counter.dropout(x, key, rate, impl=impl)
        assert torch.equal(compiled(x, key, rates.packed(rate), impl=impl), expected)
    assert compilations.frame_count == 1


@pytest.mark.gpu
def test_dropout_on_a_gpu_reaches_beyond_32_bit_offsets() -> None:
    num_lines = 2**31 // 1024 + 3
    x, key = torch.ones(1, num_lines, 1024, device="cuda", dtype=torch.float16), keys(1).cuda()
    y = counter.dropout(x, key, 0.5, impl="triton")
    expected = counter.random_words(key, num_lines, 1)[0, -5:, 0] >= 0
    assert torch.equal(y[0, -5:, 0] != 0, expected)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_in_c_equals_that_in_torch(dtype: torch.dtype, threads: int) -> None:
    """Sizes below a vector, odd sizes, and a size that several threads share."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in [(1, 1, 1), (3, 5, 7), (2, 17, 129), (2, 3, 9, 9), (3, 150, 260)]:
            generator = torch.Generator().manual_seed(sum(shape))
            x = torch.randn(shape, generator=generator).mul(1e3).to(dtype)
            x.view(-1)[0] = torch.inf
            key = torch.randint(-(2**63), 2**63 - 1, shape[:-2], generator=generator)
            assert torch.equal(
                counter_native.random_words(key, *shape[-2:]), counter.random_words_in_torch(key, *shape[-2:])
            )
            for rate in (0.0, 0.1, 0.5, 0.999):
                rate_2 = rates.packed(rate)
                in_c = counter_native.dropout(x, key, rate_2)
                assert torch.equal(in_c, counter.dropout_in_torch(x, key, rate_2)), (shape, rate)
    finally:
        torch.set_num_threads(before)


def test_dropout_without_a_compiler_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    expected = counter.dropout(x, keys(3), 0.3)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    monkeypatch.setattr(counter_native, "_library", lambda: None)
    actual = counter.dropout(x, keys(3), 0.3)
    assert torch.equal(actual, expected)
    assert torch.equal(torch.autograd.grad(actual.sum(), x)[0], expected_grad)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_cache_that_cannot_be_written_or_read_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for cache in (tmp_path / "file", tmp_path / "damaged"):
        monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name, cache=cache: str(cache))
        if cache.name == "file":
            cache.write_text("")
        else:
            counter_native._library.__wrapped__()
            (built,) = (cache / "native").iterdir()
            built.unlink()  # The file is in use: only a new file may replace it.
            built.write_bytes(b"damaged")
        assert counter_native._library.__wrapped__() is not None
