"""From YAML and dotted overrides to a validated, frozen configuration."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from reptrain.config.limits import LimitError, check_limits
from reptrain.config.scalars import AmbiguousError, PlainDumper, PlainLoader, find_bool_as_number
from reptrain.config.schema import RunConfig
from reptrain.errors import ConfigError, shorten
from reptrain.files import read_small
from reptrain.reading import ReadError, decode, json_type

_MOST_FILES, _MOST_KEY_PARTS = 20, 20
# Pydantic's errors for a value that is not a mapping.
_NO_MAPPING = {"model_type", "model_attributes_type", "dict_type", "dataclass_type"}
Model = TypeVar("Model", bound=BaseModel)

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


class _UniqueKeyLoader(PlainLoader):
    """Refuses duplicate keys, of which YAML would keep the last, and malformed values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "a merge key (<<): write the settings out, or use extends",
                    key_node.start_mark,
                )
            key = self.construct_object(key_node, deep=True)
            # Unhashable keys are refused below.
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {shorten(repr(key), 80)}", key_node.start_mark
                )
            seen |= {key} if isinstance(key, Hashable) else set()
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # The constructors of numbers and dates do not check their text.
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value that is not of type {shorten(kind, 80)}", node.start_mark
            ) from error
        if isinstance(value, str) and "\0" in value:
            raise yaml.constructor.ConstructorError(
                None, None, "a text with the character NUL", node.start_mark
            )
        return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, with scalars as in `reptrain.config.scalars`.

    Raises:
        yaml.YAMLError: If it is not YAML, has a duplicate or a merge key, or exceeds `check_limits`.
    """
    try:
        check_limits(text)
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except UnicodeEncodeError as error:
        raise yaml.YAMLError("half of a surrogate pair, which is no character") from error


def _broken_rule(error: yaml.YAMLError) -> str:
    """The rule that a text violates, from the error of `parse_yaml`."""
    if isinstance(error, AmbiguousError):
        return "must have only values that YAML 1.1 and 1.2 read alike"
    if isinstance(error, LimitError):
        return "must be within the size limits of settings"
    if isinstance(error, yaml.constructor.ConstructorError):
        return "must have unique keys and supported values"
    return "must be valid YAML"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        data = parse_yaml(decode(read_small(path)))
    except OSError as error:
        raise ConfigError(
            f"config {path}",
            got=error.strerror or error,
            rule="must be a readable file",
            remedy="Check the path.",
        ) from error
    except ReadError as error:
        raise ConfigError(f"config {path}", got=error.got, rule=error.rule, remedy=error.remedy) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(
            f"config {path}",
            got=reason,
            rule=_broken_rule(error),
            remedy="Fix the YAML at the location above.",
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"config {path}",
            got="nothing" if data is None else json_type(data),
            rule="must hold a mapping of settings",
            remedy="See configs/tiny/ for examples.",
        )
    return data


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, merged over that of the file in its key ``extends``.

    Sections are merged key by key; any other value is replaced.

    Raises:
        ConfigError: If a file cannot be read, or they extend each other in a circle.
    """
    return _read_over(path, ())


def _read_over(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    place = path.resolve()
    if len(above) == _MOST_FILES:
        raise ConfigError(
            f"extends of {above[-1]}",
            got=f"{_MOST_FILES + 1} files",
            rule=f"must chain at most {_MOST_FILES} files",
            remedy="Copy the settings into one file.",
        )
    if place in above:
        raise ConfigError(
            f"extends of {above[-1]}",
            got=str(path),
            rule="must not be circular",
            remedy="Remove extends from one of the files.",
        )
    data = read_yaml(path)
    below = data.pop("extends", None)
    if below is None:
        return data
    if not isinstance(below, str):
        raise ConfigError(
            f"extends of {path}",
            got=repr(below),
            rule="must be the path of a YAML file",
            remedy="The path is relative to the file that extends.",
        )
    return _merge(_read_over(path.parent / below, (*above, place)), data)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """
    >>> _merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": None})
    {'a': {'b': 4, 'c': 2}, 'd': None}
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[key] = value
    return merged


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``data`` with ``dotted.key=value`` texts applied; values are read as YAML.

    Raises:
        ConfigError: If a text has no ``=``, or its key leads through a value that is no mapping.
    """
    result = dict(data)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not all(key.split(".")) or key.count(".") >= _MOST_KEY_PARTS:
            raise ConfigError(
                "override",
                got=repr(text),
                rule="must be written key=value",
                remedy="For example train.total_tokens=2**20.",
            )
        try:
            parsed = parse_yaml(value)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None)
            raise ConfigError(
                f"override {key}",
                got=f"{value!r} ({reason})" if reason else repr(value),
                rule=_broken_rule(error),
                remedy="Quote strings, also for the shell: 'key=\"no\"'.",
            ) from error
        set_dotted(result, key, parsed)
    return result


def set_dotted(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``data["a"]["b"]`` for the key ``a.b``, and copy every mapping on the path.

    Raises:
        ConfigError: If the key leads through a value that is no mapping.
    """
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        child = node.get(parent)
        if child is not None and not isinstance(child, Mapping):
            raise ConfigError(
                key,
                got=f"{parent}={child!r}",
                rule="must be a key in a section, not in a value",
                remedy="See `reptrain config show`.",
            )
        node[parent] = dict(child or {})
        node = node[parent]
    node[leaf] = value


def validate(model: type[Model], data: Mapping[str, Any]) -> Model:
    """``data`` as ``model``, or its first problem as one clear error.

    Raises:
        ConfigError: Naming the dotted key, the value got, the rule and the remedy.
    """
    try:
        found = model.model_validate(dict(data))
    except ValidationError as error:
        # An unknown key is often the cause of a "missing" one: report it first.
        details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        raise _explain(model, dict(details[0])) from error
    if (place := find_bool_as_number(data, found)) is not None:
        raise ConfigError(
            ".".join(place), got="true or false", rule="must be a number", remedy="Write the number."
        )
    return found


def _explain(model: type[BaseModel], detail: dict[str, Any]) -> ConfigError:
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
        return f"It belongs to another {'.'.join(above)}.{kind}. Known keys: {', '.join(beside)}."
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


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply overrides and validate. The name defaults to the file's.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    data = apply_overrides(read_config(path), overrides)
    if data.get("name") is None:
        data["name"] = path.stem
    return validate(RunConfig, data)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML text that keeps the order of the keys."""
    return yaml.dump(dict(data), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
