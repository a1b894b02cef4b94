"""Who is left out for a while because it does not answer: each silence costs a whole timeout."""

from __future__ import annotations

from collections import Counter

from lora_a2.node.protocol import Kind

PATIENCE = 2
"""Silences in a row that are put up with."""
RETURNS = 3
"""So often a client that joins again is asked at once."""
LONGEST = 64
"""Rounds that a client is left out at most."""


class Absence:
    """The silences of the clients, by kind of request; an answer ends them."""

    def __init__(self) -> None:
        self._missed: dict[tuple[Kind, int], int] = {}
        self._until: dict[tuple[Kind, int], int] = {}
        self._returns: Counter[int] = Counter()

    def answered(self, kind: Kind, client: int) -> None:
        """It is there."""
        self._missed.pop((kind, client), None)
        self._until.pop((kind, client), None)

    def silent(self, kind: Kind, client: int, server_round: int) -> None:
        """Nothing came in a round. After PATIENCE times in a row it is left out for 1 round, then for 2, 4 and so on."""
        missed = self._missed[kind, client] = self._missed.get((kind, client), 0) + 1
        if missed >= PATIENCE:
            self._until[kind, client] = server_round + min(LONGEST, 2 ** min(missed - PATIENCE, LONGEST))

    def returned(self, client: int) -> None:
        """It had gone and has joined again: it is asked at once, but not for ever, nor is the silence forgotten."""
        self._returns[client] += 1
        if self._returns[client] <= RETURNS:
            self._until = {key: until for key, until in self._until.items() if key[1] != client}

    def missed(self, kind: Kind, client: int) -> int:
        """How often in a row it was silent."""
        return self._missed.get((kind, client), 0)

    def reason(self, kind: Kind, client: int, server_round: int) -> str | None:
        """Why it is left out of a round; None if it is not."""
        until = self._until.get((kind, client), 0)
        if server_round > until:
            return None
        return f"Left out: it was silent {self.missed(kind, client)} times in a row; it is asked again in round {until + 1}."
