"""From text to a sealed token store: scan, remove duplicates, split, encode, seal."""

from typing import TYPE_CHECKING

from reptrain.lazy import on_first_use

if TYPE_CHECKING:
    from reptrain.tokenization.build import tokenize
    from reptrain.tokenization.fields import tag_pairs
    from reptrain.tokenization.near import near_settings

__all__ = [
    "near_settings",
    "tag_pairs",
    "tokenize",
]

__getattr__ = on_first_use(
    __name__,
    {
        "tokenize": "build",
        "tag_pairs": "fields",
        "near_settings": "near",
    },
)
