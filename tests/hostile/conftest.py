"""One of each kind of folder that commands read, made once; a test changes a file and puts it back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reptrain.config import RunConfig
from reptrain.hub.export import export_model
from reptrain.study.schema import load_study, save_study
from reptrain.training.loop import train


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """See there."""


@pytest.fixture(scope="session")
def folders(
    tiny: Callable[..., RunConfig], store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with `store`, `run`, `model` (of Hugging Face) and `study`."""
    place = tmp_path_factory.mktemp("hostile")
    shutil.copytree(store_path, place / "store")
    train(tiny(f"data.store={place / 'store'}", "train.total_tokens=1000", "average={}"), place / "run")
    export_model(place / "run", place / "model")
    (place / "study.yaml").write_text(
        "base:\n  data: {store: nowhere}\nset: {train: {batch_windows: 4}}\n"
        "axes: {optimizer.lr: [0.1, 0.2]}\nseeds: [1, 2]\nquestion: why\n"
    )
    save_study(load_study(place / "study.yaml"), place / "study")
    yield place
