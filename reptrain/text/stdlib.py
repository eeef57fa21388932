"""The English documentation in every Python installation, as documents."""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from reptrain.text.documents import Document

_SKIPPED_FOLDERS = frozenset(
    # Installed packages and tests are not documentation; the others only exist in some versions.
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
    | {"ensurepip", "pydoc_data", "__pycache__"}
)
_SMALLEST_CHARACTERS = 64
_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_documents() -> Iterator[Document]:
    """Python's help topics, then the docstrings of the standard library, in a fixed order.

    Docstrings are parsed from the source; only ``pydoc_data.topics`` is imported. Docstrings of less than
    64 characters are left out.

    Returns:
        About 5,000 documents, 2 MB, from the sources ``topics`` and ``docstrings``.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topic:{name}", "topics", topics[name])
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_sources(root)):
        yield from _docstrings(path.read_bytes(), ".".join(path.relative_to(root).with_suffix("").parts))


def _sources(root: Path) -> Iterator[Path]:
    """The source files of the standard library; skipped folders, which may be huge, are not entered."""
    for folder, names, files in os.walk(root):
        is_root = Path(folder) == root
        names[:] = [
            name
            for name in names
            if name not in _SKIPPED_FOLDERS and not (is_root and name.startswith("config-"))
        ]
        yield from (Path(folder, file) for file in files if file.endswith(".py"))


def _docstrings(source: bytes, module: str) -> Iterator[Document]:
    if b'"""' not in source and b"'''" not in source:
        return
    for name, text in _walk(ast.parse(source), module):
        if len(text) >= _SMALLEST_CHARACTERS:
            yield Document(name, "docstrings", text)


def _walk(scope: _Scope, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(scope)
    if text:
        yield name, text
    yield from _walk_body(scope.body, name)


def _walk_body(body: Iterable[ast.stmt], name: str) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(node, f"{name}.{node.name}")
        elif isinstance(node, ast.If | ast.Try):
            # A module may define a function in several branches, one per platform.
            yield from _walk_body(node.body, name)
            yield from _walk_body(node.orelse, name)
