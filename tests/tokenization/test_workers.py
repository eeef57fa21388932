"""Jobs in several processes, of which the calling one is one."""

from __future__ import annotations

import os

import pytest

from reptrain.tokenization.workers import Workers


def number_and_process(number: int) -> tuple[int, int]:
    """A job."""
    if number < 0:
        raise ValueError(f"job {number}")
    return number, os.getpid()


def test_workers_run_jobs_in_the_calling_process_too() -> None:
    with Workers(2) as workers:
        done = dict(workers.run(number_and_process, range(6)))
        assert {number: result[0] for number, result in done.items()} == {
            number: number for number in range(6)
        }
        processes = {process for _, process in done.values()}
        assert os.getpid() in processes and len(processes) == 2
        with pytest.raises(ValueError, match="job -1"):
            list(workers.run(number_and_process, [-1, -1, -1]))
        assert len(list(workers.run(number_and_process, [7, 8]))) == 2
