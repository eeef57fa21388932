"""The numerics version: raised when the same configuration computes something else."""

from __future__ import annotations

NUMERICS_VERSION = 2
"""Raised by every change of a default or a formula that alters what a run computes from the same
configuration. It is part of the config fingerprint; docs/decisions/versions.md lists what changed at each."""
