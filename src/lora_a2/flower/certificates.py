"""Keys and certificates of a test authority: TLS for the server, and one key for each SuperNode.

    DIR/ca.crt        the authority's certificate; SuperNodes and users verify the server with it
    DIR/ca.key        the authority's own key; only needed to sign another server certificate
    DIR/server.pem    the certificate of the proxy that nodes connect to, for the hosts given
    DIR/server.key    its key
    DIR/superlink.pem the certificate of the SuperLink behind it, for the loopback only
    DIR/superlink.key its key
    DIR/keys/node-N   node N's private key (EC P-384, OpenSSH format); stays on the node
    DIR/keys/node-N.pub   its public key; the SuperLink's operator registers it

An institution with its own authority uses that authority's certificates, and makes only node keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lora_a2.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFAULT_DAYS = 365


@dataclass(frozen=True)
class Certificates:
    """Where the files of a test authority are; see the module's docstring."""

    directory: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate."""
        return self.directory / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """The proxy's certificate, which nodes see."""
        return self.directory / "server.pem"

    @property
    def server_key(self) -> Path:
        """The proxy's key."""
        return self.directory / "server.key"

    @property
    def superlink_certificate(self) -> Path:
        """The SuperLink's certificate, which the proxy and the operator see."""
        return self.directory / "superlink.pem"

    @property
    def superlink_key(self) -> Path:
        """The SuperLink's key."""
        return self.directory / "superlink.key"

    def node_key(self, node: int) -> Path:
        """A node's private key."""
        return self.directory / "keys" / f"node-{node}"

    def node_public_key(self, node: int) -> Path:
        """A node's public key."""
        return self.directory / "keys" / f"node-{node}.pub"


def make_certificates(
    directory: Path, *, nodes: int, hosts: Sequence[str] = LOOPBACK, days: int = DEFAULT_DAYS
) -> Certificates:
    """Writes an authority, a server certificate for `hosts` (names and addresses), the SuperLink's, and `nodes` node keys.

    Private keys are readable by their owner only. Existing files are never replaced.

    Raises:
        ConfigError: `directory` already holds keys, or cannot be written.
    """
    made = Certificates(directory)
    taken = [p for p in (made.authority, made.directory / "ca.key", directory / "keys") if p.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists: keys are not replaced; choose another folder, or remove it first.")
    authority_key, server_key, superlink_key = _new_key(), _new_key(), _new_key()
    authority = _authority(authority_key, days)
    server = _server_certificate(server_key, hosts, authority, authority_key, days)
    superlink = _server_certificate(superlink_key, LOOPBACK, authority, authority_key, days)
    try:
        (directory / "keys").mkdir(parents=True)
        _write_private(directory / "ca.key", _pem(authority_key))
        _write_private(made.server_key, _pem(server_key))
        _write_private(made.superlink_key, _pem(superlink_key))
        made.server_certificate.write_bytes(server.public_bytes(Encoding.PEM))
        made.superlink_certificate.write_bytes(superlink.public_bytes(Encoding.PEM))
        for node in range(nodes):
            make_node_key(made.node_key(node))
        made.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    except OSError as error:
        raise ConfigError(f"The folder {directory} cannot be written: {error.strerror}.") from error
    return made


def make_node_key(path: Path) -> None:
    """Writes a new private key to `path` and its public key to `path`.pub."""
    key = _new_key()
    _write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of two machines may differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    name = _name("lora-a2 test authority")
    return (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(hosts[0]), authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is neither a host name in ASCII nor an address.") from error


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
