"""Scales of a study: the same study with other sizes, as on a GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from reptrain.config.base import FileName, Frozen, Seed
from reptrain.config.load import extended, validate
from reptrain.config.quantities import parse_count
from reptrain.errors import ConfigError
from reptrain.study.sections import Axes, Key, Settings, Tune, flatten

_AMOUNT = re.compile(r"(?s)(.*?)\s*(tokens|inputs|targets|words|bytes|epochs?)?")
Factor = Annotated[int | float, Field(gt=0, allow_inf_nan=False)]


class Scale(Frozen):
    """The changes of a scale: ``reptrain study run STUDY --scale NAME``.

    In a study file, the key `extends` names a YAML file with these keys, relative to the study file.
    """

    multiply: dict[Key, Factor] = Field(default_factory=dict)
    """Factors by dotted key. The numbers of a key are multiplied wherever the study has them: in its base,
    settings, axes, arms, tuning, and where claims and fits select runs. Numbers of epochs stay."""
    set: Settings = Field(default_factory=dict)
    """Values of dotted keys, added to those of the study's `set`."""
    axes: Axes = Field(default_factory=dict)
    """Axes that replace those of the same key, or are added."""
    arms: dict[FileName, Settings] = Field(default_factory=dict)
    """By name of an arm, values of dotted keys, added to those of the arm's `set`."""
    seeds: list[Seed] = Field(default_factory=list)
    """Seeds that replace those of the study; empty: no change."""
    tune: Tune | None = None
    """Tuning that replaces that of the study; null: no change."""
    without_tuning: bool = False
    """Whether all arms take the settings as they are: `tune` of the study and of its arms is left out."""
    claims: dict[Key, Any] = Field(default_factory=dict)
    """Settings of all claims that replace their own, such as ``{seeds: 2, family: exploratory}``."""


def read_scales(data: Mapping[str, Any], study: Path) -> dict[str, Any]:
    """The section `scales` of a study file, with the files that its scales extend.

    Raises:
        ConfigError: If such a file cannot be read.
    """
    return {
        name: extended(scale, study) if isinstance(scale, Mapping) else scale for name, scale in data.items()
    }


