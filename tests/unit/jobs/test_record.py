"""What a job remembers, and what it tells those who wait."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.errors import JobCancelled
from dgpunet_dask.jobs.record import EVENTS_KEPT, TEXT_KEPT, JobRecord, events_on_disk
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.model.job import JobStatus
from tests.helpers import no_file_more


@pytest.fixture
def record(tmp_path: Path) -> JobRecord:
    return JobRecord(JobStatus(job_id="j", workload="w", state="queued"), tmp_path, SystemClock(), JobRow(job_id="j", workload="w", digest="d" * 64))


def test_all_who_wait_hear_of_an_event(record: JobRecord) -> None:
    async def main() -> None:
        waiting = [asyncio.ensure_future(record.news(0, 30)) for _ in range(3)]
        await asyncio.sleep(0)
        record.emit("stage", stage="embed")
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(main())
    assert [event["kind"] for event in record.events] == ["stage"]


def test_waiting_ends_with_its_time_and_with_the_job(record: JobRecord) -> None:
    asyncio.run(record.news(0, 0.01))
    record.move("cancelled", JobCancelled(job_id="j"))
    asyncio.run(asyncio.wait_for(record.news(99, 30), 5))


def test_a_later_count_does_not_change_what_was_told_before(record: JobRecord) -> None:
    record.count({"skipped.binary": 1})
    record.emit("progress", metrics=dict(record.status.metrics))
    record.count({"skipped.binary": 1})
    assert record.events[0]["metrics"] == {"skipped": {"binary": 1}}
    assert record.status.metrics == {"skipped": {"binary": 2}}


def test_an_ended_job_keeps_its_events_on_disk_alone(record: JobRecord) -> None:
    record.emit("placement", key="embed-1-j-0", device="a")
    record.let_go()
    assert not record.events
    assert [event["device"] for event in events_on_disk(record.folder)] == ["a"]


def test_events_that_found_no_room_on_the_disk_stay_in_memory(record: JobRecord) -> None:
    record.folder = record.folder / "missing"
    record.emit("stage", stage="embed")
    record.let_go()
    assert [event["stage"] for event in record.events] == ["embed"]


def test_events_that_could_not_be_written_are_written_with_the_next(record: JobRecord) -> None:
    record.emit("stage", stage="one")
    with no_file_more():
        record.emit("stage", stage="two")
        record.emit("log", stage="three", text="x" * (TEXT_KEPT + 1))
    record.emit("stage", stage="four")
    assert [(event["seq"], event["stage"]) for event in events_on_disk(record.folder)] == [(1, "one"), (2, "two"), (3, "three"), (4, "four")]
    record.let_go()
    assert not record.events


def test_of_an_event_that_finds_no_room_nothing_is_left(record: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    record.emit("stage", stage="one")
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        record.emit("stage", stage="two")
    record.emit("stage", stage="three")
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["one", "two", "three"]


def test_a_line_that_a_killed_head_left_half_written_is_passed_over(record: JobRecord) -> None:
    record.emit("stage", stage="embed")
    with (record.folder / "events.jsonl").open("a") as file:
        file.write('{"seq": 2, "ki')
    assert [event["seq"] for event in events_on_disk(record.folder)] == [1]


def test_a_job_without_events_has_none(tmp_path: Path) -> None:
    assert not events_on_disk(tmp_path)


def seqs(events: list[dict[str, Any]] | None) -> list[int] | None:
    return None if events is None else [event["seq"] for event in events]


def test_what_no_longer_is_in_memory_is_read_from_the_disk(record: JobRecord) -> None:
    for n in range(EVENTS_KEPT + 10):
        record.emit("tick", n=n)
    assert record.since(5) is None
    assert seqs(record.since(15)) == list(range(16, EVENTS_KEPT + 11))
    assert seqs(record.since(EVENTS_KEPT + 10)) == []
    assert seqs(events_on_disk(record.folder, 5, 3)) == [6, 7, 8]


def test_long_texts_are_on_the_disk_alone(record: JobRecord) -> None:
    record.log("embed", "a" * (TEXT_KEPT + 1))
    record.log("embed", "short")
    assert record.since(0) is None
    assert [len(event["text"]) for event in events_on_disk(record.folder)] == [TEXT_KEPT + 1, 5]
    assert seqs(record.since(1)) == [2], "what comes after it is in memory"
    assert sum(len(event["text"] or "") for event in record.events) == 5


def test_a_job_that_counts_anew_counts_no_unit_of_before_as_speed(record: JobRecord) -> None:
    record.count({"tokens": 5})
    record.units(done=100)
    record.passed_over = 100
    record.progress(100, 0, None)
    record.restart()
    assert record.status.metrics == {}
    assert record.pace.rate_per_s() is None
    assert record.passed_over == 0
