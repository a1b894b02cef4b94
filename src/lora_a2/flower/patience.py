"""Waits that start short and grow: during a round a node gets the next message at once; an idle node seldom polls.

Each poll of a SuperNode is a request of 1 KB, possibly over a slow uplink.
"""

from __future__ import annotations

import time
import types
from typing import Any

SHORTEST = 0.1
SHARE = 0.1
"""The length of a wait as a share of the time waited so far."""


class Patience(types.ModuleType):
    """Replaces the module `time` in a loop that sleeps whenever it finds nothing to do.

    A sleep takes `SHARE` of the time slept since the last event, at least `SHORTEST` seconds and at most what the loop
    asks for. A change of the time asked for is an event too: the loop then waits for something else.
    """

    def __init__(self) -> None:
        super().__init__("time")
        self._asked, self._waited = 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def event(self) -> None:
        """Makes the next wait short again."""
        self._waited = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleeps for at most `seconds`."""
        if seconds != self._asked:
            self._asked = seconds
            self.event()
        wait = min(seconds, max(SHORTEST, SHARE * self._waited))
        time.sleep(wait)
        self._waited += wait
