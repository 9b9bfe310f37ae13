"""``job.yaml``: the file that joins stages into a workload (design §5.5). Text in, `Workload` out; no file is read here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dgpunet_dask.config.yamlfile import Document, load, validate
from dgpunet_dask.errors import BadValue, MalformedFile, Problem, did_you_mean
from dgpunet_dask.model.pipeline import Param, ParamType, StageSpec, Workload
from dgpunet_dask.units import parse_bytes, parse_duration

FORMAT_VERSION = 1
_RUN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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


def _duration(text: str) -> str:
    try:
        positive = parse_duration(text) > 0
    except BadValue as error:
        raise ValueError(error.fields["why"]) from None
    if not positive:
        raise ValueError("it must be longer than 0 s")
    return text


def _size(text: str) -> str:
    try:
        positive = parse_bytes(text) > 0
    except BadValue as error:
        raise ValueError(error.fields["why"]) from None
    if not positive:
        raise ValueError("it must be larger than 0 bytes")
    return text


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Param(_Model):
    type: ParamType = "string"
    list: bool = False
    required: bool = False
    default: Any = None
    help: str = ""


class _Batch(_Model):
    items: Annotated[int, Field(gt=0)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None


class _Unit(_Model):
    items: Annotated[int, Field(gt=0)] = 64
    bytes: Annotated[str, AfterValidator(_size)] = "1MiB"


class _Stage(_Model):
    run: Annotated[str, AfterValidator(_run_target)]
    after: str | None = None
    batch: _Batch = _Batch()
    unit: _Unit | None = None
    env: Annotated[str, AfterValidator(_lock_name)] | None = None
    gather: bool = False
    deadline: Annotated[str, AfterValidator(_duration)] = "600s"
    retries: Annotated[int, Field(ge=0, le=10)] = 2


class _Job(_Model):
    version: Literal[1]
    name: Annotated[str, AfterValidator(_plain_name)]
    params: dict[Annotated[str, AfterValidator(_plain_name)], _Param] = {}
    stages: Annotated[dict[Annotated[str, AfterValidator(_plain_name)], _Stage], Field(min_length=1)]


def parse_workload(text: str, file: str, *, digest: str = "", folder: str = "") -> Workload:
    """Return the workload that a job.yaml states.

    Parameters
    ----------
    text, file
        The file's content, and its name for error messages.
    digest, folder
        Of the folder it lies in; kept in the result.

    Raises
    ------
    MalformedFile
        With every mistake as file:line:col.
    """
    document = load(text, file)
    job = validate(document, _Job)
    problems = list(_graph_problems(document, file, job))
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
        unit_items=unit.items,
        unit_bytes=parse_bytes(unit.bytes),
        deadline_s=parse_duration(stage.deadline),
        retries=stage.retries,
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


def _graph_problems(document: Document, file: str, job: _Job) -> list[Problem]:
    def problem(path: tuple[str, ...], what: str) -> Problem:
        line, col = document.position(path)
        return Problem(file, line, col, what)

    stages = job.stages
    found = [
        problem(("stages", n, "after"), f"there is no stage {s.after!r}{did_you_mean(s.after, stages)}")
        for n, s in stages.items()
        if s.after is not None and s.after not in stages
    ]
    sources = [n for n, s in stages.items() if s.after is None]
    if len(sources) != 1:
        found.append(problem(("stages",), f"exactly one stage reads the input and has no `after:`, here {len(sources)} do: {', '.join(sources) or '-'}"))
    gathers = [n for n, s in stages.items() if s.gather]
    found += [problem(("stages", n, "gather"), "only one stage may gather") for n in gathers[1:]]
    found += [problem(("stages", n), "a stage with `gather: true` takes all results and needs `after:`") for n in gathers if n in sources]
    found += [
        problem(("stages", n, "after"), f"{s.after!r} gathers and ends the job; nothing can come after it")
        for n, s in stages.items()
        if s.after in gathers
    ]
    found += [problem(("stages", n, "unit"), "only the source cuts the input into units") for n, s in stages.items() if s.unit and s.after is not None]
    found += [problem(("stages", n), "this stage takes from itself, by way of the others") for n in _circular(stages)]
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
