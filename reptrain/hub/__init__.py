"""Hugging Face folders: T5, Switch, Llama and Mixtral, in and out. Knows no runs."""

from reptrain.hub.folder import ModelFolder, model_settings, save_model

__all__ = ["ModelFolder", "model_settings", "save_model"]
