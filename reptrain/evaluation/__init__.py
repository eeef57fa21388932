"""Evaluation of trained models: held-out sets, ensembles, memorization, lm-eval."""
