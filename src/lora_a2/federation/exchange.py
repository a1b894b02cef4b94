"""What crosses the wire in a round, seen from the server: downloads out, replies in, screened and measured one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lora_a2 import codec
from lora_a2.core.transforms import received
from lora_a2.core.types import ClientProfile, Download, Reply, ServerState, Upload
from lora_a2.errors import CodecError, ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.bounds import (
    check_gradients,
    check_reach,
    check_size,
    check_usual,
    credible_examples,
    fair_share,
    largest_move,
    local_steps,
    trained,
    update_norm,
    usual_norm,
)
from lora_a2.federation.client import sending
from lora_a2.federation.holdings import Outbox, schema
from lora_a2.federation.records import ClientRecord, RoundRecord
from lora_a2.federation.screening import screen
from lora_a2.system.text import plain

UNDECLARED = ArithmeticError, ValueError, LookupError, MemoryError
"""What arithmetic on values that nobody foresaw may raise; np.linalg.LinAlgError is a ValueError."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """What came of a client instead of an upload: an error, or nothing in time. `received_bytes` crossed the wire.

    `lost`: the client says that it does not hold what its download builds on.
    """

    reason: str
    received_bytes: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class RoundRules:
    """What the server's operator demands of a round.

    Attributes:
        min_replies: this many usable replies.
        max_examples: no client counts for more examples than this; None: for as many as it has.
        max_update_ratio: no client moves farther than AdamW can, nor than this many times the median of the last rounds
            (`bounds.update_norm`); None: how far is not looked at.
        fair_shares: no client counts for more examples than its fair share (`bounds.fair_share`). `max_examples` stands in its
            place if it is given.
        credible_examples: what a client states of its examples is believed so far for its number of steps; None: whatever it is.
    """

    min_replies: int = 1
    max_examples: int | None = None
    max_update_ratio: float | None = None
    fair_shares: bool = False
    credible_examples: int | None = None

    def among(self, profiles: Sequence[ClientProfile]) -> RoundRules:
        """The rules with the limits that follow from the clients that are there."""
        counts = [profile.num_examples for profile in profiles]
        rules = self
        if counts and self.fair_shares and self.max_examples is None:
            rules = replace(rules, max_examples=fair_share(counts))
        if counts:
            rules = replace(rules, credible_examples=credible_examples(counts))
        return rules


Train = Callable[[Iterable[tuple[ClientProfile, bytes]]], Iterable[tuple[ClientProfile, bytes | Rejected]]]
"""Takes each client's download, as many at a time as it likes, and yields what comes back, in any number: encoded uploads,
and refusals that the driver knows of."""


class ReplyCallback(Protocol):
    """Is told what the server sees of a round."""

    def begin(self) -> None:
        """A round begins, or begins again after too few usable replies."""

    def reply(self, reply: Reply) -> None:
        """A reply counts; it is aggregated next."""


class Exchange:
    """What crosses the wire in a round, counted where it crosses, and what is still expected to come back.

    Downloads are made when they are asked for and dropped when they are answered, so that memory does not grow with the
    cohort.
    """

    def __init__(
        self,
        federation: Federation,
        state: ServerState,
        cohort: Sequence[ClientProfile],
        rules: RoundRules,
        history: Sequence[RoundRecord],
    ) -> None:
        self._federation, self._state, self._cohort, self._rules = federation, state, cohort, rules
        self._usual = usual_norm(history)
        self._open: dict[int, tuple[Download, int, int]] = {}
        self.records: list[ClientRecord] = []
        self.refused: dict[int, str] = {}
        self.downloaded_bytes = self.downloaded_parameters = self.uploaded_bytes = 0
        self.lost: set[int] = set()
        self.waited = self.encoding = self.moved = 0.0
        self.broken: Exception | None = None

    def downloads(self) -> Iterator[tuple[ClientProfile, bytes]]:
        """Each client's encoded download.

        Raises:
            ReplyError: the state makes none.
        """
        outbox = Outbox(self._federation, self._state)
        for profile in self._cohort:
            mark = time.perf_counter()
            try:
                download, data = outbox.download(profile)
            except (CodecError, *UNDECLARED) as error:
                raise ReplyError(
                    f"Round {self._state.server_round + 1}: the state makes no download for client {profile.id}: "
                    f"{type(error).__name__}: {plain(error)}"
                ) from error
            parameters = downloaded_parameters(self._federation, download)
            self._open[profile.id] = download, len(data), parameters
            self.downloaded_bytes += len(data)
            self.downloaded_parameters += parameters
            self.encoding += time.perf_counter() - mark
            yield profile, data

    def replies(
        self, incoming: Iterator[tuple[ClientProfile, bytes | Rejected]], callback: ReplyCallback | None
    ) -> Iterator[Reply]:
        """The uploads that may touch the state, one at a time; the others are recorded with the reason."""
        while (item := self._next(incoming)) is not None:
            profile, data = item
            if isinstance(data, Rejected):
                self.uploaded_bytes += data.received_bytes
                self._refuse(profile, data.reason)
                if data.lost:
                    self.lost.add(profile.id)
                continue
            self.uploaded_bytes += len(data)
            try:
                reply = self._screened(profile, data)
            except (CodecError, ReplyError) as error:
                self._refuse(profile, error)
                continue
            except UNDECLARED as error:
                self._refuse(profile, f"{type(error).__name__}: {error}")
                continue
            if callback is not None:
                callback.reply(reply)
            yield reply

    def _next(
        self, incoming: Iterator[tuple[ClientProfile, bytes | Rejected]]
    ) -> tuple[ClientProfile, bytes | Rejected] | None:
        mark = time.perf_counter()
        try:
            return next(incoming, None)
        except Exception as error:
            self.broken = error  # what goes wrong in training is no fault of the replies
            raise
        finally:
            self.waited += time.perf_counter() - mark

    def _refuse(self, profile: ClientProfile, reason: object) -> None:
        self.refused[profile.id] = plain(reason, 400)

    def _screened(self, profile: ClientProfile, data: bytes) -> Reply:
        """The upload, and its record among `records`."""
        federation, rules = self._federation, self._rules
        if profile.id not in self._open:
            raise ReplyError(f"Client {profile.id} sent a reply that nobody waits for: a second one, or unasked.")
        download, sent_bytes, parameters = self._open.pop(profile.id)
        upload = screen(federation, profile, download, data)
        steps = local_steps(federation, _at_most(upload.num_examples, rules.credible_examples))
        norm = 0.0
        if federation.method.asks_gradients(download.server_round):
            check_gradients(upload)
        else:
            check_size(federation, download, upload, steps)
            moved = trained(federation, download, upload)
            norm = update_norm(federation, moved, steps)
            if rules.max_update_ratio is not None:
                check_reach(federation, download, moved, steps)
                check_usual(profile.id, norm, self._usual, rules.max_update_ratio)
        counted = _at_most(upload.num_examples, rules.max_examples)
        record = client_record(federation, profile, replace(upload, num_examples=counted), download.adapter.rank)
        self.records.append(
            replace(
                record,
                uploaded_bytes=len(data),
                downloaded_bytes=sent_bytes,
                downloaded_parameters=parameters,
                update_norm=norm,
            )
        )
        self.moved = max(self.moved, largest_move(upload))
        ways = sending(federation, download, upload.shared, upload.mask)
        update = received(federation.transforms, upload.update, ways)
        return Reply(profile, download, replace(upload, num_examples=counted, update=update))


def _at_most(number: int, most: int | None) -> int:
    return number if most is None else min(number, most)


def downloaded_parameters(federation: Federation, download: Download) -> int:
    """Values that a download carries."""
    method, tensors = federation.method, download.adapter.tensors
    base = codec.base_parameters(download.base_update)
    if download.changed is None:
        kinds = schema(federation, download.since).kinds
        received = codec.upload_parameters(federation.layout, download.adapter.rank, None, kinds)
        return base + received - (codec.zero_entries(download.adapter, kinds) if method.sparse else 0)
    carried = 0
    for (kind, name), keep in download.changed.items():
        size = tensors[kind, name].size
        carried += int(keep) * size if kind == "head" else int(keep.sum()) * size // len(keep)
    return base + carried


def client_record(federation: Federation, profile: ClientProfile, upload: Upload, rank: int) -> ClientRecord:
    """What is recorded of an upload; bytes, and what was downloaded, are not in it."""
    layout = federation.layout
    counts = {m.name: rank if upload.mask is None else int(upload.mask[m.name].sum()) for m in layout.modules}
    sent = codec.upload_parameters(layout, rank, list(counts.values()), upload.shared)
    if upload.sparse:
        sent -= codec.zero_entries(upload.update, upload.shared)
    return ClientRecord(
        id=profile.id,
        num_examples=upload.num_examples,
        rank_budget=profile.rank_budget,
        uploaded_bytes=0,
        uploaded_parameters=sent + codec.base_parameters(upload.base_update),
        downloaded_bytes=0,
        downloaded_parameters=0,
        train_loss=upload.train_loss,
        selected={name: n for name, n in counts.items() if n and upload.shared},
    )
