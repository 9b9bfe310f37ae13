"""Whose fault a failure is."""

from __future__ import annotations

import errno
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask import errors
from dgpunet_dask.jobs import causes
from dgpunet_dask.jobs.causes import CAUSES, Confidence, Other, attribute

DEAD = {"error_code": "stage_host_lost", "host": "a", "device": "a/gpu0"}
RAISED = {"error_code": "stage_failed", "error_kind": "ValueError", "host": "a", "device": "a/gpu0"}
PASSED = Other(same_unit=False, host="b", device="b/gpu0")
PASSED_THERE = Other(same_unit=False, host="a", device="a/gpu0")


def same(host: str, code: str = "stage_host_lost") -> Other:
    return Other(same_unit=True, host=host, device=f"{host}/gpu0", error_code=code)


def died(host: str) -> Other:
    return Other(same_unit=False, host=host, device=f"{host}/gpu0", error_code="stage_host_lost")


#: Evidence, other attempts, cause, how sure.
CASES: dict[str, tuple[dict[str, Any], list[Other], str, str]] = {
    "a full disk": ({"errno": errno.ENOSPC}, [], "disk", "certain"),
    "a quota": ({"errno": errno.EDQUOT}, [], "disk", "certain"),
    "our own word for it": ({"error_code": "disk_full"}, [], "disk", "certain"),
    "a full disk on two hosts is not the unit's fault": ({"errno": errno.ENOSPC, **RAISED}, [same("b", "disk_full")], "disk", "certain"),
    "a damaged file": ({"error_code": "damaged_file"}, [], "disk", "likely"),
    "killed by the kernel": ({**DEAD, "exit_signal": "SIGKILL", "cgroup_oom_kills": 1}, [], "host-oom", "certain"),
    "no memory": ({**RAISED, "error_kind": "MemoryError"}, [], "host-oom", "likely"),
    "asked for what is not to be had": ({"error_code": "bad_value", "usage": True, "host": "a"}, [], "user", "likely"),
    "killed by somebody": ({**DEAD, "exit_signal": "SIGKILL", "cgroup_oom_kills": 0}, [], "system", "guess"),
    "killed, and nobody counts": ({**DEAD, "exit_signal": "SIGKILL", "cgroup_oom_kills": None}, [], "system", "guess"),
    "killed each time where others pass": ({**DEAD, "exit_signal": "SIGKILL"}, [same("a"), same("a"), PASSED_THERE], "data", "likely"),
    "it exited each time where others pass": ({**DEAD, "exit_status": 7}, [same("a"), PASSED_THERE], "data", "likely"),
    "killed once where others pass": ({**DEAD, "exit_signal": "SIGKILL"}, [PASSED_THERE], "system", "guess"),
    "killed each time where none has passed": ({**DEAD, "exit_signal": "SIGKILL"}, [same("a"), same("a"), PASSED], "system", "guess"),
    "killed once, and raised once": ({**DEAD, "exit_signal": "SIGKILL"}, [same("a", "stage_failed"), PASSED_THERE], "system", "guess"),
    "killed each time, as others there": ({**DEAD, "exit_signal": "SIGKILL"}, [same("a"), died("a"), PASSED_THERE], "gpu-hardware", "likely"),
    "killed each time by the kernel": ({**DEAD, "exit_signal": "SIGKILL", "cgroup_oom_kills": 1}, [same("a"), PASSED_THERE], "host-oom", "certain"),
    "off the bus": ({**DEAD, "xid": [79]}, [], "gpu-hardware", "certain"),
    "contained memory error": ({**DEAD, "xid": [94]}, [], "gpu-hardware", "likely"),
    "an error that we do not know": ({**DEAD, "xid": [999]}, [], "gpu-hardware", "likely"),
    "what the card mended": ({**RAISED, "xid": [63, 92]}, [], "user", "likely"),
    "its kernel was wrong": ({**DEAD, "xid": [13]}, [], "user", "likely"),
    "cleared away when killed": ({**DEAD, "xid": [45], "exit_signal": "SIGSEGV"}, [], "user", "guess"),
    "its own overrun": ({"error_code": "out_of_memory"}, [], "gpu-oom", "certain"),
    "others fill the card": ({"error_code": "foreign_memory"}, [], "gpu-oom", "certain"),
    "it printed so before it died": ({**DEAD, "log_tail": "torch.OutOfMemoryError: CUDA out of memory. Tried"}, [], "gpu-oom", "likely"),
    "not installed": ({**RAISED, "error_kind": "ModuleNotFoundError"}, [], "version", "likely"),
    "a name that is not in what is installed": ({**RAISED, "error_kind": "ImportError"}, [PASSED], "version", "likely"),
    "built for other cards": ({**DEAD, "log_tail": "CUDA error: no kernel image is available for execution"}, [], "version", "likely"),
    "an older driver, raised": ({**RAISED, "why": "CUDA driver version is insufficient for CUDA runtime version"}, [PASSED], "version", "likely"),
    "built for other cards, raised": ({**RAISED, "why": "CUDA error: no kernel image is available for execution on the device"}, [], "version", "likely"),
    "built for other cards, and hosts": ({**RAISED, "why": "no kernel image is available"}, [same("b", "stage_failed")], "version", "likely"),
    "a library of another release, raised": ({**RAISED, "error_kind": "OSError", "why": "libx.so: undefined symbol: y"}, [], "version", "likely"),
    "its input has the words, and others pass on that card": ({**RAISED, "why": "line 3: undefined symbol y"}, [PASSED_THERE], "data", "likely"),
    "the words of an error of ours": ({"error_code": "bad_value", "usage": True, "why": "no module named x"}, [], "user", "likely"),
    "an older processor": ({**DEAD, "exit_signal": "SIGILL"}, [], "version", "likely"),
    "no environment": ({"error_code": "environment_failed"}, [], "version", "likely"),
    "a peer was lost": ({"error_code": "peer_failed", "host": "a"}, [], "network", "likely"),
    "a connection was reset, with no number": ({**RAISED, "error_kind": "ConnectionResetError"}, [PASSED], "network", "likely"),
    "a connection was reset": ({**RAISED, "errno": errno.ECONNRESET}, [], "network", "likely"),
    "a socket's time is over": ({**RAISED, "kind": "TimeoutError", "error_kind": "TimeoutError", "why": "read timed out"}, [PASSED], "network", "likely"),
    "the same, of an earlier release": ({**RAISED, "error_kind": "TimeoutError"}, [PASSED], "network", "likely"),
    "a lock's time is over": ({**RAISED, "kind": "Timeout", "error_kind": "TimeoutError"}, [PASSED], "data", "likely"),
    "a process's time is over": ({**RAISED, "kind": "TimeoutError", "error_kind": "Exception"}, [PASSED], "data", "likely"),
    "no such name": ({**RAISED, "kind": "gaierror", "error_kind": "OSError", "errno": -2}, [PASSED], "network", "likely"),
    "requests: no answer": ({**RAISED, "kind": "ReadTimeout", "error_kind": "OSError"}, [PASSED], "network", "likely"),
    "requests: no connection": ({**RAISED, "kind": "ConnectionError", "error_kind": "OSError"}, [PASSED], "network", "likely"),
    "urllib3: no more tries": ({**RAISED, "kind": "MaxRetryError", "error_kind": "Exception"}, [PASSED], "network", "likely"),
    "urllib: no such name": ({**RAISED, "kind": "URLError", "error_kind": "OSError", "errno": -2}, [PASSED], "network", "likely"),
    "urllib: no answer": ({**RAISED, "kind": "URLError", "error_kind": "OSError", "why": "<urlopen error timed out>"}, [PASSED], "network", "likely"),
    "urllib: no address": ({**RAISED, "kind": "URLError", "error_kind": "OSError", "why": "unknown url type: htp"}, [PASSED], "data", "likely"),
    "an archive that cannot be read": ({**RAISED, "kind": "ReadError", "error_kind": "Exception"}, [PASSED], "data", "likely"),
    "nobody had the folder": ({"error_code": "folder_missing"}, [], "network", "likely"),
    "too hot, and hung": ({"error_code": "stage_hung", "host": "a", "thermal": True}, [], "thermal", "likely"),
    "too hot, and dead": ({**DEAD, "thermal": True}, [PASSED_THERE], "thermal", "likely"),
    "killed each time on a hot card where others pass": ({**DEAD, "thermal": True, "exit_signal": "SIGKILL"}, [same("a"), PASSED_THERE], "data", "likely"),
    "too hot, and wrong": ({**RAISED, "thermal": True}, [], "user", "likely"),
    "it raised": (RAISED, [], "user", "likely"),
    "it raised for this one alone": (RAISED, [PASSED], "data", "likely"),
    "it raised on two hosts": (RAISED, [same("b", "stage_failed")], "user", "certain"),
    "it raised on two hosts, and others pass": (RAISED, [same("b", "stage_failed"), PASSED], "data", "certain"),
    "twice on one host is no two hosts": (RAISED, [same("a", "stage_failed"), PASSED], "data", "likely"),
    "it died on two hosts": (DEAD, [same("b"), PASSED], "data", "certain"),
    "others died there too, on a card": (DEAD, [died("a"), PASSED], "gpu-hardware", "likely"),
    "others died there too, without a card": ({**DEAD, "device": "a/cpu"}, [died("a"), PASSED], "system", "likely"),
    "all end by themselves": ({**DEAD, "device": "a/cpu", "exit_status": 3}, [died("a"), died("a")], "user", "guess"),
    "all end by themselves, on cards": ({**DEAD, "exit_status": 3}, [died("a"), died("b")], "user", "guess"),
    "all are killed": ({**DEAD, "exit_signal": "SIGKILL"}, [died("a"), died("b")], "system", "guess"),
    "all end by themselves on one host alone": ({**DEAD, "exit_status": 3}, [died("a"), PASSED], "gpu-hardware", "likely"),
    "some end by themselves, where others pass": ({**DEAD, "exit_status": 3}, [died("a"), PASSED_THERE], "data", "guess"),
    "some die, on each host": (DEAD, [died("a"), died("b"), PASSED, PASSED_THERE], "data", "guess"),
    "all die on two hosts, none on a third": (DEAD, [died("a"), died("b"), Other(same_unit=False, host="c")], "gpu-hardware", "likely"),
    "others died elsewhere": (DEAD, [died("b")], "user", "guess"),
    "others raised there too": (RAISED, [Other(same_unit=False, host="a", error_code="stage_failed")], "user", "likely"),
    "it hung": ({"error_code": "stage_hung", "host": "a"}, [], "user", "guess"),
    "nothing is known": ({}, [], "system", "guess"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_cause(what: str) -> None:
    evidence, elsewhere, code, confidence = CASES[what]
    found = attribute(evidence, elsewhere=elsewhere)
    assert (found.code, found.confidence) == (code, confidence)
    assert found.why


def test_a_unit_that_is_killed_each_time_is_told_by_the_signal_and_how_often() -> None:
    killed = Other(same_unit=True, host="a", device="a/gpu0", error_code="stage_host_lost", exit_signal="SIGKILL")
    found = attribute({**DEAD, "exit_signal": "SIGKILL"}, elsewhere=[killed, killed, PASSED_THERE])
    assert found.why == "its own process was killed by SIGKILL each of 3 times on a, where other units passed"
    assert "ended each of 3 times" in attribute(DEAD, elsewhere=[killed, killed, PASSED_THERE]).why


def test_each_cause_is_found_in_some_case() -> None:
    assert {code for _, _, code, _ in CASES.values()} == set(CAUSES)


def test_the_codes_of_errors_are_those_of_our_errors() -> None:
    known = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DgpunetError)}
    named = causes._DISK_CODES | causes._OOM_CODES | causes._NETWORK_CODES | causes._VERSION_CODES | causes._DEATHS
    assert named <= known


