"""A proxy between a SuperNode and its SuperLink that hears what the node sends, and counts it request by request.

It holds the server's certificate and terminates TLS, which the node and the SuperLink both use as usual. It counts HTTP
headers and bodies; TLS adds 22 bytes to each 16 KiB, and about 2 KB for each new connection.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
from collections import Counter
from types import TracebackType
from typing import Self

from lora_a2.flower.certificates import Certificates

LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


class ListeningProxy:
    """Listens on `port` of the loopback and passes everything on to the SuperLink at `target`; a context.

    Attributes:
        sent: request path → bytes that the node sent for it.
        heard: everything that the node sent, TLS taken off, one connection's bytes mixed with another's.
    """

    def __init__(self, target: int, certificates: Certificates) -> None:
        self.sent: Counter[str] = Counter()
        self.heard = bytearray()
        self._target = target
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificates.server_certificate, certificates.server_key)
        self._client = ssl.create_default_context(cafile=str(certificates.authority))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with (
                connection,
                socket.create_connection(("127.0.0.1", self._target)) as plain,
                self._server.wrap_socket(connection, server_side=True) as node,
                self._client.wrap_socket(plain, server_hostname="localhost") as superlink,
            ):
                _pass_on(node, superlink, Requests(self))
        except OSError:  # either side has gone
            pass


class Requests:
    """Counts the requests of one connection, fed with its bytes as they come."""

    def __init__(self, proxy: ListeningProxy) -> None:
        self._heard, self._sent = proxy.heard, proxy.sent
        self._head, self._path, self._left = b"", "", 0

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self._heard += data
        while data:
            if self._left:
                body, data = data[: self._left], data[self._left :]
                self._left -= len(body)
                self._sent[self._path] += len(body)
                continue
            self._head, found, data = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                return
            length = LENGTH.search(self._head)
            self._path, self._left = self._head.split(b" ")[1].decode(), int(length[1]) if length else 0
            self._sent[self._path] += len(self._head) + len(found)
            self._head = b""


def _pass_on(node: ssl.SSLSocket, superlink: ssl.SSLSocket, requests: Requests) -> None:
    """Both directions in one thread, since a TLS connection is not to be used by two at once."""
    while True:
        waiting = [side for side in (node, superlink) if side.pending()]
        for side in waiting or select.select([node, superlink], [], [])[0]:
            if (data := _received(side)) == b"":
                return
            (superlink if side is node else node).sendall(data or b"")
            if side is node:
                requests.feed(data or b"")


def _received(side: ssl.SSLSocket) -> bytes | None:
    """What has come: bytes, none of them at the end, or None if it was only TLS's own."""
    side.setblocking(False)
    try:
        return side.recv(1 << 16)
    except ssl.SSLWantReadError:
        return None
    finally:
        side.setblocking(True)
