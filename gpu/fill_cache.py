"""Fills a Triton cache for sm_90 on a machine without a GPU, by the launches that a run on a GPU would make.

    python gpu/fill_cache.py CACHE LIBTRITON_FOLDER

Triton's JIT runs with another driver, which reports an H100 or H200, and each launch ends after the
compilation. Operations are launched at the shapes that the kit checks and times. Then whole models run on the
device "meta", where operators without shape functions launch their kernels.

The key of a cached kernel contains a hash of Triton's files. Its compiled library differs between versions of
Python. Therefore LIBTRITON_FOLDER is the unpacked Triton of the other machine: its hash goes into the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rows import ROOT
from runs import TimedRun, timed_runs

CAPABILITY = 90


def key_of(folder: Path) -> str:
    """Triton's own key for the files of another installation.

    Args:
        folder: The package `triton` of that installation.
    """

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def modules(inside: Path, prefix: str) -> list[str]:
        found = []
        for module in pkgutil.walk_packages([str(inside)], prefix=prefix):
            path = folder.parent / module.name.replace(".", "/")
            found.append(digest(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")))
        return found

    contents = [digest(folder / "runtime" / "cache.py")]
    contents += modules(folder / "compiler", "triton.compiler.")
    contents += modules(folder / "backends", "triton.backends.")
    contents.append(digest(folder / "_C" / "libtriton.so"))
    contents += modules(folder / "language", "triton.language.")
    version = next(folder.parent.glob("triton-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    return version + "-".join(contents)


class Driver:
    """What Triton asks of a driver to compile for a GPU that is not here."""

    def get_current_target(self) -> Any:
        """The GPU."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        """Its number."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """A stream."""
        return 0


def compile_only() -> list[str]:
    """Replace the driver and every launch; returns a list that the names of compiled kernels go into."""
    import triton
    from triton.runtime.jit import JITFunction

    launched: list[str] = []
    run = JITFunction.run

    def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        launched.append(self.fn.__name__)
        return run(self, *arguments, grid=grid, warmup=True, **keywords)

    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compiled
    return launched


def launch_shapes() -> None:
    """The operations at the shapes of `kernel_checks` and `bench`."""
    import bench
    import kernel_checks
    from reptrain_kernels.bench.operations import OPERATIONS

    for name, operation in OPERATIONS.items():
        wanted = {*kernel_checks.SHAPES.get(name, []), *bench.SHAPES.get(name, [])}
        for shape in operation.shapes:
            if shape.name in wanted:
                operation.launch(shape)()


def launch_models() -> None:
    """A training step of the kit's runs, on tensors without memory."""
    import torch

    # There is no autocast for "meta".
    torch.is_autocast_enabled = lambda *_: False
    torch.autocast = lambda *_, **__: nullcontext()
    torch.set_float32_matmul_precision("high")
    for run in timed_runs():
        if "compiled" not in run.name:
            _model_step(run)


def _model_step(run: TimedRun) -> None:
    import torch

    from reptrain.batch.loader import Loader
    from reptrain.model import DropoutContext, Routing, build_model
    from reptrain.training.regularize import Settings
    from reptrain.training.setup import open_data
    from reptrain.training.targets import targets_of
    from rows import KIT
    from runs import config_of

    model_settings = dict(run.settings["model"])
    layers = [key for key in model_settings if key.endswith("_layers")]
    model_settings |= dict.fromkeys(layers, 1)
    settings = run.settings | {"model": model_settings}
    config = config_of(settings, KIT / "store", min(run.batch_windows, 16), 1)
    data = open_data(config)
    model = build_model(config.model, vocab_size=data.tokenizer.vocab_size, seed=0)
    model = model.to("meta", torch.bfloat16)
    loader = Loader(data.stream, data.plan, data.steps, data.objective, 0, 1, config.micro_batch_windows(1))
    batch = loader.batch(0).micro_batches[0]
    # The example is made of numbers, which meta tensors lack.
    example = data.objective.example(batch)
    from reptrain.plan.position import position_at

    settings_now = Settings.at(
        position_at(data.plan, data.steps, 0), config.regularize, config.optimizer.weight_decay
    )
    targets = targets_of(example, settings_now)
    meta = torch.device("meta")

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(meta)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(moved(x) for x in value))
        return value

    dropout = DropoutContext(seed=0, step=0, row_B=batch.row_B.to(meta))
    routing = Routing(example.loss_tokens_B.to(meta))
    inputs = {key: moved(value) for key, value in example.inputs.items()}
    found = model(**inputs, dropout=dropout, routing=routing, targets=moved(targets))
    loss = found.loss if routing.loss_nats is None else found.loss + routing.loss_nats
    loss.backward()


def prune(cache: Path) -> int:
    """Keep what a cache hit reads, code and metadata; returns the number of kernels."""
    for path in cache.rglob("*"):
        if path.is_file() and path.suffix not in (".cubin", ".json"):
            path.unlink()
    return len(list(cache.rglob("*.cubin")))


def main() -> None:
    """Fill the folder."""
    cache, other = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    from triton.runtime import cache as triton_cache

    key = key_of(other)
    if "--check-key" in sys.argv:
        sys.stdout.write(f"{key_of(Path(triton_cache.__file__).parents[1]) == triton_cache.triton_key()}\n")
        return
    triton_cache.triton_key = lambda: key
    launched = compile_only()
    from reptrain_kernels.implementation import assume
    from reptrain_kernels.operator import Operator

    # Operators without shape functions launch their kernels on tensors without memory too.
    Operator.register_fake = lambda _, function: function
    with assume(impl="triton", capability=CAPABILITY):
        launch_shapes()
        launch_models()
    kernels = prune(cache)
    about = {"prefix": str(cache), "key": hashlib.sha256(key.encode()).hexdigest(), "kernels": kernels}
    (cache / "about.json").write_text(json.dumps(about))
    sys.stdout.write(f"{kernels} kernels of {len(launched)} launches in {cache.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
