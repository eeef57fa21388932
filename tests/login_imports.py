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

# PyArrow imports pandas, if installed, when it converts a list or an array.
import pandas  # noqa: E402
import pyarrow.compute  # noqa: E402
import rich.progress  # noqa: E402
import typer  # noqa: E402

import reptrain.analysis.answer  # noqa: E402
import reptrain.auditing.audit  # noqa: E402
import reptrain.cli.common  # noqa: E402
import reptrain.report  # noqa: E402
import reptrain.sizes  # noqa: E402
import reptrain.store  # noqa: E402
import reptrain.study  # noqa: E402
import reptrain.tables.list_runs  # noqa: E402
import reptrain.tokenization  # noqa: E402

# All forks have the same commands.
reptrain.cli.common.command()

__all__ = ["pandas", "pyarrow", "reptrain", "rich", "typer"]
