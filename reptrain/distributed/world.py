"""Process groups: joining the ranks of a run, and the few collectives that it uses."""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore

from reptrain.config.sections import TrainConfig
from reptrain.distributed.host_memory import keep_freed_memory
from reptrain.distributed.precision import precision_text
from reptrain.errors import ConfigError, LaunchError, RunError, check_choice
from reptrain.runs.environment import collect
from reptrain_kernels.implementation import Implementation, choose_grouped, choose_implementation
from reptrain_launcher.rank_environment import (
    local_device_index,
    read_rank_environment,
    refuse_shared_gpu,
)

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    sequence_ranks: int = 1
    """Consecutive ranks that share the positions of the same rows (see `train.sequence_parallel_size`)."""

    @property
    def data_ranks(self) -> int:
        """Number of groups of ranks with different rows."""
        return self.world_size // self.sequence_ranks

    @property
    def data_rank(self) -> int:
        """Index of this rank's group among those with different rows."""
        return self.rank // self.sequence_ranks

    @property
    def sequence_rank(self) -> int:
        """Index of this rank among those with the same rows."""
        return self.rank % self.sequence_ranks

    @property
    def counts_rows(self) -> bool:
        """Whether this rank counts its rows, and no other rank counts the same."""
        return self.sequence_rank == 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; int64 sums wrap around, which digests rely on."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, value: int) -> int:
        """Maximum over ranks."""
        if self.world_size == 1:
            return value
        box = torch.tensor(value, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box.item())

    def from_main(self, value: Shared) -> Shared:
        """The main rank's value, on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def on_main(self, action: Callable[[], Shared]) -> Shared:
        """Call ``action`` on the main rank only; every rank returns its value or raises its error."""
        outcome: tuple[Shared | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = action(), None
            except Exception as error:  # The other ranks wait for the outcome, whatever the error is.
                outcome = None, portable(error)
                self.from_main(outcome)
                raise
        value, failure = self.from_main(outcome)
        if failure is not None:
            raise failure
        return cast(Shared, value)

    def gather(self, value: Shared) -> list[Shared]:
        """The values of all ranks in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def ranks_on_host(self) -> int:
        """Number of ranks on the host of this one. Every rank calls it."""
        return self.gather(socket.gethostname()).count(socket.gethostname())

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()


def portable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # An error's class may raise anything when it is rebuilt.
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe(world: World, train: TrainConfig, attention: Implementation) -> dict[str, Any]:
    """The content of environment.json: versions, machine, devices, and the implementations of kernels.

    Args:
        world: The ranks.
        train: The run's training settings.
        attention: The implementation of attention that the model uses.
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


def choose_device(wanted: str) -> torch.device:
    """The device to compute on.

    Args:
        wanted: auto, cpu or cuda.

    Raises:
        ConfigError: If ``wanted`` is unknown, or names a GPU and there is none.
        LaunchError: If the launcher's environment variables are wrong, or there are fewer GPUs than ranks.
    """
    check_choice("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device",
            got="cuda",
            rule="must be an available device, and torch detects no GPU",
            remedy="Set train.device=cpu, or install a torch built for CUDA.",
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place = read_rank_environment()
    index = local_device_index(place.local_rank if place else 0, torch.cuda.device_count())
    return torch.device("cuda", index)


def in_groups(world: World, train: TrainConfig) -> World:
    """The ranks in the groups of a run's parallelism.

    Args:
        world: The ranks.
        train: The run's training settings.

    Raises:
        ConfigError: If the number of ranks is not a multiple of the size of a group.
    """
    for setting in ("expert_parallel_size", "sequence_parallel_size"):
        size = getattr(train, setting)
        if world.world_size % size:
            raise ConfigError(
                f"train.{setting}",
                got=size,
                rule=f"must divide the number of ranks, {world.world_size}",
                remedy=f"Set a divisor of {world.world_size}, or start a multiple of {size} ranks.",
            )
    return replace(world, sequence_ranks=train.sequence_parallel_size)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _rank_variables() -> Iterator[None]:
    """The launcher's environment variables, or those of a single rank: else DeepSpeed looks for mpi4py."""
    if read_rank_environment() is not None:
        os.environ.setdefault("LOCAL_RANK", "0")
        yield
        return
    single = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    single["MASTER_PORT"] = str(_free_port())
    before = {name: os.environ.get(name) for name in single}
    os.environ.update(single)
    # DeepSpeed reads LOCAL_RANK for every engine. The other variables are removed again: a child process
    # would take itself for a rank.
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
    """Join the ranks that a launcher started, or form a world of one rank, until the process ends.

    Reads RANK, WORLD_SIZE and LOCAL_RANK as `deepspeed` and `torchrun` set them. Further calls return the
    same world: DeepSpeed keeps groups that do not survive their process group.

    Args:
        device: The device to train on.
        timeout_s: Seconds to wait for all ranks.

    Raises:
        LaunchError: If the launcher's environment variables are wrong.
        RunError: If not all ranks joined.
    """
    if not dist.is_initialized():
        if device.type == "cpu":
            keep_freed_memory()
        with _rank_variables():
            _init(device, timeout_s)
        atexit.register(_leave)
    environment = read_rank_environment()
    local_rank = environment.local_rank if environment else 0
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def meeting_store() -> Store | None:
    """The rendezvous store, or None for a single process."""
    return _rendezvous.get("store") if dist.get_world_size() > 1 else None


