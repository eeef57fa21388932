"""The study file: a question, a base configuration, and what varies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from reptrain.analysis.questions import Claim, FitQuestion
from reptrain.config.base import FileName, Frozen, Seed
from reptrain.config.load import apply_overrides, dump_yaml, read_config, read_yaml, set_dotted, validate
from reptrain.errors import ConfigError, StudyError
from reptrain.files import write_atomically
from reptrain.study.scales import Scale, apply_scale, read_scales
from reptrain.study.sections import (
    ArmEntry,
    Axes,
    Constraint,
    SeedChanges,
    Settings,
    Then,
    Tune,
    check_points,
    flatten,
)

STUDY_FILE = "study.yaml"
"""The study file in the folder in which the study ran."""
_STORE_KEY = re.compile(r"data\.(sources\.[^.]+\.)?store")


class StudyConfig(Frozen):
    """Runs that answer a question, the commands on them, and the claims to judge."""

    name: FileName
    """Name of the study; by default the file's name."""
    question: str = ""
    """The question of the study, in one sentence."""
    base: Annotated[dict[str, Any], WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]
    """The configuration that all arms share: a path relative to the study file, or a mapping."""
    set: Settings = Field(default_factory=dict)
    """Values of dotted keys that replace the base's in every arm."""
    axes: Axes = Field(default_factory=dict)
    """Dotted keys with a list of values each; the arms are the product of all lists."""
    arms: list[ArmEntry] = Field(default_factory=list)
    """Named arms with settings of their own, each combined with all axes. Empty: the axes alone."""
    constraints: list[Constraint] = Field(default_factory=list)
    """Arms to leave out, and arms to match in FLOPs, parameters or tokens; applied in this order."""
    seeds: list[Seed] = Field(default_factory=list)
    """Values of `seed`: every setting runs once per seed. Empty: the base's seed."""
    seed_changes: SeedChanges = SeedChanges()
    """What a seed changes."""
    tune: Tune | None = None
    """Settings to choose before the arms run; null: none."""
    then: list[Then] = Field(default_factory=list)
    """Commands on the trained runs: evaluations, fine-tunings, ensembles, exports."""
    claims: list[Claim] = Field(default_factory=list)
    """Statements to judge. They are fixed before the first run starts."""
    fits: list[FitQuestion] = Field(default_factory=list)
    """Laws to fit to the runs."""
    scales: dict[FileName, Scale] = Field(default_factory=dict)
    """Named variants of the study, such as one for a GPU; `--scale` chooses one."""
    scale: str | None = None
    """The chosen scale. The sections above are then those of the scale."""
    share_prefixes: bool = True
    """Whether runs that are equal up to some step train those steps once."""
    audit: Literal["windows", "inputs", "none"] = "windows"
    """Level of the audits at the end of the study, as in `reptrain audit --level`; none: no audits."""
    keep_checkpoints: Literal["all", "last", "none"] = "all"
    """Checkpoints to keep of a run once no node needs it: all that its settings keep, the last, or none."""

    @model_validator(mode="after")
    def _one_source_for_each_key(self) -> StudyConfig:
        _check_keys(self.axes, [*self.set])
        for entry in self.arms:
            # An arm's own axis replaces a value that the study sets.
            kept = [key for key in self.set if key not in entry.axes]
            _check_keys(self.axes | entry.axes, [*kept, *entry.set])
            if self.tune is not None:
                _check_keys(entry.tune, [*self.set, *self.axes, *entry.set, *entry.axes, *self.tune.set])
        if self.tune is not None:
            _check_keys(self.tune.axes, [*self.set, *self.axes, *self.tune.set])
        return self

    @model_validator(mode="after")
    def _tuning_is_fair(self) -> StudyConfig:
        for entry in self.arms:
            if entry.tune and self.tune is None:
                raise ValueError(f"arm {entry.name} has tune, so the study needs tune too, with its seeds")
            if not entry.tune or self.tune is None:
                continue
            own, others = check_points(entry.tune), check_points(self.tune.axes)
            if own != others:
                raise ValueError(
                    f"arm {entry.name} tunes over {own} combinations and the others over {others}; all arms"
                    " must have the same tuning budget"
                )
        return self

    @model_validator(mode="after")
    def _members_differ(self) -> StudyConfig:
        changes = self.seed_changes
        if any(entry.members > 1 for entry in self.arms) and not (changes.order or changes.weights):
            raise ValueError("members of an ensemble must differ; set seed_changes.order or .weights to true")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> StudyConfig:
        if any(entry.name == "set" for entry in self.then):
            raise ValueError("then must not have the name set: columns named set.KEY are the varied settings")
        for what in ("arms", "then", "claims", "fits"):
            names = [one.name for one in getattr(self, what)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(
                        f"{what} must have different names; {name} is there {names.count(name)} times"
                    )
        return self

    @model_validator(mode="after")
    def _tuning_has_seeds_of_its_own(self) -> StudyConfig:
        seeds = {seed for seeds in (self.seeds, *(entry.seeds for entry in self.arms)) for seed in seeds}
        if self.tune is not None and (shared := seeds & {*self.tune.seeds}):
            raise ValueError(f"tune.seeds must not be seeds of arms; {min(shared)} is in both")
        return self

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of all arms."""
        return sorted(
            {seed for seeds in (self.seeds, *(entry.seeds for entry in self.arms)) for seed in seeds}
        )


def _check_keys(axes: Mapping[str, Any], others: Sequence[str]) -> None:
    """Refuse a key that varies and is set as well.

    Raises:
        ValueError: Naming it.
    """
    for key in [*others, *axes]:
        if key == "seed":
            raise ValueError("seed must not be in set or axes; list the values in seeds")
    for axis in axes:
        for key in [*others, *(other for other in axes if other != axis)]:
            if key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}."):
                raise ValueError(f"{axis} varies, so {key} must not be set as well; remove one of the two")


def load_study(path: Path, overrides: Sequence[str] = (), *, scale: str | None = None) -> StudyConfig:
    """Read a study file and its base.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts. A key that starts with a field of the study (``name``, ``seeds``,
            ``axes.data.unique_tokens``, ``base.model``...) changes the study. Any other key is set in the
            configuration of every arm.
        scale: Name of one of its `scales`, which is applied before the overrides and added to the study's
            name. None: the study as it is.

    Raises:
        ConfigError: If the file or its base cannot be read, or anything in it is wrong.
    """
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    if isinstance(data.get("base"), str):
        data["base"] = read_config(path.parent / data["base"])
    for entry in data.get("then") or []:
        if isinstance(entry, dict) and isinstance(entry.get("task"), str):
            entry["task"] = str((path.parent / entry["task"]).absolute())
    if isinstance(data.get("scales"), dict):
        data["scales"] = read_scales(data["scales"], path)
    for section in ("set", "axes"):
        data[section] = flatten(data.get(section) or {})
    if scale is not None:
        data = apply_scale(data, scale)
    for text in overrides:
        _override(data, text)
    return validate(StudyConfig, data)


def _override(data: dict[str, Any], text: str) -> None:
    key = text.partition("=")[0]
    section, _, below = key.partition(".")
    if section == "scale":
        raise ConfigError(
            f"study {data['name']}", got=text, rule="must not set the scale", remedy="Use --scale NAME."
        )
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
    # The chosen scale is applied; its folder does not need the others.
    del data["scales"]
    # Absolute paths are valid in any working directory. Axes stay, since the arms are named after them.
    data["set"] = {
        key: _absolute(value) if _STORE_KEY.fullmatch(key) else value for key, value in data["set"].items()
    }
    flat = flatten(data["base"])
    for key, value in flat.items():
        if _STORE_KEY.fullmatch(key):
            set_dotted(data["base"], key, _absolute(value))
    write_atomically(out / STUDY_FILE, dump_yaml(data))


def _absolute(store: Any) -> Any:
    return str(Path(store).absolute()) if isinstance(store, str) else store


def open_study(out: Path) -> StudyConfig:
    """The study that was run in this folder.

    Raises:
        StudyError: If the folder holds no study.
    """
    try:
        return load_study(out / STUDY_FILE)
    except ConfigError as error:
        raise StudyError(
            f"study folder {out}",
            got=error.got or f"{error.what}: {error.rule}",
            rule="must hold a readable study.yaml",
            remedy="`reptrain study run STUDY` creates one.",
        ) from error
