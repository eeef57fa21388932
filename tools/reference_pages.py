"""Writes the reference pages of the documentation from the code: commands, configuration keys, Python API.

`mkdocs build` runs this through the gen-files plugin; the pages are never committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import mkdocs_gen_files
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

import reptrain
from reptrain.cli import app
from reptrain.config import RunConfig
from reptrain.config.finetune import FinetuneConfig
from reptrain.study import StudyConfig

CONFIGS: dict[str, tuple[str, type[BaseModel]]] = {
    "config": ("Run configuration", RunConfig),
    "finetune-config": ("Fine-tuning configuration", FinetuneConfig),
    "study-config": ("Study configuration", StudyConfig),
}


def command_page() -> str:
    """Every command with its arguments and options."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="reptrain")
    return get_docs_for_click(obj=command, ctx=context, name="reptrain", title="Command line")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configuration classes that an annotation names, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def default_text(field: FieldInfo) -> str:
    """The default as YAML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, Fraction | str) or not isinstance(value, int | float | bool | list | dict | None):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def type_text(annotation: Any) -> str:
    """An annotation as a reader of YAML sees it: ``4``, ``int or null``, ``list of str``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (list, tuple, set):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[1])} by {type_text(arguments[0])}"
    if origin in (Union, UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def config_rows(model: type[BaseModel], prefix: str, seen: frozenset[type[BaseModel]]) -> Iterator[str]:
    """Sections of Markdown for a class and for the classes below it."""
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        nested = [found for found in models_in(field.annotation) if found not in seen]
        below += [(key, found) for found in nested]
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        kind = type_text(field.annotation)
        rows.append(f"| `{key}` | {kind} | `{default_text(field)}` | {description} |")
    title = f"`{prefix}`: {model.__name__}" if prefix else model.__name__
    yield f"## {title}\n\n{(model.__doc__ or '').strip()}\n\n" + "\n".join(rows) + "\n"
    for key, found in below:
        yield from config_rows(found, key, seen | {found})


def config_page(title: str, model: type[BaseModel]) -> str:
    """All keys of a configuration file."""
    intro = (
        "Every key can be overridden on the command line as `key=value`. "
        "Numbers may be written `2**20`, `1e9`, `100M` or `64epochs`.\n\n"
    )
    return f"# {title}\n\n{intro}" + "\n".join(config_rows(model, "", frozenset({model})))


def python_page() -> str:
    """The public functions, each from its docstring."""
    parts = ["# Python\n", "Every command is a function. Each name is imported when it is first used.\n"]
    for name in reptrain.__all__:
        if name != "__version__":
            parts.append(f"::: {getattr(reptrain, name).__module__}.{name}\n")
    return "\n".join(parts)


pages = {"cli": command_page(), "python": python_page()}
pages |= {name: config_page(title, model) for name, (title, model) in CONFIGS.items()}
for name, text in pages.items():
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as file:
        file.write(text)
    mkdocs_gen_files.set_edit_path(f"reference/{name}.md", "../tools/reference_pages.py")
