"""The program in which hosts meet: it tests the port of the rendezvous and the shared folder.

It is sent over ssh, so it uses the standard library only. The first host listens, and the others connect. The
first host writes a file and then sends a message. Each other host measures the time from the message until it
sees the file, which is the delay of the file system alone.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "@@reptrain-facts "


def listen(request: dict[str, Any]) -> dict[str, Any]:
    """Accept the other hosts, write the file, and send the message."""
    path = file_of(request)
    joined: list[socket.socket] = []
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", request["port"]))
        server.listen(1024)
        end = time.monotonic() + request["wait_s"]
        while len(joined) < request["others"] and time.monotonic() < end:
            server.settimeout(max(0.1, end - time.monotonic()))
            try:
                joined.append(server.accept()[0])
            except TimeoutError:
                break
    try:
        with path.open("w") as file:
            file.write(request["nonce"])
            file.flush()
            os.fsync(file.fileno())
        written = True
    except OSError:
        written = False
    for connection in joined:
        connection.sendall(b"1" if written else b"0")
    for connection in joined:
        connection.settimeout(request["wait_s"] + 20)
        with suppress(OSError):
            connection.recv(1)
    if written:
        path.unlink()
    return {"joined": len(joined)}


def connect(request: dict[str, Any]) -> dict[str, Any]:
    """Connect to the first host, and wait for the file."""
    end = time.monotonic() + request["wait_s"]
    while True:
        try:
            connection = socket.create_connection((request["address"], request["port"]), timeout=3)
            break
        except OSError as error:
            if time.monotonic() > end:
                return {"error": str(error)}
            time.sleep(0.2)
    source = connection.getsockname()[0]
    connection.settimeout(request["wait_s"] + 20)
    if connection.recv(1) != b"1":
        return {"seen_s": None, "source": source}
    began = time.monotonic()
    while time.monotonic() < began + request["file_s"]:
        if file_of(request).exists():
            seen = time.monotonic() - began
            connection.sendall(b"1")
            return {"seen_s": seen, "source": source}
        # A network file system announces no changes that other hosts make.
        time.sleep(0.02)
    connection.sendall(b"1")
    return {"seen_s": None, "source": source}


def file_of(request: dict[str, Any]) -> Path:
    """The file that the first host writes, in the folder of runs or its nearest existing parent."""
    folder = Path(request["folder"])
    while not folder.is_dir():
        folder = folder.parent
    name: str = ".reptrain-doctor-" + request["nonce"]
    return folder / name


if __name__ == "__main__":
    asked = json.loads(base64.b64decode(sys.argv[1]))
    try:
        answer = listen(asked) if asked["first"] else connect(asked)
    except OSError as problem:
        answer = {"error": str(problem)}
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
