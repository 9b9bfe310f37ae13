"""Findings as people read them."""

from __future__ import annotations

import pytest

from dgpunet_dask.observe.finding import Check
from dgpunet_dask.observe.text import ASCII_SIGNS, SIGNS, lines, signs_for

FOUND = [
    Check("disk", "system", "pc").ok("there is room", free=1),
    Check("card_lost", "hardware", "pc/gpu").fault("the card fell off", "restart", uuid="GPU-1", index=None),
    Check("clock", "system", "pc").warn("is off", "set it", offset_s=2.0),
]


def test_grouped_by_cause_with_evidence_and_cure_below_what_is_wrong():
    assert list(lines(FOUND)) == [
        "hardware", "--------", "× pc/gpu: the card fell off", "    evidence  uuid=GPU-1", "    cure      restart", "",
        "system", "------", "! pc: is off", "    evidence  offset_s=2.0", "    cure      set it", "√ pc: there is room", "",
        "1 ok, 1 warning, 1 fault",
    ]  # fmt: skip


def test_quiet_leaves_out_what_is_well_and_counts_it():
    shown = list(lines(FOUND, quiet=True))
    assert not [line for line in shown if "room" in line]
    assert shown[-1].startswith("1 ok")


@pytest.mark.parametrize(("encoding", "signs"), [("utf-8", SIGNS), ("ascii", ASCII_SIGNS), ("latin-1", ASCII_SIGNS), (None, ASCII_SIGNS), ("no-such", ASCII_SIGNS)])
def test_signs_that_the_terminal_can_show(encoding, signs):
    assert signs_for(encoding) is signs


def test_long_evidence_is_cut():
    long = Check("mtu", "network", "pc").warn("x", "y", listed=["z" * 50] * 50)
    assert max(map(len, lines([long]))) < 300
