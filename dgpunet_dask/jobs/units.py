"""What identifies a unit of a job, and where its results lie. Pure.

A source that runs again, since the head was killed or the job is tried again, gives the same units the same ids, and what is committed
under an id is not computed again. An id depends on all that decides the result: the code, the parameters, the bytes of the input and the
models. Equal inputs of one job are told apart by how many came before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.stagehost.frames import Buffer

FORMAT_VERSION: Final = 1
#: Hexadecimal digits of a unit's id.
ID_LETTERS: Final = 32
_NAME: Final = re.compile(rf"([0-9a-f]{{{ID_LETTERS}}})\.(.+)\.([0-9a-f]+)\.frames")


def recipe_of(code: str, params: Mapping[str, Any], models: Mapping[str, str]) -> str:
    """Return the digest (hex) of all that the units of a job have in common.

    Parameters
    ----------
    code
        The workload's digest.
    params
        The job's parameters, JSON values.
    models
        Digests of the models, by parameter.
    """
    told = {"version": FORMAT_VERSION, "code": code, "params": dict(params), "models": dict(models)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def frames_digest(frames: Sequence[Buffer]) -> bytes:
    """Return the digest (32 bytes) of packed items: of their number, sizes and bytes."""
    hashed = hashlib.sha256()
    for frame in frames:
        view = memoryview(frame)
        hashed.update(view.nbytes.to_bytes(8, "big"))
        hashed.update(view)
    return hashed.digest()


@dataclass
class Naming:
    """Gives the units of one pass of a source their ids, in order."""

    recipe: str
    _met: Counter[bytes] = field(default_factory=Counter)

    def id_of(self, frames: Sequence[Buffer]) -> str:
        """Return the id of the next unit, which holds `frames`."""
        found = frames_digest(frames)
        copy = self._met[found]
        self._met[found] += 1
        return hashlib.sha256(bytes.fromhex(self.recipe) + found + copy.to_bytes(8, "big")).hexdigest()[:ID_LETTERS]


def result_name(unit_id: str, leaf: str, epoch: int) -> str:
    """Return the file name of what the stage `leaf` gave for a unit under `epoch`."""
    return f"{unit_id}.{leaf}.{epoch:x}.frames"


def parse_name(name: str) -> tuple[str, str, int] | None:
    """Return unit, leaf and epoch of a name that `result_name` made; ``None`` for any other."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2], int(found[3], 16))
