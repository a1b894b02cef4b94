"""A node's worker that misbehaves: python misbehaving_worker.py SOCKET REAL_SOCKET FAULT ROUNDS [--delay SECONDS]

It stands before a real worker, hands requests on, and tampers with the answers of the rounds named (such as 2,3). Standard
library and the protocol only, so that it starts at once.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from lora_a2.node.protocol import Answer, Request, ask, read_request, receive, send

ROUND_AT = struct.Struct("<4sBB16s")
"""What stands before the server round in a frame (lora_a2/codec/frame.py)."""
CHECKSUM = struct.Struct("<I")
LIMIT = 1 << 30


def signed(body: bytes) -> bytes:
    """A frame whose checksum is right, whatever is in it."""
    return body + CHECKSUM.pack(zlib.crc32(body))


class Tamper:
    """The faults, each a function of an answer's payload; `kept` is the last honest one."""

    def __init__(self, delay: float) -> None:
        self.delay, self.kept = delay, b""

    def garbage(self, payload: bytes) -> bytes:
        """As long as an upload, and noise."""
        return bytes((7 * i + 13) % 256 for i in range(len(payload)))

    def nan(self, payload: bytes) -> bytes:
        """A well-formed upload whose last value is not a number."""
        return signed(payload[: -2 * CHECKSUM.size] + struct.pack("<f", float("nan")))

    def replay(self, payload: bytes) -> bytes:
        """The upload of an earlier round once more."""
        assert self.kept, "there was no earlier round"
        return self.kept

    def oversized(self, payload: bytes) -> bytes:
        """An upload with 64 MiB behind it."""
        return payload + bytes(64 << 20)

    def late(self, payload: bytes) -> bytes:
        """The right upload, after the round is over."""
        time.sleep(self.delay)
        return payload


FAULTS = ("garbage", "nan", "replay", "oversized", "late")


def server_round(request: Request) -> int:
    """The round of the download in a request."""
    (number,) = struct.unpack_from("<I", request.payload, ROUND_AT.size)
    return int(number)


def serve(path: Path, real: Path, fault: Callable[[bytes], bytes], tamper: Tamper, rounds: set[int]) -> None:
    """Answers one request after the other, for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                request = read_request(*receive(connection, LIMIT))
                answer = ask(real, request, timeout=600, limit=LIMIT)
                payload = answer.payload
                if request.kind == "train":
                    if server_round(request) in rounds:
                        payload = fault(payload)
                    else:
                        tamper.kept = payload
                reply(connection, answer, payload)


def reply(connection: socket.socket, answer: Answer, payload: bytes) -> None:
    """Sends an answer, unless whoever asked has gone."""
    try:
        send(connection, {"metrics": dict(answer.metrics), "notes": list(answer.notes)}, payload)
    except BrokenPipeError:
        pass


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("rounds", type=lambda text: {int(number) for number in text.split(",")})
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    tamper = Tamper(options.delay)
    serve(options.socket, options.real, getattr(tamper, options.fault), tamper, options.rounds)


if __name__ == "__main__":
    main()
