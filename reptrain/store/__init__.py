"""Token stores: immutable folders of Arrow shards under a sealed manifest."""

from reptrain.store.build import Progress, tokenize
from reptrain.store.describe import describe, describe_text
from reptrain.store.fields import tag_pairs
from reptrain.store.guard import split_warnings
from reptrain.store.manifest import Manifest, NearSettings
from reptrain.store.near import near_settings
from reptrain.store.reader import Split, Store, open_store
from reptrain.store.verify import MAX_OVERLAP, VerifyReport, verify

__all__ = [
    "MAX_OVERLAP",
    "Manifest",
    "NearSettings",
    "Progress",
    "Split",
    "Store",
    "VerifyReport",
    "describe",
    "describe_text",
    "near_settings",
    "open_store",
    "split_warnings",
    "tag_pairs",
    "tokenize",
    "verify",
]
