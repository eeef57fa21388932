"""Writes the reference pages from the code: commands, configuration keys, tables, Python API.

`mkdocs build` runs this through the gen-files plugin; the pages are never committed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
from reptrain.config.base import attribute_docs
from reptrain.config.finetune import FinetuneConfig
from reptrain.study import StudyConfig
from reptrain.tables import EVALUATION_COLUMNS, RUN_COLUMNS, Column
from reptrain.tables.columns import SETTING_PREFIX

CONFIGS: dict[str, tuple[str, type[BaseModel]]] = {
    "config": ("Run configuration", RunConfig),
    "finetune-config": ("Fine-tuning configuration", FinetuneConfig),
    "study-config": ("Study configuration", StudyConfig),
}


def command_page() -> str:
    """Every command with its arguments and options."""
    command = typer.main.get_command(app)
    drop_hidden(command)
    context = typer.Context(command, info_name="reptrain")
    page = get_docs_for_click(obj=command, ctx=context, name="reptrain", title="Command line")
    return "\n".join(linked_commands(page.splitlines(), command))


def drop_hidden(group: Any) -> None:
    """Remove the hidden commands of a group and of the groups in it."""
    group.commands = {name: one for name, one in group.commands.items() if not one.hidden}
    for one in group.commands.values():
        if hasattr(one, "commands"):
            drop_hidden(one)


def escaped(line: str) -> str:
    """A line with `<` outside of code as an entity: a word such as <extra_id_0> is no HTML tag."""
    parts = line.split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def linked_commands(lines: list[str], program: Any) -> Iterator[str]:
    """The page's lists of commands with links and whole sentences; typer cuts the sentences."""
    group: list[str] = []
    in_code = False
    for line in lines:
        in_code ^= line.startswith("```")
        if heading := re.fullmatch(r"#+ `reptrain ?(.*)`", line):
            group = heading[1].split()
        item = re.match(r"\* `([^`]+)`: ", line)
        commands = getattr(command_at(program, group), "commands", {})
        if item and item[1] in commands:
            anchor = "-".join(["reptrain", *group, item[1]])
            text = " ".join((commands[item[1]].help or "").split("\n\n")[0].split())
            line = f"* [`{item[1]}`](#{anchor}): {text}"
        yield line if in_code else escaped(line)


def command_at(program: Any, names: list[str]) -> Any:
    """The command or group behind these names."""
    for name in names:
        program = program.commands[name]
    return program


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
    """An annotation for a reader of YAML: ``int or null``, ``list of str``, links to sections."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (list, tuple, set):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[1])} by {type_text(arguments[0])}"
    if origin in (Union, UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def sections(model: type[BaseModel], key: str, keys: dict[type[BaseModel], list[str]]) -> None:
    """Collect the keys of a class and of the classes below it, in the order of the file."""
    keys.setdefault(model, []).append(key)
    for name, field in model.model_fields.items():
        for below in dict.fromkeys(models_in(field.annotation)):
            sections(below, f"{key}.{name}".lstrip("."), keys)


def section_text(model: type[BaseModel], keys: list[str]) -> str:
    """A class as a table of its keys."""
    keys = list(dict.fromkeys(keys))
    only = keys[0] if len(keys) == 1 else ""
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    docs = attribute_docs(model)
    for name, field in model.model_fields.items():
        key = f"{only}.{name}".lstrip(".")
        description = " ".join((field.description or docs.get(name, "")).split()).replace("|", "\\|")
        default = default_text(field)
        default = default if default in ("", "required") else f"`{default}`"
        rows.append(f"| `{key}` | {type_text(field.annotation)} | {default} | {description} |")
    used = ", ".join(f"`{key}`" for key in keys if key)
    where = f"Section {used}. " if used else ""
    return f"## {model.__name__}\n\n{where}{(model.__doc__ or '').strip()}\n\n" + "\n".join(rows) + "\n"


def config_page(title: str, model: type[BaseModel]) -> str:
    """All keys of a configuration file."""
    intro = (
        "Every key can be overridden on the command line as `key=value`. "
        "Numbers may be written `2**20`, `1e9`, `100M` or `64epochs`.\n\n"
    )
    keys: dict[type[BaseModel], list[str]] = {}
    sections(model, "", keys)
    return f"# {title}\n\n{intro}" + "\n".join(section_text(part, used) for part, used in keys.items())


def python_page() -> str:
    """The public functions, each from its docstring."""
    parts = ["# Python API\n", "Every command is a function. Each name is imported when it is first used.\n"]
    for name in reptrain.__all__:
        if name != "__version__":
            home = getattr(reptrain, name).__module__
            options = f"    options:\n      heading: reptrain.{name}\n      toc_label: {name}\n"
            parts.append(f"::: {home}.{name}\n{options}")
    return "\n".join(parts)


def tables_page() -> str:
    """Every column of the run table and the evaluation table."""
    parts = [
        "# Tables\n",
        "`reptrain study collect` and every report write two Parquet files into the study's folder `tables/`;"
        " `reptrain runs` prints the columns of the first. Null: not known, or the run has not got there."
        " The descriptions are also in the metadata of the Parquet fields."
        " [Query the tables](../guides/tables.md) shows how to use them.\n",
    ]
    tables = {
        "runs.parquet": ("A row for each run.", RUN_COLUMNS),
        "evaluations.parquet": ("A row for each evaluation of a run.", EVALUATION_COLUMNS),
    }
    for name, (purpose, columns) in tables.items():
        parts += [f"## {name}\n", f"{purpose}\n", column_table(columns)]
        if columns is RUN_COLUMNS:
            parts.append(
                "After `cluster` comes a column for each setting that the study varies, such as"
                f" `{SETTING_PREFIX}data.unique_tokens`: an integer, a float, a boolean or a text. Quote the"
                " name in SQL.\n"
            )
    return "\n".join(parts)


def column_table(columns: Sequence[Column]) -> str:
    """Columns with type and description."""
    rows = [f"| `{c.name}` | {c.type} | {c.description} |" for c in columns]
    return "\n".join(["| column | type | description |", "|---|---|---|", *rows]) + "\n"


pages = {"cli": command_page(), "python": python_page(), "tables": tables_page()}
pages |= {name: config_page(title, model) for name, (title, model) in CONFIGS.items()}
for name, text in pages.items():
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as file:
        file.write(text)
    mkdocs_gen_files.set_edit_path(f"reference/{name}.md", "../tools/reference_pages.py")
