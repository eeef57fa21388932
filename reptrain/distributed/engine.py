"""The part of DeepSpeed's engine that reptrain uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from reptrain.model import Decoder, EncoderDecoder


class Engine(Protocol):
    """A model with its optimizer, distributed over the ranks (`deepspeed.DeepSpeedEngine`).

    DeepSpeed ships no types; this protocol names the few methods and attributes that the code relies on.
    """

    @property
    def module(self) -> Decoder | EncoderDecoder:
        """The wrapped model."""

    @property
    def optimizer(self) -> Any:
        """The torch optimizer, or DeepSpeed's wrapper around it (ZeRO, fp16)."""

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""

    micro_steps: int
    """Micro-batches since the start; DeepSpeed derives the last micro-batch of a step from it."""
    allreduce_gradients: Callable[..., None]
    enable_backward_allreduce: bool
    """Whether `backward` reduces the gradients over the ranks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the model."""

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool = True) -> Tensor:
        """Accumulate gradients; reduce them over the ranks after the last micro-batch."""

    def step(self) -> None:
        """End a micro-batch; after the last one of a step, update the weights."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def train(self, mode: bool = True) -> Any:
        """Enter training mode, or leave it."""

    def eval(self) -> Any:
        """Enter evaluation mode."""

    def compile(self) -> None:
        """Compile the whole model with torch.compile."""

    def destroy(self) -> None:
        """Release what the engine holds."""

    def register_forward_pre_hook(self, hook: Callable[..., None]) -> Any:
        """Call ``hook`` before every forward pass."""

    def get_global_grad_norm(self) -> Any:
        """L2 norm of the last step's whole gradient; None where DeepSpeed keeps none (stage 0 in fp32)."""

    def was_step_applied(self) -> bool:
        """Whether the last step changed the weights."""

    def fp16_enabled(self) -> bool:
        """Whether the model trains in fp16 with a loss scale."""

    def zero_optimization_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
