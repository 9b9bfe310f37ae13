"""Whose the models are that users brought, in one private file.

A job that names a folder of weights makes that model its user's, unless it is somebody's already; then it has to be shared, or the
job is refused. What comes from a hub by its name is nobody's and shared, since everybody could fetch it: operators alone may take it
back. The shipped model is everybody's, and stands in no file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpunet_dask.errors import NotAllowed, NotFound
from dgpunet_dask.model.owner import User
from dgpunet_dask.security.files import PrivateJson


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A model that a job names.

    Parameters
    ----------
    name
        A hub's name, or the folder's real path.
    digest
        Of its files; ``None`` where they were not read.
    public
        Whether it is a hub's.
    """

    name: str
    digest: str | None
    public: bool

    @property
    def id(self) -> str:
        """What it is called where its name is too long: 12 hexadecimal digits."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as it is listed. `since_s` is when a job first named it, in seconds since 1970."""

    id: str
    name: str
    digest: str | None
    owner: str | None
    shared: bool
    since_s: float


class ModelOwners:
    """The models of one head's users, for several threads and processes.

    Parameters
    ----------
    file
        ``models.json``; it need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._record = PrivateJson(file)

    def use(self, models: Iterable[Brought], by: User, now: float) -> None:
        """Note the models that a job of `by` names; folders that are nobody's become theirs. All of them, or none.

        A folder whose files changed stays whose it was. A copy of it elsewhere is another model: whoever could make it has the files.

        Raises
        ------
        NotAllowed
            If one is another user's and not shared.
        """
        models = list(models)
        if not models:
            return
        with self._record.change() as record:
            rows: dict[str, dict[str, Any]] = record.setdefault("models", {})
            for model in models:
                _use(rows, model, by, now)

    def list(self, by: User) -> list[ModelInfo]:
        """Return the models that `by` may use, by name."""
        rows = [ModelInfo(id=i, **row) for i, row in self._record.read().get("models", {}).items()]
        return sorted((info for info in rows if by.sees(info)), key=lambda info: (info.name, info.id))

    def share(self, model_id: str, by: User, *, shared: bool) -> ModelInfo:
        """Let every user's jobs use a model, or its owner's alone; return it.

        Raises
        ------
        NotFound
            If there is none that `by` may use.
        NotAllowed
            If it is another user's.
        """
        with self._record.change() as record:
            row = record.get("models", {}).get(model_id)
            if row is None or not by.sees(info := ModelInfo(id=model_id, **row)):
                raise NotFound(what=f"The model {model_id!r} (`dgpunet-dask model list` shows those there are)")
            if not by.owns(info):
                raise NotAllowed(what=f"sharing the model {model_id}", why="it is another user's")
            row["shared"] = shared
            return ModelInfo(id=model_id, **row)


def _use(rows: dict[str, dict[str, Any]], model: Brought, by: User, now: float) -> None:
    row = rows.get(model.id)
    if row is None:
        owner = None if model.public else by.name
        info = ModelInfo(id=model.id, name=model.name, digest=model.digest, owner=owner, shared=model.public, since_s=now)
        rows[model.id] = {name: value for name, value in asdict(info).items() if name != "id"}
    elif by.sees(ModelInfo(id=model.id, **row)):
        row["digest"] = model.digest or row["digest"]
    else:
        cure = f"its owner or an operator shares it with `dgpunet-dask model share {model.id}`"
        raise NotAllowed(what=f"using the model {model.name}", why=f"it is another user's; {cure}")
