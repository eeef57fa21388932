"""Downstream tasks: fine-tuning and scoring on files of texts."""
