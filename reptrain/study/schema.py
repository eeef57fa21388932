"""The study file: a question, a base configuration, and what varies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from reptrain.config.base import FileName, Frozen, Seed
from reptrain.config.load import apply_overrides, dump_yaml, read_config, read_yaml, set_dotted, validate
from reptrain.errors import ConfigError, StudyError
from reptrain.files import write_atomically


def flatten(value: Any) -> Any:
    """A nested mapping with dotted keys: ``{"train": {"seed": 1}}`` becomes ``{"train.seed": 1}``.

    An empty mapping stays a value. Other values are returned as they are, for pydantic to check.
    """
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update({f"{key}.{below}": leaf for below, leaf in flatten(item).items()})
        else:
            flat[str(key)] = item
    return flat


_STORE_KEY = re.compile(r"data\.(sources\.[^.]+\.)?store")

Axis = Annotated[list[Any], Field(min_length=1)]


class StudyConfig(Frozen):
    """A grid of runs that answers one question."""

    name: FileName
    """Name of the study; by default the file's name."""
    question: str = ""
    """The question of the study, in one sentence."""
    base: Annotated[dict[str, Any], WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]
    """The configuration that all arms share: a path relative to the study file, or a mapping."""
    set: Annotated[dict[str, Any], BeforeValidator(flatten)] = Field(default_factory=dict)
    """Values of dotted keys that replace the base's in every arm."""
    axes: Annotated[dict[str, Axis], BeforeValidator(flatten)] = Field(default_factory=dict)
    """Dotted keys with a list of values each; the arms are the product of all lists."""
    seeds: list[Seed] = Field(default_factory=list)
    """Values of `seed`: every setting runs once per seed. Empty: the base's seed."""

    @model_validator(mode="after")
    def _one_source_for_each_key(self) -> StudyConfig:
        for key in [*self.set, *self.axes]:
            if key == "seed":
                raise ValueError("seed must not be in set or axes; list the values in seeds")
        for axis in self.axes:
            for key in [*self.set, *(other for other in self.axes if other != axis)]:
                if key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}."):
                    raise ValueError(
                        f"{axis} varies, so {key} must not be set as well; remove one of the two"
                    )
        return self


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file and its base.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts. A key that starts with a field of the study (``name``, ``seeds``,
            ``axes.data.unique_tokens``, ``base.model``...) changes the study. Any other key is set in the
            configuration of every arm.

    Raises:
        ConfigError: If the file or its base cannot be read, or anything in it is wrong.
    """
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    if isinstance(data.get("base"), str):
        data["base"] = read_config(path.parent / data["base"])
    for section in ("set", "axes"):
        data[section] = flatten(data.get(section) or {})
    for text in overrides:
        _override(data, text)
    return validate(StudyConfig, data)


def _override(data: dict[str, Any], text: str) -> None:
    key = text.partition("=")[0]
    section, _, below = key.partition(".")
    if section not in StudyConfig.model_fields:
        section, below, text = "set", key, f"set.{text}"
    if section in ("set", "axes") and below:
        # These sections contain dotted keys, not nested ones.
        leaf = apply_overrides({}, [f"leaf={text.partition('=')[2]}"] if "=" in text else [text])
        data[section] = {**data[section], below: leaf["leaf"]}
    else:
        data.update(apply_overrides(data, [text]))


def demo_study(overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that comes with the package; see `load_study` for the overrides."""
    with as_file(files("reptrain.study") / "demo.yaml") as path:
        return load_study(path, overrides)


def save_study(study: StudyConfig, out: Path) -> None:
    """Write ``out/study.yaml``, from which `open_study` rebuilds the study without its source file."""
    out.mkdir(parents=True, exist_ok=True)
    data = study.model_dump(mode="json")
    # Absolute paths are valid in any working directory. Axes stay, since the arms are named after them.
    data["set"] = {
        key: _absolute(value) if _STORE_KEY.fullmatch(key) else value for key, value in data["set"].items()
    }
    flat = flatten(data["base"])
    for key, value in flat.items():
        if _STORE_KEY.fullmatch(key):
            set_dotted(data["base"], key, _absolute(value))
    write_atomically(out / "study.yaml", dump_yaml(data))


def _absolute(store: Any) -> Any:
    return str(Path(store).absolute()) if isinstance(store, str) else store


def open_study(out: Path) -> StudyConfig:
    """The study that was run in this folder.

    Raises:
        StudyError: If the folder holds no study.
    """
    try:
        return load_study(out / "study.yaml")
    except ConfigError as error:
        raise StudyError(
            f"study folder {out}",
            got=error.got,
            rule="must hold a readable study.yaml",
            remedy="`reptrain study run STUDY` creates one.",
        ) from error
