"""Simulation: every unit has an end or a reason, no card is overcommitted, and the order of work is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Match, OnOom, Policy, Rule, Selector
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.placement.order import PATIENCE
from dgpunet_dask.placement.run import Arrival, Change, Placement, Run
from dgpunet_dask.placement.simulate import simulate

HOST = Host(name="h", cpus=8)


def card(name: str, vram_mib: int = 8192, speed: float = 1.0) -> Device:
    return Device(name=name, host="h", model=f"card {name}", vram_mib=vram_mib, speed=speed)


def fleet_of(*cards: Device, charges: Iterable[Charge] = ()) -> Fleet:
    return Fleet((HOST,), cards, tuple(charges))


def unit(id: str, at_s: float = 0.0, *, noise: float = 1.0, peak_mib: int | None = None, **demand: object) -> Arrival:  # noqa: A002
    return Arrival(id=id, at_s=at_s, noise=noise, peak_mib=peak_mib, demand=Demand(**{"vram": "1GiB", "work": 1.0, **demand}))  # type: ignore[arg-type]


def sharing(count: int, stage: str = "*") -> Policy:
    return Policy((Rule(name="share", match=Match(stage=stage), max_per_gpu=count),))


# The course of time


def test_one_unit_takes_work_by_speed() -> None:
    run = simulate(fleet_of(card("g0", speed=4.0)), NO_POLICY, [unit("a", at_s=5.0, work=10.0)])
    assert run.placements == (Placement("a", ("g0",), 5.0, 7.5, 0.0),)
    assert run.makespan_s == 2.5
    assert run.counts == {"g0": 1}
    assert run.high_water_mib == {"g0": 1024}


def test_a_burst_spreads_by_earliest_finish(home5: Fleet) -> None:
    run = simulate(home5, NO_POLICY, [unit(str(i), stage="embed", vram="4GiB", work=10.0) for i in range(10)])
    assert run.counts["5090"] >= 3
    assert run.counts.get("4070l", 0) <= 1
    assert run.makespan_s <= 40


def test_work_that_shares_a_card_runs_at_its_part_of_the_speed() -> None:
    run = simulate(fleet_of(card("g0")), sharing(2), [unit(str(i), work=4.0) for i in range(4)])
    assert sorted(p.end_s for p in run.placements) == [8.0, 8.0, 16.0, 16.0]
    assert {p.share for p in run.placements} == {2}


def test_noise_and_true_work_are_not_seen_by_placement() -> None:
    slow, fast = unit("slow", noise=3.0), Arrival(id="fast", demand=Demand(vram="1GiB", work=1.0), work_s=0.5)
    run = simulate(fleet_of(card("g0"), card("g1")), NO_POLICY, [slow, fast])
    assert {p.id: p.end_s for p in run.placements} == {"slow": 3.0, "fast": 0.5}


def test_charges_of_the_fleet_end_when_they_say() -> None:
    running = Charge(holder="x", device="g0", vram_mib=100, ends_s=6.0)
    run = simulate(fleet_of(card("g0"), charges=[running]), NO_POLICY, [unit("a")])
    assert run.placements[0].start_s == 6.0
    forever = Charge(holder="x", device="g0", vram_mib=100)
    run = simulate(fleet_of(card("g0"), charges=[forever]), NO_POLICY, [unit("a")])
    assert run.waiting == {"a": "1 busy"}


def test_what_can_never_run_says_why_and_leaves() -> None:
    run = simulate(fleet_of(card("g0")), NO_POLICY, [unit("big", vram="80GiB"), unit("a")])
    assert run.never == {"big": "1 vram_total"}
    assert set(run.done) == {"a"}


def test_an_empty_fleet_lets_work_wait() -> None:
    assert simulate(Fleet(), NO_POLICY, [unit("a")]).waiting == {"a": "the fleet is empty"}
    assert simulate(Fleet(), NO_POLICY, []).makespan_s == 0.0


def test_gangs_start_together() -> None:
    run = simulate(fleet_of(card("g0"), card("g1", speed=2.0)), NO_POLICY, [unit("pair", gpus=2, work=4.0), unit("one")])
    assert run.done["pair"].devices == ("g1", "g0")
    assert run.done["pair"].end_s == 4.0, "the slower of its cards"


# Devices that change


def test_a_lost_device_sends_its_work_elsewhere() -> None:
    fleet = fleet_of(card("g0", speed=2.0), card("g1"))
    run = simulate(fleet, NO_POLICY, [unit("a", work=10.0)], changes=[Change(at_s=1.0, device="g0", state="lost")])
    assert [(p.outcome, p.devices, p.end_s) for p in run.placements] == [("lost", ("g0",), 1.0), ("done", ("g1",), 11.0)]


def test_a_device_that_joins_is_used() -> None:
    joins = Change(at_s=3.0, device="g1", joins=(card("g1", speed=10.0), HOST))
    run = simulate(fleet_of(card("g0")), NO_POLICY, [unit(str(i), work=10.0) for i in range(5)], changes=[joins])
    assert run.counts == {"g0": 1, "g1": 4}


def test_foreign_use_keeps_work_away_until_it_ends() -> None:
    changes = [Change(at_s=0.0, device="g0", foreign_mib=8000), Change(at_s=9.0, device="g0", foreign_mib=0)]
    run = simulate(fleet_of(card("g0")), NO_POLICY, [unit("a", at_s=1.0)], changes=changes)
    assert run.placements[0].start_s == 9.0


def test_changes_of_unknown_devices_are_passed_over() -> None:
    assert simulate(fleet_of(card("g0")), NO_POLICY, [unit("a")], changes=[Change(at_s=0.0, device="gone", state="lost")]).done


# Stages that stay loaded


def loading(*stages: str, seconds: float = 10.0) -> object:
    found = NO_ESTIMATES
    for stage in stages:
        found = found.with_load(stage, None, "card g0", seconds)
    return found


def test_a_stage_is_loaded_once_and_stays() -> None:
    arrivals = [unit(str(i), stage="s", resident="512MiB", work=2.0) for i in range(3)]
    run = simulate(fleet_of(card("g0")), NO_POLICY, arrivals, estimates=loading("s"))  # type: ignore[arg-type]
    assert [p.end_s for p in run.placements] == [12.0, 14.0, 16.0]
    assert (run.loads, run.evictions) == (1, 0)


def test_who_comes_during_a_load_waits_for_it() -> None:
    arrivals = [unit(str(i), stage="s", resident="512MiB", work=2.0) for i in range(2)]
    run = simulate(fleet_of(card("g0")), sharing(2), arrivals, estimates=loading("s"))  # type: ignore[arg-type]
    assert [p.end_s for p in run.placements] == [14.0, 14.0]
    assert run.loads == 1


def test_two_stages_that_do_not_fit_together_are_not_swapped_for_each_unit() -> None:
    arrivals = [unit(f"{s}{i}", stage=s, vram="6GiB", resident="5GiB") for i in range(64) for s in "ab"]
    run = simulate(fleet_of(card("g0")), NO_POLICY, arrivals, estimates=loading("a", "b"))  # type: ignore[arg-type]
    assert len(run.done) == 128
    assert run.loads <= 128 // PATIENCE + 1
    assert run.loads == run.evictions + 1
    longest = max(len(run_of) for run_of in _stretches(run))
    assert longest <= PATIENCE + 1 or longest == 64, "bounded by ageing, until one of them has no more work"


def _stretches(run: Run) -> list[list[str]]:
    found: list[list[str]] = []
    for p in sorted(run.placements, key=lambda p: p.start_s):
        if not found or found[-1][-1][0] != p.id[0]:
            found.append([])
        found[-1].append(p.id)
    return found


# Out of memory


def test_an_overrun_asks_for_more_and_is_held_in_the_end() -> None:
    policy = Policy((Rule(name="oom", on_oom=OnOom(grow=2.0, retries=2)),))
    cards = [card("g0", 4096), card("g1", 8192), card("g2", 16384)]
    run = simulate(fleet_of(*cards), policy, [unit("a", vram="1GiB", peak_mib=3000)])
    assert [(p.outcome, p.devices[0]) for p in run.placements] == [("oom", "g0"), ("done", "g1")]
    assert run.ooms == 1
    run = simulate(fleet_of(card("g0", 4096)), policy, [unit("a", vram="1GiB", peak_mib=100_000)])
    assert not run.done
    assert "100000 MiB" in run.held["a"]
    assert run.ooms == len(run.placements) >= 2


# Order


def test_interactive_work_starts_within_one_unit() -> None:
    bulk = [unit(f"b{i}", work=5.0) for i in range(100)]
    calls = [unit(f"i{i}", at_s=7.0 * i, priority="interactive", work=0.5) for i in range(20)]
    run = simulate(fleet_of(card("g0"), card("g1", speed=2.0)), NO_POLICY, bulk + calls)
    assert run.waits["interactive"].max_s <= 5.0
    assert len(run.done) == 120


def test_an_endless_stream_of_small_work_does_not_starve_a_large_one() -> None:
    small = [unit(f"s{i}", at_s=0.5 * i, stage="small", vram="3GiB", work=2.0) for i in range(400)]
    large = unit("large", at_s=3.0, stage="large", vram="8GiB", work=1.0)
    run = simulate(fleet_of(card("g0")), sharing(2, "small"), [*small, large])
    passed = sum(p.start_s >= 3.0 and p.start_s < run.done["large"].start_s for p in run.placements)
    assert passed <= PATIENCE + 2
    assert run.done["large"].start_s < run.makespan_s / 2
    assert run.starvation_s > 0


def test_an_endless_stream_of_single_cards_does_not_starve_a_gang() -> None:
    small = [unit(f"s{i}", at_s=0.4 * i, work=1.0) for i in range(500)]
    run = simulate(fleet_of(card("g0"), card("g1")), NO_POLICY, [*small, unit("pair", at_s=2.0, gpus=2)])
    assert run.done["pair"].queued_s <= 2 * PATIENCE + 4


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_users_get_their_share(weight: float) -> None:
    policy = Policy(weights=(("ann", weight),))
    arrivals = [unit(f"a{i}", user="ann", work=2.0) for i in range(200)] + [unit(f"b{i}", user="bob", work=5.0) for i in range(200)]
    run = simulate(fleet_of(card("g0"), card("g1", speed=2.0), card("g2")), policy, arrivals)
    until = min(max(p.end_s for p in run.placements if p.user == user) for user in ("ann", "bob"))
    speeds = {"g0": 1.0, "g1": 2.0, "g2": 1.0}
    for moment in (until * k / 10 for k in range(1, 10)):
        got: dict[str | None, float] = defaultdict(float)
        for p in run.placements:
            if p.start_s < moment:
                got[p.user] += (p.end_s - p.start_s) * speeds[p.devices[0]]
        assert abs(got["ann"] / weight - got["bob"]) <= 5.0 + 1e-6, "what is started, to within one unit"


def test_the_longest_goes_first() -> None:
    run = simulate(fleet_of(card("g0")), NO_POLICY, [unit("first", work=3.0), unit("short", work=1.0), unit("long", work=9.0)])
    assert [p.id for p in run.placements] == ["long", "first", "short"]


# Whatever comes

STAGES = ("a", "b", "c")
WORK = st.tuples(
    st.sampled_from([0.0, 0.0, 1.0, 4.0]), st.sampled_from(STAGES), st.sampled_from([None, 300, 3000, 7000, 20_000]),
    st.sampled_from([1, 1, 1, 2]), st.sampled_from([None, 1.0, 3.0]), st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, "interactive", "idle"]), st.sampled_from([None, "ann", "bob"]), st.sampled_from([False, False, False, True]),
)  # fmt: skip


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Fleet, Policy, list[Arrival], list[Change]]:
    cards = [card(f"g{i}", draw(st.sampled_from([4096, 8192, 16384])), draw(st.sampled_from([0.5, 1.0, 4.0]))) for i in range(draw(st.integers(1, 4)))]
    shares = [draw(st.sampled_from([None, 2, 3])) for _ in STAGES]
    rules = [Rule(name=f"share {s}", match=Match(stage=s), max_per_gpu=n) for s, n in zip(STAGES, shares, strict=True) if n]
    if draw(st.booleans()):
        rules.append(Rule(name="deny", match=Match(stage="a"), deny=(Selector(device="g0"),)))
    arrivals = []
    for number, (at_s, stage, vram, gpus, work, noise, priority, user, exclusive) in enumerate(draw(st.lists(WORK, max_size=25))):
        demand = Demand(
            stage=stage, vram=None if vram is None else f"{vram}MiB", gpus=gpus, work=work, priority=priority, user=user,
            exclusive=exclusive, resident=0 if vram is None else f"{vram // 2}MiB",
        )  # fmt: skip
        peak = None if vram is None else draw(st.sampled_from([None, None, None, vram * 2]))
        arrivals.append(Arrival(id=str(number), at_s=at_s, demand=demand, noise=noise, peak_mib=peak))
    changes = draw(st.lists(st.builds(
        Change, at_s=st.sampled_from([0.5, 2.0]), device=st.sampled_from(["g0", "g1", "none"]),
        state=st.sampled_from([None, "lost", "paused", "running"]), foreign_mib=st.sampled_from([None, 0, 1000]),
    ), max_size=2))  # fmt: skip
    return fleet_of(*cards), Policy(tuple(rules)), arrivals, changes


@given(scenarios(), st.sampled_from([0.0, 2.0]))
@settings(max_examples=150, deadline=None)
def test_whatever_comes(scenario: tuple[Fleet, Policy, list[Arrival], list[Change]], load_s: float) -> None:
    fleet, policy, arrivals, changes = scenario
    estimates = NO_ESTIMATES
    for stage in STAGES:
        estimates = estimates.with_load(stage, None, "card g0", load_s) if load_s else estimates
    run = simulate(fleet, policy, arrivals, estimates=estimates, changes=changes)
    assert run == simulate(fleet, policy, arrivals, estimates=estimates, changes=changes), "the same input, the same output"
    ends = [set(run.done), set(run.waiting), set(run.never), set(run.held)]
    assert sorted(i for found in ends for i in found) == sorted(a.id for a in arrivals), "each unit has one end, or one reason"
    assert all(reason for found in (run.waiting, run.never, run.held) for reason in found.values())
    if not any(c.foreign_mib for c in changes):
        assert all(mib <= fleet.by_name[name].vram_mib for name, mib in run.high_water_mib.items())  # type: ignore[operator]
    demands = {a.id: a.demand for a in arrivals}
    assert not any(p.devices[0] == "g0" and demands[p.id].stage == "a" and policy.rules and policy.rules[-1].deny for p in run.placements)
    for p in run.placements:
        assert p.queued_s >= 0
        assert p.end_s >= p.start_s
        assert len(p.devices) == demands[p.id].gpus
        together = [q for q in run.placements if q is not p and set(q.devices) & set(p.devices) and q.start_s < p.end_s and p.start_s < q.end_s]
        assert not (together and demands[p.id].exclusive), "exclusive means alone"
