"""Files that a kill cannot leave half written, with digests that detect changes.

Bytes on a disk change: a bit flips, a copy ends early, somebody edits. So what is read back later is kept with its digest:
a folder's files in `SHA256SUMS` beside them, in the format of the program sha256sum (`write_all`, `check`); a JSON object's
digest inside it (`write_sealed`, `read_sealed`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lora_a2.errors import RunError

SUMS = "SHA256SUMS"
"""The file with the digests of those beside it: one line for each file, its sha256 in hex, two blanks, its name."""

_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_SEAL = "sealed"


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` atomically: a reader, or a kill, finds either the old content or the new.

    Raises:
        OSError: it cannot be written; `filename` is `path`, and the old content remains.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with _named(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # it would take space that something else may need
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def append(path: Path, data: bytes) -> None:
    """Appends `data` to a file, and waits until it is on the disk. A kill may leave only its first part.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    with _named(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Adds the path to errors: the system names no file when a disk is full or fails, but the user must know which."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def sha256(data: bytes) -> str:
    """The digest in hex."""
    return hashlib.sha256(data).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces `path` by a JSON object that holds its own digest; see `read_sealed`.

    Raises:
        OSError: as `write_atomic`.
    """
    write_atomic(path, _json({**values, _SEAL: sha256(_json(values))}))


def read_sealed(path: Path) -> dict[str, Any]:
    """The values that `write_sealed` was given.

    Raises:
        RunError: there is no such file, or it was changed.
    """
    values = read_json_object(path)
    if _SEAL not in values:
        raise RunError(f"{path} is damaged, or of an earlier version of lora-a2: it does not hold its own digest.")
    if values.pop(_SEAL) != sha256(_json(values)):
        raise RunError(f"{path} is damaged: it is not what its own digest says.")
    return values


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RunError: there is no such file, or it does not hold a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: expected a JSON object.")
    return values


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files and, last, their `SHA256SUMS`: if that exists, all of them do.

    Raises:
        OSError: as `write_atomic`.
    """
    sums = "".join(f"{sha256(data)}  {name}\n" for name, data in sorted(files.items()))
    write_atomic(folder / SUMS, sums.encode())
    for name, data in files.items():
        write_atomic(folder / name, data)


def replace_one(folder: Path, name: str, data: bytes) -> None:
    """Replaces one of the files that `write_all` wrote. A kill leaves the old or the new one, and sums that hold for it.

    Raises:
        OSError: as `write_atomic`.
        RunError: the sums are missing or damaged.
    """
    sums = _read_sums(folder)
    write_atomic(folder / SUMS, _lines({**sums, name: [*sums[name], sha256(data)]}))
    write_atomic(folder / name, data)
    write_atomic(folder / SUMS, _lines({**sums, name: [sha256(data)]}))


def seal(folder: Path) -> None:
    """Writes the `SHA256SUMS` of all files in a folder.

    Raises:
        OSError: as `write_atomic`.
    """
    sums = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    write_atomic(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())


def check(folder: Path) -> frozenset[str]:
    """The names of the files that `write_all` wrote, all unchanged.

    Raises:
        RunError: one was changed or is missing; the message names it.
    """
    sums = _read_sums(folder)
    for name, expected in sums.items():
        _check_one(folder / name, expected, _accept(folder, sums))
    return frozenset(sums)


def _lines(sums: Mapping[str, Iterable[str]]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digests in sums.items() for digest in digests).encode()


def _read_sums(folder: Path) -> dict[str, list[str]]:
    """File → its digest; two where a kill came while it was replaced (`replace_one`).

    Raises:
        RunError: the sums are missing or damaged.
    """
    try:
        lines = (folder / SUMS).read_bytes().decode("ascii").splitlines()
    except FileNotFoundError:
        raise RunError(
            f"{folder / SUMS} is missing: it was lost, or the folder is of an earlier version of lora-a2. To take the files "
            f"as they are: {_accept(folder, ['FILES'])}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{folder / SUMS} is damaged: {_cause(error)}.") from error
    sums = dict[str, list[str]]()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise RunError(f"{folder / SUMS} is damaged: line {number} is not a sha256 and a name.")
        sums.setdefault(match[2], []).append(match[1])
    return sums


def _check_one(path: Path, expected: Sequence[str], accept: str) -> None:
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise RunError(f"{path} cannot be read, and {path.with_name(SUMS)} lists it: {_cause(error)}.") from error
    if actual not in expected:
        raise RunError(
            f"{path} is damaged or was changed: its sha256 is not the one in {path.with_name(SUMS)}. Restore it; or, if "
            f"the change is meant, accept it: {accept}"
        )


def _cause(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _accept(folder: Path, names: Iterable[str]) -> str:
    """The command that writes new sums."""
    return f"(cd {shlex.quote(str(folder))} && sha256sum {' '.join(map(shlex.quote, names))} > {SUMS})"


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
