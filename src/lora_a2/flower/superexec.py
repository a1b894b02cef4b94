"""`flower-superexec` that forks: a ClientApp's process begins with everything imported, and costs next to nothing.

Flower starts a new Python for every message, which takes more than a second of a core before our ClientApp has begun. Here
the process that starts it has imported it already. Each message still has a process of its own,
and is found sooner than by Flower's question once a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import NoReturn

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

import lora_a2.flower.client_app  # noqa: F401  (so that the processes forked here need not)
from lora_a2.flower.patience import Patience


class ForkingExecutor(SubprocessExecutor):
    """Runs a ClientApp in a fork of this process, and anything else as Flower does."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts the process and returns at once."""
        self._patience.event()
        if spec.task_type != TaskType.CLIENT_APP or spec.runtime_dependency_install:
            return super().launch(spec)
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            _run(spec)
        return LaunchResult.accepted()


def _run(spec: ExecutionSpec) -> NoReturn:
    """The life of the forked process. Nothing of its parent's main loop may go on in it, hence the hard end."""
    status = 1
    try:
        run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=os.getppid(),
        )
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Runs a SuperExec until its SuperNode ends; arguments are those of `flower-superexec`."""
    from flwr.supercore.cli.flower_superexec import flower_superexec

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave nothing behind
    patience = Patience()
    changed = vars(run_superexec)
    changed["get_executor"] = lambda *given, **options: ForkingExecutor(patience)
    if changed.get("time") is time:
        changed["time"] = patience
    flower_superexec()


if __name__ == "__main__":
    main()
