"""Files are written whole or not at all, changes are detected, and errors name the file; locks of folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.errors import RunError
from lora_a2.system.files import SUMS, append, check, read_sealed, write_all, write_atomic, write_sealed
from lora_a2.system.journal import Journal
from lora_a2.system.locks import Lock, claimed

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(
    values=st.dictionaries(st.text(min_size=1, max_size=3), JSON, max_size=4),
    position=st.floats(0, 1),
    bit=st.integers(0, 7),
)
def test_a_sealed_object_is_what_it_was_or_refused(
    values: dict[str, Any], position: float, bit: int, folder: Path
) -> None:
    path = folder / "sealed.json"
    write_sealed(path, values)
    assert read_sealed(path) == values
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read_sealed(path)
    except RunError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert found == values


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "does not hold its own digest"),
        (b"[]", "expected a JSON object"),
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b'{"a": ' * 100_000, "is damaged"),
        (b'{"sealed": 1}', "is not what its own digest says"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_not_sealed(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunError, match=said):
        read_sealed(tmp_path / "x.json")


def test_sums_are_those_of_the_program(tmp_path: Path) -> None:
    files = {"b.txt": b"two", "a b.txt": b"one"}
    write_all(tmp_path, files)
    assert check(tmp_path) == set(files)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=tmp_path, check=True)


def unlink(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("one", change, r"/one is damaged or was changed.*accept it: \(cd .* && sha256sum one two > SHA256SUMS\)$"),
        ("one", unlink, r"/one cannot be read, and .*/SHA256SUMS lists it: No such file or directory\.$"),
        (SUMS, unlink, r"SHA256SUMS is missing"),
        (SUMS, change, r"SHA256SUMS is damaged: line 1 is not a sha256 and a name"),
    ],
)
def test_a_changed_file_is_named(name: str, damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    write_all(tmp_path, {"one": b"1", "two": b"2"})
    damage(tmp_path / name)
    with pytest.raises(RunError, match=said):
        check(tmp_path)


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A full disk."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        yield


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_atomic(folder / "file", b"new"),
        lambda folder: append(folder / "file", b"new"),
        lambda folder: write_all(folder, {"file": b"new"}),
        lambda folder: write_sealed(folder / "file", {}),
        lambda folder: Journal(folder / "file.jsonl").append({}),
    ],
)
def test_no_room_is_told_with_the_file(write: Callable[[Path], None], disk: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device") as refused:
        write(tmp_path)
    assert Path(str(refused.value.filename)).parent == tmp_path
    assert (tmp_path / "file").read_bytes().startswith(b"old")
    assert not list(tmp_path.glob(".*.partial"))


@given(lines=st.lists(st.dictionaries(st.text(max_size=2), JSON, max_size=2), max_size=5), data=st.data())
def test_a_journal_is_read_as_far_as_it_counts(lines: list[dict[str, Any]], data: st.DataObject, folder: Path) -> None:
    for path in folder.glob("journal.*"):
        path.unlink()
    journal = Journal(folder / "journal.jsonl")
    for line in lines:
        journal.append(line)
    count = data.draw(st.integers(0, len(lines)))
    assert [json.loads(line) for line in journal.read(count)] == lines[:count]
    append(journal.path, data.draw(st.binary(max_size=5)))
    journal.cut(count)
    assert [json.loads(line) for line in journal.read(count)] == lines[:count]
    with pytest.raises(RunError, match=rf"has {count} whole lines, but {count + 1} were committed"):
        journal.read(count + 1)
    journal.append({"next": True})
    assert json.loads(journal.read(count + 1)[-1]) == {"next": True}


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b") as lock:
        for _ in range(2):
            with pytest.raises(RunError, match="in use by another process"):
                Lock(tmp_path / "a" / "b")
        lock.release()
        with Lock(tmp_path / "a" / "b"):
            pass
    with pytest.raises(RunError, match=r"\.lock cannot be written: No such file"):
        Lock(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        claimed(tmp_path / "file" / "x")
