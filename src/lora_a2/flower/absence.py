"""Clients that are left out for some rounds because they do not answer: each missing answer costs a whole timeout."""

from __future__ import annotations

from collections import Counter

from lora_a2.node.protocol import Kind

PATIENCE = 2
"""A client is left out after this many missing answers in a row."""
RETURNS = 3
"""How many times a client that rejoins is asked at once."""
LONGEST = 64
"""A client is left out of at most this many rounds in a row."""


class Absence:
    """Counts each client's missing answers, by kind of request; an answer resets the count."""

    def __init__(self) -> None:
        self._missed: dict[tuple[Kind, int], int] = {}
        self._until: dict[tuple[Kind, int], int] = {}
        self._returns: Counter[int] = Counter()

    def answered(self, kind: Kind, client: int) -> None:
        """Resets the client's count."""
        self._missed.pop((kind, client), None)
        self._until.pop((kind, client), None)

    def silent(self, kind: Kind, client: int, server_round: int) -> None:
        """Counts a missing answer. After PATIENCE in a row the client is left out for 1 round, then for 2, 4 and so on."""
        missed = self._missed[kind, client] = self._missed.get((kind, client), 0) + 1
        if missed >= PATIENCE:
            self._until[kind, client] = server_round + min(LONGEST, 2 ** min(missed - PATIENCE, LONGEST))

    def returned(self, client: int) -> None:
        """Asks a client that rejoins at once, RETURNS times at most; its count stays."""
        self._returns[client] += 1
        if self._returns[client] <= RETURNS:
            self._until = {key: until for key, until in self._until.items() if key[1] != client}

    def missed(self, kind: Kind, client: int) -> int:
        """Missing answers in a row."""
        return self._missed.get((kind, client), 0)

    def reason(self, kind: Kind, client: int, server_round: int) -> str | None:
        """Why the client is left out of a round; None if it is not."""
        until = self._until.get((kind, client), 0)
        if server_round > until:
            return None
        return f"Left out: it was silent {self.missed(kind, client)} times in a row; it is asked again in round {until + 1}."
