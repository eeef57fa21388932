"""Copies the kit's Triton cache to TRITON_CACHE_DIR, and reports whether this machine's Triton can use it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from rows import KIT, add


def main() -> None:
    """Copy the cache. Its group files contain absolute paths, which are replaced."""
    source, target = KIT / "triton-cache", Path(os.environ["TRITON_CACHE_DIR"])
    if not (source / "about.json").exists():
        add("cache", "none in the kit")
        return
    about = json.loads((source / "about.json").read_text())
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in target.rglob("__grp__*.json"):
        path.write_text(path.read_text().replace(about["prefix"], str(target)))
    import triton
    from triton.runtime.cache import triton_key

    same = hashlib.sha256(triton_key().encode()).hexdigest() == about["key"]
    add("cache", "Triton", version=triton.__version__, kernels=about["kernels"], can_be_used=same)


if __name__ == "__main__":
    main()
