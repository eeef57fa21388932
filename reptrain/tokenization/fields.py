"""Metadata kept with each document: fields of its record, and tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from reptrain.errors import StoreError
from reptrain.text.documents import Fields, Tag

_KEY = re.compile(r"[A-Za-z0-9_.-]+")


def parse_tags(tags: Mapping[str, str]) -> tuple[Tag, ...]:
    """Tags from their keys, ``KEY`` or ``SOURCE:KEY``, and values."""
    parts = [(key.rpartition(":"), value) for key, value in tags.items()]
    return tuple(Tag(source if colon else None, key, value) for (source, colon, key), value in parts)


def tag_pairs(pairs: Collection[str]) -> dict[str, str]:
    """Tags by key, from KEY=VALUE.

    Raises:
        StoreError: If one has another form, or for a duplicate key.
    """
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in tags:
            raise StoreError(
                "tag",
                got=f"{pair!r}" + (" again" if key in tags else ""),
                rule="must be KEY=VALUE or SOURCE:KEY=VALUE, each key once",
                remedy="Write for example --tag synthetic=alpaca.",
            )
        tags[key] = value
    return tags


def check_fields(fields: Fields, sources: Mapping[str, Collection[str]]) -> None:
    """Refuse tags and metadata fields with equal names, and tags of unknown sources.

    Args:
        fields: The metadata to keep.
        sources: The names of the sources, each with the folders of its files.

    Raises:
        StoreError: Naming the tag or field.
    """
    for tag in fields.tags:
        if tag.source is not None and tag.source not in sources:
            raise StoreError(
                f"tag {tag.source}:{tag.key}",
                got=repr(tag.source),
                rule=f"must name one of the sources, {', '.join(sorted(sources))}",
                remedy="A source is named by its file without suffix, or by its folder.",
            )
        if tag.source is not None and len(sources[tag.source]) > 1:
            raise StoreError(
                f"tag {tag.source}:{tag.key}",
                got=f"sources of that name in {', '.join(sorted(sources[tag.source]))}",
                rule="must name one source",
                remedy="Rename one of the files or folders.",
            )
        if not _KEY.fullmatch(tag.key):
            raise StoreError(
                "tag",
                got=repr(tag.key),
                rule="must have a key of letters, digits, _, . and -",
                remedy="Write for example --tag synthetic=alpaca.",
            )
    kept = [*fields.metadata, *{tag.key for tag in fields.tags}]
    for name in kept:
        if kept.count(name) > 1:
            raise StoreError(
                f"metadata {name}",
                got=f"{kept.count(name)} fields or tags of that name",
                rule="must be one field or tag",
                remedy="Rename the tag, or leave the field out.",
            )
