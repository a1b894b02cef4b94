"""Waits that begin short and grow: a node that is in the middle of a round is notified of the next message at once, an idle one hardly asks.

Every question of a SuperNode to its SuperLink is a request of 1 KB over what may be a thin uplink.
"""

from __future__ import annotations

import time
import types
from typing import Any

SHORTEST = 0.1
SHARE = 0.1
"""A wait lasts this share of the time that has been waited already."""


class Patience(types.ModuleType):
    """Stands in for the module `time` in a loop that sleeps whenever it finds nothing to do.

    A sleep takes `SHARE` of the time slept since the last event, at least `SHORTEST` seconds and at most what the loop
    asks for. It is an event that the loop begins to ask for another time, which is to wait for something else.
    """

    def __init__(self) -> None:
        super().__init__("time")
        self._asked, self._waited = 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def event(self) -> None:
        """Something happened; the next wait is short again."""
        self._waited = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleeps, at most for `seconds`."""
        if seconds != self._asked:
            self._asked = seconds
            self.event()
        wait = min(seconds, max(SHORTEST, SHARE * self._waited))
        time.sleep(wait)
        self._waited += wait
