"""Who may not: tokens, certificates, keys, quotas."""

from __future__ import annotations

import math
from typing import Any

from dgpunet_dask.errors.usage import UsageError


class BadToken(UsageError):
    """The {kind} is not whole: {why}. Give all of it, from its first sign to its last."""

    code = "bad_token"


class TokenRefused(UsageError):
    """The token was refused: {why}. Make one for this host with `dgpunet-dask token create` on the head."""

    code = "token_refused"

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """One mapping with the reason in one word."""
        return [{"code": self.fields.get("reason")}]


class CertificateRefused(UsageError):
    """A certificate was refused: {why}."""

    code = "certificate_refused"


class NotAllowed(UsageError):
    """{what} is not allowed: {why}. Use a key that may, or ask an operator of the cluster for one (`dgpunet-dask key create`)."""

    code = "not_allowed"


class JoinRefused(UsageError):
    """Host {host} cannot join: {why}."""

    code = "join_refused"


def whole_seconds(wait_s: float) -> int:
    """Return the whole seconds after which `wait_s` are over, as a message and an answer's ``Retry-After`` tell them alike."""
    return math.floor(wait_s) + 1


class TooManyAttempts(UsageError):
    """Too many keys or tokens that are none came from this address. Wait {seconds} s, then use one that is good."""

    code = "too_many_attempts"

    def __init__(self, *, wait_s: float = 0.0, **fields: Any) -> None:
        super().__init__(**{**fields, "wait_s": wait_s, "seconds": whole_seconds(wait_s)})


class NoIdentity(UsageError):
    """{folder} holds no certificate of a cluster ({why}). Run `dgpunet-dask join TOKEN` with a token of its head."""

    code = "no_identity"


class TooManyJobs(UsageError):
    """User {user} has as much work in the cluster as is allowed ({most}). Wait {seconds} s or until some of it has ended, then submit
    again; an operator may raise it under `quotas:` in config.yaml.
    """

    code = "quota"

    def __init__(self, *, wait_s: float = 0.0, **fields: Any) -> None:
        super().__init__(**{**fields, "wait_s": wait_s, "seconds": whole_seconds(wait_s)})


class OverQuota(UsageError):
    """User {user} may have {most}, and this submission alone is {jobs}: it can never be accepted. Submit it in parts, or ask an operator to
    raise `quotas:` in config.yaml.
    """

    code = "over_quota"


class OtherUser(NotAllowed):
    """Asking for jobs of the user {user} is not allowed: only an operator's key may name another user. Leave `user` out, or use such a key."""

    code = "other_user"


class PathNotAllowed(NotAllowed):
    """{path} is not in a folder that jobs may read (these are: {roots}). Use a path below one of them, or ask an operator to add it to
    `roots:` in config.yaml.
    """

    code = "path_not_allowed"


class CodeNotAllowed(NotAllowed):
    """The workload {workload} brings its own code, which this key may not run. Use a shipped workload, or ask an operator to submit it
    or to make a key that may (`dgpunet-dask key create`).
    """

    code = "code_not_allowed"
