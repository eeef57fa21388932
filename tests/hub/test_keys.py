"""Keys of config.json: our tables are those of transformers' config classes, and what we lack is refused."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed: no tables")

import transformers
from their_models import LLAMA, make, save
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from reptrain.errors import HubError
from reptrain.hub import ModelFolder
from reptrain.hub.architecture import Architecture
from reptrain.hub.folder import ARCHITECTURES
from reptrain.hub.keys import REQUIRED

KINDS = {architecture.model_type: architecture for architecture in ARCHITECTURES}
MADE = {"t5": "t5-1.1", "switch_transformers": "switch"}
# Methods, and what the library sets for itself.
_NOT_KEYS = {"get_text_config", "to_dict", "is_causal", "pretraining_tp", "use_return_dict"}


def defaults_of(model_type: str) -> dict[str, Any]:
    """What transformers takes for each key that is missing."""
    found = {}
    for field in fields(CONFIG_MAPPING[model_type]):
        factory = field.default_factory
        found[field.name] = field.default if factory is MISSING else factory()
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Architecture:
    return KINDS[request.param]


def test_tables_have_the_defaults_of_transformers(kind: Architecture) -> None:
    theirs, keys = defaults_of(kind.model_type), kind.keys
    unknown = sorted(name for name in theirs if not keys.has(name) and name not in keys.aliases)
    assert not unknown
    ours = {**keys.read, **keys.fixed}
    # Of T5 transformers takes tie_word_embeddings apart before it is a field.
    differing = {
        name: (ours[name], value)
        for name, value in theirs.items()
        if name in ours and ours[name] is not REQUIRED and ours[name] != value
    }
    assert {name for name in differing if name != "tie_word_embeddings"} == set()
    assert "tie_word_embeddings" not in differing or "t5" in kind.model_type
    assert kind.keys.aliases == CONFIG_MAPPING[kind.model_type].attribute_map or kind.model_type == "mt5"


def test_tables_have_all_that_the_modelling_code_reads(kind: Architecture) -> None:
    """An attribute of the config that is no field of its class may still change the function."""
    config = CONFIG_MAPPING[kind.model_type]
    module = inspect.getmodule(transformers.AutoModel._model_mapping[config])
    assert module is not None
    source = inspect.getsource(module)
    read = set(re.findall(r"\bconfig\.([a-z]\w*)\b(?!\()", source))
    read |= set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source))
    assert len(read) > 10
    assert (
        sorted(name for name in read - _NOT_KEYS - kind.keys.aliases.keys() if not kind.keys.has(name)) == []
    )


CHANGED = [(kind, name) for kind, architecture in KINDS.items() for name in architecture.keys.fixed]


@pytest.mark.parametrize(("model_type", "name"), CHANGED)
def test_another_value_of_a_fixed_key_is_refused(model_type: str, name: str) -> None:
    keys = KINDS[model_type].keys
    value = keys.fixed[name]
    other = not value if isinstance(value, bool) else 7 if isinstance(value, int) else "other"
    with pytest.raises(HubError, match=rf"^{name} in config.json: must be"):
        keys.complete({name: other})
    assert keys.complete({name: value})[name] == value


def test_unknown_keys_are_refused_unless_they_are_off(kind: Architecture) -> None:
    for value in (True, 3, "yes", {"bits": 4}, [1]):
        with pytest.raises(HubError, match=r"^quantization_config in config\.json: must not be set"):
            kind.keys.complete({"quantization_config": value})
    off = {"quantization_config": None, "use_mrope": False, "pruned_heads": {}}
    assert kind.keys.complete({**off, "_name_or_path": "x"}).items() >= off.items()


def test_aliases_are_taken_and_may_not_disagree(kind: Architecture) -> None:
    for alias, name in kind.keys.aliases.items():
        assert kind.keys.complete({alias: 5})[name] == 5
        with pytest.raises(HubError, match=f"{alias} in config.json: must be {name}, 6"):
            kind.keys.complete({alias: 5, name: 6})


def test_folders_that_transformers_writes_are_known(kind: Architecture, tmp_path: Path) -> None:
    save(make(MADE.get(kind.model_type, kind.model_type)), tmp_path)
    assert ModelFolder.open(tmp_path).architecture is kind


@pytest.mark.parametrize(
    ("model_type", "missing", "setting", "value"),
    [
        ("mistral", "sliding_window", "sliding_window", 4096),
        ("mistral", "num_key_value_heads", "num_kv_heads", 8),
        ("mixtral", "rms_norm_eps", "norm_eps", 1e-5),
        ("mixtral", "rope_parameters", "rope_theta", 1e6),
        ("llama", "rope_parameters", "rope_theta", 1e4),
        ("llama", "num_key_value_heads", "num_kv_heads", 16),
    ],
)
def test_missing_keys_mean_what_they_mean_in_transformers(
    model_type: str, missing: str, setting: str, value: Any
) -> None:
    given = LLAMA | {"num_attention_heads": 16, "hidden_size": 64, "num_local_experts": 4}
    given.pop(missing, None)
    architecture = KINDS[model_type]
    if model_type != "mixtral":
        given.pop("num_local_experts")
    assert getattr(architecture.read(architecture.keys.complete(given)), setting) == value
