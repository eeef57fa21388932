"""A wheel installs and runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import reptrain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this checkout was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name.startswith(
            ("reptrain/", "kernels/reptrain_kernels/", "launcher/reptrain_launcher/")
        ) or name in (
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=240)
    (wheel,) = folder.glob("reptrain-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "reptrain", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=240
    ).stdout


def test_wheel_has_every_package_and_data_file(installed: Path) -> None:
    for package in ("reptrain", "reptrain_kernels", "reptrain_launcher"):
        roots = {
            "reptrain": ROOT,
            "reptrain_kernels": ROOT / "kernels",
            "reptrain_launcher": ROOT / "launcher",
        }
        source = {path.relative_to(roots[package]) for path in (roots[package] / package).rglob("*.py")}
        packed = {path.relative_to(installed) for path in (installed / package).rglob("*.py")}
        assert packed == source


def test_wheel_runs_the_demo_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    store = tmp_path / "demo" / "store"
    run(
        installed,
        "demo",
        "--store-only",
        "--quick",
        "--out",
        str(store.parent),
        cwd=tmp_path,
    )
    assert (store / "manifest.json").exists()


def test_citation_has_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == reptrain.__version__
