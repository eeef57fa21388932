"""Every file of configs/models against the published total, counted and built."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from reptrain.config.model import DecoderConfig
from reptrain.model import Decoder, EncoderDecoder
from reptrain.sizes import load_subject

FOLDER = Path(__file__).parents[2] / "configs" / "models"

EXACT = {
    "t5-1.0-small": 60_506_624,
    "t5-1.0-base": 222_903_552,
    "t5-1.0-large": 737_668_096,
    "t5-1.0-3b": 2_851_598_336,
    "t5-1.0-11b": 11_307_321_344,
    "t5-1.1-small": 76_961_152,
    "t5-1.1-base": 247_577_856,
    "t5-1.1-large": 783_150_080,
    "t5-1.1-xl": 2_849_757_184,
    "t5-1.1-xxl": 11_135_332_352,
    "moe-base": 700_636_416,
    "moe-large": 2_444_291_072,
    "switch-base-8": 619_339_008,
    "switch-base-16": 1_072_397_568,
    "switch-base-32": 1_978_514_688,
    "switch-base-64": 3_790_748_928,
    "switch-base-128": 7_415_217_408,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "mixtral-8x7b": 46_702_792_704,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
    "vit-h-14": 632_045_800,
    # The published total plus the gains of the norms, one of each layer and the last.
    "palm-8b": 8_631_877_632 + 33 * 4096,
    "palm-62b": 62_495_129_600 + 65 * 8192,
    "palm-540b": 540_354_281_472 + 119 * 18_432,
}
# As printed in the papers, in billions.
ROUNDED = {
    "gpt3-125m": "0.125",
    "gpt3-350m": "0.35",
    "gpt3-760m": "0.76",
    "gpt3-1.3b": "1.3",
    "gpt3-2.7b": "2.7",
    "gpt3-6.7b": "6.7",
    "gpt3-13b": "13",
    "gpt3-175b": "175",
    "galactica-125m": "0.125",
    "galactica-1.3b": "1.3",
    "galactica-6.7b": "6.7",
    "galactica-30b": "30",
    "galactica-120b": "120",
    "muennighoff-146m": "0.146",
    "muennighoff-1b1": "1.1",
    "muennighoff-2b8": "2.8",
    "muennighoff-4b2": "4.2",
    "muennighoff-8b7": "8.67",
    "gopher": "280",
    "chinchilla": "70",
}


def test_every_preset_is_in_the_table_of_sources() -> None:
    page = (FOLDER.parents[1] / "docs" / "guides" / "sizes.md").read_text()
    table = page.split("### Presets and their sources")[1].split("\n##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    patterns = [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]
    presets = {path.stem for path in FOLDER.glob("*.yaml")}
    uncovered = {name for name in presets if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert not uncovered
    assert all(any(fnmatch(name, pattern) for name in presets) for pattern in patterns)


def test_the_table_of_totals_has_every_preset_as_it_is_counted() -> None:
    page = (FOLDER.parents[1] / "docs" / "guides" / "sizes.md").read_text()
    table = page.split("### Totals")[1].split("\n##")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \|.*\| ([0-9,]+) \|$", table, re.MULTILINE))
    counted = {file.stem: f"{load_subject(file).parameters.total:,}" for file in FOLDER.glob("*.yaml")}
    assert rows == counted


TRAINED = [name for name in [*EXACT, *ROUNDED] if not name.startswith("vit")]


def path(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def test_every_published_shape_is_held_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {*EXACT, *ROUNDED}


@pytest.mark.parametrize("name", EXACT)
def test_published_shape_has_the_published_total(name: str) -> None:
    assert load_subject(path(name)).parameters.total == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_published_shape_has_the_printed_total(name: str) -> None:
    total = load_subject(path(name)).parameters.total / 1e9
    assert total == pytest.approx(float(ROUNDED[name]), rel=0.03)


@pytest.mark.parametrize("name", TRAINED)
def test_published_shape_is_built_with_its_total(name: str) -> None:
    subject = load_subject(path(name))
    kind = Decoder if isinstance(subject.model, DecoderConfig) else EncoderDecoder
    with torch.device("meta"):
        model = kind(subject.model, vocab_size=subject.vocab_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == subject.parameters.total


def test_mixtral_has_the_published_active_parameters() -> None:
    assert load_subject(path("mixtral-8x7b")).parameters.active == pytest.approx(13e9, rel=0.01)


def test_moe_base_costs_what_the_paper_says_of_t5_large() -> None:
    moe, dense = (load_subject(path(name)) for name in ("moe-base", "t5-1.1-large"))
    assert moe.shape == dense.shape == (512, 114)
    assert moe.forward.total / dense.forward.total == pytest.approx(0.363, abs=5e-4)
    assert moe.parameters.active / dense.parameters.total == pytest.approx(0.389, abs=5e-4)
