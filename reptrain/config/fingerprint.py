"""The settings that change what a run computes, and the config fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from reptrain.config.json_digest import fingerprint
from reptrain.config.model import DecoderConfig, ModelConfig, MoEConfig
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.config.schema import RunConfig
from reptrain.config.sections import ONE_EPOCH

# Settings that do not change the results: these may differ on resume. The store has its own fingerprint.
_NO_EFFECT_ON_RESULTS = (
    "name",
    "data.store",
    "data.sources.*.store",
    "model.moe.backend",
    "train.micro_batch_windows",
    "train.zero_stage",
    "train.offload_optimizer",
    "train.offload_parameters",
    "train.overlap_communication",
    "train.bucket_elements",
    "train.expert_parallel_size",
    "train.sequence_parallel_size",
    "train.device",
    "train.compile",
    "train.activation_checkpointing",
    "train.poll_stop_steps",
    "train.rank_timeout_seconds",
    # The ledger records each step that was not applied.
    "train.on_nonfinite",
    "evaluate",
    "checkpoint",
    "branch",
)

_PRECISION = "train.precision"


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted key."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def auto_values(config: RunConfig) -> dict[str, Any]:
    """Settings whose null stands for a value derived from other settings, with the values of the run.

    >>> from reptrain.config.load import validate
    >>> auto_values(validate(RunConfig, {"data": {"store": "a"}}))["data.window_tokens"]
    256

    Returns:
        Values by dotted key, whether the setting is null or given. Values derived from the store (all of its
        tokens, the tokenizer's vocabulary) are not included: the store has its own fingerprint.
    """
    values: dict[str, Any] = {"data.window_tokens": config.window_tokens}
    if config.data.store is not None:
        values["train.total_tokens"] = str(config.train.total_tokens or ONE_EPOCH)
    for name, source in config.sources.items():
        if config.data.sources:
            given = {"order": source.order, "cut": source.cut, "subset_seed": source.subset_seed}
            values |= {f"data.sources.{name}.{key}": value for key, value in given.items()}
    return values | {f"model.{key}": value for key, value in auto_values_of_model(config.model).items()}


def auto_values_of_model(model: ModelConfig) -> dict[str, Any]:
    """Settings of a model whose null stands for a derived value, with the model's values, by dotted key."""
    if isinstance(model, DecoderConfig):
        values: dict[str, Any] = {
            "num_kv_heads": model.kv_heads,
            "num_stored_layers": model.stack.stored,
            "head_dim": model.head_width,
            "attention_bias": model.attention_biases,
            "mlp_bias": model.has_mlp_bias,
        }
    else:
        stored = {"encoder": model.encoder.stored, "decoder": model.decoder.stored}
        values = {f"num_stored_{name}_layers": layers for name, layers in stored.items()}
    moe: MoEConfig | None = model.moe
    if moe is not None:
        values |= {
            "moe.d_ff": moe.d_ff or model.d_ff,
            "moe.normalize": moe.normalizes,
            "moe.eval_capacity_factor": moe.eval_capacity_factor or moe.capacity_factor,
        }
    return values


def settings_affecting_results(config: RunConfig) -> dict[str, Any]:
    """The settings that change what a run computes, by dotted key, with nulls replaced by `auto_values`."""
    return _affecting_results(config.model_dump(mode="json")) | auto_values(config)


def _affecting_results(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(flatten(settings))
    # `auto` stands for fp32 unless the device selects another precision, which the run folder then contains.
    if flat.get(_PRECISION) == "auto":
        flat[_PRECISION] = "fp32"
    # A seed of its own counts only if it differs from the run's.
    seed = flat.get("seed", 0)
    return {
        key: value
        for key, value in flat.items()
        if not (key.startswith("seeds.") and value in (None, seed))
        and not any(fnmatchcase(key, other) or key.startswith(f"{other}.") for other in _NO_EFFECT_ON_RESULTS)
    }


def config_fingerprint(config: RunConfig) -> str:
    """Fingerprint of `NUMERICS_VERSION` and of the settings that change what a run computes.

    Settings at their default are left out, so that a release with new settings still recognizes earlier
    runs. Hence a changed default needs a new `NUMERICS_VERSION`.
    """
    given = _affecting_results(config.model_dump(mode="json", exclude_defaults=True))
    if given.get(_PRECISION) == "fp32":
        del given[_PRECISION]
    return fingerprint({"numerics_version": NUMERICS_VERSION} | given | auto_values(config))


def differing_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Dotted keys that change what a run computes and differ: (key, old value, new value)."""
    before, after = settings_affecting_results(old), settings_affecting_results(new)
    keys = sorted(before.keys() | after.keys())
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]
