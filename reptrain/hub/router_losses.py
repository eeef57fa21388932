"""Conversion of router loss coefficients between transformers' conventions and ours.

Ours: the coefficient multiplies the sum over sparse layers of the balance loss (1 at balance) and of the
z-loss. transformers' Mixtral: one balance loss over the tokens of all layers, which is `top_k` at balance.
transformers' Switch: for encoder and decoder each, one balance loss (1 at balance) and one z-loss over the
tokens of the stack's sparse layers; the two are added. A z-loss over the tokens of L layers is the mean of
the layers' losses. For the balance loss that holds exactly if the layers have equal loads, else
approximately.
"""

from __future__ import annotations

from reptrain.config.model import DecoderConfig, T5Config


def mixtral_factor(config: DecoderConfig) -> float:
    """Ratio of Mixtral's `router_aux_loss_coef` to our balance coefficient.

    >>> from reptrain.config.model import MoEConfig
    >>> mixtral_factor(DecoderConfig(num_layers=32, moe=MoEConfig(num_experts=8, top_k=2)))
    16.0
    """
    assert config.moe is not None
    return config.stack.num_sparse / config.moe.top_k


def switch_factor(config: T5Config) -> float:
    """Ratio of Switch's `router_aux_loss_coef` and `router_z_loss_coef` to our coefficients.

    If encoder and decoder have different numbers of sparse layers, their total loss at balance is preserved.
    """
    return (config.encoder.num_sparse + config.decoder.num_sparse) / 2


def published(coefficient: float, factor: float) -> float:
    """Our coefficient in transformers' convention, rounded to 12 digits to hide rounding errors."""
    return float(f"{coefficient * factor:.12g}")
