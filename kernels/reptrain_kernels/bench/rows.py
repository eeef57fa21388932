"""The rows of the CSV file of measured times."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One pass of one implementation at one shape."""

    date: str
    device: str
    torch: str
    triton: str
    commit: str
    operation: str
    shape: str
    way: str
    what: str
    median_us: str
    p20_us: str
    p80_us: str
    gigabytes_per_second: str
    teraflops: str
    share_of_copy: str
    share_of_matmul: str
    peak_mib: str
    """Peak memory beyond the inputs."""
    said: str
    """Why there is no time; empty if there is one."""
