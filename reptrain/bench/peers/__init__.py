"""Other data loaders, each over the same flat file of tokens."""

from reptrain.bench.peers.readers import READERS, Reader

__all__ = ["READERS", "Reader"]
