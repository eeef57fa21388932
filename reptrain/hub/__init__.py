"""Hugging Face folders: the T5, Llama and GPT-2 families, in and out. Knows no runs."""

from reptrain.hub.folder import ModelFolder, model_settings, save_model

__all__ = ["ModelFolder", "model_settings", "save_model"]
