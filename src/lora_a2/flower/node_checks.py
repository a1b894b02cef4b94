"""What fails in the first round of a deployment, looked at before, on a node: releases, its key, the way to the server.

Nothing is sent: a server is reached by a TLS handshake, and no more.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import stat
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lora_a2.errors import NodeError, RunError
from lora_a2.system.checks import Check, NotChecked

_SECONDS = 10.0


def connection_checks(superlink: str | None, authority: Path | None, key: Path | None) -> Iterator[Check]:
    """The checks of a SuperNode's arguments: HOST:PORT, the authority's certificate, the node's private key."""
    yield "versions", releases
    yield "key", lambda: node_key(key)
    yield "server", lambda: server_answers(superlink, authority)


def releases(packages: Sequence[str] = ("lora-a2", "flwr", "torch", "transformers")) -> str:
    """The releases that are installed, of which both ends need the same lora-a2 and a Flower that can be used.

    Raises:
        NotChecked: there is no Flower here.
        RunError: it is a release that cannot be used.
    """
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    said = ", ".join(f"{name} {number}" for name, number in found.items())
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if "flwr" not in found:
        raise NotChecked(f"{said}, {python}; no flwr, which SuperNode and SuperLink need: lora-a2[flower].")
    try:
        from lora_a2.flower.superexec import require_release
    except ImportError as error:
        raise RunError(f"This release of Flower is not supported ({error}): install flwr 1.41.") from None
    require_release()
    return f"{said}, {python}; the other side needs the same lora-a2 and flwr."


def node_key(path: Path | None) -> str:
    """A line on a node's private key, with the fingerprint by which its operator and the server's compare it.

    Raises:
        NotChecked: none is given.
        NodeError: it cannot be used.
        OSError: it cannot be read.
    """
    if path is None:
        raise NotChecked("give --auth-supernode-private-key FILE.")
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ImportError:  # a worker has an environment of its own, as in deploy/worker.Dockerfile
        raise NotChecked("cryptography is not installed here; it comes with lora-a2[flower].") from None
    data = path.read_bytes()
    make = 'make one with: ssh-keygen -t ecdsa -b 384 -N "" -f node.key -C node'
    try:
        key: Any = load_ssh_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise NodeError(
            f"{path} is not a private key in OpenSSH's format without a password ({error}): {make}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NodeError(f"{path} is not an elliptic-curve key, which Flower needs: {make}")
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise NodeError(f"{path} has mode {mode:04o}, so that others can read it: chmod 600 {path}")
    return f"{path} can be used; {_fingerprint(key)}, which has to be registered at the SuperLink."


def _fingerprint(key: Any) -> str:
    """As `ssh-keygen -l` shows it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"its fingerprint is SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def server_answers(address: str | None, authority: Path | None) -> str:
    """A line on a server that answers at HOST:PORT with a certificate that `authority` vouches for.

    Raises:
        NotChecked: one of the two is not given.
        NodeError: it does not answer, or with another certificate.
    """
    if address is None or authority is None:
        raise NotChecked("give --superlink HOST:PORT and --root-certificates FILE.")
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise NodeError(f"{address!r} is not HOST:PORT, such as superlink.example.org:9092.")
    until = handshake(host.strip("[]"), int(port), authority)
    return f"{address} answers over TLS, with a certificate that {authority} vouches for, valid until {until:%Y-%m-%d}."


def handshake(host: str, port: int, authority: Path, name: str | None = None) -> datetime:
    """Shakes hands and hangs up; when the server's certificate expires, which is for `name` (None: the host).

    Raises:
        NodeError: there is no server, or its certificate does not hold.
    """
    context = ssl.create_default_context(cafile=str(_readable(authority)))
    try:
        with (
            socket.create_connection((host, port), timeout=_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=name or host) as wrapped,
        ):
            shown = wrapped.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise NodeError(
            f"{host}:{port} shows a certificate that does not hold ({error.verify_message}): it must be signed by {authority} and name "
            f"{name or host}."
        ) from None
    except ssl.SSLError as error:
        raise NodeError(f"{host}:{port} does not speak TLS ({error.reason}): is it the proxy's port?") from None
    except OSError as error:
        raise NodeError(
            f"{host}:{port} cannot be reached ({error.strerror or error}): is the server up, and may this machine connect to it?"
        ) from None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)


def _readable(path: Path) -> Path:
    with path.open("rb"):  # an error of `ssl` would not name it
        return path
