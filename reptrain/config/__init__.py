"""Configuration: schema, loading, fingerprints."""

from typing import TYPE_CHECKING

from reptrain.lazy import on_first_use

if TYPE_CHECKING:
    from reptrain.config.fingerprint import config_fingerprint, differing_keys, settings_affecting_results
    from reptrain.config.load import load_run_config
    from reptrain.config.quantities import Budget
    from reptrain.config.schema import RunConfig

__all__ = [
    "Budget",
    "RunConfig",
    "config_fingerprint",
    "differing_keys",
    "load_run_config",
    "settings_affecting_results",
]

__getattr__ = on_first_use(
    __name__,
    {
        "config_fingerprint": "fingerprint",
        "differing_keys": "fingerprint",
        "settings_affecting_results": "fingerprint",
        "load_run_config": "load",
        "Budget": "quantities",
        "RunConfig": "schema",
    },
)
