"""Configuration: schema, loading, fingerprints."""

from reptrain.config.fingerprint import (
    config_fingerprint,
    differing_keys,
    fingerprint,
    settings_affecting_results,
)
from reptrain.config.load import load_run_config
from reptrain.config.quantities import Budget
from reptrain.config.schema import RunConfig

__all__ = [
    "Budget",
    "RunConfig",
    "config_fingerprint",
    "differing_keys",
    "fingerprint",
    "load_run_config",
    "settings_affecting_results",
]