hosts = st.sampled_from(["a", "b", "c", None])
codes = st.sampled_from([None, "stage_failed", "stage_host_lost", "stage_hung", "disk_full", "out_of_memory", "unexpected"])
others = st.lists(st.builds(Other, same_unit=st.booleans(), host=hosts, device=st.none(), error_code=codes), max_size=6)
evidences = st.fixed_dictionaries(
    {},
    optional={
        "error_code": codes, "error_kind": st.sampled_from([None, "ValueError", "MemoryError", "ImportError"]),
        "errno": st.sampled_from([None, errno.ENOSPC, errno.ECONNRESET, errno.EIO]), "exit_signal": st.sampled_from([None, "SIGKILL", "SIGSEGV", "SIGILL"]),
        "exit_status": st.sampled_from([None, 0, 1]), "cgroup_oom_kills": st.sampled_from([None, 0, 2]),
        "xid": st.none() | st.lists(st.sampled_from([13, 31, 45, 63, 79, 94, 999]), max_size=3), "thermal": st.none() | st.booleans(),
        "host": hosts, "device": st.none() | st.just("a/gpu0"), "log_tail": st.none() | st.text(max_size=20),
    },
)  # fmt: skip


@given(evidences, others, st.randoms(use_true_random=False))
def test_there_is_always_a_cause_whatever_the_order_of_the_others(evidence, elsewhere, chance) -> None:
    found = attribute(evidence, elsewhere=elsewhere)
    assert found.code in CAUSES
    assert found.confidence in get_args(Confidence)
    shuffled = list(elsewhere)
    chance.shuffle(shuffled)
    assert attribute(evidence, elsewhere=shuffled) == found


@given(evidences, others)
def test_what_is_none_says_as_little_as_what_is_missing(evidence, elsewhere) -> None:
    told = {name: value for name, value in evidence.items() if value is not None}
    assert attribute(told, elsewhere=elsewhere) == attribute(evidence, elsewhere=elsewhere)


@given(evidences, others)
def test_a_full_disk_is_never_the_unit_s_fault(evidence, elsewhere) -> None:
    assert attribute({**evidence, "errno": errno.ENOSPC}, elsewhere=elsewhere).code == "disk"


@given(evidences, others)
def test_a_unit_is_blamed_for_sure_only_after_two_hosts(evidence, elsewhere) -> None:
    found = attribute(evidence, elsewhere=elsewhere)
    if found.code in {"user", "data"} and found.confidence == "certain":
        assert len({o.host for o in elsewhere if o.same_unit and o.error_code} | {evidence.get("host")} - {None}) >= 2
