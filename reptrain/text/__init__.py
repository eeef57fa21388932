"""Text and its tokenizer: readers of documents, SentencePiece models."""

from reptrain.text.documents import Document, read_documents
from reptrain.text.stdlib import stdlib_documents
from reptrain.text.tokenizer import Tokenizer
from reptrain.text.training import train_tokenizer

__all__ = ["Document", "Tokenizer", "read_documents", "stdlib_documents", "train_tokenizer"]
