"""A second loss of the same targets, from inputs with masked tokens in extra rows of the same forward pass.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reptrain.batch.objectives import Example
from reptrain.config.sections import RegularizeConfig
from reptrain.errors import ConfigError
from reptrain.model import DropoutContext
from reptrain.model.dropout import Site, site_keys
from reptrain.text import Tokenizer
from reptrain.training.regularize import NOISY_INPUTS, InputNoise
from reptrain_kernels import counter

# A masked copy has the dropout of a row number that no real row of the batch has.
_FIRST_MASKED_ROW = 2**40
_WORD = 2**31


@dataclass(frozen=True)
class MaskedInputs:
    """Adds a copy of each row with masked inputs, as a function of (seed, step, row, position).

    Args:
        is_text_V: bool, the ids that may be masked.
        mask_id: The id that replaces masked tokens.
        ratio: Largest share of masked tokens in a row; each row draws its own.

    Source:
        arXiv 2606.06888, 2026.
    """

    is_text_V: Tensor
    mask_id: int
    ratio: float

    @classmethod
    def of(cls, config: RegularizeConfig, tokenizer: Tokenizer) -> MaskedInputs:
        """Masks over a tokenizer's ids: its last sentinel, or the unknown id if it has no sentinels.

        Raises:
            ConfigError: If the loss is used, and the tokenizer has neither.
        """
        mask_id = tokenizer.sentinel_ids[-1] if tokenizer.sentinel_ids else tokenizer.unk_id
        if config.masked_inputs.largest > 0 and mask_id < 0:
            raise ConfigError(
                "regularize.masked_inputs",
                got=f"{config.masked_inputs.largest}, and a tokenizer without sentinels and unknown id",
                rule="must be 0 with this tokenizer, which has no id for a mask",
                remedy="Tokenize with --num-sentinels, or set regularize.masked_inputs=0.",
            )
        is_text_V = InputNoise.of(RegularizeConfig(), tokenizer).is_text_V
        return cls(is_text_V, mask_id, config.masked_inputs_ratio)

    def __call__(self, example: Example, weight: float, context: DropoutContext) -> Example:
        """The example with a masked copy of every row, appended after the rows.

        The copies have the targets of their rows, with weights times ``weight``. They do not count as loss
        tokens, so they have no router losses.

        Args:
            example: Inputs and targets of a micro-batch.
            weight: Weight of the second loss.
            context: Keys the random draws.
        """
        masked = dict(example.inputs)
        for number, name in enumerate(name for name in NOISY_INPUTS if name in masked):
            # The first two layers' keys are those of the input noise.
            key_B = site_keys(context.key_B, 2 + number, 1)[0, Site.INPUT_NOISE]
            masked[name] = self._mask(masked[name], key_B)
        weight_BT = example.weight_BT
        if weight_BT is None:
            weight_BT = torch.ones_like(example.targets_BT, dtype=torch.float32)
        nothing_B = torch.zeros_like(example.num_inputs_B)
        return Example(
            {name: torch.cat([value, masked[name]]) for name, value in example.inputs.items()},
            torch.cat([example.targets_BT] * 2),
            torch.cat([example.is_raw_BT] * 2),
            torch.cat([example.num_inputs_B, nothing_B]),
            torch.cat([weight_BT, weight * weight_BT]),
            torch.cat([example.loss_tokens_B, nothing_B]),
        )

    def _mask(self, token_BT: Tensor, key_B: Tensor) -> Tensor:
        word_BT2 = counter.random_words(key_B, token_BT.shape[1], 2).long() + _WORD
        # The share of a row is word 1 of its first position.
        threshold_B1 = (word_BT2[:, :1, 1] * round(self.ratio * _WORD)) // _WORD
        is_masked_BT = (word_BT2[..., 0] < threshold_B1) & self.is_text_V.to(token_BT.device)[token_BT]
        return token_BT.masked_fill(is_masked_BT, self.mask_id)


def doubled(context: DropoutContext) -> DropoutContext:
    """The dropout context of the rows followed by their masked copies."""
    row_B = torch.cat([context.row_B, context.row_B + _FIRST_MASKED_ROW])
    return replace(context, row_B=row_B)
