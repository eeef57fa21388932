"""reptrain: the trainer and the laboratory for language models that must repeat their data."""

__version__ = "0.1.0"
