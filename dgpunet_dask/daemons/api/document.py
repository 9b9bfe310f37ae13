"""The API's description as an OpenAPI document, written from the table of routes; ``GET /openapi.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import dgpunet_dask
from dgpunet_dask.daemons.api import forms
from dgpunet_dask.daemons.api.answers import Json
from dgpunet_dask.daemons.api.gate import PARTS, Does, Route

_ABOUT: Final = """Everything but the authority's certificate asks for an API key: `Authorization: Bearer KEY`. A key has a user and a scope:
`viewer` reads, `submitter` also submits and changes what is its user's, `operator` runs the cluster. Bodies are JSON and say so
(`Content-Type: application/json`). Every answer from 400 on has an `error` object. After 429 and `Retry-After` it may be asked again.
"""
_REFS: Final = "#/components/schemas/{model}"
_SAID: Final = {
    400: "what was asked cannot be read, or has a value that it may not have", 401: "the key is missing or wrong",
    403: "the key's scope does not reach that far, or it is another user's", 404: "there is no such thing, or it is another user's private one",
    408: "the body took too long", 409: "it cannot be done as things are", 413: "the body is too long", 415: "the body is not said to be JSON",
    429: "asked too often, or the user has too much in the cluster: wait for as long as `Retry-After` says", 500: "nobody expected this",
    503: "the head is stopping",
}  # fmt: skip


async def shown(request: Request) -> Response:
    """Send this document."""
    return Json(request.app.openapi())


def of(route: Route, method: str, does: Does) -> dict[str, Any]:
    """Return what FastAPI is told of one method of a route."""
    if not does.told:
        return {"include_in_schema": False}
    answers = {status: {"model": does.gives} for status in (does.again,) if status is not None}
    responses = {**answers, **{status: _failure(method, status) for status in _failures(route, does)}}
    more: dict[str, Any] = {"x-scope": does.need}
    if does.takes is bytes:
        more["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}}}
    elif does.takes is not None:
        more["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"$ref": _REFS.format(model=does.takes.__name__)}}}}
    return {
        "responses": responses, "status_code": does.status, "response_model": does.gives, "openapi_extra": more,
        "response_class": Response if does.gives is None else JSONResponse, "tags": [route.template.split("/")[2]],
        "description": f"Asks for the scope `{does.need}`.",
        "summary": " ".join((does.endpoint.__doc__ or "").split("\n\n")[0].split()), "operation_id": does.endpoint.__name__ + "_" + route.template.split("/")[2],
    }  # fmt: skip


def _failures(route: Route, does: Does) -> list[int]:
    found = {400, 401, 403, 429, 500, *does.fails}
    if "{" in route.template:
        found.add(404)
    if does.json:
        found |= {408, 413, 415}
    return sorted(found)


def _failure(method: str, status: int) -> dict[str, Any]:
    said: dict[str, Any] = {"description": _SAID[status]}
    if status == 429:
        said["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return said if method == "HEAD" else {**said, "model": forms.ErrorAnswer}


def written(app: FastAPI, routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=dgpunet_dask.__version__, description=_ABOUT, routes=app.routes)
    takes = {does.takes for route in routes for does in route.does.values() if isinstance(does.takes, type) and does.takes is not bytes}
    _, schemas = models_json_schema([(model, "validation") for model in sorted(takes, key=str)], ref_template=_REFS)
    parts = found.setdefault("components", {})
    parts["schemas"] = {**schemas["$defs"], **parts.get("schemas", {})}
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "an API key, as `dgpunet-dask key create` makes it"}}
    found["security"] = [{"key": []}]
    for path in found["paths"].values():
        for operation in path.values():
            _tidied(operation)
    app.openapi_schema = found
    return found


def _tidied(operation: dict[str, Any]) -> None:
    """Say of an operation what FastAPI does not know: which parts a path may have, and that values are refused with 400."""
    operation["responses"].pop("422", None)
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["schema"] = {"type": "string", "pattern": f"^{PARTS[parameter['name']]}$"}
