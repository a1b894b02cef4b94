"""`flower-supernode` that looks for work four times a second: python -m lora_a2.flower.supernode, same arguments.

Flower's SuperNode sleeps for 3 seconds whenever it finds no message, and that is always so right after it has sent a reply:
every round would wait for it. Flower has no option for this, so the sleep of that one module is cut short. The SuperExec
beside it has an option, an environment variable.
"""

from __future__ import annotations

import os
import sys
import time
import types
from typing import Any

IDLE_SECONDS = 0.25


class ShortSleeps(types.ModuleType):
    """The module `time`, but for a `sleep` of at most `IDLE_SECONDS`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleeps, but not long."""
        time.sleep(min(seconds, IDLE_SECONDS))


def main() -> None:
    """Runs a SuperNode until it is stopped."""
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    if getattr(start_client_internal, "time", None) is time:
        vars(start_client_internal)["time"] = ShortSleeps("time")
    else:
        print("This release of Flower is unknown: each round waits up to 3 seconds for a SuperNode.", file=sys.stderr)
    flower_supernode()


if __name__ == "__main__":
    main()
