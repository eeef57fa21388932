"""Token stores: immutable folders of Arrow shards under a sealed manifest."""

from reptrain.store.describe import describe, describe_text, split_warnings
from reptrain.store.manifest import StoreManifest
from reptrain.store.reader import Split, Store, open_store
from reptrain.store.remote import local_folder
from reptrain.store.verify import MAX_OVERLAP, VerifyReport, verify

__all__ = [
    "MAX_OVERLAP",
    "Split",
    "Store",
    "StoreManifest",
    "VerifyReport",
    "describe",
    "describe_text",
    "local_folder",
    "open_store",
    "split_warnings",
    "verify",
]
