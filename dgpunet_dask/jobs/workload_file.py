"""``job.yaml``: the file that joins stages into a workload (design §5.5). A document in, a `Workload` out; no file is read here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from dgpunet_dask.config.yamlfile import Document, YamlModel, check_version, parsed, validate
from dgpunet_dask.errors import BadValue, MalformedFile, Problem, did_you_mean
from dgpunet_dask.model.pipeline import Param, ParamType, StageSpec, Workload
from dgpunet_dask.units import parse_bytes, parse_duration

FORMAT_VERSION: Final = 1
_RUN: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _run_target(text: str) -> str:
    if not _RUN.fullmatch(text):
        raise ValueError("write it as module:Class, such as stages:Embed")
    return text


def _plain_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("use letters, digits, dot, underscore and hyphen, starting with a letter or digit")
    return text


def _lock_name(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("name a file inside the workload's folder")
    return text


def _positive_s(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise BadValue(what="duration", value=text, why="it must be longer than 0 s")
    return seconds


def _positive_bytes(text: str) -> int:
    size = parse_bytes(text)
    if size <= 0:
        raise BadValue(what="size", value=text, why="it must be larger than 0 bytes")
    return size


Name = Annotated[str, AfterValidator(_plain_name)]
Count = Annotated[int, Field(gt=0)]


class _Param(YamlModel):
    type: ParamType = "string"
    list: bool = False
    required: bool = False
    default: Any = None
    help: str = ""


class _Batch(YamlModel):
    items: Count | None = None
    tokens: Count | None = None


class _Unit(YamlModel):
    items: Count = 64
    bytes: Annotated[int, parsed(_positive_bytes)] = 1 << 20


class _Stage(YamlModel):
    run: Annotated[str, AfterValidator(_run_target)]
    after: str | None = None
    batch: _Batch = _Batch()
    unit: _Unit | None = None
    env: Annotated[str, AfterValidator(_lock_name)] | None = None
    gather: bool = False
    at: Literal["head"] | None = None
    deadline: Annotated[float, parsed(_positive_s)] = 600.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    keep: Annotated[float, parsed(_positive_s)] | None = None


class _Job(YamlModel):
    version: Literal[1]
    name: Name
    params: dict[Name, _Param] = Field(default_factory=dict)
    stages: Annotated[dict[Name, _Stage], Field(min_length=1)]


def parse_workload(document: Document, *, digest: str = "", folder: str = "") -> Workload:
    """Return the workload that a job.yaml states.

    Parameters
    ----------
    document
        The file's content, as `config.yamlfile` reads it.
    digest, folder
        Of the folder it lies in; kept in the result.

    Raises
    ------
    MalformedFile
        With every mistake as file:line:col.
    NewerFormat
        If a newer release wrote it.
    """
    check_version(document, FORMAT_VERSION)
    job = validate(document, _Job)
    problems = list(_graph_problems(document, job))
    if problems:
        raise MalformedFile(problems)
    return Workload(
        name=job.name,
        digest=digest,
        folder=folder,
        params={name: Param(name=name, **p.model_dump()) for name, p in job.params.items()},
        stages=tuple(_spec(name, job.stages[name]) for name in _data_order(job.stages)),
    )


def _spec(name: str, stage: _Stage) -> StageSpec:
    unit = stage.unit or _Unit()
    return StageSpec(
        name=name,
        run=stage.run,
        after=stage.after,
        batch_items=stage.batch.items,
        batch_tokens=stage.batch.tokens,
        env=stage.env,
        gather=stage.gather,
        at_head=stage.at == "head",
        unit_items=unit.items,
        unit_bytes=unit.bytes,
        deadline_s=stage.deadline,
        retries=stage.retries,
        keep_s=stage.keep or 0.0,
    )


def _data_order(stages: dict[str, _Stage]) -> list[str]:
    """Return the names so that each comes after the one it takes from; the gather stage last, else as written."""
    ordered: list[str] = []
    while len(ordered) < len(stages):
        ready = [n for n, s in stages.items() if n not in ordered and (s.after is None or s.after in ordered)]
        if not ready:  # a circle: `_graph_problems` has named it, or will
            return [*ordered, *(n for n in stages if n not in ordered)]
        ordered += sorted(ready, key=lambda n: stages[n].gather)
    return sorted(ordered, key=lambda n: stages[n].gather)


def _graph_problems(document: Document, job: _Job) -> list[Problem]:
    """Return what is wrong with how the stages are joined."""
    stages, problem = job.stages, document.problem
    sources = [n for n, s in stages.items() if s.after is None]
    gathers = [n for n, s in stages.items() if s.gather]
    found = [problem(("stages", n), "a stage with `gather: true` takes all results and needs `after:`") for n in gathers if n in sources]
    found += [problem(("stages", n, "gather"), "only one stage may gather") for n in gathers[1:]]
    found += [problem(("stages", n), "this stage takes from itself, by way of the others") for n in _circular(stages)]
    for name, stage in stages.items():
        if stage.at is not None and (stage.after is None or stage.gather):
            found.append(problem(("stages", name, "at"), "what reads the input or gathers is called on the head's host anyway; leave `at` out"))
        if stage.after is not None and stage.after not in stages:
            found.append(problem(("stages", name, "after"), f"there is no stage {stage.after!r}{did_you_mean(stage.after, stages)}"))
        if stage.after in gathers:
            found.append(problem(("stages", name, "after"), f"{stage.after!r} gathers and ends the job; nothing can come after it"))
        if stage.keep is not None and stage.after is not None and not stage.gather:
            found.append(problem(("stages", name, "keep"), "processes of other stages than the source and the gather stage are kept anyway; leave `keep` out"))
        if stage.unit is not None and stage.after is not None:
            found.append(problem(("stages", name, "unit"), "only the source cuts the input into units"))
    if len(sources) != 1:
        listed = ", ".join(sources) or "none"
        found.append(problem(("stages",), f"exactly one stage reads the input and has no `after:`; found: {listed}"))
    return found


def _circular(stages: dict[str, _Stage]) -> list[str]:
    def in_circle(name: str) -> bool:
        at: str | None = stages[name].after
        for _ in stages:
            if at == name:
                return True
            at = stages[at].after if at in stages else None
        return False

    return [n for n in stages if in_circle(n)]
