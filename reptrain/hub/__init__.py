"""Saved models, and import and export of Hugging Face folders of the T5, Llama and GPT-2 families."""

from reptrain.hub.folder import ModelFolder
from reptrain.hub.writer import model_settings, save_model

__all__ = ["ModelFolder", "model_settings", "save_model"]
