"""From text to a sealed token store: scan, remove duplicates, split, encode, seal."""

from reptrain.tokenization.build import tokenize
from reptrain.tokenization.fields import tag_pairs
from reptrain.tokenization.near import near_settings

__all__ = ["near_settings", "tag_pairs", "tokenize"]
