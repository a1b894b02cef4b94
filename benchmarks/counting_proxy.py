"""A TCP proxy on the loopback that counts the bytes that pass it, by direction and connection."""

from __future__ import annotations

import socket
import socketserver
import threading
from types import TracebackType
from typing import Self


class CountingProxy:
    """Listens on `port` and passes everything on to `target` of this machine; a context.

    `upstream` and `downstream` are the bytes sent to the target and back since the start, TCP's and IP's headers left out.
    """

    def __init__(self, target: int) -> None:
        self.upstream = self.downstream = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", target)) as other:
                    back = threading.Thread(target=proxy._pump, args=(other, self.request, False), daemon=True)
                    back.start()
                    proxy._pump(self.request, other, True)
                    back.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    if up:
                        self.upstream += len(data)
                    else:
                        self.downstream += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side has gone; the other learns of it when it writes
            pass
