"""A node's worker that misbehaves: python misbehaving_worker.py SOCKET REAL_SOCKET [ROUND=FAULT ...]

It is a proxy in front of a real worker: it forwards requests, and tampers with uploads in the rounds named, such as 2=garbage
or 3=late:20 (seconds), and prints that. It imports only the standard library and the protocol, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
import zlib
from pathlib import Path

from lora_a2.node.protocol import Answer, Request, ask, read_request, receive, send

ROUND_AT = struct.Struct("<4sBB16s")
"""The fields before the server round in a frame (lora_a2/codec/frame.py)."""
CHECKSUM = struct.Struct("<I")
LIMIT = 1 << 30


def signed(body: bytes) -> bytes:
    """A frame with a valid checksum over any body."""
    return body + CHECKSUM.pack(zlib.crc32(body))


class Faults:
    """The faults of an upload, one method each; `kept` is the last honest upload."""

    def __init__(self) -> None:
        self.kept = b""

    def garbage(self, payload: bytes) -> bytes:
        """Random bytes with the length of an upload."""
        return bytes((7 * i + 13) % 256 for i in range(len(payload)))

    def nan(self, payload: bytes) -> bytes:
        """A well-formed upload whose last value is not a number."""
        return signed(payload[: -2 * CHECKSUM.size] + struct.pack("<f", float("nan")))

    def replay(self, payload: bytes) -> bytes:
        """The upload of an earlier round again."""
        assert self.kept, "there was no earlier round"
        return self.kept

    def oversized(self, payload: bytes) -> bytes:
        """An upload with 64 MiB appended."""
        return payload + bytes(64 << 20)

    def late(self, payload: bytes, seconds: str) -> bytes:
        """The right upload, after the round's timeout."""
        time.sleep(float(seconds))
        return payload

    def apply(self, fault: str, payload: bytes) -> bytes:
        """Applies the named fault, with the argument after its colon."""
        name, *arguments = fault.split(":")
        tampered: bytes = getattr(self, name)(payload, *arguments)
        return tampered


def server_round(request: Request) -> int:
    """The round of the download in a request."""
    (number,) = struct.unpack_from("<I", request.payload, ROUND_AT.size)
    return int(number)


def serve(path: Path, real: Path, plan: dict[int, str]) -> None:
    """Answers requests forever; injects each fault of `plan` once."""
    faults = Faults()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection, real, plan, faults), daemon=True).start()


def answer(connection: socket.socket, real: Path, plan: dict[int, str], faults: Faults) -> None:
    """Forwards one request, and returns the answer, honest or not."""
    with connection:
        request = read_request(*receive(connection, LIMIT, 600))
        given = ask(real, request, timeout=600, limit=LIMIT)
        payload = given.payload
        if request.kind == "train":
            number = server_round(request)
            if fault := plan.pop(number, ""):
                print(f"round {number}: {fault}", flush=True)
                payload = faults.apply(fault, payload)
            else:
                faults.kept = payload
        reply(connection, given, payload)


def reply(connection: socket.socket, given: Answer, payload: bytes) -> None:
    """Sends an answer, unless its sender has gone."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        send(connection, {"metrics": dict(given.metrics), "notes": list(given.notes)}, payload)


def main() -> None:
    """Parses the command line and serves."""
    path, real, *rest = sys.argv[1:]
    plan = {int(number): fault for number, fault in (item.split("=") for item in rest)}
    Path(path).unlink(missing_ok=True)
    serve(Path(path), Path(real), plan)


if __name__ == "__main__":
    main()
