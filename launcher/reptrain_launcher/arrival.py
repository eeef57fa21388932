"""The program that `reptrain doctor` starts through the real launcher: it prints which variables arrived.

``python -m reptrain_launcher.arrival NAME...`` prints one line of JSON: this host, and for each variable a
hash of its value, or null.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys

MARK = "@@reptrain-arrival "


def fingerprint_of(value: str | None) -> str | None:
    """A hash of a value, which may be a secret; None for a variable that is not set."""
    return None if value is None else hashlib.sha256(value.encode()).hexdigest()[:12]


def main(names: list[str]) -> None:
    """Print the variables that arrived."""
    from reptrain_launcher.forwarding import load_secrets

    load_secrets()
    found = {name: fingerprint_of(os.environ.get(name)) for name in names}
    report = {"host": socket.gethostname(), "rank": os.environ.get("RANK", "0"), "variables": found}
    sys.stdout.write(MARK + json.dumps(report) + "\n")


if __name__ == "__main__":
    # DeepSpeed may pass --local_rank.
    main([word for word in sys.argv[1:] if not word.startswith("--")])
