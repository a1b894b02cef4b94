"""`lora-a2 flower check`, and a node's key and way to the server: what fails in a deployment fails here, and nothing is sent."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from federation import save_data, save_model
from lora_a2.cli import main
from lora_a2.errors import ConfigError, NodeError, RunError
from lora_a2.flower import node_checks, server_checks
from lora_a2.flower.certificates import Certificates, make_certificates
from lora_a2.flower.new_app import write_app
from lora_a2.flower.node_checks import node_key, releases, server_answers
from lora_a2.flower.processes import free_port
from lora_a2.flower.server_checks import ServerSetup, certificates_hold, left_superlinks, port_ready
from lora_a2.flower.superlinks import LocalSuperLink
from lora_a2.system.checks import NotChecked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("made") / "c", nodes=1)


@contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[bytes]]]:
    """A server on the loopback, with TLS or without; its port, and all that it was sent after the handshake."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    try:
                        if context is None:
                            connection.sendall(b"not TLS\n" * 10)
                            continue
                        with context.wrap_socket(connection, server_side=True) as wrapped:
                            heard.append(wrapped.recv(100))
                    except OSError:  # a caller that does not trust us
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def context(made: Certificates) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(made.server_certificate, made.server_key)
    return found


# --- a node's key and server


def test_a_key_is_known_by_its_fingerprint(made: Certificates) -> None:
    said = node_key(made.node_key(0))
    assert "can be used" in said and "SHA256:" in said
    with pytest.raises(NotChecked, match="--auth-supernode-private-key"):
        node_key(None)


def test_keys_that_flower_does_not_take(made: Certificates, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="not a private key in OpenSSH's format"):
        node_key(made.node_public_key(0))
    other = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "other"
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(NodeError, match="not an elliptic-curve key"):
        node_key(path)
    shutil.copy(made.node_key(0), path)
    path.chmod(0o644)
    with pytest.raises(NodeError, match="chmod 600"):
        node_key(path)


