"""The small corpus of the store's tests."""

from small_corpus import corpus, files_of, model, small_and_quick, texts  # noqa: F401
