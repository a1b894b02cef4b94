"""`flower-supernode` without its waits: python -m lora_a2.flower.supernode, with the same arguments.

A round of a deployment would spend more seconds between processes than many a node trains. Two things are otherwise here:

- Flower's SuperNode sleeps for 3 seconds whenever it finds no message, and that is always so right after it has sent a reply.
  There is no option for this, so the sleeps of that one module are those of `lora_a2.flower.patience`.
- Its SuperExec, which starts a process for each message, is that of `lora_a2.flower.superexec`.

With `--isolation` or certificates for the Runtime API given, the SuperExec is the user's own affair, as in Flower.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time

from lora_a2.flower.patience import Patience


def main() -> None:
    """Runs a SuperNode until it is stopped."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    if getattr(start_client_internal, "time", None) is time:
        vars(start_client_internal)["time"] = Patience()
    else:
        print("This release of Flower is unknown: each round waits up to 3 seconds for a SuperNode.", file=sys.stderr)
    _start_superexec()
    flower_supernode()


def _can_fork() -> bool:
    """Whether this release of Flower has what our SuperExec needs."""
    try:
        superexec = importlib.import_module("lora_a2.flower.superexec")
    except ImportError:
        superexec = None
    if superexec is None or not hasattr(superexec.run_superexec, "get_executor"):
        print("This release of Flower is unknown: each message starts a new Python.", file=sys.stderr)
        return False
    return True


def _start_superexec() -> None:
    """Starts our SuperExec, which ends with this process, and has Flower start none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="9094")
    for name in ("--isolation", "--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"):
        parser.add_argument(name, dest="other")
    given, _ = parser.parse_known_args()
    if given.other is not None or {"--help", "-h", "--version", "-V"} & set(sys.argv) or not _can_fork():
        return
    address = f"[{given.host}]:{given.port}" if ":" in given.host else f"{given.host}:{given.port}"
    command = ["--insecure", f"--runtime-api-address={address}", f"--parent-pid={os.getpid()}"]
    subprocess.Popen(
        [sys.executable, "-m", "lora_a2.flower.superexec", *command],
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},  # its thread would not survive the fork
    )
    sys.argv.append("--isolation=process")


if __name__ == "__main__":
    main()
