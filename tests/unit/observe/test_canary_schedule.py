"""The canary runs now and then, and never beside work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.observe.canary_schedule import EVERY_S, IDLE_S, NEEDS_MIB, CardUse, is_due, next_due


@pytest.mark.parametrize(
    ("use", "due"),
    [
        ({}, True),
        ({"units": 1}, False),
        ({"idle_s": IDLE_S - 1}, False),
        ({"idle_s": IDLE_S}, True),
        ({"since_canary_s": EVERY_S - 1}, False),
        ({"since_canary_s": EVERY_S}, True),
        ({"free_mib": NEEDS_MIB - 1}, False),
        ({"out": True}, False),
    ],
)
def test_when_a_card_is_due(use, due):
    assert is_due(CardUse(device="a", **use)) is due


def test_one_at_a_time_the_longest_without_one_first():
    cards = [CardUse(device=name, since_canary_s=since) for name, since in (("a", EVERY_S), ("b", EVERY_S * 2), ("d", None), ("c", None))]
    assert next_due(cards) == "c"
    assert next_due(cards[:2]) == "b"
    assert next_due(cards, running=True) is None
    assert next_due([]) is None


seconds = st.none() | st.floats(0, 1e6)
cards = st.builds(
    CardUse, device=st.text(max_size=2), units=st.integers(0, 2), idle_s=seconds, since_canary_s=seconds, free_mib=st.none() | st.integers(0, 4096)
)


@given(st.lists(cards), st.booleans())
def test_never_beside_a_unit_and_never_twice_within_the_time(uses, running):
    device = next_due(uses, running=running)
    if device is not None:
        assert not running
        assert any(
            card.device == device and card.units == 0 and (card.since_canary_s is None or card.since_canary_s >= EVERY_S) for card in uses
        )
