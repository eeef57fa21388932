"""Regularizers of a step: what they are set to, and noise in what the model reads.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain.config import RunConfig
from reptrain.config.finetune import FinetuneConfig
from reptrain.config.scheduled import RunPosition
from reptrain.model import DropoutContext
from reptrain.model.dropout import Site, site_keys
from reptrain.text import Tokenizer
from reptrain_kernels import counter

# What the model reads; the targets stay as they are.
_READ = ("tokens_BT", "inputs_BT", "source_BS")


class Settings(NamedTuple):
    """The regularizers' values in one step."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    input_noise: float = 0.0
    weight_decay: float = 0.0

    @classmethod
    def at(cls, config: RunConfig | FinetuneConfig, progress: RunPosition) -> Settings:
        """What they are in the step that begins there."""
        given = config.regularize
        scheduled = (
            given.label_smoothing,
            given.z_loss,
            given.input_noise,
            config.optimizer.weight_decay,
        )
        return cls(*(value.at(progress) for value in scheduled))


def set_weight_decay(optimizer: Any, weight_decay: float) -> None:
    """Give the groups that decay the weight decay of a step."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = weight_decay * group.get("decay_ratio", 1.0)


@dataclass(frozen=True)
class InputNoise:
    """Replaces tokens that the model reads by others, as a function of (seed, step, row, position).

    Args:
        is_text_V: bool, the ids that may be replaced, and that others are replaced by.
        unknown_id: What takes their place; None draws from all such ids evenly.
    """

    is_text_V: Tensor
    unknown_id: int | None

    @classmethod
    def of(cls, config: RunConfig | FinetuneConfig, tokenizer: Tokenizer) -> InputNoise:
        """That of a run: special ids and sentinels are left alone."""
        is_text_V = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        special = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.sentinel_ids)
        is_text_V[[index for index in special if index >= 0]] = False
        return cls(is_text_V, tokenizer.unk_id if config.regularize.input_noise_by == "unknown" else None)

    def __call__(self, inputs: dict[str, Tensor], rate: float, context: DropoutContext) -> dict[str, Tensor]:
        """The model's inputs with a share of their tokens replaced.

        Args:
            inputs: Keyword arguments of the model.
            rate: Share of the tokens, in [0, 1).
            context: Keys what is drawn.
        """
        if rate == 0:
            return inputs
        noisy = {}
        for layer, name in enumerate(name for name in _READ if name in inputs):
            keys_PB = site_keys(context.key_B, layer)
            assert keys_PB is not None
            noisy[name] = self._replace(inputs[name], rate, keys_PB[Site.INPUT_NOISE])
        return inputs | noisy

    def _replace(self, token_BT: Tensor, rate: float, key_B: Tensor) -> Tensor:
        is_text_V = self.is_text_V.to(token_BT.device)
        threshold, _ = counter.threshold_and_scale(rate)
        # Two words a position: whether, and by what.
        word_BT2 = counter.random_words(key_B, token_BT.shape[1], 2)
        replaced_BT = (word_BT2[..., 0] < threshold) & is_text_V[token_BT]
        if self.unknown_id is not None:
            return token_BT.masked_fill(replaced_BT, self.unknown_id)
        text_M = is_text_V.nonzero().flatten()
        drawn_BT = ((word_BT2[..., 1].long() + 2**31) * len(text_M)) >> 32
        return torch.where(replaced_BT, text_M[drawn_BT], token_BT)
