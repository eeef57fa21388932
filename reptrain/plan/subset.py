"""The subset: the first U tokens of a split's documents in one seeded order.

documents (lengths) A(3) B(4) C(2), order C A B:    C C A A A B B B B
U = 7:                                              C C A A A B B
U = 4, a prefix of it:                              C C A A
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reptrain.config.json_digest import fingerprint
from reptrain.errors import PlanError
from reptrain.plan.document_order import DocumentOrder, derive_order, open_order
from reptrain.plan.documents import DocumentStream, Int64s, Pieces, split_at_documents

if TYPE_CHECKING:
    from reptrain.store import Split, Store


class Subset(DocumentStream):
    """A stream of `unique_tokens` tokens. Smaller subsets with the same seed are prefixes of it."""

    kind = "subset"

    def __init__(
        self, split: Split, order: DocumentOrder, *, seed: int, unique_tokens: int, fingerprint: str
    ) -> None:
        super().__init__(split, unique_tokens)
        self.unique_tokens = unique_tokens
        self.fingerprint = fingerprint
        self.order = order
        self._seed = seed

    @classmethod
    def open(
        cls,
        store: Store,
        *,
        split: str = "train",
        seed: int = 0,
        unique_tokens: int | None = None,
        setting: str = "data.unique_tokens",
    ) -> Subset:
        """Open a subset. The first time, this computes the order from the documents' lengths.

        Args:
            store: The token store.
            split: One of its splits.
            seed: Seed of the order of documents.
            unique_tokens: U; None uses every token of the split.
            setting: The setting that gives U, for the error message.

        Raises:
            PlanError: If the split has fewer tokens, or the order cannot be cached.
        """
        part = store.split(split)
        available = int(part.num_tokens)
        wanted = available if unique_tokens is None else unique_tokens
        if not 1 <= wanted <= available:
            raise PlanError(
                setting,
                got=f"{wanted} of the {available} tokens in the split {split!r} of {store.path}",
                rule="must be at least 1 and at most what the store has",
                remedy=f"Set {setting} to at most {available}, or tokenize more text.",
            )
        name = fingerprint({"store": store.fingerprint, "split": split, "seed": seed})
        order = open_order(part, name=name, seed=seed, beside=Path(store.path))
        marked = fingerprint(
            {"store": store.fingerprint, "split": split, "seed": seed, "unique_tokens": wanted}
        )
        return cls(part, order, seed=seed, unique_tokens=wanted, fingerprint=marked)

    def has_order_of_its_seed(self) -> bool:
        """Whether the cached order of documents equals the one that the seed gives; computes it again."""
        order = derive_order(self.split, seed=self._seed)
        return all(map(np.array_equal, self.order, order))

    def _pieces(self, start_B: Int64s, length_B: Int64s) -> Pieces:
        pieces = split_at_documents(self.order.starts, start_B, length_B)
        return pieces._replace(document=self.order.documents[pieces.document])