_rendezvous: dict[str, Store] = {}


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _use_loopback(host: str) -> None:
    """Make NCCL and gloo use the loopback interface if all ranks run on this machine.

    NCCL prefers another interface and fails if there is none, even with a single rank.
    """
    if host in _LOOPBACK and Path("/sys/class/net/lo").exists():
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")


def _init_process_group(device: torch.device, backend: str, timeout_s: float) -> None:
    """Wait for all ranks, keep their rendezvous store, and create the process group."""
    timeout = timedelta(seconds=timeout_s)
    environment = read_rank_environment()
    assert environment is not None
    rank, world_size = environment.rank, environment.world_size
    host, port = environment.master_addr, environment.master_port
    _use_loopback(host)
    # torchrun's agent serves the store itself.
    served_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    missing = [0]
    try:
        server = TCPStore(
            host,
            port,
            world_size,
            rank == 0 and not served_by_agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
        store = PrefixStore("reptrain", server)
        store.set(f"joined-{rank}", _gpu_name(device))
        missing = _missing_ranks(store, world_size, timeout)
    except dist.DistError as error:
        reason: object = str(error).splitlines()[0]
    else:
        reason = f"{world_size - len(missing)} of {world_size}"
    if missing:
        several = len(missing) > 1
        raise RunError(
            f"ranks {', '.join(map(str, missing))}" if several else f"rank {missing[0]}",
            got=reason,
            rule=f"must join within {timeout_s:g} seconds",
            remedy=f"Check its output, and whether its machine can reach {host}:{port}.",
        )
    if device.type == "cuda":
        _refuse_shared_gpu(store, rank, world_size)
    _rendezvous["store"] = store
    # A longer timeout than the watchdog's, which should report first.
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=2 * timeout,
        # Without it NCCL guesses the GPU from the rank, and warns or hangs if the guess is wrong.
        device_id=device if device.type == "cuda" else None,
    )


def _gpu_name(device: torch.device) -> str:
    """A name of this rank's GPU that no other GPU of the run has; empty on a CPU."""
    if device.type != "cuda":
        return ""
    # Instances of one partitioned GPU may have its UUID. Their entries in CUDA_VISIBLE_DEVICES differ.
    uuid, visible = (
        torch.cuda.get_device_properties(device).uuid,
        os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
    )
    return f"{device} of {visible} on {socket.gethostname()}, UUID {uuid}"


def _refuse_shared_gpu(store: Store, rank: int, world_size: int) -> None:
    gpus = [name.decode() for name in store.multi_get([f"joined-{other}" for other in range(world_size)])]
    try:
        refuse_shared_gpu(gpus)
    except LaunchError:
        # Rank 0 serves the store until all ranks have read it.
        store.set(f"refused-{rank}", "")
        if rank == 0:
            with suppress(dist.DistError):
                store.wait([f"refused-{other}" for other in range(world_size)], timedelta(seconds=10))
        raise


def _missing_ranks(store: Store, world_size: int, timeout: timedelta) -> list[int]:
    """Wait for all ranks; returns those that did not join."""
    keys = [f"joined-{rank}" for rank in range(world_size)]
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
    # DeepSpeed calls collectives by names that torch replaces; a user cannot act on it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":
        # No compiled op is used on a CPU: the shared-memory op takes a minute to compile at first use, and
        # gloo does the same job. Otherwise the first access to this table probes every op, with a compiler.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
        backend = "gloo"
    else:
        torch.cuda.set_device(device)
        backend = "nccl"
    _init_process_group(device, backend, timeout_s)
    # Uses the existing process group.
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    # DeepSpeed's CPU backend leaves a buffer of 69 MB of each process in shared memory.
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*{os.getpid()}*"):
        path.unlink(missing_ok=True)
