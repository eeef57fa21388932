"""What the parts of a configuration are made of."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from reptrain.config.quantities import Count

Positive = Annotated[Count, Field(gt=0, lt=2**62)]
NonNegative = Annotated[Count, Field(ge=0, lt=2**62)]
# Ten times and more what any published model has: what is beyond cannot be built, or takes hours to lay out.
Layers = Annotated[Count, Field(gt=0, le=4096)]
Width = Annotated[Count, Field(gt=0, le=2**24)]
Rows = Annotated[Count, Field(gt=0, lt=2**31)]
LARGEST_BATCH = 2**24
# What a rank holds of one batch in memory.
BatchRows = Annotated[Count, Field(gt=0, le=LARGEST_BATCH)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""An integer of a file that enters arrays."""
Number = Annotated[Int64, Field(ge=0)]
"""A number of things in a file."""
Seed = Annotated[Count, Field(ge=0, lt=2**63)]


def check_name(name: str) -> str:
    """The name of one file or folder, which must not lead out of its parent folder.

    Raises:
        ValueError: If it is empty, leads elsewhere, or is none that a file system takes.
    """
    if not name or name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError("must be one printable name of at most 200 bytes, without /")
    return name


# A path as a record keeps it: no file system has one with NUL.
PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]
FileName = Annotated[str, AfterValidator(check_name)]


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings below the fields of a class, by field.

    Pydantic's ``use_attribute_docstrings`` reads the source of every class when it is imported, which takes a
    third of the time of that import.
    """
    docs: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            docs |= _own_docs(cls)
    return docs


@cache
def _own_docs(cls: type[BaseModel]) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in itertools.pairwise(node.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


class Frozen(BaseModel):
    """Base of all settings: immutable, and no unknown key passes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        # Built at first use, since a command uses few of these classes directly.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in attribute_docs(cls).items():
            if name in properties and cls.model_fields[name].description is None:
                properties[name]["description"] = text
        return schema
