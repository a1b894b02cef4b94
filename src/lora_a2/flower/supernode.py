"""A `flower-supernode` that runs no programs of the server: python -m lora_a2.flower.supernode, with the same arguments.

- Flower's SuperNode runs the app that the server sends. The SuperExec of this one, `lora_a2.flower.superexec`, runs the
  ClientApp that is installed on the node.
- Flower's sleeps for 3 seconds whenever it finds no message, which is always the case right after it sends a reply: waiting
  would take longer than many a node trains. There is no option for this, so `lora_a2.flower.patience` replaces the sleeps of
  that one module.

With `--isolation process` the user starts the SuperExec: `python -m lora_a2.flower.superexec`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from lora_a2.errors import RunError
from lora_a2.flower.patience import Patience


def main() -> None:
    """Runs a SuperNode until it is stopped."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    if getattr(start_client_internal, "time", None) is time:
        vars(start_client_internal)["time"] = Patience()
    else:
        print("Unsupported release of Flower: each round waits up to 3 seconds for this SuperNode.", file=sys.stderr)
    _start_superexec()
    flower_supernode()


def _start_superexec() -> None:
    """Starts our SuperExec, which ends with this process, and keeps Flower from starting its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="9094")
    parser.add_argument("--isolation", default="subprocess")
    parser.add_argument("--ssl-ca-certfile")
    given, _ = parser.parse_known_args()
    if {"--help", "-h", "--version", "-V"} & set(sys.argv):
        return
    if given.isolation != "subprocess":
        print(
            "Start 'python -m lora_a2.flower.superexec': flower-superexec would run programs that the server sends.",
            file=sys.stderr,
        )
        return
    _check_release()
    address = f"[{given.host}]:{given.port}" if ":" in given.host else f"{given.host}:{given.port}"
    trust = f"--root-certificates={given.ssl_ca_certfile}" if given.ssl_ca_certfile else "--insecure"
    command = [trust, f"--runtime-api-address={address}", f"--parent-pid={os.getpid()}"]
    subprocess.Popen(
        [sys.executable, "-m", "lora_a2.flower.superexec", *command],
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},  # its thread would not survive the fork
    )
    sys.argv.append("--isolation=process")  # the last one counts


def _check_release() -> None:
    """Checks that this release of Flower can be kept from running what the server sends."""
    try:
        from lora_a2.flower.superexec import use_own_client_app

        use_own_client_app()
    except (ImportError, RunError) as error:
        raise SystemExit(
            f"Error: lora-a2 does not support this release of Flower, so no node is started: {error}"
        ) from None


if __name__ == "__main__":
    main()
