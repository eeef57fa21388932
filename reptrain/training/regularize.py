"""Regularizers of a step: their values, and noise in the model's inputs.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain.config.scheduled import RunPosition, Scheduled
from reptrain.config.sections import RegularizeConfig
from reptrain.errors import ConfigError
from reptrain.model import DropoutContext
from reptrain.model.dropout import Site, site_keys
from reptrain.text import Tokenizer
from reptrain_kernels import counter, rates

# Model inputs that take noise. The targets stay as they are.
NOISY_INPUTS = ("tokens_BT", "inputs_BT", "source_BS")


class Settings(NamedTuple):
    """The regularizers' values in one step."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    input_noise: float = 0.0
    weight_decay: float = 0.0
    masked_inputs: float = 0.0

    @classmethod
    def at(cls, position: RunPosition, regularize: RegularizeConfig, weight_decay: Scheduled) -> Settings:
        """The values in the step that begins at ``position``."""
        scheduled = (
            regularize.label_smoothing,
            regularize.z_loss,
            regularize.input_noise,
            weight_decay,
            regularize.masked_inputs,
        )
        return cls(*(value.at(position) for value in scheduled))


def set_weight_decay(optimizer: Any, weight_decay: float) -> None:
    """Set the weight decay of the parameter groups that decay."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = weight_decay * group.get("decay_ratio", 1.0)


@dataclass(frozen=True)
class InputNoise:
    """Replaces input tokens by others, as a function of (seed, step, row, position).

    Args:
        is_text_V: bool, the ids that may be replaced, and that replacements are drawn from.
        unknown_id: The replacement; None draws one of the ids of ``is_text_V`` uniformly.
    """

    is_text_V: Tensor
    unknown_id: int | None

    @classmethod
    def of(cls, config: RegularizeConfig, tokenizer: Tokenizer) -> InputNoise:
        """Noise over a tokenizer's ids; special ids and sentinels are never replaced.

        Raises:
            ConfigError: If tokens are to be replaced by the unknown id, and the tokenizer has none.
        """
        is_random = config.input_noise_by == "random"
        if config.input_noise.largest > 0 and not is_random and tokenizer.unk_id < 0:
            raise ConfigError(
                "regularize.input_noise_by",
                got="unknown, and a tokenizer without an unknown id",
                rule="must be random with this tokenizer",
                remedy="Set regularize.input_noise_by=random.",
            )
        is_text_V = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        special = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.sentinel_ids)
        is_text_V[[index for index in special if index >= 0]] = False
        return cls(is_text_V, None if is_random else tokenizer.unk_id)

    def __call__(self, inputs: dict[str, Tensor], rate: float, context: DropoutContext) -> dict[str, Tensor]:
        """Replace a share of the tokens in the model's inputs.

        Args:
            inputs: Keyword arguments of the model.
            rate: Share of the tokens, in [0, 1).
            context: Keys the random draws.
        """
        if rate == 0:
            return inputs
        noisy = {}
        for layer, name in enumerate(name for name in NOISY_INPUTS if name in inputs):
            key_B = site_keys(context.key_B, layer, 1)[0, Site.INPUT_NOISE]
            noisy[name] = self._replace(inputs[name], rate, key_B)
        return inputs | noisy

    def _replace(self, token_BT: Tensor, rate: float, key_B: Tensor) -> Tensor:
        is_text_V = self.is_text_V.to(token_BT.device)
        threshold, _ = rates.threshold_and_scale(rate)
        # Two words per position: one decides on the replacement, one draws it.
        word_BT2 = counter.random_words(key_B, token_BT.shape[1], 2)
        replaced_BT = (word_BT2[..., 0] < threshold) & is_text_V[token_BT]
        if self.unknown_id is not None:
            return token_BT.masked_fill(replaced_BT, self.unknown_id)
        text_M = is_text_V.nonzero().flatten()
        drawn_BT = ((word_BT2[..., 1].long() + 2**31) * len(text_M)) >> 32
        return torch.where(replaced_BT, text_M[drawn_BT], token_BT)
