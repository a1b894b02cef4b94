"""The worker's side of its socket: many connections at once, read and written in one thread, while another one computes.

Nobody holds the worker up. A message must be there as a whole within a time limit, however steadily it drips; an answer must be
taken within one; what waits takes at most the memory of one largest message; and whoever hangs up takes its request back.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from lora_a2.node.logs import log
from lora_a2.node.protocol import PIECE, PREFIX_SIZE, Answer, Request, cut_off, packed, parsed, read_request, sizes
from lora_a2.node.refusals import Reason, Refused
from lora_a2.system.machine import peer_user

MESSAGE_SECONDS = 60.0
"""How long a message may take from its first byte to its last, either way."""
BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""
MOST_CONNECTIONS = 512
"""Connections at once; others are told that there are too many."""

Reply = Answer | Reason


@dataclass
class Call:
    """A request to be answered. `gone` is set once whoever asked has hung up."""

    request: Request
    answer: Callable[[Reply], None]
    gone: threading.Event = field(default_factory=threading.Event)


class Door:
    """Takes requests from a listening socket; a context, whose thread ends with it.

    Args:
        listener: a bound Unix socket.
        limit: the largest payload in bytes that is accepted.
        message_seconds: the time limit of one message.
    """

    def __init__(self, listener: socket.socket, limit: int, message_seconds: float = MESSAGE_SECONDS) -> None:
        self._listener, self._limit, self._seconds = listener, limit, message_seconds
        self._budget = _Budget(limit)
        self._calls: SimpleQueue[Call | Exception | None] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._open = 0
        self._thread = threading.Thread(target=self._run, name="lora-a2-door")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._thread.join()

    def close(self) -> None:
        """Lets nobody in any more: connections are cut, what they asked is taken back, and `calls` ends."""
        with suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._stop.set)

    def calls(self) -> Iterator[Call]:
        """The requests, one after the other, as they come; those that were taken back are passed over.

        Raises:
            OSError: the socket cannot be listened at any longer.
        """
        while not isinstance(call := self._calls.get(), Exception | None):
            if not call.gone.is_set():
                yield call
        if call is not None:
            raise call

    def _run(self) -> None:
        end: Exception | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels what is open at its end
                runner.run(self._serve())
        except Exception as error:
            end = error
        self._calls.put(end)

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._connected, sock=self._listener, backlog=BACKLOG)
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            reply = await self._reply(reader, writer)
            if reply is not None:
                async with asyncio.timeout(self._seconds):
                    await _send(writer, reply)
        except TimeoutError:
            log.error("A connection was cut: its message took more than %.0f s.", self._seconds)
        except OSError as error:
            log.error("A connection broke: %s", error)
        except asyncio.CancelledError:
            pass  # the door closes; asyncio would show a traceback for each connection
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Reply | None:
        """What a connection is answered; None if it has gone."""
        try:
            self._admit(writer.get_extra_info("socket"))
            async with asyncio.timeout(self._seconds):
                if not (first := await reader.read(1)):  # gone without a word: it only looked if somebody listens
                    return None
                header_size, size = sizes(first + await _exactly(reader, PREFIX_SIZE - 1), self._limit)
                header = parsed(await _exactly(reader, header_size))
            async with self._budget.taken(size):
                async with asyncio.timeout(self._seconds):
                    request = read_request(header, await _exactly(reader, size))
                return await self._answered(request, reader)
        except Refused as error:
            log.error("A request is refused: %s", error)
            return error.reason

    def _admit(self, connection: socket.socket) -> None:
        if (user := peer_user(connection)) != os.geteuid():
            raise Refused(Reason.SETUP, f"User {user} may not use this worker.")
        if self._open > MOST_CONNECTIONS:
            raise Refused(Reason.BUSY, f"More than {MOST_CONNECTIONS} connections at once.")

    async def _answered(self, request: Request, reader: asyncio.StreamReader) -> Reply | None:
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def settle(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        def settle_from_outside(reply: Reply) -> None:
            with suppress(RuntimeError):  # the door is closed
                self._loop.call_soon_threadsafe(settle, reply)

        call = Call(request, settle_from_outside)
        self._calls.put(call)
        hung_up = asyncio.create_task(_end_of(reader))
        either: set[asyncio.Future[Any]] = {answer, hung_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.gone.set()
            hung_up.cancel()
        if answer.done():
            return answer.result()
        log.warning(
            "%s of run %s was taken back: whoever asked has gone.", request.kind.capitalize(), request.run_id[:8]
        )
        return None


class _Budget:
    """So many bytes for the payloads that are there at once."""

    def __init__(self, total: int) -> None:
        self._free, self._changed = total, asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Waits until there is room for `size` bytes, and holds it; `size` is not above the total."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            async with self._changed:
                self._changed.notify_all()


async def _exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    """The next `size` bytes; memory grows with what arrives, not with what is announced."""
    data = bytearray()
    while len(data) < size:
        if not (piece := await reader.read(min(PIECE, size - len(data)))):
            raise cut_off(len(data), size)
        data += piece
    return bytes(data)


async def _end_of(reader: asyncio.StreamReader) -> None:
    """Returns when the other side has hung up; what it says out of turn is dropped."""
    with suppress(OSError):
        while await reader.read(PIECE):
            pass


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    writer.transport.set_write_buffer_limits(0)  # to drain is then to have sent all
    if isinstance(reply, Reason):
        writer.write(packed({"refused": reply.name}, 0))
    else:
        header = {"metrics": dict(reply.metrics), "notes": list(reply.notes)}
        writer.write(packed(header, len(reply.payload)))
        writer.write(reply.payload)
    await writer.drain()
