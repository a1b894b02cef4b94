"""A stranger who reaches the published port and has the authority's certificate, which is public, gets nothing.

Flower itself lists everything that it answers: the SuperLink's routes, and the methods of all gRPC services in its package.
So a new release brings its own attempts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

import grpc
import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from lora_a2.errors import RunError
from lora_a2.flower.app_folder import write_app
from lora_a2.flower.deployment import PROXY, SUPERLINK, Deployment
from lora_a2.flower.processes import Processes
from lora_a2.flower.proxy import configuration
from needs import NGINX
from stranger import PROTOBUF, call, grpc_methods, inside, is_the_proxy_s, nodes, raw, request_of, signed, trust

pytestmark = NGINX
FLEET = "/v1/fleet/"
KEY = ec.generate_private_key(ec.SECP384R1())
"""The stranger's own key."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink behind its proxy that knows node 0's key; at the end it must have neither a run nor another node."""
    with Processes(tmp_path_factory.mktemp("deployment")) as processes:
        started = Deployment(processes, nodes=2)
        started.start_superlink()
        started.register(0)
        yield started
        with inside(started) as client:
            assert ListRunsResponse.FromString(call(client, "/v1/control/list-runs", ListRunsRequest())).run_dict == {}
        assert len(nodes(started)) == 1


@pytest.fixture(scope="module")
def outside(deployment: Deployment) -> Iterator[httpx.Client]:
    """A stranger's connection to the published port."""
    with httpx.Client(base_url=f"https://{deployment.address}", verify=trust(deployment), headers=PROTOBUF) as client:
        yield client


# --- everything but the fleet service


def test_no_route_but_the_fleet_s_is_there(deployment: Deployment, outside: httpx.Client) -> None:
    with inside(deployment) as client:
        schema = client.get("/openapi.json").raise_for_status().json()
        assert client.get("/health").status_code == 200
    routes = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    assert set(PROTOBUF_REQUEST_TYPES) <= set(routes)
    routes += [("GET", path) for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/")]
    closed = [(method, path) for method, path in routes if not path.startswith(FLEET)]
    assert len(closed) > 60
    for method, path in closed:
        response = outside.request(method, path)
        print(f"{method} {path} -> {response.status_code}")
        assert response.status_code == 404, path
        assert is_the_proxy_s(response) or method == "HEAD", path


def test_no_grpc_method_is_there(deployment: Deployment, outside: httpx.Client) -> None:
    methods = grpc_methods()
    assert len(methods) > 50
    assert {name.split("/")[1] for name in methods} >= {
        "flwr.proto.Control",
        "flwr.proto.Fleet",
        "flwr.proto.GrpcAdapter",
    }
    credentials = grpc.ssl_channel_credentials(deployment.certificates.authority.read_bytes())
    with grpc.secure_channel(deployment.address, credentials) as channel:
        for path in methods:
            response = outside.post(path, headers={"content-type": "application/grpc", "te": "trailers"})
            assert response.status_code == 404, path
            assert is_the_proxy_s(response), path
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(path)(b"", timeout=10)
            print(f"gRPC {path} -> {error.value.code().name}; by HTTP/1.1 {response.status_code}")  # type: ignore[attr-defined]
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE, path  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "request_line",
    [
        "POST /v1/fleet/../control/list-runs HTTP/1.1",
        "POST /v1/fleet/%2e%2e/control/list-runs HTTP/1.1",
        "POST /v1/fleet/..%2fcontrol%2flist-runs HTTP/1.1",
        "POST /v1/fleet/%252e%252e/control/list-runs HTTP/1.1",
        "POST /v1/fleet/pull-messages/../../control/list-runs HTTP/1.1",
        "POST //v1/control/list-runs HTTP/1.1",
        "POST /v1//control/list-runs HTTP/1.1",
        "POST /V1/control/list-runs HTTP/1.1",
        "POST /v1/control/list-runs?/v1/fleet/get-run HTTP/1.1",
        "POST /v1/control/list-runs#/v1/fleet/get-run HTTP/1.1",
        "POST https://127.0.0.1/v1/control/list-runs HTTP/1.1",
        "POST /v1/control/list-runs HTTP/1.0",
        "POST /v1/control/list-runs",
        "CONNECT 127.0.0.1:8000 HTTP/1.1",
        "TRACE /v1/control/list-runs HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /v1/fleet/get-run HTTP/1.1",
        "PUT /v1/fleet/get-run HTTP/1.1",
    ],
)
def test_no_spelling_of_a_request_gets_round_the_proxy(deployment: Deployment, request_line: str) -> None:
    answer = raw(deployment, f"{request_line}\r\nHost: localhost\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n")
    print(f"{request_line} -> {answer.splitlines()[0]}")
    assert re.match(rb"HTTP/1.1 40[0345] ", answer) or b"<center>nginx</center>" in answer
    assert b"nginx" in answer


@pytest.mark.parametrize(
    "headers",
    [
        "X-Nothing: 1\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\n",
        "X-Original-URL: /v1/control/list-runs\r\nX-Rewrite-URL: /v1/control/list-runs\r\n",
        "X-HTTP-Method-Override: GET\r\nX-Forwarded-Prefix: /v1/control\r\n",
    ],
)
def test_no_header_leads_elsewhere(deployment: Deployment, headers: str) -> None:
    """Only the named fleet method is passed on, and it needs a key."""
    head = f"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n{headers}"
    answer = raw(deployment, head)
    print(f"{headers.splitlines()[0]} -> {answer.splitlines()[0]}")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Invalid SuperNode authentication" in answer


