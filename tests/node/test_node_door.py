"""No client can block a worker: slow messages, closed connections, many connections, and answers that are not read."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from federation import save_data, save_model
from lora_a2.node import door, participant
from lora_a2.node.protocol import Answer, Request, ask, packed, receive
from lora_a2.node.refusals import Reason, Refused
from node_requests import Server, request, working
from node_requests import participant as node_of

SHORT = 0.3
"""The time limit in seconds, in tests that exceed it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The worker's socket."""
    return tmp_path / "private" / "worker.sock"


def honest(asked: Request, gone: Any) -> Answer:
    """An answer at once."""
    return Answer({"partition": asked.partition}, b"upload")


@contextmanager
def connected(path: Path, message: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which `message` has been sent."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(message)
        yield connection


def message(**changes: Any) -> bytes:
    """A whole message."""
    asked = request(**changes)
    return packed({k: v for k, v in vars(asked).items() if k != "payload"}, len(asked.payload)) + asked.payload


# --- time


@pytest.mark.parametrize("said", [b"", b"LoN2", message()[:-1], message(payload=b"x" * 1000)[:-1], packed({}, 10**7)])
def test_a_connection_that_stops_is_cut_and_holds_nobody_up(said: bytes, path: Path) -> None:
    with working(path, honest, seconds=SHORT), connected(path, said) as slow:
        assert ask(path, request(), 60, 100).payload == b"upload"
        assert slow.recv(1) == b""
        assert ask(path, request(), 60, 100).payload == b"upload"


def test_a_connection_that_drips_is_cut_however_steadily_it_does(path: Path) -> None:
    with working(path, honest, seconds=SHORT), connected(path, packed({}, 10**8)) as slow:
        assert ask(path, request(), 60, 100).payload == b"upload"
        sent = 0
        with suppress(BrokenPipeError):  # a byte at a time would take minutes
            while sent < 10**8:
                sent += slow.send(b"x")
        assert sent < 10**8


def test_a_client_that_is_answered_in_drips_has_one_time_limit_too() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            left.sendall(packed({}, 10**8))
            while not ended.is_set():
                left.sendall(b"x")

    with left, right:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                receive(right, 10**8, SHORT)
        finally:
            ended.set()
            right.close()
            thread.join(10)


def test_whoever_does_not_take_the_answer_holds_nobody_up(path: Path) -> None:
    def large(asked: Request, gone: Any) -> Answer:
        return Answer({}, bytes(10**7)) if asked.kind == "train" else honest(asked, gone)

    with working(path, large, seconds=SHORT) as entrance, connected(path, message(kind="train")) as deaf:
        assert ask(path, request(), 60, 100).payload == b"upload"
        while entrance._open:
            pass
        heard = b"".join(iter(lambda: deaf.recv(1 << 16), b""))
        assert 0 < len(heard) < 10**7


# --- crowds


def test_two_hundred_at_once_are_all_answered_one_at_a_time(path: Path) -> None:
    busy, most = Counter[str](), []
    crowd = threading.Barrier(200)

    def answer(asked: Request, gone: Any) -> Answer:
        busy["now"] += 1
        most.append(busy["now"])
        busy["now"] -= 1
        return honest(asked, gone)

    def one(number: int) -> int:
        crowd.wait(60)
        return int(ask(path, request(partition=number, num_partitions=200), 60, 100).metrics["partition"])

    with working(path, answer), ThreadPoolExecutor(200) as executor:
        assert list(executor.map(one, range(200))) == list(range(200))
    assert most == [1] * 200


def test_a_crowd_that_says_nothing_does_not_keep_others_out(path: Path) -> None:
    with working(path, honest):
        silent = [socket.socket(socket.AF_UNIX) for _ in range(200)]
        for connection in silent:
            connection.connect(str(path))
        assert ask(path, request(), 60, 100).payload == b"upload"
        for connection in silent:
            connection.close()


def test_too_many_are_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_CONNECTIONS", 3)
    with working(path, honest):
        silent = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for connection in silent:
            connection.connect(str(path))
        with pytest.raises(Refused) as caught:
            ask(path, request(), 60, 100)
        assert caught.value.reason is Reason.BUSY
        for connection in silent:
            connection.close()


def test_payloads_together_take_no_more_than_the_largest_one_may(path: Path) -> None:
    """Each is within the limit, but not all together, so that the later ones wait."""
    held, most = Counter[str](), []
    original = door._exactly

    async def watched(reader: Any, size: int) -> bytes:
        held["bytes"] += size if size >= 600 else 0
        most.append(held["bytes"])
        return await original(reader, size)

    def answer(asked: Request, gone: Any) -> Answer:
        held["bytes"] -= len(asked.payload)
        return honest(asked, gone)

    with pytest.MonkeyPatch.context() as patch, working(path, answer, limit=1000), ThreadPoolExecutor(8) as executor:
        patch.setattr(door, "_exactly", watched)
        asked = [request(kind="train", payload=b"x" * 600) for _ in range(8)]
        assert len(list(executor.map(lambda r: ask(path, r, 60, 100), asked))) == 8
    assert max(most) == 600


# --- hanging up


def test_a_request_is_taken_back_by_hanging_up(path: Path) -> None:
    began, ended = threading.Event(), []

    def answer(asked: Request, gone: Any) -> Answer:
        if asked.kind == "train":
            began.set()
            while not gone():
                pass
            ended.append(asked)
            raise Refused(Reason.LATE, "its sender has gone.")
        return honest(asked, gone)

    with working(path, answer):
        with connected(path, message(kind="train")):
            assert began.wait(60)
        assert ask(path, request(), 60, 100).payload == b"upload"
    assert len(ended) == 1


def test_a_request_whose_sender_went_while_it_waited_is_not_begun(path: Path) -> None:
    go_on, began, seen = threading.Event(), threading.Event(), []

    def answer(asked: Request, gone: Any) -> Answer:
        seen.append(asked.run_id)
        began.set()
        assert go_on.wait(60)
        return honest(asked, gone)

    with working(path, answer) as entrance:
        with connected(path, message(run_id="first")) as first:
            assert began.wait(60)
            with connected(path, message(run_id="waits-and-goes")):
                while entrance._calls.qsize() < 1:
                    pass
            with connected(path, message(run_id="last")):
                while entrance._calls.qsize() < 2:
                    pass
                while entrance._open > 2:
                    pass
                go_on.set()
                assert first.recv(4) == b"LoN2"
        assert ask(path, request(run_id="end"), 60, 100).payload == b"upload"
    assert "waits-and-goes" not in seen
    assert seen[0] == "first"
    assert seen[-1] == "end"


def test_no_thread_no_socket_and_no_word_is_left(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = set(threading.enumerate())
    began = threading.Event()

    def answer(asked: Request, gone: Any) -> Answer:
        began.set()
        while not gone():
            pass
        return honest(asked, gone)

    with working(path, answer) as entrance, ExitStack() as stack:
        open_ones = [stack.enter_context(connected(path, said)) for said in (b"", message()[:-1], message())]
        assert began.wait(60)
        entrance.close()
        assert [connection.recv(1) for connection in open_ones] == [b"", b"", b""]
    assert set(threading.enumerate()) <= before
    assert not path.exists()
    assert not caplog.records


# --- training


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Data and a model."""
    folder = tmp_path_factory.mktemp("node")
    return str(save_data(folder / "mine.csv", 20)), str(save_model(folder / "model"))


def test_a_hundred_thousand_epochs_end_when_their_sender_goes(path: Path, files: tuple[str, str]) -> None:
    node = node_of(*files, path.parent.parent, max_local_epochs=10**6)
    endless = Server(files[1], **{"local-epochs": 100_000}).asks("train")
    with working(path, node.answer):
        with connected(path, message(**vars(endless))):
            pass  # gone as soon as all is said
        assert ask(path, Server(files[1]).asks("profile"), 60, 100).metrics["num_examples"] == 16


@pytest.mark.parametrize("method", ["lora-a2", "fedsa-lora", "flora", "full"])
def test_what_was_given_up_leaves_no_trace(method: str, files: tuple[str, str], tmp_path: Path) -> None:
    """Wherever it is abandoned, the node then gives the same bytes as one that never got the request."""
    asked = Server(files[1], method=method, **{"batch-size": 4}).asks("train")
    expected = node_of(*files, tmp_path / "fresh").answer(asked)
    node = node_of(*files, tmp_path / "disturbed")
    for steps in range(4):
        left = iter([False] * steps)
        with pytest.raises(Refused, match="has gone"):
            node.answer(asked, lambda left=left: next(left, True))
        assert node.answer(asked).payload == expected.payload
        assert not list((tmp_path / "disturbed").rglob(".*.partial"))


def test_evaluation_is_given_up_too_and_is_otherwise_that_of_one_pass(files: tuple[str, str], tmp_path: Path) -> None:
    asked = Server(files[1]).asks("evaluate")
    node = node_of(*files, tmp_path)
    with pytest.raises(Refused, match="has gone"):
        node.answer(asked, lambda: True)
    found = node.answer(asked).metrics
    assert found["num_examples"] == 4
    assert 0 <= found["num_correct"] <= 4  # type: ignore[operator]


def test_a_request_has_so_many_seconds(files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Server(files[1], **{"local-epochs": 50}).asks("train")
    clock = iter(range(10**6))
    monkeypatch.setattr(participant.time, "monotonic", lambda: float(next(clock)))
    assert node_of(*files, tmp_path, max_seconds=1000).answer(asked).payload
    with pytest.raises(Refused, match="max-seconds = 20") as caught:
        node_of(*files, tmp_path, max_seconds=20).answer(asked)
    assert caught.value.reason is Reason.POLICY


def test_a_socket_that_cannot_be_listened_at_ends_the_worker() -> None:
    with (
        socket.socket(socket.AF_INET) as other,
        door.Door(other, 10) as entrance,
        pytest.raises(ValueError, match="UNIX"),
    ):
        next(entrance.calls())
