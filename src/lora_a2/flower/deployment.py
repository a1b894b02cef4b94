"""A Flower deployment on this machine's loopback: a SuperLink behind a proxy, and SuperNodes, over TLS, each with its own key.

What a machine of its own runs in a real deployment is a process of its own here, with the same commands: docs/deployment.md.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import tomlkit

from lora_a2.flower.certificates import Certificates, make_certificates
from lora_a2.flower.processes import Processes, free_port
from lora_a2.flower.proxy import configuration, nginx
from lora_a2.system.files import write_atomic

CONNECTION = "deployment"
SUPERLINK, PROXY, RUN = "superlink", "proxy", "run"


def supernode(node: int) -> str:
    """The name of a node's SuperNode process."""
    return f"supernode-{node}"


def worker(node: int) -> str:
    """The name of a node's worker process."""
    return f"worker-{node}"


class Deployment:
    """The processes of a SuperLink and `nodes` SuperNodes, none of them started yet.

    The SuperLink keeps its state in a file, so that it knows its nodes again when it is restarted.

    Attributes:
        port: what nodes reach: the proxy's.
        control_port: the SuperLink's own, for its operator and the proxy.
    """

    def __init__(self, processes: Processes, nodes: int) -> None:
        self.processes = processes
        self.nodes = nodes
        self.port, self.control_port = free_port(), free_port()
        self.certificates: Certificates = make_certificates(processes.home / "certificates", nodes=nodes)
        self._write_connection()

    @property
    def address(self) -> str:
        """Where nodes find the server."""
        return f"127.0.0.1:{self.port}"

    def start_superlink(self) -> None:
        """Starts the SuperLink, and the proxy if it does not run, and waits until both listen.

        Raises:
            RunError: there is no nginx, or one of the two does not start.
        """
        if not self.processes.alive(PROXY):
            self.start_proxy()
        made = self.certificates
        self.processes.start(
            SUPERLINK,
            [
                "flower-superlink",
                f"--ssl-ca-certfile={made.authority}",
                f"--ssl-certfile={made.superlink_certificate}",
                f"--ssl-keyfile={made.superlink_key}",
                "--enable-supernode-auth",
                "--host=127.0.0.1",
                f"--port={self.control_port}",
                f"--database={self.processes.home / 'superlink.sqlite'}",
            ],
        )
        self.processes.wait_until(lambda: _listening(self.control_port), "Starting the SuperLink")

    def start_proxy(self) -> None:
        """Starts the proxy and waits until it listens.

        Raises:
            RunError: there is no nginx, or it does not start.
        """
        home, made = self.processes.home / PROXY, self.certificates
        home.mkdir(exist_ok=True)
        text = configuration(
            listen=self.address,
            superlink=f"127.0.0.1:{self.control_port}",
            certificate=made.server_certificate,
            key=made.server_key,
            authority=made.authority,
        )
        (home / "nginx.conf").write_text(text)
        # One process, not nginx's two: it keeps the environment by which the processes of a deployment are known.
        command = [nginx(), "-p", str(home), "-c", str(home / "nginx.conf"), "-g", "master_process off;"]
        self.processes.start(PROXY, command)
        self.processes.wait_until(lambda: _listening(self.port), "Starting the proxy")

    def register(self, node: int) -> None:
        """Tells the SuperLink a node's public key; without, it refuses the node."""
        self.flwr("supernode", "register", str(self.certificates.node_public_key(node)), CONNECTION)

    def start_supernode(
        self, node: int, config: Mapping[str, str | int], *, authority: Path | None = None, port: int | None = None
    ) -> None:
        """Starts a SuperNode. `config` is told to its ClientApp; it trusts `authority` (None: ours) and looks for the
        server at `port` (None: where it is)."""
        values = {"partition-id": node, "num-partitions": self.nodes, **config}
        self.processes.start(
            supernode(node),
            [
                "python",
                "-m",
                "lora_a2.flower.supernode",
                f"--root-certificates={authority or self.certificates.authority}",
                f"--auth-supernode-private-key={self.certificates.node_key(node)}",
                f"--superlink=127.0.0.1:{port or self.port}",
                f"--port={free_port()}",
                f"--node-config={node_config(values)}",
            ],
        )

    def flwr(self, *arguments: str) -> str:
        """What a command of Flower's command line prints."""
        return self.processes.call(["flwr", *arguments])

    def start_run(self, app: Path) -> None:
        """Submits an app; the process RUN streams the ServerApp's log into its own, and ends with the run."""
        self.processes.start(RUN, ["flwr", "run", str(app), CONNECTION, "--stream"], lasting=False)

    def _write_connection(self) -> None:
        connection = {
            "address": f"127.0.0.1:{self.control_port}",
            "root-certificates": str(self.certificates.authority),
        }
        document = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        write_atomic(self.processes.home / "config.toml", tomlkit.dumps(document).encode())


def _listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def node_config(values: Mapping[str, str | int]) -> str:
    """The text of `--node-config`: key=value pairs, strings in quotes."""
    return " ".join(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in values.items())
