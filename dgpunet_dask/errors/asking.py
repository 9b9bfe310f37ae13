"""What the endpoint of a language model did not do."""

from __future__ import annotations

from dgpunet_dask.errors.base import DgpunetError
from dgpunet_dask.errors.usage import UsageError


class NoEndpoint(UsageError):
    """No endpoint is named that would answer. Name one with --endpoint, $DGPUNET_ASK_ENDPOINT, or `endpoint:` under `ask:` in config.yaml;
    --context-only prints the context without asking.
    """

    code = "no_endpoint"


class NoModelNamed(UsageError):
    """The endpoint {where} does not have just one model that could be taken without a name (it has: {known}). Name one with --model,
    $DGPUNET_ASK_MODEL, or `model:` under `ask:` in config.yaml.
    """

    code = "no_model_named"


class EndpointKeyRefused(UsageError):
    """The endpoint {where} refused the key ({status}: {why}). Give one that it takes in $DGPUNET_ASK_KEY."""

    code = "endpoint_key"


class EndpointRefused(UsageError):
    """The endpoint {where} refused the request ({status}: {why}). Check its address and the model's name; a context that is too long for the
    model becomes shorter with --budget.
    """

    code = "endpoint_refused"


class EndpointFailed(DgpunetError):
    """The endpoint {where} did not answer: {why}. Check that it runs and is reached under this address, then ask again."""

    code = "endpoint_failed"


class EndpointBusy(EndpointFailed):
    """The endpoint {where} takes no request now ({why}). Wait {wait}, then ask again."""

    code = "endpoint_busy"


class AnswerBroken(EndpointFailed):
    """The answer of {where} broke off: {why}. What came of it, {chars} characters, is not all: repeat the question."""

    code = "answer_broken"
