"""An S3 server on loopback, and a connection to it that can be slow or cut."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

_CHUNK = 1 << 12


class Link:
    """Forwards connections to a server.

    Args:
        host: The server's host.
        port: Its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cut_after: int | None = None
        """Bytes from the server after which a connection is cut; None: never."""
        self.cut_every = 1
        """Cuts this one of so many connections."""
        self.bytes_per_second: float | None = None
        self.received = self.cuts = self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self.connections += 1
                for source, target, counted in ((client, server, False), (server, client, True)):
                    threading.Thread(
                        target=self._forward, args=(source, target, counted), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        passed, is_cut = 0, self.connections % self.cut_every == 0
        with suppress(OSError):
            while part := source.recv(_CHUNK):
                if counted:
                    passed += len(part)
                    self.received += len(part)
                    if is_cut and self.cut_after is not None and passed > self.cut_after:
                        self.cuts += 1
                        break
                    if self.bytes_per_second is not None:
                        time.sleep(len(part) / self.bytes_per_second)
                target.sendall(part)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_server(bucket: str) -> Iterator[tuple[Any, Link]]:
    """A server with an empty bucket: its file system, and the link that the environment points to."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    link = Link(host, port)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in {
                "AWS_ENDPOINT_URL": link.url,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "s3cret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                patch.setenv(key, value)
            # Broken connections are tried again by reptrain alone.
            patch.setenv("AWS_MAX_ATTEMPTS", "1")
            patch.setattr(s3fs.S3FileSystem, "retries", 1)
            # Instances keep the address of the server that they were made for.
            s3fs.S3FileSystem.clear_instance_cache()
            files = s3fs.S3FileSystem(skip_instance_cache=True)
            files.mkdir(bucket)
            yield files, link
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        link.close()
        server.stop()
