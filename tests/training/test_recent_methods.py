"""Every method of docs/guides/newest.md: off by default, resumed with the same bits, rebuilt by the audit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupts import crash, interrupt_at

from reptrain.config import RunConfig
from reptrain.runs import RunFolder
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

Make = Callable[..., RunConfig]
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "newest.md"
SPARSE = ("model.moe={num_experts: 4, top_k: 2, shared_d_ff: 16}",)
SHORT = ("train.total_tokens=0.5epochs", "evaluate.every_fraction=1")


def methods() -> dict[str, tuple[str, ...]]:
    """The settings of each row of the page's table of settings, by the name of the method."""
    found = {}
    for method, shown in re.findall(r"^\| (.+?) \| [^|]+ \| `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE):
        # A start from another model is tested in test_adapted.py.
        if "init_from" not in shown:
            found[method] = (*(SPARSE if "expert" in shown else ()), *shlex.split(shown))
    return found


def losses(folder: Path) -> list[float]:
    return [record.loss_nats for record in RunFolder.open(folder).metrics.records("train")]


@pytest.fixture(scope="module")
def plain(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], list[float]]:
    """Losses of the run without a method, dense or sparse."""
    folder = tmp_path_factory.mktemp("plain")

    def of(sparse: bool) -> list[float]:
        if not (folder / str(sparse)).exists():
            train(tiny(*SHORT, *(SPARSE if sparse else ())), folder / str(sparse))
        return losses(folder / str(sparse))

    return of


@pytest.mark.parametrize("method", methods())
def test_methods_resume_with_the_same_bits(
    method: str,
    plain: Callable[[bool], list[float]],
    tiny: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = (*SHORT, *methods()[method])
    train(tiny(*settings), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5, crash)
        train(tiny(*settings), tmp_path / "run")
    assert train(tiny(*settings), tmp_path / "run").state == "done"
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") != plain(SPARSE[0] in settings)
    report = audit_inputs(tmp_path / "run")
    assert report.exact and report.inputs is not None, report.text()
