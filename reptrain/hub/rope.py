"""RoPE settings of config.json.

transformers 4 has the keys `rope_theta` and `rope_scaling`; transformers 5 has `rope_parameters` with both.
"""

from __future__ import annotations

from typing import Any

from reptrain.config.model import DecoderConfig
from reptrain.config.rope import Llama3Rope
from reptrain.errors import HubError
from reptrain.hub.architecture import Settings

_KNOWN = (
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "partial_rotary_factor",
)  # fmt: skip
_THETA = 1e4


def read_rope(settings: Settings, *, theta: float = _THETA) -> dict[str, Any]:
    """Our `rope_theta` and `rope_scaling`.

    Args:
        settings: Content of config.json.
        theta: Default base.

    Raises:
        HubError: If the scaling of positions is not supported.
    """
    # If a file has both keys, transformers uses the older one.
    place = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(place) or {}
    for key, value in rope.items():
        if key not in _KNOWN and value is not None:
            raise _wrong(f"{place}.{key}", value, "must not be set")
    for name, holder in (("partial_rotary_factor", settings), (f"{place}.partial_rotary_factor", rope)):
        if holder.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise _wrong(name, holder["partial_rotary_factor"], "must be 1")
    kind = rope.get("rope_type", rope.get("type", "default"))
    # Not float(), which would accept text.
    ours: dict[str, Any] = {
        "rope_theta": 1.0 * (rope.get("rope_theta") or settings.get("rope_theta") or theta)
    }
    if kind == "linear":
        ours["rope_scaling"] = {"name": kind, "factor": _number(rope, place, "factor")}
    elif kind == "llama3":
        longest = settings.get("original_max_position_embeddings")
        longest = longest or rope.get("original_max_position_embeddings")
        ours["rope_scaling"] = {
            "name": kind,
            "factor": _number(rope, place, "factor"),
            "low_freq_factor": _number(rope, place, "low_freq_factor"),
            "high_freq_factor": _number(rope, place, "high_freq_factor"),
            "original_max_positions": longest or _number(settings, "", "max_position_embeddings"),
        }
    elif kind != "default":
        raise _wrong(f"{place}.rope_type", kind, "must be default, linear or llama3")
    return ours


def _number(holder: Settings, place: str, key: str) -> Any:
    if holder.get(key) is None:
        raise _wrong(
            f"{place}.{key}".removeprefix("."), "nothing", "must be set", "Restore the folder's file."
        )
    return holder[key]


def _wrong(key: str, got: Any, rule: str, remedy: str = "reptrain does not support this model.") -> HubError:
    return HubError(f"{key} in config.json", got=got, rule=rule, remedy=remedy)


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The keys of config.json for transformers 4 and 5."""
    scaling, kind = config.rope_scaling, dict[str, Any](rope_type="default")
    if isinstance(scaling, Llama3Rope):
        kind = scaling.model_dump(exclude={"name", "original_max_positions"})
        kind |= {"rope_type": "llama3", "original_max_position_embeddings": scaling.original_max_positions}
    elif scaling is not None:
        kind = {"rope_type": scaling.name, "factor": scaling.factor}
    settings = {"rope_theta": config.rope_theta, "rope_parameters": kind | {"rope_theta": config.rope_theta}}
    return settings if scaling is None else settings | {"rope_scaling": kind}
