"""Attempts of a stranger at a published port: requests of Flower's clients, and others."""

from __future__ import annotations

import datetime
import importlib
import pkgutil
import re
import socket
import ssl
from base64 import b64encode

import flwr.proto
import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import Message

from lora_a2.flower.deployment import Deployment

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}


def trust(deployment: Deployment) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(deployment.certificates.authority))


def inside(deployment: Deployment) -> httpx.Client:
    """The operator's connection, on the loopback of the server."""
    address = f"https://127.0.0.1:{deployment.control_port}"
    return httpx.Client(base_url=address, verify=trust(deployment), headers=PROTOBUF)


def call(client: httpx.Client, path: str, request: Message) -> bytes:
    return client.post(path, content=request.SerializeToString()).raise_for_status().content


def nodes(deployment: Deployment) -> list[int]:
    """The ids of the nodes that the SuperLink knows."""
    with inside(deployment) as client:
        found = ListNodesResponse.FromString(call(client, "/v1/control/list-nodes", ListNodesRequest()))
    return [info.node_id for info in found.nodes_info]


def grpc_methods() -> list[str]:
    """The path of every method of every gRPC service in Flower's package."""
    found = []
    for module in pkgutil.iter_modules(flwr.proto.__path__):
        if module.name.endswith("_pb2"):
            services = importlib.import_module(f"flwr.proto.{module.name}").DESCRIPTOR.services_by_name.values()
            found += [f"/{s.full_name}/{method.name}" for s in services for method in s.methods]
    return sorted(found)


def signed(
    key: ec.EllipticCurvePrivateKey, claimed: ec.EllipticCurvePublicKey | None = None, age: float = 0
) -> dict[str, str]:
    """The headers with which a node proves that it has its key."""
    at = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(claimed or key.public_key())).decode(),
        "flwr-signature": b64encode(sign_message(key, at.encode())).decode(),
        "flwr-timestamp": at,
    }


def is_the_proxy_s(response: httpx.Response) -> bool:
    """Whether the answer is nginx's own, so that nothing was passed on."""
    return "<center>nginx</center>" in response.text


def raw(deployment: Deployment, head: str, body: str = "") -> bytes:
    """The answer to raw bytes."""
    plain = socket.create_connection(("127.0.0.1", deployment.port), timeout=30)
    with trust(deployment).wrap_socket(plain, server_hostname="localhost") as connection:
        length = "" if "Content-Length" in head else f"Content-Length: {len(body)}\r\n"
        close = "" if body or "Connection:" in head else "Connection: close\r\n"
        connection.sendall(f"{head}{length}{close}\r\n{body}".encode())
        connection.settimeout(5)
        answer = b""
        try:
            while data := connection.recv(1 << 16):
                answer += data
                if b"Connection:" in head.encode() or len(re.findall(rb"HTTP/1.1 \d+", answer)) == 2:
                    break
        except (TimeoutError, ConnectionError):
            pass
        return answer


def request_of(path: str, node_id: int, key: ec.EllipticCurvePublicKey) -> Message:
    """A request in a node's name."""
    kind = PROTOBUF_REQUEST_TYPES["POST", path]
    if kind is RegisterNodeFleetRequest:
        return RegisterNodeFleetRequest(public_key=public_key_to_bytes(key))
    if kind is ActivateNodeRequest:
        return ActivateNodeRequest(public_key=public_key_to_bytes(key), heartbeat_interval=30)
    fields = kind.DESCRIPTOR.fields_by_name
    return kind(node=Node(node_id=node_id)) if "node" in fields else kind(node_id=node_id)
