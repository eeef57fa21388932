"""Text and its tokenizers: readers of documents, SentencePiece models, tokenizer.json files."""

from typing import TYPE_CHECKING

from reptrain.lazy import on_first_use

if TYPE_CHECKING:
    from reptrain.text.documents import Document, read_documents
    from reptrain.text.load import load_tokenizer
    from reptrain.text.sentencepiece_model import SentencePieceTokenizer
    from reptrain.text.stdlib import stdlib_documents
    from reptrain.text.tokenizer import Tokenizer
    from reptrain.text.train_unigram import train_tokenizer

__all__ = [
    "Document",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "read_documents",
    "stdlib_documents",
    "train_tokenizer",
]

__getattr__ = on_first_use(
    __name__,
    {
        "Document": "documents",
        "read_documents": "documents",
        "load_tokenizer": "load",
        "SentencePieceTokenizer": "sentencepiece_model",
        "stdlib_documents": "stdlib",
        "Tokenizer": "tokenizer",
        "train_tokenizer": "train_unigram",
    },
)
