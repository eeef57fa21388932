"""The documentation's tests share the small corpus."""

from small_corpus import texts  # noqa: F401
