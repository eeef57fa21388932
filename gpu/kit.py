"""Builds .gpu/, the files that a machine with one GPU and no internet needs besides this repository.

wheels/        packages that the machine lacks, for its Python and without compiled CUDA parts
triton-cache/  the kernels compiled for sm_90 under the key of its Triton
store/         a small token store
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from goldens import build_store
from rows import KIT, ROOT

PYTHON = "3.12"
TRITON = "3.6.0"
# The machine has torch 2.11, transformers 5.17, numpy, pyarrow, tokenizers, sentencepiece, pytest and more.
WHEELS = [
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "platformdirs", "rensa", "hjson",
    "liger_kernel", "annotated_doc",
]  # fmt: skip
PLATFORMS = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
]
LIMIT_BYTES = 60 * 2**20


def _pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("-", "_"): version for name, version in pairs}


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=os.environ | environment)


def wheels(folder: Path) -> None:
    """Download the wheels, and build DeepSpeed's, which has none on the index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pinned = _pinned()
    wanted = [f"{name}=={pinned[name]}" if name in pinned else name for name in WHEELS]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp",
         *platforms, "-d", str(folder), *wanted)  # fmt: skip
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder),
         f"deepspeed=={pinned['deepspeed']}", DS_BUILD_OPS="0")  # fmt: skip


def cache(folder: Path, triton: Path) -> None:
    """Compile for sm_90 with Triton of the machine's version, under its key.

    Args:
        folder: The cache to fill.
        triton: Where this version of Triton is installed for the Python that runs here.
    """
    shutil.rmtree(folder, ignore_errors=True)
    other = ROOT / ".triton" / f"{TRITON}-cp{PYTHON.replace('.', '')}"
    if not other.exists():
        downloaded = ROOT / ".triton" / "wheels"
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation",
             "cp", *platforms, "-d", str(downloaded), f"triton=={TRITON}")  # fmt: skip
        wheel = next(downloaded.glob(f"triton-{TRITON}-cp{PYTHON.replace('.', '')}-*.whl"))
        shutil.unpack_archive(wheel, other, "zip")
    command = [sys.executable, str(ROOT / "gpu" / "fill_cache.py"), str(folder), str(other / "triton")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(triton)})


def main() -> None:
    """Build all parts, or the named ones."""
    parser = argparse.ArgumentParser(description="Build the GPU kit.")
    parser.add_argument("--triton", type=Path, default=ROOT / ".triton" / TRITON)
    parser.add_argument("parts", nargs="*", default=["store", "wheels", "cache"])
    asked = parser.parse_args()
    if "store" in asked.parts:
        shutil.rmtree(KIT / "store", ignore_errors=True)
        build_store(KIT)
    if "wheels" in asked.parts:
        wheels(KIT / "wheels")
    if "cache" in asked.parts:
        cache(KIT / "triton-cache", asked.triton)
    size = sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file())
    sys.stdout.write(f"{KIT.name}: {size / 2**20:.1f} MiB\n")
    if size > LIMIT_BYTES:
        sys.exit(f"error: {KIT.name} must stay below {LIMIT_BYTES / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
