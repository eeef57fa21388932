"""A copy of a rank's state in host memory, from which a checkpoint is written while training continues."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence

import torch

from reptrain.checkpoint.state import Piece


class HostCopy:
    """Memory for one copy of the pieces that a rank writes. All saves use the same memory.

    It is allocated and filled here, so that a lack of memory shows before the first step. On a CUDA device it
    is pinned.

    Args:
        held: The pieces. Later ones must have as many elements.
        device: The device that they are on.
    """

    def __init__(self, held: Sequence[Piece], device: torch.device) -> None:
        self.num_bytes = state_bytes(held)
        """Size of the copy."""
        self._device = device
        # Mapped directly: the C library's allocator may round up, and may keep the memory afterwards.
        self._values = torch.frombuffer(mmap.mmap(-1, max(self.num_bytes, 4)), dtype=torch.float32)
        self._values.zero_()
        if device.type == "cuda":
            # Not `pin_memory`, which rounds up to a power of two.
            runtime, address = torch.cuda.cudart(), self._values.data_ptr()
            torch.cuda.check_error(runtime.cudaHostRegister(address, self._values.nbytes, 0))
            weakref.finalize(self, runtime.cudaHostUnregister, address)

    def take(self, held: Sequence[Piece]) -> list[Piece]:
        """Copy the pieces; the result is valid until the next call.

        Args:
            held: The live pieces.
        """
        copies, first = [], 0
        for piece in held:
            views = {}
            for kind, view in piece.views.items():
                views[kind] = self._values[first : first + view.numel()].view(view.shape)
                views[kind].copy_(view, non_blocking=True)
                first += view.numel()
            copies.append(piece._replace(views=views))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return copies


def state_bytes(held: Sequence[Piece]) -> int:
    """Bytes of pieces in fp32."""
    return 4 * sum(view.numel() for piece in held for view in piece.views.values())
