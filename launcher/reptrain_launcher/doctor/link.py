"""The program that measures all-reduces between two hosts. It is sent over ssh, and needs torch."""

from __future__ import annotations

import base64
import datetime
import json
import os
import sys
import time
from typing import Any

MARK = "@@reptrain-facts "
_BYTES = 2**24


def main(request: dict[str, Any]) -> dict[str, object]:
    """Print the bytes per second that all-reduces of 16 MiB reach."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if request["interface"]:
        os.environ["GLOO_SOCKET_IFNAME"] = request["interface"]
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available() and not request["cpu"]
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{request['address']}:{request['port']}",
        rank=request["rank"],
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    data = torch.ones(_BYTES // 4, device=device)
    go_on = torch.ones(1, device=device)
    dist.all_reduce(data)
    rounds, began = 0, time.monotonic()
    while go_on.item() > 0:
        dist.all_reduce(data)
        rounds += 1
        # The first rank decides when both stop.
        go_on.fill_(1.0 if request["rank"] == 0 and time.monotonic() - began < request["seconds"] else 0.0)
        dist.all_reduce(go_on)
    seconds = time.monotonic() - began
    dist.destroy_process_group()
    return {"bytes_per_s": rounds * _BYTES / seconds}


if __name__ == "__main__":
    try:
        answer: dict[str, object] = main(json.loads(base64.b64decode(sys.argv[1])))
    except Exception as problem:
        answer = {"error": f"{type(problem).__name__}: {str(problem)[:300]}"}
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
