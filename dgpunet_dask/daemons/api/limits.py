"""Slows down those who guess and those who ask too often, in memory of bounded size. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

FAILURES_MAX: Final = 20
WINDOW_S: Final = 60.0
PEERS_MAX: Final = 4096
#: Requests of one user: how many at once, and how many a second for as long as they like.
BURST: Final = 500.0
RATE_PER_S: Final = 50.0
#: Requests that wait for a job's events: of one user, so that his others are still answered.
WAITING_MAX: Final = 64
#: Requests that are being answered at once: of one user, of one address, and of all users but operators. Well below the connections that a
#: listener takes, so that hosts and operators always have room.
OPEN_OF_USER: Final = 240
OPEN_OF_ADDRESS: Final = 250
OPEN_OF_ALL: Final = 350
#: When to ask again where there are so many.
AGAIN_S: Final = 2.0
#: Stands for all who share a bound.
ALL: Final = ""
#: Connections of a listener, and handshakes that are under way before they are connections, however many files the head may open.
CONNECTIONS_MAX: Final = 500
PENDING_MAX: Final = 1024
#: A head has a listener for its own machine and one for the others; each may hold this share of the files, the rest is for its own work.
SHARE: Final = 4


@dataclass(frozen=True)
class Sockets:
    """How many sockets a listener may hold: connections, and handshakes under way, in all and of one address."""

    connections: int
    pending: int
    of_address: int


def sockets_of(files: int | None) -> Sockets:
    """Return what a listener may hold in a process that may have `files` open (``None``: as many as it likes)."""
    half = PENDING_MAX if files is None else max(2, files // SHARE // 2)
    pending = min(PENDING_MAX, half)
    return Sockets(min(CONNECTIONS_MAX, half), pending, pending // 2)


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


class Rates:
    """A bucket of requests for each user: it holds `burst`, each request takes one, and `per_s` come back each second.

    A bucket that is full says nothing, so the one used longest ago is forgotten first.
    """

    def __init__(self, per_s: float = RATE_PER_S, burst: float = BURST, users: int = PEERS_MAX) -> None:
        self.per_s, self.burst, self.users = per_s, burst, users
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, user: str, now: float) -> float:
        """Take a request of `user` at `now`, in seconds of a clock that never goes back.

        Returns
        -------
        How many seconds they have to wait before it would be served; 0 if it is served now.
        """
        left, since = self._left.get(user, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.per_s)
        served = left >= 1
        self._left[user] = (left - 1 if served else left, now)
        self._left.move_to_end(user)
        while len(self._left) > self.users:
            self._left.popitem(last=False)
        return 0.0 if served else (1 - left) / self.per_s


class Open:
    """How many requests are open at once, by what they have in common: a bound for each kind.

    Parameters
    ----------
    bounds
        The most that may be open at once of one value of each kind, such as ``user``.
    """

    def __init__(self, **bounds: int) -> None:
        self.bounds = bounds
        self._open: Counter[tuple[str, str]] = Counter()

    def full(self, **request: str) -> str | None:
        """Return the first kind of which a request with these values would be one too many, ``None`` if it would not."""
        return next((kind for kind, value in request.items() if self._open[kind, value] >= self.bounds[kind]), None)

    @contextmanager
    def held(self, **request: str) -> Iterator[None]:
        """Count a request as open."""
        self._open.update(request.items())
        try:
            yield
        finally:
            self._open.subtract(request.items())
            self._open += Counter()  # what is at 0 is forgotten
