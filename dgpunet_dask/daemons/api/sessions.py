"""Sessions of browsers, in memory alone: a random id stands for a key, so that the key is in no cookie. Pure."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

LIFE_S: Final = 12 * 3600.0
MOST: Final = 1024


class Sessions:
    """Who has logged in. A session ends after `life_s` seconds, with its key, and with the head; beyond `most` the oldest goes.

    Parameters
    ----------
    draw
        Gives a random text that nobody can guess.
    """

    def __init__(self, draw: Callable[[], str], life_s: float = LIFE_S, most: int = MOST) -> None:
        self.draw, self.life_s, self.most = draw, life_s, most
        self._open: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, key: str, now: float) -> str:
        """Return the id of a new session of the user with `key`; `now` in seconds of a clock that never goes back."""
        session = self.draw()
        self._open[_digest(session)] = (key, now + self.life_s)
        while len(self._open) > self.most:
            self._open.popitem(last=False)
        return session

    def key(self, session: str, now: float) -> str | None:
        """Return the key of a session, ``None`` if there is none or it is over. Whether the key still holds is for the key store to say."""
        key, ends = self._open.get(_digest(session), ("", now))
        if ends > now:
            return key
        self._open.pop(_digest(session), None)
        return None

    def end(self, session: str) -> None:
        """Forget a session."""
        self._open.pop(_digest(session), None)


def _digest(session: str) -> str:
    """Return what a session is found by: how long the search takes tells nothing of the ids themselves."""
    return hashlib.sha256(session.encode()).hexdigest()
