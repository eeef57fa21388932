"""Errors of a configuration that does not validate: the dotted key, the rule, and the key that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Tag

from reptrain.errors import ConfigError

# Pydantic's errors for a value that is not a mapping.
_NO_MAPPING = {"model_type", "model_attributes_type", "dict_type", "dataclass_type"}
_MOST_SUGGESTED = 3
# Names of keys in other trainers.
_NAMES_ELSEWHERE = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "batch_size": "batch_windows",
    "batch": "batch_windows",
    "global_batch_size": "batch_windows",
    "micro_batch_size": "micro_batch_windows",
    "epochs": "total_tokens",
    "num_epochs": "total_tokens",
    "max_tokens": "total_tokens",
    "seq_len": "window_tokens",
    "seq_length": "window_tokens",
    "block_size": "window_tokens",
    "context_length": "window_tokens",
    "hidden_size": "d_model",
    "n_embd": "d_model",
    "n_layer": "num_layers",
    "n_layers": "num_layers",
    "num_hidden_layers": "num_layers",
    "n_head": "num_heads",
    "num_attention_heads": "num_heads",
    "dtype": "precision",
    "warmup": "warmup_fraction",
}


def validation_error(model: type[BaseModel], detail: Mapping[str, Any]) -> ConfigError:
    """The error for a user.

    Args:
        model: The configuration that was validated.
        detail: An entry of `ValidationError.errors`.
    """
    path, parents = _resolve(model, [str(part) for part in detail["loc"]])
    key = ".".join(path) or "config"
    got = detail["input"]
    if detail["type"] == "extra_forbidden":
        remedy = _suggest(model, path, parents)
        return ConfigError(key, got=repr(path[-1]), rule="must be a known key", remedy=remedy)
    if detail["type"] == "missing":
        return ConfigError(
            key, got="nothing", rule="must be set", remedy=f"Add it to the file or pass {key}=VALUE."
        )
    if detail["type"] == "union_tag_not_found":
        return ConfigError(
            f"{key}.name", got="nothing", rule="must be set", remedy="See `reptrain config schema` for names."
        )
    if detail["type"] == "union_tag_invalid":
        tag = "family" if key == "model" else "name"
        return ConfigError(
            f"{key}.{tag}",
            got=repr(detail["ctx"]["tag"]),
            rule=f"must be one of {detail['ctx']['expected_tags']}",
            remedy="`reptrain config schema` lists the keys of each.",
        )
    if detail["type"] == "string_type" and isinstance(got, bool | int | float):
        # The text may differ from the value: 1.10 is read as 1.1, and 0x1F as 31.
        on_command_line = "" if key.endswith("[key]") else f"; on a command line: '{key}=\"...\"'"
        remedy = f"Quote it as it is written{on_command_line}."
        return ConfigError(key, got=_yaml(got), rule="must be a string", remedy=remedy)
    remedy = "See `reptrain config schema` for what is allowed."
    if detail["type"] in _NO_MAPPING and got is None:
        remedy = "Remove the key, or add settings below it."
    return ConfigError(key, got=shown_value(got), rule=violated_rule(detail), remedy=remedy)


def violated_rule(detail: Mapping[str, Any]) -> str:
    """The rule that a value violates, in plain words.

    Args:
        detail: An entry of `ValidationError.errors`.
    """
    if detail["type"] in _NO_MAPPING:
        return "must be a mapping of settings"
    for name, words in (("lt", "less than"), ("le", "less than or equal to")):
        # Pydantic prints a large bound as a rounded float.
        if isinstance(bound := detail.get("ctx", {}).get(name), int):
            return f"must be {words} {bound}"
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"must have at least {least} item{'s' * (least > 1)}"
    if detail["type"] == "string_type":
        return "must be a string"
    message: str = detail["msg"].removeprefix("Value error, ")
    message = message.replace(" should ", " must ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def shown_value(got: Any) -> str | None:
    """The wrong value; None for a mapping, whose rule names the values that disagree."""
    if isinstance(got, Mapping):
        return None
    return _yaml(got) if got is None or isinstance(got, bool) else repr(got)


def _yaml(value: bool | int | float | None) -> str:
    return "null" if value is None else str(value).lower()


def _suggest(model: type[BaseModel], path: list[str], parents: list[type[BaseModel]]) -> str:
    """A suggestion for an unknown key: a key of the same name elsewhere, or one with a similar spelling."""
    *above, leaf = path
    beside = sorted({name for parent in parents for name in parent.model_fields})
    keys = sorted(dict.fromkeys(dotted_keys(model)), key=lambda key: key.count("."))
    if ".".join(path) in keys:
        # A key of another member of a union, such as another objective.
        kind = "family" if above == ["model"] else "name"
        section = ".".join(above)
        return (
            f"It belongs to another {section}.{kind}. Known keys: {', '.join(beside)}."
            f" To replace the section of a file, give it whole: {section}='{{{kind}: ...}}'."
        )
    wanted = _NAMES_ELSEWHERE.get(leaf, leaf)
    found = [key for key in keys if key.rpartition(".")[2] == wanted][:_MOST_SUGGESTED]
    if not found:
        here = {name: ".".join([*above, name]) for name in beside}
        elsewhere = {key.rpartition(".")[2]: key for key in reversed(keys)}
        for named, cutoff in ((here, 0.75), (elsewhere, 0.75), (here, 0.5)):
            if near := difflib.get_close_matches(leaf, named, n=1, cutoff=cutoff):
                found = [named[near[0]]]
                break
    if wanted == "total_tokens" and "epochs" in leaf:
        found = [f"{key}=4epochs" for key in found]
    return f"Did you mean {' or '.join(found)}?" if found else f"Known keys: {', '.join(beside)}."


def dotted_keys(model: type[BaseModel]) -> Iterator[str]:
    """Every dotted key in the schema of a configuration; entries of a mapping of models are NAME."""
    for name, field in model.model_fields.items():
        if any(type(extra).__name__ == "SkipJsonSchema" for extra in field.metadata):
            continue
        yield name
        is_mapping = get_origin(field.annotation) is dict
        for _, below in _models_in(field.annotation):
            yield from (f"{name}{'.NAME' * is_mapping}.{key}" for key in dotted_keys(below))


def _resolve(model: type[BaseModel], location: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The dotted key behind pydantic's location of an error, and the models that may hold its last part.

    ["model", "t5", "d_modl"]  ->  ["model", "d_modl"], [T5Config]: the tag of a union is no key.
    """
    path: list[str] = []
    parents, choices = [model], list[Any]([])
    for place, part in enumerate(location):
        tagged = [kind for tag, kind in choices if tag == part]
        if tagged:
            parents, choices = tagged, []
            continue
        path.append(part)
        if place + 1 == len(location):
            break
        fields = [parent.model_fields[part] for parent in parents if part in parent.model_fields]
        # A part that is no field names an entry of a mapping, whose values the parents already are.
        if fields:
            choices = [choice for field in fields for choice in _models_in(field.annotation)]
            parents = [kind for _, kind in choices]
            choices = [(tag, kind) for tag, kind in choices if tag is not None]
    return path, parents


def _models_in(annotation: Any) -> Iterator[tuple[str | None, type[BaseModel]]]:
    """The models within an annotation, each with its tag where it is a choice of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield None, annotation
        return
    tags = [extra.tag for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Tag)]
    for part in get_args(annotation):
        for tag, kind in _models_in(part):
            yield (tags[0] if tags else tag), kind
