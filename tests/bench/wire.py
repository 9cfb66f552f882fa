"""A proxy between an S3 client and its server: counts requests and bytes of answers' bodies, and may be far away."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

_REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) /[^\r\n]* HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)


@dataclass
class Traffic:
    """What went through since the last `take`."""

    requests: int = 0
    body_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, requests: int, body_bytes: int) -> None:
        with self._lock:
            self.requests += requests
            self.body_bytes += body_bytes

    def take(self) -> tuple[int, int]:
        """Requests and body bytes, which start again at 0."""
        with self._lock:
            taken = (self.requests, self.body_bytes)
            self.requests = self.body_bytes = 0
            return taken


class CountingProxy:
    """Listens on a loopback port and passes everything on unchanged, host header and signature included.

    Counts reads: requests without bodies, answers with a Content-Length or none.
    """

    def __init__(self, server_port: int, delay_seconds: float = 0.0) -> None:
        """`delay_seconds` are added to each request, on each connection by itself: a distance."""
        self.traffic = Traffic()
        self._delay_seconds = delay_seconds
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for source, target, count in (
                    (client, server, _RequestCounter().seen),
                    (server, client, _BodyCounter().seen),
                ):
                    threading.Thread(target=self._pass, args=(source, target, count), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, count: Callable[[bytes], tuple[int, int]]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                # Counted before it is passed on: who has an answer finds it counted.
                requests, num_bytes = count(data)
                self.traffic.add(requests, num_bytes)
                time.sleep(requests * self._delay_seconds)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _RequestCounter:
    """One direction of one connection, as it comes in."""

    def __init__(self) -> None:
        self._tail = b""

    def seen(self, data: bytes) -> tuple[int, int]:
        """Requests whose heads end in `data`, and no bytes."""
        text = self._tail + data
        count = 0
        while (end := text.find(b"\r\n\r\n")) >= 0:
            # A search, not a match: the body of an upload may stand before the head.
            count += bool(_REQUEST.search(text[: end + 4]))
            text = text[end + 4 :]
        self._tail = text[-(1 << 14) :]
        return count, 0


class _BodyCounter:
    """The other direction."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._begun = False

    def seen(self, data: bytes) -> tuple[int, int]:
        """No requests, and the bytes of `data` that belong to bodies."""
        body = 0
        while data:
            # The answer to a HEAD names a length and has no body: the next answer follows at once.
            if self._left and not self._begun and data.startswith(b"HTTP/1.1 "):
                self._left = 0
            if self._left:
                taken = min(self._left, len(data))
                self._begun = True
                self._left -= taken
                body += taken
                data = data[taken:]
                continue
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                break
            head, data = self._head[: end + 4], self._head[end + 4 :]
            self._head = b""
            length = _LENGTH.search(head)
            self._left, self._begun = int(length[1]) if length else 0, False
        return 0, body
