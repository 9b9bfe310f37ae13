"""Where a machine hears of its cards' errors: from the driver, or from the kernel's log, and never from both."""

from __future__ import annotations

import contextlib
import ctypes
from functools import partial

import pytest

from dgpunet_dask.hardware import card_monitor
from dgpunet_dask.hardware.card_monitor import CardMonitor
from dgpunet_dask.hardware.nvml import TIMEOUT, Nvml
from dgpunet_dask.hardware.xid_watch import KernelLog

UUID = "GPU-1"
LINE = "4,1,1,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n"


class Driver:
    """A binding with one card; what it does not have is not reported."""

    class NVMLError(Exception):  # the name is NVIDIA's
        def __init__(self, value):
            super().__init__(value)
            self.value = value

    def __init__(self):
        self.tells_events = False
        self.sets = 0

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return ctypes.c_void_p(1)

    def nvmlDeviceGetUUID(self, handle):
        return UUID

    def nvmlEventSetCreate(self):
        self.sets += 1
        return ctypes.c_void_p(2)

    def nvmlEventSetFree(self, events):
        self.sets -= 1

    def nvmlDeviceRegisterEvents(self, handle, kinds, events):
        if not self.tells_events:
            raise self.NVMLError(3)

    def nvmlEventSetWait_v2(self, events, timeout_ms):
        raise self.NVMLError(TIMEOUT)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def kernel(tmp_path):
    file = tmp_path / "kmsg"
    file.write_text(LINE)
    return file


@pytest.fixture
def monitor(driver, kernel, monkeypatch):
    monkeypatch.setattr(card_monitor, "session", lambda: contextlib.nullcontext(Nvml(driver)))
    monkeypatch.setattr(card_monitor, "KernelLog", partial(KernelLog, file=kernel))
    with CardMonitor(lambda: 5.0) as made:
        yield made
    assert driver.sets == 0


def say(kernel):
    with kernel.open("a") as file:
        file.write(LINE)


def test_the_kernels_log_is_read_where_the_driver_tells_nothing_from_now_on(monitor, kernel):
    assert monitor.xids() == []
    say(kernel)
    assert [(event.uuid, event.xid, event.at) for event in monitor.xids()] == [(None, 79, 5.0)]
    assert monitor.xids() == []


def test_the_log_is_read_on_through_a_new_session(monitor, kernel):
    say(kernel)
    monitor.reopen()
    assert [event.xid for event in monitor.xids()] == [79]


def test_a_driver_that_tells_by_now_is_the_only_one_that_is_heard(monitor, driver, kernel):
    driver.tells_events = True
    monitor.reopen()
    say(kernel)
    assert monitor.xids() == []
