"""A `flower-superexec` that runs only this package's ClientApp, and forks it.

- Flower's runs the app that the server sends: whoever controls the server runs programs on every node. This one always runs
  the app that is installed on the node, and takes no other kind of task.
- Flower's starts a new Python for every message, which takes more than a second of a core before our ClientApp starts.
  This one forks a process that has already imported the app. Each message still has its own process, and is found sooner
  than by Flower's poll once a second.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime import run_clientapp

from lora_a2.errors import RunError
from lora_a2.flower import client_app
from lora_a2.flower.patience import Patience
from lora_a2.system.lifeline import end_with_parent

REPLACED = ("install_from_fab", "get_load_client_app_fn")
"""The functions of Flower that unpack and load the app that the server sends."""


class ForkingExecutor(SubprocessExecutor):
    """Runs this package's ClientApp in a fork of this process, and nothing else."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **options: Any
    ) -> tuple[set[TaskType], set[str]]:
        """Asks only for ClientApps."""
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts the process and returns at once."""
        self._patience.event()
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed(f"A node of lora-a2 runs only its own ClientApp, not a {spec.task_type}.")
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        if os.fork() == 0:
            _run(spec, parent)
        return LaunchResult.accepted()


def require_release() -> None:
    """Checks that this release of Flower can be kept from running what the server sends.

    Raises:
        RunError: it loads apps in another way.
    """
    if missing := [name for name in REPLACED if name not in vars(run_clientapp)]:
        raise RunError(
            f"This release of Flower is not supported: it has no {missing[0]} for loading apps. Install flwr 1.41."
        )


def use_own_client_app() -> None:
    """Makes Flower run this package's ClientApp: the app that the server sends is neither unpacked nor imported.

    Raises:
        RunError: this release of Flower loads apps in another way.
    """
    require_release()
    changed = vars(run_clientapp)
    changed["install_from_fab"] = lambda *given, **options: None
    changed["get_load_client_app_fn"] = lambda *given, **options: lambda *names: client_app.app


def _run(spec: ExecutionSpec, parent: int) -> NoReturn:
    """Runs the forked process. It ends by `os._exit`, since it must not continue its parent's main loop."""
    status = 1
    try:
        end_with_parent(parent)
        run_clientapp.run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=parent,
            runtime_dependency_install=False,
        )
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _parent() -> int | None:
    """The process that this one ends with, if it is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--parent-pid", type=int)
    given: int | None = parser.parse_known_args()[0].parent_pid
    return given


def main() -> None:
    """Runs a SuperExec until its SuperNode ends, with the arguments of `flower-superexec`.

    Flower's own check of `--parent-pid` counts a killed parent that nobody has waited for as alive. Here the kernel watches, so
    `--parent-pid` must be the process that started this one.
    """
    from flwr.supercore.cli.flower_superexec import flower_superexec

    if (parent := _parent()) is not None:
        end_with_parent(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave no zombies
    use_own_client_app()
    patience = Patience()
    changed = vars(run_superexec)
    changed["get_executor"] = lambda *given, **options: ForkingExecutor(patience)
    if changed.get("time") is time:
        changed["time"] = patience
    flower_superexec()


if __name__ == "__main__":
    main()
