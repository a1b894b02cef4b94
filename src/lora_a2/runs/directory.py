"""The run directory: configuration, environment, ledger and checkpoints; written so that a kill loses one round at most.

    config.toml       the resolved configuration; enough to run it again
    environment.json  versions, machine, fingerprints of data and model
    clients.json      who holds what, and
    analysis.jsonl    a line a round, where the run records for analysis (`analysis.record`)
    SHA256SUMS        the digests of those that never change: config.toml, environment.json, clients.json
    rounds.jsonl      the ledger, a line a round; the digests of its lines and of those of analysis.jsonl stand beside them
    checkpoint/       round-N.safetensors and state.json, which names it; state.json is the commit
                      previous.json and its tensors: the commit before, in case the last one is damaged
                      the tensors of the best round, if that is to be the result
    adapter/          the result, once the run is complete, with SHA256SUMS of its own; or
    model/            the whole model, merged, for methods that move base weights
    personal/N/       client N's own model, for methods that make such
    baselines.json    what the result is compared with, client by client, for runs with --baselines or --personalize
    nodes.json        which node is which client, where the clients are nodes

A round is committed by replacing `checkpoint/state.json`. Its ledger line is written before, so on resuming the ledger
holds at least the committed rounds; what it holds beyond them is cut off. Whatever is read back is compared with its digest;
state.json holds its own and that of the tensors, and says how many lines of ledger and analysis count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lora_a2.analysis.record import ANALYSIS_FILE, CLIENTS_FILE
from lora_a2.core.types import ClientState, Layout, ServerState
from lora_a2.errors import RunError
from lora_a2.federation.records import LEDGER_FILE, RoundRecord, read_ledger
from lora_a2.runs.checkpoints import Checkpoints, best_of, clients_of
from lora_a2.system.files import SUMS, check, read_json_object, replace_one, write_all
from lora_a2.system.journal import Journal
from lora_a2.system.locks import LOCK, Lock, claimed

RESULTS = ("classifier.json", "writer.json")
"""Files that a folder with a whole model has once it is complete."""
NODES_FILE = "nodes.json"
"""Written by a server of nodes."""
_LEDGER, _ANALYSIS = "rounds", "analysis"
_MARKS = ("config.toml", "adapter_config.json", *RESULTS, "compare.json", "sweep.json")


def require_some(path: Path) -> None:
    """Refuses a folder that holds neither a run, what came of one, nor several: in a moment, before anything is loaded.

    Raises:
        RunError: there is nothing of that kind in it.
    """
    if not any((path / name).is_file() for name in _MARKS):
        raise RunError(f"{path} {_no_run(path)}: expected {path / 'config.toml'}.")


def _no_run(path: Path) -> str:
    return "is not a run directory" if path.is_dir() else "does not exist"


class RunDirectory:
    """A run's directory at `path`; see the module's docstring for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / LEDGER_FILE
        self.analysis = path / ANALYSIS_FILE
        self.checkpoint = path / "checkpoint"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.personal = path / "personal"
        self._checkpoints = Checkpoints(self.checkpoint)
        self._lock: Lock | None = None  # from `create` to `locked`
        self._journals = {_LEDGER: Journal(self.ledger), _ANALYSIS: Journal(self.analysis)}

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuses a path where something is already; what a kill inside `create` leaves behind is nothing.

        Raises:
            RunError: there is.
        """
        if path.exists() and not (path.is_dir() and _barely_begun(path)):
            kind = "another run" if (path / "config.toml").exists() else "something else"
            raise RunError(
                f"Output directory {path} already holds {kind}: choose another --output-dir"
                + (f", or continue that run with 'lora-a2 resume {path}'." if kind == "another run" else ".")
            )

    @classmethod
    def create(
        cls, path: Path, config: str, environment: Mapping[str, Any], clients: Mapping[str, Any] | None = None
    ) -> RunDirectory:
        """A new directory with its configuration and environment, and `clients.json` if given.

        Of several processes that create the same one, one gets it; it holds it until `locked` ends.

        Raises:
            RunError: something is there already, or it cannot be written.
        """
        cls.check_free(path)
        run = cls(path)
        described = {} if clients is None else {CLIENTS_FILE: (json.dumps(clients, ensure_ascii=False) + "\n").encode()}
        environment_file = (json.dumps(environment, indent=2) + "\n").encode()
        try:
            with ExitStack() as held:
                run._lock = held.enter_context(claimed(path))
                cls.check_free(path)  # another process may have been here since
                run.checkpoint.mkdir(exist_ok=True)
                write_all(path, {"environment.json": environment_file, **described, "config.toml": config.encode()})
                held.pop_all()
        except OSError as error:
            raise RunError(f"Output directory {path} cannot be written: {error.strerror}.") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory.

        Raises:
            RunError: there is none at `path`, or what it was created with has changed since.
        """
        for name in ("config.toml", "environment.json"):
            if not (path / name).is_file():
                raise RunError(f"{path} {_no_run(path)}: expected {path / name}.")
        known = check(path)
        if not known >= {"config.toml", "environment.json"}:
            raise RunError(f"{path / SUMS} is damaged: expected config.toml and environment.json in it.")
        return cls(path)

    def require_finished(self) -> None:
        """Refuses a run that has no result yet.

        Raises:
            RunError: it has none.
        """
        self.result()

    def kept_round(self) -> int:
        """The round whose model is the run's: the last finished one, or the best so far if that is kept.

        Raises:
            RunError: there is none yet, or the checkpoint is damaged.
        """
        return int(self._kept()["server_round"])

    def _kept(self) -> dict[str, Any]:
        """The summary of the round whose model is the run's."""
        with self._offering_earlier():
            summary = self._checkpoints.last()
        if summary is None:
            if self.is_finished:
                raise RunError(f"{self.path} is damaged: it has a result but no checkpoint/state.json.")
            raise RunError(f"{self.path} has no finished round yet: continue it with 'lora-a2 resume {self.path}'.")
        return best_of(summary) or summary

    def load_kept(self, layout: Layout) -> tuple[ServerState, dict[int, ClientState]]:
        """The state after the round whose model is the run's, and what the clients kept then.

        Raises:
            RunError: no round is finished, the checkpoint is damaged, or it belongs to another model.
        """
        summary = self._kept()
        with self._offering_earlier():
            clients = clients_of(self._checkpoints.tensors(summary))
        return self._checkpoints.state(summary, layout), clients

    def rounds_done(self) -> int:
        """How many rounds are finished.

        Raises:
            RunError: the checkpoint is damaged.
        """
        with self._offering_earlier():
            summary = self._checkpoints.last()
        return 0 if summary is None else int(summary["server_round"])

    @property
    def is_finished(self) -> bool:
        """Whether it has a result."""
        return self._result() is not None

    def result(self) -> Path:
        """The folder of what came of the run: an adapter, or a whole model if the method moves base weights.

        Raises:
            RunError: it is not finished.
        """
        found = self._result()
        if found is None:
            raise RunError(f"{self.path} is not finished: continue it with 'lora-a2 resume {self.path}'.")
        return found

    def _result(self) -> Path | None:
        if (self.adapter / "adapter_config.json").is_file():
            return self.adapter
        if any((self.model / name).is_file() for name in RESULTS):
            return self.model
        return None

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; `data_sha256` is among it.

        Raises:
            RunError: it is damaged.
        """
        values = read_json_object(self.path / "environment.json")
        if not isinstance(values.get("data_sha256"), str):
            raise RunError(f"{self.path / 'environment.json'} is damaged: expected data_sha256 in it.")
        return values

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from writing to the same run.

        Raises:
            RunError: another process holds it.
        """
        lock, self._lock = self._lock or Lock(self.path), None
        with lock:
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written inside and cannot be ends the run, but costs nothing that was committed.

        Raises:
            RunError: with the file, the reason, and how to go on.
        """
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{_reason(error)}. All rounds that were finished are kept: put that right, then: "
                f"lora-a2 resume {self.path}"
            ) from error

    def commit(
        self,
        state: ServerState,
        record: RoundRecord,
        clients: Mapping[int, ClientState] | None = None,
        analysis: Mapping[str, Any] | None = None,
        best: bool | None = None,
    ) -> None:
        """Writes a finished round: the lines of ledger and analysis, the tensors, then the state that makes them count.

        `best`: whether it is the best so far; None: the best round is not kept.

        Raises:
            RunError: a file cannot be written.
        """
        with self.writing():
            if analysis is not None:
                self._journals[_ANALYSIS].append(analysis)
            self._journals[_LEDGER].append(record.to_json())
            lines = {_LEDGER: state.server_round, _ANALYSIS: 0 if analysis is None else state.server_round}
            self._checkpoints.commit(state, clients or {}, {"lines": lines}, best)

    def load_state(self, layout: Layout) -> ServerState | None:
        """The last committed state; None if no round was finished.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model.
        """
        with self._offering_earlier():
            summary = self._checkpoints.last()
            if summary is None:
                return None
            self._check_tensors(summary)
        return self._checkpoints.state(summary, layout)

    def load_clients(self) -> dict[int, ClientState]:
        """What the clients kept at the last committed round.

        Raises:
            RunError: the checkpoint is damaged.
        """
        with self._offering_earlier():
            summary = self._checkpoints.last()
            return {} if summary is None else clients_of(self._checkpoints.tensors(summary))

    def load_records(self) -> list[RoundRecord]:
        """The records of the committed rounds.

        Raises:
            RunError: ledger or analysis is damaged.
        """
        with self._offering_earlier():
            summary = self._checkpoints.last()
            self._check_lines(summary)
            return read_ledger(self.ledger, 0 if summary is None else summary["lines"][_LEDGER])

    def discard_uncommitted(self) -> None:
        """Drops what a kill left beside the committed rounds: later or broken ledger lines, stray files.

        Raises:
            RunError: a file cannot be written.
        """
        summary = self._checkpoints.last()
        with self.writing():
            self._checkpoints.tidy(0 if summary is None else summary["server_round"])
            for name, journal in self._journals.items():
                journal.cut(0 if summary is None else summary["lines"][name])

    def reconfigure(self, config: str) -> None:
        """Replaces the configuration. A kill leaves the old or the new one.

        Raises:
            RunError: it cannot be written.
        """
        with self.writing():
            replace_one(self.path, "config.toml", config.encode())

    def discard_result(self) -> None:
        """A finished run is so no more: its result stands for other rounds than it will have.

        Raises:
            RunError: a file cannot be removed.
        """
        with self.writing():
            (self.adapter / "adapter_config.json").unlink(missing_ok=True)
            for name in RESULTS:
                (self.model / name).unlink(missing_ok=True)

    def go_back(self, server_round: int) -> None:
        """Makes the checkpoint before the last one the last; what came after it no longer counts.

        Raises:
            RunError: there is no whole checkpoint of this round.
        """
        if self._whole(self._checkpoints.last) == server_round:
            return
        earlier = self._checkpoints.previous()
        if earlier is None or earlier["server_round"] != server_round:
            there = (self._whole(read) for read in (self._checkpoints.previous, self._checkpoints.last))
            rounds = " and ".join(sorted({str(number) for number in there if number is not None})) or "none"
            raise RunError(f"{self.path} has no whole checkpoint of round {server_round}. Rounds with one: {rounds}.")
        self._check(earlier)
        self.discard_result()
        with self.writing():
            self._checkpoints.go_back()

    def _whole(self, read: Callable[[], dict[str, Any] | None]) -> int | None:
        """The round of the summary that is read, if all that belongs to it is what it was then; else None."""
        try:
            summary = read()
            if summary is None:
                return None
            self._check(summary)
        except RunError:
            return None
        return int(summary["server_round"])

    def _check(self, summary: Mapping[str, Any]) -> None:
        self._check_tensors(summary)
        self._check_lines(summary)

    def _check_tensors(self, summary: Mapping[str, Any]) -> None:
        for each in (summary, best_of(summary)):
            if each is not None:
                self._checkpoints.tensors(each)

    def _check_lines(self, summary: Mapping[str, Any] | None) -> None:
        """Compares the lines of ledger and analysis that count with their digests."""
        for name, journal in self._journals.items():
            journal.read(0 if summary is None else summary["lines"][name])

    @contextmanager
    def _offering_earlier(self) -> Iterator[None]:
        """Where what is read inside is damaged, the error says whether there is an earlier checkpoint to go on from."""
        try:
            yield
        except RunError as error:
            earlier = self._whole(self._checkpoints.previous)
            if earlier is None:
                raise
            raise RunError(
                f"{error} The checkpoint before, of round {earlier}, is whole; to go on from there: "
                f"lora-a2 resume {self.path} --from-round {earlier}"
            ) from error


def _barely_begun(path: Path) -> bool:
    """Whether a directory is empty, or holds only what `create` writes before the configuration."""
    written = ("environment.json", CLIENTS_FILE, SUMS)
    found = {p.name for p in path.iterdir() if not (p.name.startswith(".") and p.name.endswith(".partial"))}
    return found <= {LOCK, "checkpoint", *written} and not any(path.glob("checkpoint/*"))


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error)