def test_a_worker_s_environment_need_not_have_flower(made: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(NotChecked, match="not installed here"):
        node_key(made.node_key(0))
    code = "import sys; import lora_a2.flower.node_checks; print([m for m in ('flwr', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_server_is_greeted_and_sent_nothing(made: Certificates) -> None:
    with listening(context(made)) as (port, heard):
        assert "answers over TLS" in server_answers(f"localhost:{port}", made.authority)
    assert heard == [b""]


def test_a_server_that_is_another(made: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", nodes=0, hosts=("elsewhere.example",))
    with listening(context(other)) as (port, _), pytest.raises(NodeError, match="does not hold"):
        server_answers(f"localhost:{port}", made.authority)
    with listening(context(other)) as (port, _), pytest.raises(NodeError, match="name localhost"):
        server_answers(f"localhost:{port}", other.authority)
    with listening(None) as (port, _), pytest.raises(NodeError, match="does not speak TLS"):
        server_answers(f"localhost:{port}", made.authority)


def test_a_server_that_is_not_there(made: Certificates) -> None:
    with pytest.raises(NodeError, match="cannot be reached"):
        server_answers(f"127.0.0.1:{free_port()}", made.authority)
    with pytest.raises(NodeError, match="is not HOST:PORT"):
        server_answers("superlink.example.org", made.authority)
    with pytest.raises(NotChecked, match="--superlink"):
        server_answers(None, made.authority)


def test_a_release_of_flower_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "flwr 1." in releases()
    with pytest.raises(NotChecked, match="no flwr"):
        releases(("lora-a2",))
    monkeypatch.delattr("flwr.supernode.runtime.run_clientapp.install_from_fab")
    with pytest.raises(RunError, match="not supported"):
        releases()


# --- a server's certificates, ports and left SuperLinks


def test_certificates_that_hold(made: Certificates) -> None:
    assert "hold for localhost, 127.0.0.1" in certificates_hold(made.directory, ("localhost", "127.0.0.1"))
    assert "give --host" in certificates_hold(made.directory, ())
    with pytest.raises(NotChecked):
        certificates_hold(None, ())


def test_certificates_that_do_not(made: Certificates, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.pem does not hold for nodes\.example"):
        certificates_hold(made.directory, ("nodes.example",))
    short = make_certificates(tmp_path / "short", nodes=0, days=3)
    with pytest.raises(ConfigError, match=r"expires in 2 days.*renew it"):
        certificates_hold(short.directory, ())
    broken = tmp_path / "broken"
    shutil.copytree(made.directory, broken)
    (broken / "server.key").write_bytes((broken / "superlink.key").read_bytes())
    with pytest.raises(ConfigError, match=r"server\.key is not the key of"):
        certificates_hold(broken, ())
    (broken / "server.key").write_bytes(made.server_key.read_bytes())
    (broken / "server.key").chmod(0o604)
    with pytest.raises(ConfigError, match="chmod o="):
        certificates_hold(broken, ())
    (broken / "server.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="not a certificate in PEM format"):
        certificates_hold(broken, ())
    (broken / "server.pem").unlink()
    with pytest.raises(FileNotFoundError):
        certificates_hold(broken, ())


def test_a_port_is_free_or_ours(made: Certificates) -> None:
    ours = ServerSetup(certificates=made.directory)
    assert port_ready(free_port(), "the proxy", ours) == "free for the proxy."
    with listening(context(made)) as (port, _):
        assert "a server listens there, with a certificate" in port_ready(port, "the proxy", ours)
        with pytest.raises(RunError, match="something listens there"):
            port_ready(port, "the proxy", ServerSetup())
    with listening(None) as (port, _), pytest.raises(NodeError, match="does not speak TLS"):
        port_ready(port, "the proxy", ours)


def test_a_left_superlink_of_another_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[LocalSuperLink] = []
    monkeypatch.setattr("lora_a2.flower.superlinks.local_superlinks", lambda: left)
    assert left_superlinks() == "none."
    left.append(LocalSuperLink(7, 0.0, "/home/a", sys.executable))
    assert "end it with: kill 7" in left_superlinks()
    left.append(LocalSuperLink(8, 0.0, "/home/a", "/gone/bin/python"))
    with pytest.raises(RunError, match="to have a new one: kill 8"):
        left_superlinks()


# --- a server's app


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tiny")
    return {"data": str(save_data(folder / "mine.csv", 20)), "model": str(save_model(folder / "model"))}


def check(app: Path, capsys: pytest.CaptureFixture[str], *more: str, **run_config: Any) -> dict[str, tuple[str, str]]:
    """What `flower check` finds of an app; the exit status has to go with it."""
    text = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in run_config.items())
    capsys.readouterr()
    ports = [f"--port={free_port()}", f"--superlink-port={free_port()}"]
    status = main(["flower", "check", "--json", "--app", str(app), "--run-config", text, *ports, *more])
    found = json.loads(capsys.readouterr().out)
    states = {one["what"]: (one["state"], one["said"]) for one in found["checks"]}
    failed = [what for what, (state, _) in states.items() if state == "failed"]
    assert found["ok"] is not bool(failed)
    assert status == int(bool(failed))
    return states


APP = ("app", "data", "model", "state folder")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new app, in a folder where nothing else is; the proxy and left SuperLinks are other tests' subject."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server_checks, "nginx_there", lambda: "is there")
    monkeypatch.setattr(server_checks, "left_superlinks", lambda: "none.")
    write_app(tmp_path / "shop-app")
    return tmp_path / "shop-app"


@pytest.fixture(autouse=True)
def no_app_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test's app has a module of the same name."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop_app"]:
        del sys.modules[name]


def test_an_app_that_is_ready(app: Path, tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = check(app, capsys, **tiny)
    assert [found[what][0] for what in APP] == ["ok"] * 4
    assert "3 classes, 16 examples to train with and 4 to test with" in found["data"][1]
    found = check(app, capsys, **{**tiny, "data": ""}, labels="late,lost", num_clients=3)
    assert [found[what][0] for what in APP] == ["ok"] * 4
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "what", "part"),
    [
        ({"rank-budget": 99}, "app", "rank-budget"),
        ({"no-such-key": 1}, "app", "no-such-key"),
        ({"data": "none.csv"}, "data", "There is no data set"),
        ({"labels": "late,lost", "evaluation": "server"}, "data", "the server has no test data"),
        ({"model": "none/here"}, "model", "none/here"),
        ({"output-dir": "shop-app"}, "state folder", "already holds something else"),
        ({"resume": "shop-app"}, "app", "is not a run directory"),
    ],
)
def test_an_app_that_is_not(
    given: dict[str, Any], what: str, part: str, app: Path, tiny: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(app, capsys, **{**tiny, **given})
    assert found[what][0] == "failed"
    assert part in found[what][1]


def test_the_app_s_own_data_module_is_asked(
    app: Path, tiny: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = app / "shop_app" / "data.py"
    path.write_text(f"import lora_a2\n\ndef load_data(config):\n    return lora_a2.load_data({tiny['data']!r})\n")
    assert "3 classes" in check(app, capsys, model=tiny["model"])["data"][1]


def test_an_app_that_cannot_be_imported(app: Path, tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    (app / "shop_app" / "data.py").write_text("import no_such_module\n")
    state, said = check(app, capsys, **tiny)["data"]
    assert state == "failed" and "no_such_module" in said


def test_without_an_app_the_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flower", "check"])
    printed = capsys.readouterr().out
    assert "not checked  app" in printed
    assert node_checks.releases() in printed
