"""What the API answers: JSON, errors too, each with the status that fits it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from dgpunet_dask.cluster.wire import error_to_wire
from dgpunet_dask.errors import (
    BadValue,
    CertificateRefused,
    DgpunetError,
    JobFailed,
    KeyReused,
    LoopbackOnly,
    NotAllowed,
    NotFound,
    RerankerUnavailable,
    TokenRefused,
    TooManyAttempts,
    TooManyJobs,
    UsageError,
    whole_seconds,
)
from dgpunet_dask.stagehost.reports import full_disk

#: What is not a matter of how it was asked.
_STATUS: Final[Mapping[type[DgpunetError], int]] = {
    NotAllowed: 403, TokenRefused: 403, CertificateRefused: 403, LoopbackOnly: 409, KeyReused: 409, TooManyAttempts: 429, TooManyJobs: 429,
    RerankerUnavailable: 404,
}  # fmt: skip
SHOWN_CHARS: Final = 80
_WHY: Final[Mapping[str, str]] = {
    "extra_forbidden": "nothing of that name is known here", "missing": "it has to be there", "string_type": "write a text", "string_unicode": "write a text",
    "string_pattern_mismatch": "it is empty, too long, or holds signs that it may not", "bool_type": "write true or false",
    "int_type": "write a whole number", "int_parsing": "write a whole number", "int_from_float": "write a whole number",
    "float_type": "write a number", "float_parsing": "write a number", "list_type": "write a list", "dict_type": "write an object",
    "model_attributes_type": "write an object", "greater_than_equal": "it must be {ge} or more", "less_than_equal": "it must be {le} or less",
    "greater_than": "it must be more than {gt}", "string_too_short": "write at least {min_length} letter(s)",
    "string_too_long": "write at most {max_length} letters", "too_short": "write at least {min_length} of them",
    "too_long": "write at most {max_length} of them", "json_invalid": "it is no JSON", "literal_error": "it must be {expected}", "finite_number": "write a number",
}  # fmt: skip


class Refused(Exception):
    """A request that is refused for what HTTP has a number, and the tree of errors no name.

    Parameters
    ----------
    why
        Told to the caller.
    close
        Whether the connection ends with the answer, because where the next request begins is not certain.
    wait_s
        Seconds after which it may be asked again; ``None`` where that would change nothing.
    headers
        What else the answer says.
    """

    def __init__(
        self, status: int, why: str, *, close: bool = False, wait_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(why)
        self.status, self.why, self.wait_s = status, why, wait_s
        self.headers = {**(headers or {}), **({"Connection": "close"} if close else {})}


class Json(Response):
    """A value as JSON in ASCII: half of a surrogate pair, which JSON may hold, has no UTF-8."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content).encode()


class JsonText(Response):
    """What is JSON already."""

    media_type = "application/json; charset=utf-8"


def error_answer(error: Exception) -> Json:
    """Return the answer that tells `error`."""
    if isinstance(error, RequestValidationError):
        error = bad_value(error)
    if isinstance(error, Refused):
        told = {"code": f"http_{error.status}", "message": error.why, "reasons": [], "exit_code": 1}
        return Json({"error": told}, error.status, {**error.headers, **_retry_after(error.wait_s)})
    if not isinstance(error, DgpunetError):
        error = full_disk(error) or DgpunetError(detail=f"{type(error).__name__}: {error}")
    return Json({"error": error_to_wire(error)}, http_status(error), _retry_after(error.fields.get("wait_s")))


def _retry_after(wait_s: float | None) -> dict[str, str]:
    return {} if wait_s is None else {"Retry-After": str(whole_seconds(wait_s))}


def bad_value(error: RequestValidationError) -> BadValue:
    """Return the first thing that is wrong with a request's values."""
    first = error.errors()[0]
    _, *where = first["loc"]  # after body, query, path or header
    what = ".".join(map(str, where)) or "request"
    given = first.get("input")
    value = given if isinstance(given, str) else json.dumps(given, default=str)
    return BadValue(what=what[:SHOWN_CHARS], value=value[:SHOWN_CHARS], why=_why(str(first["type"]), first.get("ctx") or {}, str(first["msg"])))


def _why(kind: str, limits: Mapping[str, Any], otherwise: str) -> str:
    """Return what is wrong with a value, by the name that pydantic has for it; its own words are of its types, and not of ours."""
    return _WHY[kind].format(**limits) if kind in _WHY else otherwise


def http_status(error: DgpunetError) -> int:
    """Return the HTTP status that fits `error`."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, NotFound):
        return 404
    return 500 if not isinstance(error, JobFailed) and error.exit_code == 1 else 409
