"""Small linear algebra on one thread of BLAS."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
R = TypeVar("R")


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with one thread of BLAS.

    The matrices of a fit have few rows. More threads would mostly wait for each other.
    """

    @wraps(function)
    def limited(*args: P.args, **options: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **options)

    return limited
