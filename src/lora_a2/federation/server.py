"""The server half of a round, whoever drives it: dispatch, screen, aggregate, record. Every payload crosses the codec."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lora_a2.core.types import EVERYTHING, ClientProfile, ServerState
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.bounds import check_state
from lora_a2.federation.exchange import UNDECLARED, Exchange, Rejected, ReplyCallback, RoundRules, Train
from lora_a2.federation.holdings import stamped
from lora_a2.federation.records import RoundRecord
from lora_a2.system.text import few, plain


def server_round(
    federation: Federation,
    state: ServerState,
    cohort: Sequence[ClientProfile],
    train: Train,
    rules: RoundRules | None = None,
    callback: ReplyCallback | None = None,
    history: Sequence[RoundRecord] = (),
) -> tuple[ServerState, RoundRecord]:
    """The server half of a round: a new state and its record. A reply that fails `screen` is left out and recorded.

    Replies are screened and aggregated one at a time as they arrive. Bytes count whatever crossed the wire, refused replies
    too; parameters uploaded are those that counted. `history` are the records of the rounds before, for rules that
    compare with them.

    Raises:
        ReplyError: no usable reply came back, fewer than the rules demand, or what they make of the state cannot be started from;
            the old state stays good. Its `lost` names the clients that have to be sent everything.
    """
    rules = rules or RoundRules()
    if callback is not None:
        callback.begin()
    exchange = Exchange(federation, state, cohort, rules, history)
    try:
        return _round(federation, state, exchange, train, rules, callback)
    except ReplyError as error:
        error.lost = frozenset(exchange.lost)
        raise


def _round(
    federation: Federation,
    state: ServerState,
    exchange: Exchange,
    train: Train,
    rules: RoundRules,
    callback: ReplyCallback | None,
) -> tuple[ServerState, RoundRecord]:
    began = time.perf_counter()
    incoming = iter(train(exchange.downloads()))
    try:
        new = _aggregated(federation, state, exchange, incoming, callback)
    except ReplyError as error:
        if exchange.records or not exchange.refused:
            raise
        reason = next(iter(exchange.refused.values()))
        raise ReplyError(
            f"Round {state.server_round + 1} has no usable reply: {len(exchange.refused)} were refused, the first because: "
            f"{reason} Where values are not finite, or out of proportion, lower the learning rate."
        ) from error
    records = exchange.records
    if len(records) < rules.min_replies:
        raise ReplyError(
            f"Round {state.server_round + 1} has {len(records)} usable replies; expected {rules.min_replies} at least"
            + "".join(
                f"; {line}" for line in few([f"client {c}: {why}" for c, why in sorted(exchange.refused.items())])
            )
        )
    new = replace(
        new,
        server_round=state.server_round + 1,
        base_delta=state.base,
        held={
            **state.held,
            **dict.fromkeys(exchange.lost, EVERYTHING),
            **{record.id: state.server_round + 1 for record in records},
        },
    )
    new = replace(new, changed=stamped(state, new))
    total = sum(r.num_examples for r in records)
    training = exchange.waited - exchange.encoding  # downloads are made while the driver waits for what trains
    record = RoundRecord(
        server_round=new.server_round,
        trainable=sorted(federation.method.schedule(new.server_round)),
        clients=sorted(records, key=lambda r: r.id),
        uploaded_bytes=exchange.uploaded_bytes,
        uploaded_parameters=sum(r.uploaded_parameters for r in records),
        downloaded_bytes=exchange.downloaded_bytes,
        downloaded_parameters=exchange.downloaded_parameters,
        train_loss=sum(r.train_loss * r.num_examples for r in records) / total,
        refused=exchange.refused,
        seconds={"train": training, "server": time.perf_counter() - began - training},
    )
    return new, record


def _aggregated(
    federation: Federation,
    state: ServerState,
    exchange: Exchange,
    incoming: Iterator[tuple[ClientProfile, bytes | Rejected]],
    callback: ReplyCallback | None,
) -> ServerState:
    """What the method makes of the replies, once it is found good to start the next round from."""
    try:
        before, method = replace(state, base_delta=state.base, base_update={}), federation.method
        reduced = method.reduce(before, exchange.replies(incoming, callback))
        new = method.server_step(before, reduced, federation.server_optimizer.step)
    except UNDECLARED as error:
        if error is exchange.broken:
            raise
        raise ReplyError(f"The replies make no state: {type(error).__name__}: {plain(error)}") from error
    check_state(federation, state, new, exchange.moved)
    return new
