"""The studies that a command names: a study file, a folder of study files, or folders that studies ran in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reptrain.config.load import read_yaml
from reptrain.errors import StudyError
from reptrain.study.looks import Place
from reptrain.study.schema import STUDY_FILE, load_study, open_study

_ENDINGS = (".yaml", ".yml")


def studies_to_run(
    path: Path, overrides: Sequence[str] = (), *, out: Path | None = None, scale: str | None = None
) -> list[Place]:
    """The studies at a path, with the folders in which they run.

    Args:
        path: A study file; a folder of study files, in the order of their names; or the folder of a study
            that has run.
        overrides: Overrides for every study, as for `load_study`.
        out: Folder of the study; for several studies, the folder that contains one folder for each. None:
            the folder of the study that has run, or ``runs/NAME``.
        scale: See `load_study`.

    Raises:
        StudyError: If a folder has no study file, or two studies have the same name.
        ConfigError: If a study is wrong.
    """
    if not path.is_dir():
        study = load_study(path, overrides, scale=scale)
        return [Place(study, out or Path("runs") / study.name)]
    if _is_folder_of_one(path):
        return [Place(load_study(path / STUDY_FILE, overrides, scale=scale), out or path)]
    studies = [load_study(file, overrides, scale=scale) for file in study_files(path)]
    names = [study.name for study in studies]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(
                f"studies in {path}",
                got=f"the name {name} {names.count(name)} times",
                rule="must have different names",
                remedy="Change `name` in one of the files.",
            )
    return [Place(study, (out or Path("runs")) / study.name) for study in studies]


def study_files(folder: Path) -> list[Path]:
    """The study files in a folder, by name: the YAML files with a key ``base``.

    Raises:
        StudyError: If there is none.
        ConfigError: If a YAML file cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
    found = [file for file in files if "base" in read_yaml(file)]
    if not found:
        raise StudyError(
            f"folder {folder}",
            got=f"{len(files)} YAML files without the key base" if files else "no YAML file",
            rule="must have a study file",
            remedy="Name a study's YAML file, or a folder of them.",
        )
    return found


def _is_folder_of_one(folder: Path) -> bool:
    """Whether a folder is that of a study that ran, and not a folder of study files."""
    others = [file for file in folder.iterdir() if file.suffix in _ENDINGS and file.name != STUDY_FILE]
    return (folder / STUDY_FILE).exists() and ((folder / "runs").exists() or not others)


def studies_that_ran(path: Path) -> list[Place]:
    """The studies at a path, as they ran; see `paths_that_ran`.

    Raises:
        StudyError: If there is no study.
    """
    return [
        studies_to_run(one)[0] if one.is_file() else Place(open_study(one), one)
        for one in paths_that_ran(path)
    ]


def paths_that_ran(path: Path) -> list[Path]:
    """The folders of the studies at a path, or the study file of a study that has not run.

    Args:
        path: The folder of a study, a folder that contains such folders, or a study file or a folder of study
            files whose studies run in ``runs/NAME``.

    Raises:
        StudyError: If a folder has YAML files, but no study file.
    """
    if path.is_file():
        return [_where_it_ran(path)]
    if not path.is_dir() or _is_folder_of_one(path):
        return [path]
    folders = sorted(file.parent for file in path.glob(f"*/{STUDY_FILE}"))
    if folders:
        return folders
    if any(file.suffix in _ENDINGS for file in path.iterdir()):
        return [_where_it_ran(file) for file in study_files(path)]
    return [path]


def _where_it_ran(file: Path) -> Path:
    folder = Path("runs") / load_study(file).name
    return folder if (folder / STUDY_FILE).exists() else file
