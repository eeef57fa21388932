"""Joining the other ranks, or being the only one, and the few sums that ranks share."""

from __future__ import annotations

import atexit
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from reptrain.config.schema import TrainConfig
from reptrain.distributed.host_memory import keep_freed_memory
from reptrain.distributed.precision import precision_text
from reptrain.errors import ConfigError, RunError, check_choice
from reptrain.runs.environment import collect
from reptrain_kernels.implementation import Implementation, choose_grouped, choose_implementation
from reptrain_launcher.rank_environment import local_device_index, read_rank_environment

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class World:
    """This process's place among the data-parallel ranks."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; int64 sums wrap around, as digests want."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, here: int) -> int:
        """The largest value of any rank."""
        if self.world_size == 1:
            return here
        box = torch.tensor(here, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box.item())

    def from_main(self, value: Shared) -> Shared:
        """The main rank's value, on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def on_main(self, action: Callable[[], Shared]) -> Shared:
        """Do something on the main rank alone; what it returns or raises reaches every rank."""
        outcome: tuple[Shared | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = action(), None
            except Exception as error:  # Whatever it is, the others wait to hear of it.
                outcome = None, _portable(error)
                self.from_main(outcome)
                raise
        value, refused = self.from_main(outcome)
        if refused is not None:
            raise refused
        return cast(Shared, value)

    def gather(self, value: Shared) -> list[Shared]:
        """Every rank's value by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()


def _portable(error: Exception) -> Exception:
    """The error, or its words where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Whatever a class does when it is rebuilt.
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe(world: World, train: TrainConfig, attention: Implementation) -> dict[str, Any]:
    """Where a run is made, for environment.json: versions, machine, devices, and which kernels run.

    Args:
        world: The ranks.
        train: Of the run.
        attention: The implementation of attention that the model runs.
    """
    devices = {
        "device": str(world.device),
        "world_size": world.world_size,
        "precision": train.precision,
        "products": precision_text(train, world.device),
        "kernels": choose_implementation(world.device),
        "attention_kernels": attention,
        "expert_kernels": choose_grouped(world.device, _DTYPES[train.precision]),
    }
    if world.device.type == "cuda":
        devices["gpu"] = torch.cuda.get_device_name(world.device)
    return collect(devices)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on.

    Raises:
        ConfigError: If a GPU is asked for and there is none, or another word is given.
        LaunchError: If a launcher's variables are wrong, or there are fewer GPUs than ranks.
    """
    check_choice("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device",
            got="cuda",
            rule="must name a device that is present, and torch sees no GPU",
            remedy="Set train.device=cpu, or install a torch built for CUDA.",
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place = read_rank_environment()
    index = local_device_index(place.local_rank if place else 0, torch.cuda.device_count())
    return torch.device("cuda", index)


def check_expert_parallel(size: int, world: World) -> None:
    """Refuse ranks that do not make whole groups.

    Raises:
        ConfigError: If some experts would be held by fewer ranks than others.
    """
    if world.world_size % size:
        raise ConfigError(
            "train.expert_parallel_size",
            got=size,
            rule=f"must divide the number of ranks, {world.world_size}",
            remedy=f"Set a divisor of {world.world_size}, or start a multiple of {size} ranks.",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _rank_variables() -> Iterator[None]:
    """What a launcher sets, or that this is the only rank: without it DeepSpeed looks for mpi4py."""
    if read_rank_environment() is not None:
        os.environ.setdefault("LOCAL_RANK", "0")
        yield
        return
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    alone["MASTER_PORT"] = str(_free_port())
    before = {name: os.environ.get(name) for name in alone}
    os.environ.update(alone)
    # DeepSpeed asks for this one at every engine; the others, left standing, would mislead child processes.
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def join(device: torch.device, *, timeout_s: float = 600.0) -> World:
    """Join the ranks that a launcher started, or be the only one, until the process ends.

    Reads RANK, WORLD_SIZE and LOCAL_RANK as `deepspeed` and `torchrun` set them. Called again it returns
    the same place: DeepSpeed keeps groups that do not survive their process group.

    Args:
        device: What to train on.
        timeout_s: How long to wait for a rank that does not come.

    Raises:
        LaunchError: If the launcher's variables are wrong.
        RunError: If not all ranks came.
    """
    if not dist.is_initialized():
        if device.type == "cpu":
            keep_freed_memory()
        with _rank_variables():
            _init(device, timeout_s)
        atexit.register(_leave)
    place = read_rank_environment()
    local_rank = place.local_rank if place else 0
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def meeting_store() -> dist.Store | None:
    """Where the ranks met, or None where this process is the only one."""
    return _met.get("store") if dist.get_world_size() > 1 else None


_met: dict[str, dist.Store] = {}


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _use_loopback(host: str) -> None:
    """Let NCCL and gloo meet through the loopback interface where all ranks run on this machine.

    NCCL looks for another interface first and gives up where there is none, one rank or many.
    """
    if host in _LOOPBACK and Path("/sys/class/net/lo").exists():
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")


def _meet(device: torch.device, backend: str, timeout_s: float) -> None:
    """Wait for all ranks, and keep the store through which they find each other."""
    timeout = timedelta(seconds=timeout_s)
    place = read_rank_environment()
    assert place is not None
    rank, world_size, host, port = place.rank, place.world_size, place.master_addr, place.master_port
    _use_loopback(host)
    # torchrun's agent has a store already.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    missing = [0]
    try:
        server = dist.TCPStore(
            host,
            port,
            world_size,
            rank == 0 and not of_agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
        store = dist.PrefixStore("reptrain", server)
        store.set(f"here-{rank}", "")
        missing = _missing(store, world_size, timeout)
    except dist.DistError as error:
        reason: object = str(error).splitlines()[0]
    else:
        reason = f"{world_size - len(missing)} of {world_size}"
    if missing:
        several = len(missing) > 1
        raise RunError(
            f"ranks {', '.join(map(str, missing))}" if several else f"rank {missing[0]}",
            got=reason,
            rule=f"must come within {timeout_s:g} seconds",
            remedy=f"Look at what was written there, and whether that machine reaches {host}:{port}.",
        )
    _met["store"] = store
    # The watch over the ranks comes first: this ends what it does not see.
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=2 * timeout,
        # Without it NCCL guesses the GPU from the rank, and warns or hangs where the guess is wrong.
        device_id=device if device.type == "cuda" else None,
    )


def _missing(store: dist.Store, world_size: int, timeout: timedelta) -> list[int]:
    """Wait for all ranks; returns those that did not come."""
    keys = [f"here-{rank}" for rank in range(world_size)]
    try:
        store.wait(keys, timeout)
    except dist.DistStoreError:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]
    return []


def _init(device: torch.device, timeout_s: float) -> None:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    if device.type == "cpu":
        # The shared-memory op is compiled at first use, for a minute, and gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "gloo"
    else:
        torch.cuda.set_device(device)
        backend = "nccl"
    _meet(device, backend, timeout_s)
    # Takes the group that is there.
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    # DeepSpeed's CPU backend leaves a buffer of 69 MB per process in shared memory.
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*{os.getpid()}*"):
        path.unlink(missing_ok=True)