def apply_scale(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The sections of a study with those of a scale applied.

    Raises:
        ConfigError: If there is no such scale, it is wrong, or it names an arm or a key that does not exist.
    """
    scales = data.pop("scales", None) or {}
    if data.get("scale") == name:
        return data
    scale = _chosen(scales, name, data)
    data = _multiplied_study(data, scale.multiply, name)
    scaled: dict[str, Any] = {
        "name": f"{data['name']}-{name}",
        "set": {**data["set"], **scale.set},
        "axes": {**data["axes"], **scale.axes},
        "arms": _scaled_arms(data, scale, name),
        "scale": name,
    }
    # The scale may vary a key that the study sets, and set a key that the study varies.
    scaled["set"] = {key: value for key, value in scaled["set"].items() if key not in scale.axes}
    scaled["axes"] = {key: values for key, values in scaled["axes"].items() if key not in scale.set}
    if scale.seeds:
        scaled["seeds"] = scale.seeds
    if scale.tune is not None:
        scaled["tune"] = scale.tune.model_dump(mode="json")
    if scale.claims:
        scaled["claims"] = [{**claim, **scale.claims} for claim in data.get("claims") or []]
    return _untuned(data | scaled) if scale.without_tuning else data | scaled


def _chosen(scales: Any, name: str, data: Mapping[str, Any]) -> Scale:
    what = f"study {data['name']}, --scale"
    if data.get("scale") is not None:
        raise ConfigError(
            what,
            got=f"{name}, but the study has the scale {data['scale']}",
            rule="must be the scale of the study that ran",
            remedy="Leave it out, or run the original study file.",
        )
    if not isinstance(scales, dict) or name not in scales:
        known = ", ".join(map(str, scales)) if isinstance(scales, dict) else ""
        raise ConfigError(
            what, got=name, rule="must be one of the study's scales", remedy=f"Scales: {known or 'none'}."
        )
    return validate(Scale, scales[name])


def _scaled_arms(data: Mapping[str, Any], scale: Scale, name: str) -> list[Any]:
    arms = [dict(arm) if isinstance(arm, dict) else arm for arm in data.get("arms") or []]
    by_name = {arm.get("name"): arm for arm in arms if isinstance(arm, dict)}
    for arm, settings in scale.arms.items():
        if arm not in by_name:
            raise ConfigError(
                f"study {data['name']}, scales.{name}.arms",
                got=arm,
                rule="must name an arm of the study",
                remedy=f"Arms: {', '.join(map(str, by_name)) or 'none'}.",
            )
        by_name[arm]["set"] = {**flatten(by_name[arm].get("set") or {}), **settings}
    return arms


def _untuned(data: dict[str, Any]) -> dict[str, Any]:
    """A study without its tuning. Its claims no longer name the keys that only the tuning varied."""
    arms = [entry for entry in data["arms"] if isinstance(entry, dict)]
    tuned = {*validate(Tune, data["tune"]).axes} if data.get("tune") else set()
    tuned |= {key for entry in arms for key in flatten(entry.pop("tune", None) or {})}
    tuned -= {*data["axes"], *(key for entry in arms for key in flatten(entry.get("set") or {}))}
    claims = data.get("claims") or []
    for contrast in (claim.get("contrast") for claim in claims if isinstance(claim, dict)):
        if isinstance(contrast, dict) and isinstance(contrast.get("free"), list):
            contrast["free"] = [key for key in contrast["free"] if key not in tuned]
    return data | {"tune": None}


def _multiplied_study(data: dict[str, Any], factors: Mapping[str, float], name: str) -> dict[str, Any]:
    """A study with the numbers of some keys multiplied.

    Raises:
        ConfigError: If a key is nowhere in the study, or has a value that is not a number.
    """
    used = set[str]()
    found: dict[str, Any] = _multiplied_below(data, factors, "", used)
    for key in factors:
        if key not in used:
            raise ConfigError(
                f"study {data['name']}, scales.{name}.multiply",
                got=key,
                rule="must name keys that the study or its base sets",
                remedy="Set it with `set` of the scale, or add it to the base.",
            )
    return found


def _multiplied_below(node: Any, factors: Mapping[str, float], path: str, used: set[str]) -> Any:
    """A part of a study file with the numbers of some keys multiplied.

    >>> _multiplied_below({"arms": [{"set": {"model": {"d_model": 64}}}]}, {"model.d_model": 4}, "", set())
    {'arms': [{'set': {'model': {'d_model': 256}}}]}

    Args:
        node: A mapping, a list or a value.
        factors: By dotted key.
        path: The dotted path of the node in the file; items of a list have that of the list.
        used: Gets the keys that were found.
    """
    if isinstance(node, list):
        return [_multiplied_below(item, factors, path, used) for item in node]
    if not isinstance(node, Mapping):
        return node
    found = {}
    for name, value in node.items():
        here = f"{path}.{name}"
        key = next((key for key in factors if here.endswith(f".{key}")), None)
        if key is None:
            found[name] = _multiplied_below(value, factors, here, used)
        else:
            used.add(key)
            found[name] = _multiplied(value, factors[key], here.removeprefix("."))
    return found


def _multiplied(value: Any, factor: float, path: str) -> Any:
    """A number, or each of a list, times a factor.

    >>> _multiplied(["2**16", 3, 1e-3, "2**10inputs", "16epochs", None], 4, "axes.x")
    [262144, 12, 0.004, '4096inputs', '16epochs', None]

    Raises:
        ConfigError: If a value is not a number.
    """
    if isinstance(value, list):
        return [_multiplied(item, factor, path) for item in value]
    number, unit = _amount(value) if isinstance(value, str) else (value, "")
    if value is None or unit.startswith("epoch"):
        return value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(
            path,
            got=repr(value),
            rule="must be a number to be multiplied",
            remedy="Leave it out of `multiply`.",
        )
    product = number * factor
    if isinstance(number, int) and product == int(product):
        product = int(product)
    return f"{product}{unit}" if unit else product


def _amount(text: str) -> tuple[int | float | None, str]:
    """The number and the unit of ``2**20``, ``1e-3`` or ``16epochs``; None: not a number."""
    found = _AMOUNT.fullmatch(text.strip())
    # The pattern matches any text.
    assert found is not None
    amount, unit = found.groups()
    for parse in (parse_count, float):
        try:
            return parse(amount), unit or ""
        except ValueError:
            continue
    return None, unit or ""