def test_no_second_request_hides_in_a_first(deployment: Deployment) -> None:
    hidden = "POST /v1/control/list-runs HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
    both = raw(deployment, f"{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", f"0\r\n\r\n{hidden}")
    assert both.startswith(b"HTTP/1.1 400 ")
    behind = raw(deployment, f"{head}Content-Length: 0\r\n", hidden)
    assert re.findall(rb"HTTP/1.1 (\d+)", behind) == [b"401", b"404"]


# --- the fleet service


FLEET_METHODS = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith(FLEET))


@pytest.mark.parametrize("path", FLEET_METHODS)
def test_a_fleet_method_wants_a_registered_key(deployment: Deployment, outside: httpx.Client, path: str) -> None:
    """Without a key, with the stranger's own, with another's registered one, and in a registered node's name."""
    (node_id,) = nodes(deployment)
    owner = load_ssh_private_key(deployment.certificates.node_key(0).read_bytes(), None)
    other = load_ssh_private_key(deployment.certificates.node_key(1).read_bytes(), None)
    assert isinstance(owner, ec.EllipticCurvePrivateKey)
    assert isinstance(other, ec.EllipticCurvePrivateKey)
    attempts = {
        "no key": {},
        "a key of one's own": signed(KEY),
        "a key that is not registered": signed(other),
        "a node's public key, signed with another": signed(KEY, owner.public_key()),
        "a node's key of an hour ago": signed(owner, age=3600),
    }
    for what, headers in attempts.items():
        claimed = (
            owner.public_key() if "node's" in what else other.public_key() if "registered" in what else KEY.public_key()
        )
        response = outside.post(path, content=request_of(path, node_id, claimed).SerializeToString(), headers=headers)
        print(f"POST {path}, {what} -> {response.status_code} {response.text[:80]}")
        assert response.status_code in (401, 412), (what, response.text)
        assert response.headers["content-type"].startswith("application/json"), what  # an error, and no message


def test_the_fleet_service_is_reached_by_who_has_a_key(deployment: Deployment, outside: httpx.Client) -> None:
    """The counterpart of the refusals above: the same request with the right key succeeds."""
    owner = load_ssh_private_key(deployment.certificates.node_key(0).read_bytes(), None)
    assert isinstance(owner, ec.EllipticCurvePrivateKey)
    request = request_of(f"{FLEET}activate-node", 0, owner.public_key())
    response = outside.post(f"{FLEET}activate-node", content=request.SerializeToString(), headers=signed(owner))
    assert response.status_code == 200, response.text


# --- the deployment


def test_nothing_listens_beyond_the_loopback(deployment: Deployment) -> None:
    listening = {
        connection.laddr.ip
        for process in deployment.processes.members()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert deployment.processes.alive(PROXY)
    assert deployment.processes.alive(SUPERLINK)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("run", "APP"),
        ("stop", "1"),
        ("log", "1", "--show"),
        ("pull", "1"),
        ("supernode", "list"),
        ("supernode", "register", "KEY"),
        ("supernode", "unregister", "1"),
        ("federation", "list"),
    ],
    ids=lambda command: " ".join(command),
)
def test_no_command_of_flower_s_works_from_outside(
    deployment: Deployment, tmp_path: Path, command: tuple[str, ...]
) -> None:
    write_app(tmp_path / "app", {})
    given = {"APP": str(tmp_path / "app"), "KEY": str(deployment.certificates.node_public_key(1))}
    (tmp_path / "config.toml").write_text(
        f'[superlink.there]\naddress = "{deployment.address}"\nroot-certificates = "{deployment.certificates.authority}"\n'
    )
    stranger = Processes(tmp_path)
    words = [given.get(word, word) for word in command]
    with pytest.raises(RunError) as error:
        stranger.call(["flwr", *words, "there"])
    print(f"flwr {' '.join(command)} -> {error.value}")
    assert "404" in str(error.value), error.value


def test_the_configuration_in_deploy_is_this_one() -> None:
    text = configuration(
        listen="9092",
        superlink="127.0.0.1:8000",
        certificate=Path("/etc/lora-a2/server.pem"),
        key=Path("/etc/lora-a2/server.key"),
        authority=Path("/etc/lora-a2/ca.crt"),
    )
    assert (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text() == text


def test_no_file_of_ours_publishes_a_superlink() -> None:
    root = Path(__file__).parents[2]
    files = [
        *(root / "deploy").iterdir(),
        *(root / "docs").glob("*.md"),
        *(root / "src").rglob("*.txt"),
        root / "README.md",
    ]
    started = 0
    for file in files:
        text = re.sub(r'[\\"\s,]+', " ", file.read_text())
        assert "0.0.0.0" not in text, file
        commands = re.findall(r"flower-superlink (?:\[?--.*?)--database", text)
        assert all("--host 127.0.0.1 " in command for command in commands), file
        started += len(commands)
    assert started == 3  # the unit, the image, the documentation
