"""The resident worker: answers requests one at a time, on a local socket that only its own user may open."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_a2.errors import LoraA2Error, NodeError
from lora_a2.node.door import BACKLOG, Door, Reply
from lora_a2.node.logs import log
from lora_a2.node.protocol import Answer, Request, outgoing
from lora_a2.node.refusals import reason_of
from lora_a2.system.machine import SOCKET_PATH_LIMIT

Answerer = Callable[[Request, Callable[[], bool]], Answer]
"""(request, whether its sender has gone) → the answer."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket at `path`, mode 0600 in a folder that only this user may enter; removed at the end.

    Raises:
        NodeError: others may enter the folder, the path is too long, or another worker listens there.
    """
    path = path.expanduser().absolute()
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise NodeError(f"The socket's path {path} is longer than {SOCKET_PATH_LIMIT} bytes; choose a shorter one.")
    _own_folder(path.parent)
    _free(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                path.unlink()


def serve(listener: socket.socket, answer: Answerer, limit: int) -> None:
    """Answers requests until it is interrupted. An error in one is answered and logged, and does not affect others.

    `limit` is the largest payload in bytes that is accepted.
    """
    with Door(listener, limit) as door:
        for call in door.calls():
            call.answer(reply_to(call.request, answer, call.gone.is_set))


def reply_to(request: Request, answer: Answerer, gone: Callable[[], bool]) -> Reply:
    """The answer to a request, or the reason why there is none; details of an error stay in the log."""
    began = time.perf_counter()
    try:
        found = outgoing(answer(request, gone))
    except LoraA2Error as error:
        log.error("%s of run %s is refused: %s", request.kind.capitalize(), request.run_id[:8], error)
        return reason_of(error)
    except OSError as error:  # a full disk, say
        log.error("%s of run %s failed: %s", request.kind.capitalize(), request.run_id[:8], error)
        return reason_of(error)
    except Exception as error:
        log.exception("%s of run %s failed.", request.kind.capitalize(), request.run_id[:8])
        return reason_of(error)
    _log_answer(request, found, time.perf_counter() - began)
    return found


def _log_answer(request: Request, answer: Answer, seconds: float) -> None:
    for note in answer.notes:
        log.warning("%s", note)
    log.info(
        "%s of run %s: %d bytes in, %d bytes out, %.1f s.",
        *(request.kind.capitalize(), request.run_id[:8], len(request.payload), len(answer.payload), seconds),
    )


def _own_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise NodeError(
            f"The folder {folder} of the socket has mode {stat.S_IMODE(found.st_mode):04o} and owner {found.st_uid}: it must "
            f"be yours alone; choose a new folder, or run: chmod 700 {folder}"
        )


def _free(path: Path) -> None:
    """Removes a socket that a killed worker left behind."""
    if not path.exists():
        return
    if not path.is_socket():
        raise NodeError(f"{path} is not a socket; choose another --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
        else:
            raise NodeError(f"Another worker listens at {path}: stop it, or choose another --socket.")
