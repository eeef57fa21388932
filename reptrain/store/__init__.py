"""Token stores: immutable folders of Arrow shards under a sealed manifest."""

from typing import TYPE_CHECKING

from reptrain.lazy import on_first_use
from reptrain.store.describe import describe, describe_text, split_warnings
from reptrain.store.manifest import StoreManifest
from reptrain.store.verify import MAX_OVERLAP, VerifyReport, verify

if TYPE_CHECKING:
    from reptrain.store.reader import Split, Store, open_store
    from reptrain.store.remote import local_folder

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

__getattr__ = on_first_use(
    __name__,
    {"Split": "reader", "Store": "reader", "open_store": "reader", "local_folder": "remote"},
)
