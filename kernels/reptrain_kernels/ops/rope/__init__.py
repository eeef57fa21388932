"""Rotary position embedding of queries and keys together.

Shapes: B rows, T positions, H query heads, K key heads, N width of a head, M = N / 2 angles of a position.

Source:
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021. Unit i is paired
    with unit i + M, as published Llama weights in Hugging Face folders expect.
"""

from __future__ import annotations

from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.rope.reference import rotate_reference

__all__ = ["rotate"]


def rotate(
    q_BTHN: Tensor,
    k_BTKN: Tensor,
    cos_TM: Tensor,
    sin_TM: Tensor,
    *,
    impl: Implementation | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate the pairs of units of each head by the angles of its position, in fp32.

    Args:
        q_BTHN: Queries, floating point.
        k_BTKN: Keys, of the same dtype.
        cos_TM: Cosines of the angles, fp32, without gradient; [B, T, M] if the positions differ between rows.
        sin_TM: Sines, of the same shape.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Returns:
        The rotated queries and keys, new tensors of the same shapes and dtype.

    Raises:
        ValueError: If the shapes or dtypes do not match.

    Example:
        One head of width 2 and an angle of 1: (1, 0) becomes (cos 1, sin 1).
    """
    _check(q_BTHN, k_BTKN, cos_TM, sin_TM)
    if choose_implementation(q_BTHN.device, impl) == "torch":
        return rotate_reference(q_BTHN, cos_TM, sin_TM), rotate_reference(k_BTKN, cos_TM, sin_TM)
    from reptrain_kernels.ops.rope.triton import rotate_both

    return rotate_both(q_BTHN, k_BTKN, cos_TM, sin_TM, 1.0)


def _check(q_BTHN: Tensor, k_BTKN: Tensor, cos_TM: Tensor, sin_TM: Tensor) -> None:
    B, T, _, N = q_BTHN.shape
    if k_BTKN.shape[:2] != (B, T) or k_BTKN.shape[3] != N or N % 2:
        raise ValueError(
            "q_BTHN, k_BTKN: must agree in all but heads, and their width be even, but got "
            f"{tuple(q_BTHN.shape)} and {tuple(k_BTKN.shape)}"
        )
    if q_BTHN.dtype != k_BTKN.dtype:
        raise ValueError(f"q_BTHN, k_BTKN: must have one dtype, but got {q_BTHN.dtype} and {k_BTKN.dtype}")
    for name, x in (("cos_TM", cos_TM), ("sin_TM", sin_TM)):
        # torch.compile evaluates `shape in (...)` without the sizes that it traces symbolically.
        fits = x.ndim in (2, 3) and x.shape[-2:] == (T, N // 2) and (x.ndim == 2 or x.shape[0] == B)
        if not fits or x.shape != cos_TM.shape:
            raise ValueError(
                f"{name}: must have shape {(T, N // 2)} or {(B, T, N // 2)}, as the other has, "
                f"but got {tuple(x.shape)}"
            )
