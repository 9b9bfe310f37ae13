"""Slows down those who guess: failed attempts by address, in memory of bounded size. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

FAILURES_MAX: Final = 20
WINDOW_S: Final = 60.0
PEERS_MAX: Final = 4096


class Attempts:
    """Failed attempts of the last `window_s` seconds, by peer. The peer that failed longest ago is forgotten first."""

    def __init__(self, most: int = FAILURES_MAX, window_s: float = WINDOW_S, peers: int = PEERS_MAX) -> None:
        self.most, self.window_s, self.peers = most, window_s, peers
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def failed(self, peer: str, now: float) -> None:
        """Note a failed attempt at `now`, in seconds of a clock that never goes back."""
        times = self._failed.setdefault(peer, deque(maxlen=self.most))
        times.append(now)
        self._failed.move_to_end(peer)
        while len(self._failed) > self.peers:
            self._failed.popitem(last=False)

    def wait_s(self, peer: str, now: float) -> float:
        """Return how long `peer` has to wait until it is heard again; 0 if it need not."""
        times = self._failed.get(peer)
        if times is None or len(times) < self.most:
            return 0.0
        return max(0.0, times[0] + self.window_s - now)
