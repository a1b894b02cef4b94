"""A proxy between a SuperNode and its SuperLink that counts what the node sends, request by request.

It holds the server's certificate and so ends TLS, which the node and the SuperLink both speak as ever. Counted are HTTP's
headers and bodies; TLS adds 22 bytes to each 16 KiB, and some 2 KB for each new connection.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections import Counter
from types import TracebackType
from typing import Self

from lora_a2.flower.certificates import Certificates

LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


class CountingProxy:
    """Listens on `port` of the loopback and passes everything on to the SuperLink at `target`; a context.

    Attributes:
        sent: request path → bytes that the node sent for it.
    """

    def __init__(self, target: int, certificates: Certificates) -> None:
        self.sent: Counter[str] = Counter()
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
            plain = socket.create_connection(("127.0.0.1", self._target))
            with (
                self._server.wrap_socket(connection, server_side=True) as node,
                self._client.wrap_socket(plain, server_hostname="localhost") as superlink,
            ):
                threading.Thread(target=_pass_on, args=(superlink, node), daemon=True).start()
                self._count(node, superlink)
        except OSError:  # either side has gone
            pass

    def _count(self, node: socket.socket, superlink: socket.socket) -> None:
        """Passes on one request after the other."""
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                if not (piece := node.recv(1 << 16)):
                    return
                data += piece
            head = data.partition(b"\r\n\r\n")[0]
            found = LENGTH.search(head)
            size = len(head) + 4 + (int(found[1]) if found else 0)
            while len(data) < size:
                data += node.recv(1 << 16)
            superlink.sendall(data[:size])
            self.sent[head.split(b" ")[1].decode()] += size
            data = data[size:]


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:  # either side has gone
        pass
