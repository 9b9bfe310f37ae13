"""Whose a job, an index or a model is, and who may what with it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


class Owned(Protocol):
    """What has an owner. `owner` is ``None`` where none was noted, by an older release: it is the operators' then."""

    @property
    def owner(self) -> str | None:
        """The user's name."""

    @property
    def shared(self) -> bool:
        """Whether every user may read it."""


@dataclass(frozen=True)
class User:
    """Who asks, or whose job it is. `name` is ``None`` only where the system has no name for who runs the head.

    Parameters
    ----------
    operates
        Whether everything is theirs to see and to change.
    """

    name: str | None = None
    operates: bool = False

    def owns(self, thing: Owned) -> bool:
        """Whether it is theirs to change."""
        return self.operates or (thing.owner is not None and thing.owner == self.name)

    def sees(self, thing: Owned) -> bool:
        """Whether it is theirs to read."""
        return thing.shared or self.owns(thing)


#: Whoever may read the files of a home themselves.
OPERATOR: Final = User(operates=True)
