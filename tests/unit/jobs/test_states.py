"""The tables of states are closed, and each state can be reached and, but for the last ones, left."""

from __future__ import annotations

import pytest

from dgpunet_dask.jobs import states

MACHINES = {
    "job": (states.JOB_STATES, states.JOB_TRANSITIONS, "queued"),
    "unit": (states.UNIT_STATES, states.UNIT_TRANSITIONS, "ready"),
    "attempt": (states.ATTEMPT_STATES, states.ATTEMPT_TRANSITIONS, "leased"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_table_names_each_state_and_no_other(machine):
    known, table, _ = MACHINES[machine]
    assert set(table) == set(known)
    assert set().union(*table.values()) <= set(known)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_state_can_be_reached(machine):
    known, table, first = MACHINES[machine]
    reached, todo = {first}, [first]
    while todo:
        new = table[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(known)


def test_a_done_job_stays_done_and_the_others_can_be_tried_again():
    assert {state: states.JOB_TRANSITIONS[state] for state in states.FINAL_STATES} == {
        "done": frozenset(), "failed": {"queued"}, "cancelled": {"queued"}, "lost": {"queued"},
    }  # fmt: skip


def test_only_a_live_lease_leads_to_a_commit():
    assert {old for old, new in states.ATTEMPT_TRANSITIONS.items() if "committed" in new} == states.LIVE


def test_an_attempt_that_has_ended_is_never_open_again():
    assert not [old for old, new in states.ATTEMPT_TRANSITIONS.items() if old not in states.OPEN and new & states.OPEN]


def test_epochs_of_an_earlier_boot_are_below_all_of_a_later_one():
    last = states.first_epoch(3) - 1
    assert (states.boot_of(last), states.boot_of(last + 1)) == (2, 3)
    assert states.first_epoch(2**31 - 1) + states.EPOCHS_A_BOOT - 1 < 2**63  # what SQLite can hold
