"""Run a short set of tests with the oldest and the newest versions that setup.cfg allows.

Each set of versions gets an environment of its own below .versions/, with what reptrain requires and pytest.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "deepspeed", "triton", "numpy", "pyarrow", "pydantic", "tokenizers")
FOR_TESTS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "psutil>=5.9", "pandas>=2.2")
# Something of each kind: settings, stores, plans, models, training with resume, kernels, audits, commands.
SHORT_SET = (
    "tests/config",
    "tests/plan",
    "tests/store",
    "tests/model/test_decoder.py",
    "tests/batch/test_objectives.py",
    "tests/training/test_train.py",
    "tests/training/test_optimizers.py",
    "tests/kernels/test_norm.py",
    "tests/auditing/test_audit.py",
    "tests/test_cli.py",
)


def floors() -> list[str]:
    """The oldest version of each required package, as pip's constraints."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    found = [re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", line) for line in lines if line]
    return [f"{match[1]}=={match[2]}" for match in found if match]


def install(folder: Path, python: str, constraints: list[str]) -> Path:
    """Make an environment; returns its Python."""
    done = folder / ".done"
    own = folder / "bin" / "python"
    if done.exists():
        return own
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    listed = folder / "constraints.txt"
    listed.write_text("".join(f"{line}\n" for line in constraints))
    pip = [str(own), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-c", str(listed), "-e", str(ROOT), *FOR_TESTS], check=True)
    done.touch()
    return own


def versions(python: Path) -> str:
    """What is installed, in one line."""
    code = (
        "import importlib.metadata as m, platform\n"
        "print('Python', platform.python_version(), end='')\n"
        f"for name in {SHOWN}:\n"
        "    print(',', name, m.version(name), end='')\n"
    )
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Try one set of versions; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["oldest", "newest"])
    parser.add_argument("--python", default=sys.executable, help="interpreter (default: %(default)s)")
    parser.add_argument("tests", nargs="*", default=SHORT_SET, help="instead of the short set")
    chosen = parser.parse_intermixed_args()
    constraints = floors() if chosen.which == "oldest" else []
    python = install(ROOT / ".versions" / chosen.which, chosen.python, constraints)
    print(f"== {chosen.which}: {versions(python)}", flush=True)
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *chosen.tests]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
