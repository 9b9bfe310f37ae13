"""The document says what the API does: read by a person's eye, and put to the test by a tool that asks all it promises."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.daemons.api.limits import Attempts
from dgpunet_dask.daemons.api.routes import ROUTES
from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.jobs.model_owners import Brought
from dgpunet_dask.model.owner import User
from dgpunet_dask.testing.jobs import FakeJobs
from tests.unit.daemons.indexed import Shelf
from tests.unit.daemons.serving import KEY, FakeKeys, FakeMembership, Served, make_context

MODEL = Brought(name="/m/x", digest="d1", public=False)
#: Names of what is there. An answer 413 or 408 refuses what the document forbids as well as 400 does.
CONFIG = f"""
[parameters]
name = "docs"
model_id = "{MODEL.id}"
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 408, 409, 413, 415, 429]
[[operations]]
include-path = "/v1/indexes/{{name}}"
include-method = "DELETE"
parameters = {{ name = "old" }}
"""


class PromptJobs(FakeJobs):
    """Waits for nothing, and has something to tell of each job."""

    async def events(self, job_id, since, wait_s):
        return await super().events(job_id, since, 0.0)

    async def progress(self, job_id):
        stage, device = {"stage": "embed", "waiting": 1, "running": 2, "done": 3}, {"device": "a", "running": 2, "done": 3, "seconds": 1.5}
        return {**await super().progress(job_id), "rate_per_s": 2.5, "eta_s": 4.0, "stages": [stage], "devices": [device]}

    async def attempts(self, job_id):
        done = {"unit": 1, "epoch": 1 << 33, "device": "a", "host": "h", "state": "committed", "started_s": 1.8e9, "ended_s": 1.8e9}
        failed = {"cause": "gpu-oom", "evidence": {"error_code": "out_of_memory"}, "device": None, "host": None, "ended_s": None}
        await self.show(job_id)
        return [{**done, "cause": None, "evidence": {}}, {**done, **failed, "state": "failed"}]


@pytest.fixture
async def served(tmp_path):
    shelf = Shelf(Home(tmp_path / "home").ensure(), tmp_path)
    for name in ("docs", "old"):
        shelf.put(name, User("ann"), shared=True)
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership(), user="owner", indexes=shelf.indexes)
    ctx.models.use([MODEL], User("ann"), 1.8e9)
    ctx.service, ctx.attempts = PromptJobs(), Attempts(most=1_000_000)  # the tool tries wrong keys on every route
    server = listen(ctx)
    yield Served(ctx)
    server.stop()
    shelf.indexes.close()
    await server.close_all_connections()


async def test_the_document_is_for_whoever_has_a_key(served):
    assert (await served.ask("GET", "/openapi.json", Authorization=None))[0] == 401
    status, told = await served.ask("GET", "/openapi.json", Authorization="Bearer eve:viewer")
    assert (status, told["openapi"][:2], told["info"]["title"]) == (200, "3.", "DGPUNET-Dask")
    assert told["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert told["security"] == [{"key": []}]


async def test_all_routes_of_users_are_in_it_with_what_they_ask_for(served):
    _, told = await served.ask("GET", "/openapi.json")
    for route in ROUTES:
        for method, does in route.does.items():
            operation = told["paths"].get(route.template, {}).get(method.lower())
            assert (operation is not None) is does.told, (method, route.template)
            if operation is not None:
                assert operation["x-scope"] == does.need
                assert {"400", "401", "403", "429", "500"} <= set(operation["responses"])
                assert "422" not in operation["responses"]
                assert operation["summary"]
                asked = method in {"POST", "PUT"} and not route.template.endswith(("/verify", "/compact"))
                assert (operation.get("requestBody", {}).get("required") is True) is asked
    names = [operation["operationId"] for path in told["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert not [path for path in told["paths"] if "agents" in path or "join" in path or "lease" in path]


async def test_it_names_what_it_refers_to(served):
    _, told = await served.ask("GET", "/openapi.json")
    text = json.dumps(told)
    used = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= set(told["components"]["schemas"])
    request = told["components"]["schemas"]["JobRequest"]
    assert request["additionalProperties"] is False
    assert set(request["properties"]) == {"workload", "params", "shared", "user", "after", "allow_failed", "retry", "key", "array"}


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_tool_that_asks_all_it_promises_finds_no_fault(served, tmp_path):
    """Generated requests, good and bad, alone and one upon the other; all checks: no 5xx, only what is documented, keys are asked for."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"http://127.0.0.1:{served.ctx.port}/openapi.json",
        "-H", f"Authorization: Bearer {KEY}", "--checks", "all", "--max-examples", "12", "--seed", "1", "--no-color", "--request-timeout", "20",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=child_env({"COLUMNS": "200"}), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert len(served.ctx.service.requests) > 50
