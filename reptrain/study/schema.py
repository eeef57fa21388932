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
    """Nested mappings as one of dotted keys: ``{"train": {"seed": 1}}`` becomes ``{"train.seed": 1}``.

    An empty mapping stays a value. What is no mapping is handed back for pydantic to judge.
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
    """Title of the study; by default the file's name."""
    question: str = ""
    """What the study asks, in one sentence."""
    base: Annotated[dict[str, Any], WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]
    """The configuration that all arms share: in the file a path relative to it, or the mapping itself."""
    set: Annotated[dict[str, Any], BeforeValidator(flatten)] = Field(default_factory=dict)
    """Dotted keys that differ from the base in every arm."""
    axes: Annotated[dict[str, Axis], BeforeValidator(flatten)] = Field(default_factory=dict)
    """Dotted keys and the values that each takes; the arms are their product."""
    seeds: list[Seed] = Field(default_factory=list)
    """Values of `seed`, each a further run of every arm; empty keeps the base's."""

    @model_validator(mode="after")
    def _one_source_for_each_key(self) -> StudyConfig:
        for key in [*self.set, *self.axes]:
            if key == "seed":
                raise ValueError("seed must not stand in set or axes; list the values under seeds")
        for axis in self.axes:
            for key in [*self.set, *(other for other in self.axes if other != axis)]:
                if key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}."):
                    raise ValueError(
                        f"{axis} varies, so {key} must not be set as well; remove one of the two"
                    )
        return self


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file, with its base read in.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts. A key that begins with a field of the study (``name``, ``seeds``,
            ``axes.data.unique_tokens``, ``base.model``...) changes the study; any other is a key of the
            run's configuration and is set in every arm.

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
        # These sections hold dotted keys as they are, not nested.
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
    # Absolute, so that the study can be opened from any working directory. Axes stay: they name the arms.
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
            remedy="`reptrain study run STUDY` makes such a folder.",
        ) from error
