"""What fails in the first round of a deployment, looked at before, on the server: releases, certificates, ports, its app."""

from __future__ import annotations

import errno
import socket
import ssl
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from lora_a2.errors import ConfigError, RunError
from lora_a2.flower.app_check import AppCheck
from lora_a2.flower.certificates import Certificates
from lora_a2.flower.node_checks import handshake, releases
from lora_a2.system.checks import Check, NotChecked

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_SOON_DAYS = 14


@dataclass(frozen=True)
class ServerSetup:
    """A server as the command line describes it.

    Attributes:
        certificates: a folder with the files of `flower certificates`, or of the same names.
        hosts: by which nodes reach the proxy.
        port, superlink_port: of the proxy and of the SuperLink.
        app: the folder of the app that is to be run; None: none yet.
        run_config: what `flwr run --run-config` will be given.
    """

    certificates: Path | None = None
    hosts: tuple[str, ...] = ()
    port: int = 9092
    superlink_port: int = 8000
    app: Path | None = None
    run_config: tuple[str, ...] = ()


def server_checks(setup: ServerSetup) -> Iterator[Check]:
    """The checks, in the order in which a deployment comes to them."""
    app = AppCheck(setup.app, setup.run_config)
    yield "versions", releases
    yield "proxy", nginx_there
    yield "certificates", lambda: certificates_hold(setup.certificates, setup.hosts)
    own = replace(setup, hosts=("localhost",))  # the SuperLink is known on the loopback alone
    yield f"port {setup.port}", lambda: port_ready(setup.port, "the proxy", setup)
    yield f"port {setup.superlink_port}", lambda: port_ready(setup.superlink_port, "the SuperLink", own)
    yield "left SuperLinks", left_superlinks
    yield "app", app.configuration
    yield "data", app.data
    yield "model", app.model
    yield "state folder", app.state_folder


def nginx_there() -> str:
    """A line on the proxy's program.

    Raises:
        RunError: it is not installed.
    """
    from lora_a2.flower.proxy import nginx

    return f"{nginx()} is there."


def port_ready(port: int, whose: str, setup: ServerSetup) -> str:
    """A line on a port of this machine at which one can listen, or at which our own server listens already.

    Raises:
        RunError: something else listens there, or this user may not.
        NodeError: what listens there shows another certificate than ours.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
            probe.bind(("127.0.0.1", port))
            probe.listen()
            return f"free for {whose}."
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise RunError(f"{whose} cannot listen there: {error.strerror}.") from None
    if setup.certificates is None:
        raise RunError("something listens there; give --certificates DIR to see whether it is ours, or see: ss -tlnp")
    authority = Certificates(setup.certificates).authority
    until = handshake("127.0.0.1", port, authority, name="localhost" if not setup.hosts else setup.hosts[0])
    return f"a server listens there, with a certificate that {authority} vouches for, valid until {until:%Y-%m-%d}."


def left_superlinks() -> str:
    """A line on the SuperLinks that earlier simulations left here.

    Raises:
        RunError: one belongs to another environment; new simulations would run there.
    """
    from lora_a2.flower.superlinks import local_superlinks

    left = local_superlinks()
    for found in left:
        if not found.ours:
            raise RunError(
                f"{found}: simulations run there, not in {Path(sys.executable).parent}; to have a new one: kill {found.pid}"
            )
    if not left:
        return "none."
    return "; ".join(f"{found} (end it with: kill {found.pid})" for found in left)


def certificates_hold(folder: Path | None, hosts: Sequence[str]) -> str:
    """A line on the certificates of proxy and SuperLink: signed by the authority, for the names, with their keys, in time.

    Raises:
        NotChecked: no folder is given.
        ConfigError: one of them does not hold; the message says which and why.
        OSError: a file cannot be read.
    """
    if folder is None:
        raise NotChecked("give --certificates DIR.")
    made = Certificates(folder)
    ends = [
        _holds(made.server_certificate, made.server_key, made.authority, hosts or ("localhost",)),
        _holds(made.superlink_certificate, made.superlink_key, made.authority, ("localhost",)),
    ]
    said = f"those of proxy and SuperLink hold for {', '.join(hosts or ('localhost',))}, until {min(ends):%Y-%m-%d}"
    return f"{said}." if hosts else f"{said}; give --host NAME for the name that nodes use."


def _holds(path: Path, key: Path, authority: Path, hosts: Sequence[str]) -> datetime:
    """When a certificate expires."""
    from cryptography import x509
    from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

    def subject(host: str) -> x509.IPAddress | x509.DNSName:
        try:
            return x509.IPAddress(ip_address(host))
        except ValueError:
            return x509.DNSName(host)

    first, *more = _load_certificates(path)
    builder = PolicyBuilder().store(Store(_load_certificates(authority))).time(datetime.now(UTC))
    for host in hosts:
        try:
            builder.build_server_verifier(subject(host)).verify(first, more)
        except VerificationError as error:
            raise ConfigError(f"{path} does not hold for {host} by {authority}: {error}.") from None
    _check_key(path, key)
    until = first.not_valid_after_utc
    if (days := (until - datetime.now(UTC)).days) < _SOON_DAYS:
        raise ConfigError(f"{path} expires in {days} days, on {until:%Y-%m-%d}: renew it before the run.")
    return until


def _load_certificates(path: Path) -> list[Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate in PEM format: {error}.") from None


def _check_key(certificate: Path, key: Path) -> None:
    """Checks that a key belongs to a certificate and that others cannot read it."""
    key.open("rb").close()  # an error of `ssl` would not name it
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(f"{key} is not the key of {certificate} ({error.reason}).") from None
    if (mode := stat.S_IMODE(key.stat().st_mode)) & 0o007:
        raise ConfigError(f"{key} has mode {mode:04o}, so that others can read it: chmod o= {key}")
