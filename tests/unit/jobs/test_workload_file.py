"""job.yaml: what is read, and every mistake at its place."""

from __future__ import annotations

import textwrap

import pytest

from dgpunet_dask.config.yamlfile import load
from dgpunet_dask.errors import MalformedFile, NewerFormat
from dgpunet_dask.jobs.workload_file import parse_workload
from dgpunet_dask.model.pipeline import Workload


def parse(text: str) -> Workload:
    return parse_workload(load(textwrap.dedent(text), "job.yaml"))


def mistakes(text: str) -> list[str]:
    with pytest.raises(MalformedFile) as caught:
        parse(text)
    return str(caught.value).splitlines()


def test_stages_come_in_the_order_of_the_data_and_the_gather_stage_last() -> None:
    workload = parse("""
        version: 1
        name: x
        stages:
          publish: {run: "stages:P", after: embed, gather: true, keep: 10m}
          embed: {run: "stages:E", after: read, batch: {tokens: 16384}, env: embed.lock, deadline: 2m, retries: 0}
          read: {run: "stages:R", unit: {items: 7, bytes: 2MiB}}
          side: {run: "stages:S", after: read}
    """)
    assert [s.name for s in workload.stages] == ["read", "embed", "side", "publish"]
    assert workload.source.unit_items == 7
    assert workload.source.unit_bytes == 2 << 20
    embed = workload.unit_stages[0]
    assert (embed.batch_tokens, embed.env, embed.deadline_s, embed.retries) == (16384, "embed.lock", 120.0, 0)
    assert workload.gather is not None
    assert (workload.gather.name, workload.gather.keep_s, workload.source.keep_s) == ("publish", 600.0, 0.0)


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    assert mistakes("""\
        version: 1
        name: two steps
        params: {path: {type: pth}}
        stages:
          read: {run: "stages:Read"}
          up: {run: stages.Upper, after: read, batch: {token: 5}, deadline: 5x}
        """) == [
        "job.yaml:2:7: name: 'two steps' is not valid: use letters, digits, dot, underscore and hyphen, starting with a letter or digit",
        "job.yaml:3:23: type: write 'path', 'name', 'model', 'string', 'int', 'float' or 'bool', not 'pth'",
        "job.yaml:6:13: run: 'stages.Upper' is not valid: write it as module:Class, such as stages:Embed",
        "job.yaml:6:48: unknown key 'token'; did you mean 'tokens'?",
        "job.yaml:6:69: deadline: '5x' is not valid: write it as 10s, 15m or 2h",
    ]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ('{a: {run: "s:A"}, b: {run: "s:B"}}', "exactly one stage reads the input and has no `after:`; found: a, b"),
        ('{a: {run: "s:A", after: b}, b: {run: "s:B", after: a}}', "this stage takes from itself"),
        ('{a: {run: "s:A"}, b: {run: "s:B", after: aa}}', "there is no stage 'aa'; did you mean 'a'?"),
        ('{a: {run: "s:A", gather: true}}', "needs `after:`"),
        ('{a: {run: "s:A"}, g: {run: "s:G", after: a, gather: true}, h: {run: "s:H", after: a, gather: true}}', "only one stage may gather"),
        ('{a: {run: "s:A"}, g: {run: "s:G", after: a, gather: true}, h: {run: "s:H", after: g}}', "nothing can come after it"),
        ('{a: {run: "s:A"}, b: {run: "s:B", after: a, unit: {items: 3}}}', "only the source cuts the input into units"),
        ('{a: {run: "s:A"}, b: {run: "s:B", after: a, keep: 1m}}', "are kept anyway; leave `keep` out"),
        ('{a: {run: "s:A", at: head}}', "is called on the head's host anyway; leave `at` out"),
        ('{a: {run: "s:A"}, b: {run: "s:B", after: a, gather: true, at: head}}', "is called on the head's host anyway"),
        ('{a: {run: "s:A"}, b: {run: "s:B", after: a, at: gpu}}', "at"),
        ('{a: {run: "s:A", env: ../outside.lock}}', "name a file inside the workload's folder"),
        ("{}", "at least 1 item"),
    ],
)
def test_stages_that_cannot_be_joined(stages: str, told: str) -> None:
    assert any(told in line for line in mistakes(f"version: 1\nname: x\nstages: {stages}\n"))


def test_a_newer_file_is_refused_for_its_version_alone() -> None:
    with pytest.raises(NewerFormat, match="format version 2"):
        parse("version: 2\nname: x\nnodes: {}\n")
