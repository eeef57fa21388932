"""Registration of a kernel's launch as a torch operator: torch.compile does not break the graph at it.

`torch.library.custom_op` does the same, but takes about twice as long on the host for a call with a gradient,
which is longer than many kernels run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operator:
    """An operator for tensors on any device. It changes no argument, and all of its results are new tensors.

    Its methods are those of `torch.library.custom_op`.

    Args:
        name: Qualified name, "namespace::name".
        function: The implementation. Its annotations give the schema; arguments are positional and have no
            defaults.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        namespace, self._name = name.split("::")
        self._library = torch.library.Library(namespace, "FRAGMENT")
        schema = torch.library.infer_schema(function, mutates_args=())
        self._library.define(self._name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        # torch.compile must not trace the launch when a compiled model calls it in eager mode.
        function = torch.compiler.disable(function)
        self._library.impl(self._name, function, "CompositeExplicitAutograd")
        self.overload = getattr(getattr(torch.ops, namespace), self._name).default
        self._function = _autograd_function(name, self.overload)
        self._library.impl(self._name, self._run, "Autograd")

    def __call__(self, *arguments: Any) -> Any:
        """Call the operator."""
        # In eager mode the dispatcher would take a detour to `_run`.
        return self.overload(*arguments) if torch.compiler.is_compiling() else self._run(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Set the function of shapes and dtypes, for torch.compile. Works as a decorator."""
        torch.library.register_fake(f"{self._library.ns}::{self._name}", function, lib=self._library)
        return function

    def register_autograd(
        self,
        backward: Callable[..., tuple[Tensor | None, ...]],
        *,
        setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    ) -> None:
        """Set the gradient, with the functions that `torch.library.register_autograd` takes."""
        self._function.keep, self._function.gradient = setup_context, backward

    def _run(self, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return self._function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)


def _autograd_function(name: str, overload: Any) -> Any:
    """A `torch.autograd.Function` that calls an operator; `Operator.register_autograd` sets its gradient."""

    class Function(torch.autograd.Function):
        keep: Any = None
        gradient: Any = None

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                results = overload(*arguments)
            if Function.keep is not None:
                Function.keep(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if Function.gradient is None:
                raise NotImplementedError(f"{name} has no gradient")
            return Function.gradient(ctx, *grads)

    return Function
