"""Keys of config.json: those that are read, those without effect, and those with one supported value.

transformers uses defaults for missing keys, and newer versions have keys that older files lack. Each
`model_type` therefore has a table of all keys of its config class with transformers' defaults. A key that is
not in the table is refused unless its value is null, false or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reptrain.errors import HubError

REQUIRED = "(required)"
"""In place of a default: the key must be set."""

_SPECIAL_IDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
    "decoder_start_token_id",
)  # fmt: skip
# Generation settings in older files.
_GENERATION = (
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "temperature", "top_k", "top_p", "typical_p", "use_cache",
)  # fmt: skip
# Origin, purpose and execution of the model.
_DESCRIPTION = (
    "architectures", "attn_implementation", "chunk_size_feed_forward", "dtype", "experts_implementation",
    "finetuning_task", "gradient_checkpointing", "id2label", "label2id", "max_sequence_length", "model_type",
    "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "output_past", "prefix",
    "problem_type", "return_dict", "task_specific_params", "tokenizer_class", "torch_dtype",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_return_dict",
)  # fmt: skip
_FREE = frozenset((*_SPECIAL_IDS, *_GENERATION, *_DESCRIPTION))


@dataclass(frozen=True)
class Keys:
    """The keys of one `model_type`."""

    read: Mapping[str, Any]
    """Keys that are read, with transformers' defaults."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys that change the model and have one supported value, which is transformers' default."""
    free: frozenset[str] = frozenset()
    """Keys without effect on evaluation, in addition to those common to all model types."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names that transformers accepts for keys."""

    def has(self, key: str) -> bool:
        """Whether a key is in the table."""
        known = key in self.read or key in self.fixed or key in self.free or key in _FREE
        return known or key.startswith("_")

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in missing keys.

        Args:
            settings: Content of config.json.

        Raises:
            HubError: If a key changes the model in an unsupported way, or its effect is unknown.
        """
        given = dict(settings)
        for alias, name in self.aliases.items():
            if alias in given and given.setdefault(name, given[alias]) != given[alias]:
                raise HubError(
                    f"{alias} in config.json",
                    got=given[alias],
                    rule=f"must equal {name}, {given[name]}: both set the same value",
                    remedy="Remove the wrong one.",
                )
            given.pop(alias, None)
        for key, value in given.items():
            if key in self.fixed and not _same(value, self.fixed[key]):
                raise HubError(
                    f"{key} in config.json",
                    got=_shown(value),
                    rule=f"must be {_shown(self.fixed[key])}",
                    remedy="reptrain does not support this model.",
                )
            if not self.has(key) and not _is_off(value):
                raise HubError(
                    f"{key} in config.json",
                    got=_shown(value),
                    rule="must not be set: it is unknown whether it changes the model",
                    remedy="Remove it from config.json if it does not.",
                )
        defaults = {key: value for key, value in self.read.items() if value is not REQUIRED}
        return defaults | given


def _same(value: Any, default: Any) -> bool:
    return value == default or (_is_off(value) and _is_off(default))


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: Any) -> str:
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 80 else f"{text[:77]}..."
