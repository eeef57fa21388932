"""Two hosts on this machine: network namespaces with a switch between them, whose ports can be cut off."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

ADDRESSES = ("10.87.0.1", "10.87.0.2")


class TwoHosts:
    """Needs root. Each host has one network card, `card`."""

    def __init__(self) -> None:
        self._names = [f"reptrain-{os.getpid()}-{part}" for part in ("host0", "host1", "switch")]

    @property
    def hosts(self) -> Sequence[str]:
        """Names of their namespaces."""
        return self._names[:2]

    def make(self) -> str | None:
        """Make them; returns why that is not possible here, or None."""
        if os.getuid() != 0 or shutil.which("ip") is None:
            return "network namespaces need root and the program ip"
        *hosts, switch = self._names
        try:
            for name in self._names:
                _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", switch, "link", "set", "bridge", "up")
            for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
                port = f"port{number}"
                _ip(
                    "link",
                    "add",
                    "card",
                    "netns",
                    host,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    port,
                    "netns",
                    switch,
                )
                _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
                _ip("-n", host, "address", "add", f"{address}/24", "dev", "card")
                for device in ("lo", "card"):
                    _ip("-n", host, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            return f"network namespaces cannot be made here: {error.stderr.strip()}"
        return None

    def cut(self) -> None:
        """Take the second host off the switch."""
        _ip("-n", self._names[2], "link", "set", "port1", "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self._names[2], "link", "set", "port1", "up")

    def remove(self) -> None:
        """Undo `make`."""
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
