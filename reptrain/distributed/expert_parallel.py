"""Experts spread over ranks: each rank of a group holds some of them, and tokens travel there and back.

DeepSpeed makes the groups of ranks; it reduces, partitions and clips as experts the parameters that name
their group. Routing, dropout keys, dispatch and products stay the model's own.
docs/decisions/expert-parallelism.md says why.

Shapes: N assignments of this rank's tokens to experts, M assignments of the group's tokens to the experts
held here, D width of the residual stream, E experts, P ranks of a group, H = E / P experts held by each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn

from reptrain.distributed.world import World
from reptrain.model.experts import Experts
from reptrain.model.sparse import SparseMLP


def spread_experts(model: nn.Module, *, size: int, world: World) -> None:
    """Keep of every sparse layer the experts that this rank holds.

    Args:
        model: With the weights of all experts; it is changed.
        size: P. It divides the experts and the ranks.
        world: The ranks; those of a group follow one another.
    """
    for module in list(model.modules()):
        if isinstance(module, SparseMLP):
            module.experts = HeldExperts(module, size=size, place=world.rank % size)


class HeldExperts(MoE, Experts):
    """As `Experts`, which it replaces, with the weights of some alone. All ranks of a group call it together.

    It is one of DeepSpeed's layers so that the engine looks after its parameters; it uses nothing else of it.

    Args:
        whole: The layer, with all experts.
        size: P.
        place: Of this rank in its group: it holds the experts from ``place * H`` on.
    """

    def __init__(self, whole: SparseMLP, *, size: int, place: int) -> None:
        experts, d_ff, d_model = whole.experts.up.shape
        held = experts // size
        with torch.device("meta"):
            Experts.__init__(
                self,
                d_model,
                d_ff,
                activation=whole.experts.activation,
                config=whole.config.model_copy(update={"num_experts": held}),
                dropout=whole.experts.dropout.schedule,
            )
        self.num_experts, self.num_local_experts, self.ep_size = experts, held, size
        self.expert_group_name = f"ep_size_{size}"
        self.place = place
        for name, all_E in whole.experts.named_parameters():
            own = nn.Parameter(all_E.detach()[place * held : (place + 1) * held].clone())
            own.allreduce, own.group_name = False, self.expert_group_name
            # What checkpoints know it by (see `reptrain.checkpoint.state`).
            own.whole_shape, own.whole_start = all_E.shape, place * own.numel()
            setattr(self, name, own)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Join the group; the engine calls it."""
        if self.expert_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self._group = groups._get_expert_parallel_group(self.expert_group_name)
        assert dist.get_rank(self._group) == self.place

    # How many rows come is known on the host alone: a compiled graph would break here anyway.
    @torch.compiler.disable
    def forward(self, x_ND: Tensor, count_E: Tensor, key_N: Tensor | None) -> Tensor:
        """Send each assignment where its expert is held, transform it there, and take it back.

        Args:
            x_ND: Sorted by expert.
            count_E: int64, how many are each expert's; together N.
            key_N: int64, a dropout key of each assignment; None drops nothing.
        """
        sent_PH = count_E.view(self.ep_size, self.num_local_experts)
        come_PH = torch.empty_like(sent_PH)
        dist.all_to_all_single(come_PH, sent_PH, group=self._group)
        there, back = torch.stack([sent_PH.sum(1), come_PH.sum(1)]).tolist()
        x_MD = _Exchange.apply(x_ND, there, back, self._group)
        key_M = None if key_N is None else _exchange(key_N, there, back, self._group)
        order_M = _order_by_expert(come_PH, len(x_MD))
        y_MD = self._transform(x_MD[order_M], come_PH.sum(0), None if key_M is None else key_M[order_M])
        place_M = torch.empty_like(order_M).scatter_(
            0, order_M, torch.arange(len(order_M), device=order_M.device)
        )
        return _Exchange.apply(y_MD[place_M], back, there, self._group)

    def _transform(self, x_MD: Tensor, count_H: Tensor, key_M: Tensor | None) -> Tensor:
        if len(x_MD) > 0:
            return Experts.forward(self, x_MD, count_H, key_M)
        # The other holders of these experts wait for a gradient, and not every product takes no rows at all.
        count_H = F.pad(count_H[1:], (1, 0), value=1)
        return Experts.forward(self, F.pad(x_MD, (0, 0, 0, 1)), count_H, None)[:0]


def _order_by_expert(come_PH: Tensor, total: int) -> Tensor:
    """int64 [M]: where the rows of each expert lie among those that came sorted by sender, then by expert.

    >>> _order_by_expert(torch.tensor([[1, 2], [2, 0]]), 5).tolist()
    [0, 3, 4, 1, 2]
    """
    senders, held = come_PH.shape
    expert_PH = torch.arange(held, device=come_PH.device).repeat(senders)
    return expert_PH.repeat_interleave(come_PH.flatten(), output_size=total).argsort(stable=True)


class _Exchange(torch.autograd.Function):
    """Rows to the other ranks of a group; gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, there: list[int], back: list[int], group: Any) -> Tensor:
        ctx.way_back = back, there, group
        return _exchange(x_ND, there, back, group)

    @staticmethod
    def backward(ctx: Any, dy_MD: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(dy_MD, *ctx.way_back), None, None, None


def _exchange(rows: Tensor, there: list[int], back: list[int], group: Any) -> Tensor:
    """Send so many rows to each rank, in order, and get so many from each."""
    came = rows.new_empty(sum(back), *rows.shape[1:])
    dist.all_to_all_single(came, rows.contiguous(), back, there, group=group)
    return came
