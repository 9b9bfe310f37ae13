"""The models of a job: which folders they are, and the digest of their files, so that every host can load what the head's host has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.jobs.model_owners import Brought
from dgpunet_dask.jobs.plan import JobPlan, StagePlan
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.stagehost.fetching import note_model
from dgpunet_dask.stagehost.folders import MOST_FILES, model_files

log = logging.getLogger(__name__)

#: The model that is installed with the product, on every host.
EVERYWHERE: Final = "minilm"
#: One of these lies in every folder of weights; a folder without them is some other folder, and is not read through.
_MARKS: Final = ("config.json", "modules.json")

#: Returns the folder on this host that a model's name stands for, fetched from outside if need be; ``None``: there is none.
FindModel = Callable[[str], Path | None]


def local_model(name: str) -> Path | None:
    """Return the local folder that `name` is, ``None`` for a hub's name."""
    folder = Path(name)
    return folder if folder.is_absolute() and folder.is_dir() else None


def named_models(workload: Workload, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the models that a job's parameters name, by parameter; not that which every host has. Pure."""
    named = {name: params.get(name) for name, param in workload.params.items() if param.type == "model" and not param.list}
    return {name: value for name, value in named.items() if isinstance(value, str) and value and value != EVERYWHERE}


def model_folders(workload: Workload, params: Mapping[str, Any], find: FindModel = local_model) -> dict[str, Path]:
    """Return the folder of each model that a job names, by parameter. Blocks: a hub may be asked.

    A name that stands for no folder of weights here is left out: each host looks it up by itself, as it does without a cluster.
    """
    found = {name: find(value) for name, value in named_models(workload, params).items()}
    return {name: folder for name, folder in found.items() if folder is not None and any((folder / mark).is_file() for mark in _MARKS)}


def brought(params: Mapping[str, Any], folders: Mapping[str, Path], digests: Mapping[str, str]) -> list[Brought]:
    """Return the models in `folders` as whose they are is noted."""
    found = []
    for name, folder in folders.items():
        public = local_model(str(params[name])) is None
        found.append(Brought(name=str(params[name]) if public else os.path.realpath(folder), digest=digests.get(name), public=public))
    return found


def model_digests(home: Home, folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the digest of each model in `folders`, by parameter, and note where it lies on this host. Blocks: weights are read."""
    found = {}
    for name, folder in folders.items():
        if sum(1 for _ in zip(model_files(folder), range(MOST_FILES + 1), strict=False)) > MOST_FILES:
            log.warning("%s has more than %d files and is not copied to other hosts", folder, MOST_FILES)
            continue
        found[name] = note_model(home, folder)
    return found


def with_digests(plan: JobPlan, digests: Mapping[str, str]) -> JobPlan:
    """Return `plan` whose unit stages load these models by digest, each by the argument of `load` that has the parameter's name. Pure."""
    return replace(plan, units=tuple(_with_digests(stage, digests) for stage in plan.units)) if digests else plan


def _with_digests(stage: StagePlan, digests: Mapping[str, str]) -> StagePlan:
    spec = stage.call.spec
    models = {name: digest for name, digest in digests.items() if name in spec.load}
    return replace(stage, call=replace(stage.call, spec=replace(spec, models=models))) if models else stage
