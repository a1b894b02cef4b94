"""The test authority: its certificates are valid for the hosts named, and keys are private."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs lora-a2[flower]")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import DNSName, IPAddress, PolicyBuilder, Store, VerificationError

from lora_a2.errors import ConfigError
from lora_a2.flower.certificates import Certificates, make_certificates


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates", nodes=2, hosts=("superlink.example", "10.1.2.3"))


def verify(authority: Path, server: Path, host: str) -> None:
    store = Store([x509.load_pem_x509_certificate(authority.read_bytes())])
    subject = IPAddress(ip_address(host)) if host[0].isdigit() else DNSName(host)
    verifier = PolicyBuilder().store(store).time(datetime.now(UTC)).build_server_verifier(subject)
    verifier.verify(x509.load_pem_x509_certificate(server.read_bytes()), [])


@pytest.mark.parametrize("host", ["superlink.example", "10.1.2.3"])
def test_the_server_is_known_by_its_hosts(made: Certificates, host: str) -> None:
    verify(made.authority, made.server_certificate, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server_certificate, made.server_key)  # raises if the two do not match


def test_the_server_is_not_known_by_another_host_or_authority(made: Certificates, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        verify(made.authority, made.server_certificate, "other.example")
    other = make_certificates(tmp_path / "other", nodes=0)
    with pytest.raises(VerificationError):
        verify(other.authority, made.server_certificate, "superlink.example")


def test_the_superlink_is_known_on_the_loopback_alone(made: Certificates) -> None:
    verify(made.authority, made.superlink_certificate, "localhost")
    verify(made.authority, made.superlink_certificate, "127.0.0.1")
    with pytest.raises(VerificationError):
        verify(made.authority, made.superlink_certificate, "superlink.example")
    assert made.superlink_key.read_bytes() != made.server_key.read_bytes()


def test_each_node_has_a_key_of_its_own(made: Certificates) -> None:
    publics = set()
    for node in range(2):
        private = load_ssh_private_key(made.node_key(node).read_bytes(), None)
        public = load_ssh_public_key(made.node_public_key(node).read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert private.curve.name == "secp384r1"
        assert private.public_key() == public
        publics.add(made.node_public_key(node).read_bytes())
    assert len(publics) == 2
    assert not made.node_key(2).exists()


def test_private_keys_are_private(made: Certificates) -> None:
    private = [made.server_key, made.superlink_key, made.directory / "ca.key", made.node_key(0), made.node_key(1)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_keys_are_never_replaced(made: Certificates) -> None:
    before = {path: path.read_bytes() for path in made.directory.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="keys are not replaced"):
        make_certificates(made.directory, nodes=3)
    assert {path: path.read_bytes() for path in made.directory.rglob("*") if path.is_file()} == before


def test_what_is_no_host(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a host name"):
        make_certificates(tmp_path / "certificates", nodes=1, hosts=("zürich.example",))
    assert not (tmp_path / "certificates").exists()
