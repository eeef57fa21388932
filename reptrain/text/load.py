"""Loading a tokenizer, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reptrain.errors import TokenizerError
from reptrain.text.ends import NamedEnd, find_end
from reptrain.text.tokenizer import Tokenizer


def load_tokenizer(path: Path, eos: str | NamedEnd | None = None) -> Tokenizer:
    """Read a SentencePiece model or a tokenizer.json; the content decides which.

    Args:
        path: The file.
        eos: The piece that ends a document, or the end that a file names. None takes the end that the files
            next to it name (see `find_end`), else the model's own, else a piece with a usual name.

    Raises:
        TokenizerError: If it cannot be read or is neither, or ``eos`` is not a special piece of it.
    """
    try:
        model_bytes = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {path}",
            got=error.strerror or error,
            rule="must be a readable file",
            remedy="Check the path.",
        ) from error
    end = find_end(path.parent) if eos is None else eos
    try:
        return _kind_of(model_bytes)(model_bytes, end)
    except TokenizerError as error:
        raise TokenizerError(
            f"tokenizer {path}", got=error.got, rule=error.rule, remedy=error.remedy
        ) from error


def _kind_of(model_bytes: bytes) -> Callable[[bytes, str | NamedEnd | None], Tokenizer]:
    # Each kind's library is imported only when it is needed.
    if model_bytes.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and model_bytes.rstrip().endswith(b"}"):
        from reptrain.text.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer
    from reptrain.text.sentencepiece_model import SentencePieceTokenizer

    return SentencePieceTokenizer
