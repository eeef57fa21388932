"""Adafactor as in T5X. torch's has no minimum size for factoring and no momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# From T5X: added to squared gradients, and the smallest scale of a parameter.
_SQUARE_EPS, _SCALE_EPS = 1e-30, 1e-3


class Adafactor(torch.optim.Optimizer):
    """Second moments by rows and columns, updates in units of the parameter's root mean square.

    The last two dimensions of a parameter are its matrix. A parameter with more, such as the experts of a
    layer, holds several matrices, each with its own scale and clipping.

    Args:
        params: Parameters or groups of them.
        lr: Largest relative step: a step's rate is the smaller of this and 1 / sqrt(step).
        decay_exponent: The second moment keeps 1 - step ** -exponent of itself.
        clip_threshold: Largest root mean square of a matrix's update before the rate.
        min_dim_to_factor: A matrix with a shorter side keeps its second moment whole.
        beta1: Decay of the momentum of the updates; 0 keeps none.
        weight_decay: Decoupled, times `lr`.

    Source:
        Shazeer & Stern, "Adafactor: Adaptive learning rates with sublinear memory cost", 2018, algorithm 4;
        t5x/adafactor.py for the smallest side, the epsilons and the momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        decay_exponent: float = 0.8,
        clip_threshold: float = 1.0,
        min_dim_to_factor: int = 128,
        beta1: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.decay_exponent, self.clip_threshold = decay_exponent, clip_threshold
        self.min_dim_to_factor, self.beta1 = min_dim_to_factor, beta1

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Optimizer state of a parameter before its first step."""
        zeros = torch.zeros_like(parameter, requires_grad=False)
        state = {"step": torch.zeros((), dtype=torch.float32)}
        if parameter.ndim > 1 and min(parameter.shape[-2:]) >= self.min_dim_to_factor:
            state |= {"row_var": zeros[..., :1].clone(), "col_var": zeros[..., :1, :].clone()}
        else:
            state["variance"] = zeros
        return state | ({"momentum": torch.zeros_like(zeros)} if self.beta1 > 0 else {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= self.fresh_state(parameter)
        state["step"] += 1
        step = state["step"].item()
        matrix = tuple(range(max(0, parameter.ndim - 2), parameter.ndim))
        update = _normalized(gradient, state, step**-self.decay_exponent)
        update /= (_root_mean_square(update, matrix) / self.clip_threshold).clamp(min=1)
        update *= min(lr, step**-0.5) * _root_mean_square(parameter, matrix).clamp(min=_SCALE_EPS)
        if self.beta1 > 0:
            update = state["momentum"].lerp_(update, 1 - self.beta1)
        parameter.mul_(1 - lr * weight_decay).sub_(update)


def _root_mean_square(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.square().mean(dims, keepdim=True).sqrt()


def _normalized(gradient: Tensor, state: dict[str, Tensor], new: float) -> Tensor:
    """The gradient over the root of its second moment, of which a share ``new`` is this step's."""
    square = gradient.square() + _SQUARE_EPS
    if "variance" in state:
        return gradient * state["variance"].lerp_(square, new).rsqrt()
    row = state["row_var"].lerp_(square.mean(-1, keepdim=True), new)
    column = state["col_var"].lerp_(square.mean(-2, keepdim=True), new)
    return gradient * (row / row.mean(-2, keepdim=True)).rsqrt() * column.rsqrt()
