"""Kernels of reptrain, each with its definition in plain torch. They know nothing of reptrain."""
