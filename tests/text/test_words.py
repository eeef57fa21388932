"""The number of words of texts."""

from __future__ import annotations

import itertools

from reptrain.text.words import count_words


def test_count_words_agrees_with_split() -> None:
    spaces = [chr(code) for code in (*range(0x80), 0x85, 0xA0, 0x2003, 0x2028, 0x3000)]
    texts = ["", " ", "a", "\n", *(f"a{space}b" for space in spaces), *(f"{space}c" for space in spaces)]
    texts += ["".join(letters) for letters in itertools.product("a \n\u00e9\u2003", repeat=4)]
    assert count_words(texts) == [len(text.split()) for text in texts]
    assert count_words([]) == []
