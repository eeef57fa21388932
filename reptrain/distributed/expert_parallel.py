"""Expert parallelism: each rank of a group holds some of the experts; tokens are exchanged by all-to-all.

DeepSpeed creates the groups of ranks. It reduces, partitions and clips parameters that name such a group as
expert parameters. Routing, dropout keys, dispatch and the experts' products are the model's own.
docs/decisions/expert-parallelism.md gives the reasons.

Shapes: N assignments of this rank's tokens to experts, M assignments of the group's tokens to this rank's
experts, D width of the residual stream, E experts, P ranks of a group, H = E / P experts of each rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn

from reptrain.distributed.exchange import all_to_all, exchange
from reptrain.distributed.world import World
from reptrain.model.experts import Experts
from reptrain.model.sparse import SparseMLP


def spread_experts(model: nn.Module, *, size: int, world: World) -> None:
    """Reduce every sparse layer of a model to the experts that this rank holds.

    Args:
        model: The model with all experts; it is changed in place.
        size: P, a divisor of the number of experts and of the number of ranks.
        world: The ranks; the ranks of a group are consecutive.
    """
    for module in list(model.modules()):
        if isinstance(module, SparseMLP):
            module.experts = HeldExperts(module, size=size, place=world.rank % size)


class HeldExperts(MoE, Experts):
    """`Experts` with the weights of H experts only. All ranks of a group call it together.

    It derives from DeepSpeed's `MoE` only so that the engine treats its parameters as expert parameters.

    Args:
        whole: The layer with all experts.
        size: P.
        place: This rank's index in its group. It holds the experts ``place * H`` to ``(place + 1) * H - 1``.
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
            own: Any = nn.Parameter(all_E.detach()[place * held : (place + 1) * held].clone())
            # DeepSpeed's marks of an expert parameter.
            own.allreduce, own.group_name = False, self.expert_group_name
            # The marks that checkpoints read (see `reptrain.checkpoint.state`).
            own.whole_shape, own.whole_start = all_E.shape, place * own.numel()
            setattr(self, name, own)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Join the group. The engine calls this method."""
        if self.expert_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self._group = groups._get_expert_parallel_group(self.expert_group_name)
        assert dist.get_rank(self._group) == self.place

    # The number of received rows is known on the host only, which breaks a compiled graph in any case.
    @torch.compiler.disable
    def forward(self, x_ND: Tensor, count_E: Tensor, key_N: Tensor | None) -> Tensor:
        """Send each assignment to the rank of its expert, apply the expert there, and return the result.

        Args:
            x_ND: Inputs sorted by expert.
            count_E: int64, assignments of each expert; the sum is N.
            key_N: int64, dropout key of each assignment; None: no dropout.
        """
        sent_PH = count_E.view(self.ep_size, self.num_local_experts)
        received_PH = torch.empty_like(sent_PH)
        dist.all_to_all_single(received_PH, sent_PH, group=self._group)
        num_sent, num_received = torch.stack([sent_PH.sum(1), received_PH.sum(1)]).tolist()
        x_MD = all_to_all(x_ND, num_sent, num_received, self._group)
        key_M = None if key_N is None else exchange(key_N, num_sent, num_received, self._group)
        order_M = _order_by_expert(received_PH, len(x_MD))
        y_MD = self._transform(x_MD[order_M], received_PH.sum(0), None if key_M is None else key_M[order_M])
        place_M = torch.empty_like(order_M).scatter_(
            0, order_M, torch.arange(len(order_M), device=order_M.device)
        )
        return all_to_all(y_MD[place_M], num_received, num_sent, self._group)

    def _transform(self, x_MD: Tensor, count_H: Tensor, key_M: Tensor | None) -> Tensor:
        if len(x_MD) > 0:
            return self._apply_experts(x_MD, count_H, key_M)
        # The experts' other replicas wait for a gradient, and some products do not accept zero rows: use one.
        count_H = F.pad(count_H[1:], (1, 0), value=1)
        return self._apply_experts(F.pad(x_MD, (0, 0, 0, 1)), count_H, None)[:0]

    def _apply_experts(self, x_MD: Tensor, count_H: Tensor, key_M: Tensor | None) -> Tensor:
        y_MD: Tensor = Experts.forward(self, x_MD, count_H, key_M)
        return y_MD


def _order_by_expert(received_PH: Tensor, total: int) -> Tensor:
    """Indices that sort received rows by expert, int64 [M]; rows arrive sorted by sender, then by expert.

    >>> _order_by_expert(torch.tensor([[1, 2], [2, 0]]), 5).tolist()
    [0, 3, 4, 1, 2]
    """
    senders, held = received_PH.shape
    expert_PH = torch.arange(held, device=received_PH.device).repeat(senders)
    return expert_PH.repeat_interleave(received_PH.flatten(), output_size=total).argsort(stable=True)
