"""From YAML and dotted overrides to a validated, frozen configuration."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reptrain.config.explain import validation_error
from reptrain.config.limits import LimitError, check_limits
from reptrain.config.scalars import AmbiguousError, PlainDumper, PlainLoader, find_bool_as_number
from reptrain.config.schema import RunConfig
from reptrain.errors import ConfigError, shorten
from reptrain.files import read_small
from reptrain.reading import ReadError, decode, json_type

_MOST_FILES, _MOST_KEY_PARTS = 20, 20
Model = TypeVar("Model", bound=BaseModel)


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


def extended(data: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Settings merged over those of the YAML file in their key ``extends``, as in `read_config`.

    Args:
        data: The settings.
        file: Where they come from; the path in ``extends`` is relative to it.

    Raises:
        ConfigError: If a file cannot be read, or they extend each other in a circle.
    """
    return _over_extended(dict(data), file, ())


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
    return _over_extended(read_yaml(path), path, (*above, place))


def _over_extended(data: dict[str, Any], file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    below = data.pop("extends", None)
    if below is None:
        return data
    if not isinstance(below, str):
        raise ConfigError(
            f"extends of {file}",
            got=repr(below),
            rule="must be the path of a YAML file",
            remedy="The path is relative to the file that extends.",
        )
    return _merge(_read_over(file.parent / below, above), data)


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
        raise validation_error(model, details[0]) from error
    if (place := find_bool_as_number(data, found)) is not None:
        raise ConfigError(
            ".".join(place), got="true or false", rule="must be a number", remedy="Write the number."
        )
    return found


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate the configuration of a run.

    Args:
        path: The YAML file; its name without suffix is the default of the key `name`.
        overrides: ``key=value`` texts with dotted keys, such as ``train.total_tokens=64epochs``.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, or a value is invalid.
    """
    data = apply_overrides(read_config(path), overrides)
    if data.get("name") is None:
        data["name"] = path.stem
    return validate(RunConfig, data)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML text that keeps the order of the keys."""
    return yaml.dump(dict(data), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
