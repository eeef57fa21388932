"""How a training that fails is noticed and recorded, the same in pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from reptrain.distributed.watchdog import watching
from reptrain.distributed.world import World, meeting_store
from reptrain.errors import ReptrainError


@contextmanager
def failures_recorded(
    world: World, *, timeout_s: float, record: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Watch the ranks while they train; a rank that dies or hangs ends all of them with its name.

    Args:
        world: The ranks.
        timeout_s: Longest time that a rank may make no progress.
        record: Writes down why the training failed. Its own failures are ignored: a full disk may be the
            reason that it is to write down.

    Yields:
        A function to call before every forward pass, as a sign of progress.
    """

    def record_error(error: BaseException) -> None:
        text = str(error) if isinstance(error, ReptrainError) else f"{type(error).__name__}: {error}"
        with suppress(OSError, ReptrainError):
            record(text)

    try:
        with watching(meeting_store(), world, timeout_s=timeout_s, tell=record_error) as pulse:
            yield pulse
    except BaseException as error:
        if world.is_main:
            record_error(error)
        raise
