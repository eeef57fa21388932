"""Objectives, micro-batches and the data loader: from global indices to the inputs of a forward pass."""
