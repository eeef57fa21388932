"""The number of words of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count_words(texts: Sequence[str]) -> list[int]:
    """The number of words of each text, separated by white space: ``len(text.split())``, but faster.

    >>> count_words(["a b", "", " caf\u00e9\u2003x"])
    [2, 0, 2]
    """
    counts = [0 if text.isascii() else len(text.split()) for text in texts]
    ascii_texts = [index for index, text in enumerate(texts) if text.isascii()]
    # Texts are separated by a line end, which is white space.
    joined = "\n".join(["", *(texts[index] for index in ascii_texts)])
    codes = np.frombuffer(joined.encode(), np.uint8)
    # Codes 9 to 13 and 28 to 32; smaller codes wrap around.
    is_space = ((codes - np.uint8(9)) < 5) | ((codes - np.uint8(28)) < 5)
    ends = np.cumsum([len(texts[index]) + 1 for index in ascii_texts], dtype=np.int64)
    begins = np.flatnonzero(is_space[:-1] & ~is_space[1:])
    numbers = np.diff(np.searchsorted(begins, ends - 1), prepend=0)
    for index, number in zip(ascii_texts, numbers.tolist(), strict=True):
        counts[index] = number
    return counts
