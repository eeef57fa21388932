"""From global indices to the tensors of a forward pass."""
