"""Coefficients of the router losses, between transformers' conventions and ours.

Ours: each sparse layer adds its balance loss, which is 1 at balance, and its z-loss; the sum over the layers
is multiplied by the coefficient. Mixtral there: one balance loss over the tokens of all layers, which is
`top_k` at balance. Switch there: for encoder and decoder one balance loss (1 at balance) and one z-loss over
the tokens of the stack's sparse layers, added up. A loss over the tokens of L layers is the mean of their
z-losses, and of their balance losses where their loads agree; otherwise only about that.
"""

from __future__ import annotations

from reptrain.config.model import DecoderConfig, T5Config


def mixtral_factor(config: DecoderConfig) -> float:
    """Mixtral's `router_aux_loss_coef` over our balance coefficient.

    >>> from reptrain.config.model import MoEConfig
    >>> mixtral_factor(DecoderConfig(num_layers=32, moe=MoEConfig(num_experts=8, top_k=2)))
    16.0
    """
    assert config.moe is not None
    return config.stack.num_sparse / config.moe.top_k


def switch_factor(config: T5Config) -> float:
    """Switch's `router_aux_loss_coef` and `router_z_loss_coef` over our coefficients.

    Where the stacks have different numbers of sparse layers, that keeps the sum of both at balance.
    """
    return (config.encoder.num_sparse + config.decoder.num_sparse) / 2


def published(coefficient: float, factor: float) -> float:
    """Our coefficient in transformers' convention, without the product's rounding error in its digits."""
    return float(f"{coefficient * factor:.12g}")
