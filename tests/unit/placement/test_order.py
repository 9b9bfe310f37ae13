"""The order of waiting work: what is compared, how shares are counted, who lets whom go first."""

from __future__ import annotations

from dataclasses import dataclass

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge
from dgpunet_dask.placement.order import PATIENCE, Shares, Turns, gives_way, is_aged, passes, standing


def key(**values: object) -> tuple[object, ...]:
    return standing(**{"priority": "batch", "aged": False, "share": 0.0, "work_s": 1.0, "arrival": 0, **values})  # type: ignore[arg-type]


def test_what_counts_first() -> None:
    assert key(priority="interactive") < key(aged=True) < key(share=0.0) < key(share=1.0, work_s=100.0)
    assert key(work_s=5.0, arrival=9) < key(work_s=1.0, arrival=0), "the longest first"
    assert key(arrival=0) < key(arrival=1)
    assert key(priority=None)[0] == key(priority="batch")[0]
    assert key(priority="idle", aged=True) > key()


def test_ageing_counts_placements_per_device() -> None:
    assert not is_aged(PATIENCE - 1)
    assert is_aged(PATIENCE)
    assert not is_aged(PATIENCE * 5 - 1, devices=5)
    assert is_aged(PATIENCE * 5, devices=5)
    assert is_aged(PATIENCE, devices=0)


def test_more_urgent_work_passes_nobody() -> None:
    assert passes(1, 1)
    assert passes(2, 1)
    assert not passes(0, 1)


def test_who_sends_a_stage_away_lets_those_go_first_who_wait_for_it() -> None:
    a, b, other = Demand(stage="a", model="m"), Demand(stage="b"), Demand(stage="a", model="n")
    loaded = [Charge(holder="x", device="c", kind="resident", stage="a", model="m")]
    assert gives_way(1, aged=False, leaving=loaded, others=[(1, a)])
    assert gives_way(1, aged=False, leaving=loaded, others=[(1, Demand(stage="a"))]), "which model is not said"
    assert not gives_way(1, aged=True, leaving=loaded, others=[(1, a)])
    assert not gives_way(1, aged=False, leaving=loaded, others=[(2, a), (1, b), (1, Demand()), (1, other)])
    assert not gives_way(1, aged=False, leaving=[], others=[(1, a)])
    assert not gives_way(0, aged=False, leaving=loaded, others=[(1, a)]), "interactive work lets no batch work go first"


def shares(**weights: float) -> Shares:
    return Shares(lambda user: weights.get(user or "", 1.0))


def test_shares_are_divided_by_weights() -> None:
    found = shares(ann=2.0)
    found.begin(["ann", "bob", None])
    for user in ("ann", "bob", None):
        found.add(user, 10.0)
    assert (found.of("ann"), found.of("bob"), found.of(None)) == (5.0, 10.0, 10.0)


def test_a_newcomer_starts_level_with_the_least_of_those_at_work() -> None:
    found = shares()
    found.begin(["ann", "bob"])
    found.add("ann", 100.0)
    found.add("bob", 60.0)
    found.begin(["ann", "bob", "cy"])
    assert found.of("cy") == 60.0


def test_time_away_is_not_saved_up_and_debts_stay() -> None:
    found = shares()
    found.begin(["ann", "bob"])
    found.add("ann", 10.0)
    found.add("bob", 90.0)
    found.begin(["ann"])
    found.add("ann", 40.0)
    found.begin(["ann"])
    found.begin(["ann", "bob"])
    assert found.of("bob") == 90.0
    found.begin(["bob"])
    found.begin(["ann", "bob"])
    assert found.of("ann") == 90.0


@dataclass
class Waiting:
    name: str
    share: float


def test_lines_whose_key_has_grown_come_later() -> None:
    a, b = Waiting("a", 0.0), Waiting("b", 1.0)
    turns = Turns([b, a], lambda line: standing(priority=None, aged=False, share=line.share, work_s=1.0, arrival=line.name))
    first = turns.pop()
    assert first is a
    a.share = 2.0
    turns.push(a)
    assert [turns.pop(), turns.pop(), turns.pop()] == [b, a, None]


def test_keys_are_looked_at_again_before_a_line_is_given_out() -> None:
    a, b = Waiting("a", 0.0), Waiting("b", 1.0)
    turns = Turns([a, b], lambda line: standing(priority=None, aged=False, share=line.share, work_s=1.0, arrival=line.name))
    a.share = 2.0
    assert turns.pop() is b
