"""Errors of cards: what their numbers stand for, and lines of the kernel's log."""

from __future__ import annotations

import pytest

from dgpunet_dask.hardware.xid_watch import KernelLog
from dgpunet_dask.hardware.xids import LoggedXid, XidEvent, meaning_of, xids_of


@pytest.mark.parametrize(
    ("numbers", "severity", "cause"),
    [
        ((48, 62, 64, 74, 79, 95, 119, 120), "critical", "hardware"),
        ((94,), "warning", "hardware"),
        ((13, 31, 43, 45), "job", "workload"),
        ((63, 92), "silent", "hardware"),
        ((0, 999), "warning", "hardware"),
    ],
)
def test_each_number_has_a_severity_a_cause_and_a_meaning(numbers, severity, cause):
    for number in numbers:
        found = meaning_of(number)
        assert (found.severity, found.cause) == (severity, cause)
        assert found.meaning


LINES = [
    ("NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.", LoggedXid("0000:01:00", 79, 1234)),
    ("[ 12.5] NVRM: Xid (PCI:0000:0a:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", LoggedXid("0000:0a:00", 79, None)),
    ("4,1,2,-;NVRM: Xid (PCI:00000000:C1:00): 31, pid=77, name=python, Ch 00000008, intr 00000000", LoggedXid("0000:c1:00", 31, 77)),
    ("NVRM: Xid (PCI:0000:41:00): 119, Timeout waiting for RPC from GSP!", LoggedXid("0000:41:00", 119, None)),
    ("NVRM: Xid (PCI:0000:41:00.0): 13, pid='901', Graphics Exception", LoggedXid("0000:41:00", 13, 901)),
    ("NVRM: GPU at PCI:0000:01:00: GPU-4f2a1c5e", None),
    ("usb 1-1: Xid 79", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "found"), LINES)
def test_lines_of_the_kernels_log(line, found):
    assert list(xids_of([line])) == ([] if found is None else [found])


def test_the_kernels_log_is_read_from_where_it_is_now(tmp_path):
    file = tmp_path / "kmsg"
    file.write_text(f"{LINES[0][0]}\n")
    log = KernelLog(lambda: 5.0, file)
    assert log.readable
    places = {"0000:0a:00": "GPU-a"}
    assert log.ready(places) == []
    with file.open("a") as more:
        more.write(f"{LINES[1][0]}\n{LINES[3][0]}\n")
    assert log.ready(places) == [XidEvent("GPU-a", 79, 5.0), XidEvent(None, 119, 5.0)]
    assert log.ready(places) == []
    log.close()
    assert not log.readable
    assert log.ready(places) == []


def test_a_log_that_may_not_be_read_tells_nothing(tmp_path):
    log = KernelLog(lambda: 5.0, tmp_path / "none")
    assert not log.readable
    assert log.ready({}) == []
