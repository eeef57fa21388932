"""What the forks of `forked.login_server` need; torch, DeepSpeed and Triton are blocked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType


class _Block:
    """Refuses to import the packages that a login node lacks."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name.split(".")[0] in ("torch", "deepspeed", "triton"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, _Block())  # type: ignore[arg-type]

import reptrain.cli  # noqa: E402
import reptrain.store  # noqa: E402
import reptrain.tokenization  # noqa: E402

__all__ = ["reptrain"]
