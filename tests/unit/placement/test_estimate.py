"""What finished work teaches: means that stay within what was seen, needs that follow the 95th percentile, and all of it kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.placement.estimate import MARGIN, MOST, NO_ESTIMATES, STEP_MIB, WINDOW, Estimates, device_class, percentile
from dgpunet_dask.placement.resolve import with_learned

CARD = Device(name="g1", host="h", model="RTX 3090", speed=2.0, vram_mib=24576)
seconds = st.floats(0, 1e6)
mib = st.integers(0, 1 << 20)
names = st.sampled_from(["embed", "chat", None])
Update = Callable[[Estimates], Estimates]


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """Draw one update."""
    stage, model, kind = draw(names), draw(names), draw(st.sampled_from(["run", "load", "peak", "oom"]))
    where, value, size = draw(st.sampled_from(["A", "B"])), draw(seconds), draw(mib)
    if kind == "run":
        speed, share = draw(st.floats(0.01, 10)), draw(st.integers(1, 4))
        return lambda e: e.with_run(stage, model, where, value, speed=speed, share=share)
    if kind == "load":
        return lambda e: e.with_load(stage, model, where, value)
    if kind == "peak":
        return lambda e: e.with_peak(stage, model, size)
    return lambda e: e.with_oom(stage, model, need_mib=size or None, too_small_mib=size)


def learned(steps: list[Update]) -> Estimates:
    found = NO_ESTIMATES
    for step in steps:
        found = step(found)
    return found


def test_a_class_is_the_card_s_model_else_its_name_and_cpu_for_a_cpu() -> None:
    assert device_class(CARD) == "RTX 3090"
    assert device_class(Device(name="g2", host="h")) == "g2"
    assert device_class(Device(name="h/cpu", host="h", kind="cpu", model="EPYC")) == "cpu"


def test_nothing_is_known_at_first() -> None:
    assert NO_ESTIMATES.run_s("s", "m", "A") is None
    assert NO_ESTIMATES.run_s_on("s", "m", CARD) is None
    assert NO_ESTIMATES.work_s("s", "m") is None
    assert NO_ESTIMATES.load_s("s", "m", "A") is None
    assert NO_ESTIMATES.peak_mib("s", "m") is None
    assert NO_ESTIMATES.larger_than_mib("s", "m") is None


@given(st.lists(seconds, min_size=1, max_size=100))
def test_a_mean_never_leaves_what_was_seen(samples: list[float]) -> None:
    found = learned([lambda e, s=s: e.with_run("s", "m", "A", s).with_load("s", "m", "A", s) for s in samples])
    for mean in (found.run_s("s", "m", "A"), found.load_s("s", "m", "A"), found.work_s("s", "m")):
        assert mean is not None
        assert min(samples) <= mean * (1 + 1e-9)
        assert mean <= max(samples) * (1 + 1e-9)


@given(st.lists(seconds, min_size=1, max_size=8))
def test_the_first_samples_count_alike(samples: list[float]) -> None:
    found = learned([lambda e, s=s: e.with_run("s", "m", "A", s) for s in samples]).run_s("s", "m", "A")
    assert found == pytest.approx(sum(samples) / len(samples), abs=1e-6)


def test_a_change_for_good_is_followed() -> None:
    found = learned([lambda e: e.with_run("s", "m", "A", 10.0)] * 50 + [lambda e: e.with_run("s", "m", "A", 1.0)] * 40)
    assert found.run_s("s", "m", "A") == pytest.approx(1.0, rel=0.06)


def test_a_shared_device_is_counted_as_if_alone_and_other_classes_by_their_speed() -> None:
    found = NO_ESTIMATES.with_run("s", "m", "A", 9.0, speed=2.0, share=3)
    assert found.run_s("s", "m", "A") == 3.0
    assert found.work_s("s", "m") == 6.0
    assert found.run_s("s", "m", "B") is None
    assert found.run_s_on("s", "m", CARD) == 3.0
    assert found.load_s("s", "m", "A") is None


def test_loads_of_an_unknown_class_are_the_mean_of_the_others() -> None:
    found = NO_ESTIMATES.with_load("s", "m", "A", 10.0).with_load("s", "m", "B", 20.0)
    assert (found.load_s("s", "m", "B"), found.load_s("s", "m", "C")) == (20.0, 15.0)


@given(st.lists(mib, min_size=1, max_size=WINDOW), st.data())
def test_a_percentile_is_one_of_the_values_and_grows_with_them(values: list[int], data: st.DataObject) -> None:
    found = percentile(values, 0.95)
    assert found in values
    assert sum(v <= found for v in values) >= 0.95 * len(values)
    more = [v + data.draw(st.integers(0, 1000)) for v in values]
    assert percentile(more, 0.95) >= found


@given(st.lists(mib, min_size=1, max_size=2 * WINDOW))
def test_a_need_has_its_margin_and_forgets_what_is_long_past(peaks: list[int]) -> None:
    found = learned([lambda e, p=p: e.with_peak("s", "m", p) for p in peaks]).peak_mib("s", "m")
    last = peaks[-WINDOW:]
    if max(last) == 0:
        assert found is None
    else:
        assert found is not None
        assert percentile(last, 0.95) * (1 + MARGIN) <= found
        assert found <= max(last) * (1 + MARGIN) + STEP_MIB
        assert found % STEP_MIB == 0


@given(peak=st.integers(1, 40000), charge=st.integers(1, 40000))
def test_a_need_is_never_more_than_the_charge_that_was_enough(peak: int, charge: int) -> None:
    found = NO_ESTIMATES.with_peak("s", "m", peak, charge_mib=charge).peak_mib("s", "m")
    assert found is not None
    assert peak <= found <= max(peak, charge)


def test_a_rare_large_unit_does_not_set_the_need_of_all() -> None:
    found = learned([lambda e: e.with_peak("s", "m", 1000)] * 62 + [lambda e: e.with_peak("s", "m", 9000)] * 2)
    assert found.peak_mib("s", "m") == 1152


def test_an_out_of_memory_raises_the_need_until_enough_has_been_measured() -> None:
    failed = NO_ESTIMATES.with_peak("s", "m", 1000).with_oom("s", "m", need_mib=6000, too_small_mib=4096)
    assert (failed.peak_mib("s", "m"), failed.larger_than_mib("s", "m")) == (6000, 4096)
    nearly = learned([lambda e: e.with_peak("s", "m", 1000)] * (WINDOW - 1)).joined(NO_ESTIMATES)
    after = failed
    for _ in range(WINDOW - 1):
        after = after.with_peak("s", "m", 1000)
    assert (after.peak_mib("s", "m"), after.larger_than_mib("s", "m")) == (6000, 4096)
    after = after.with_peak("s", "m", 1000)
    assert (after.peak_mib("s", "m"), after.larger_than_mib("s", "m")) == (nearly.peak_mib("s", "m"), None)


def test_after_a_unit_was_given_up_the_next_starts_from_what_was_measured() -> None:
    before = NO_ESTIMATES.with_peak("s", "m", 1000)
    assert before.with_oom("s", "m", need_mib=6000, too_small_mib=4096).without_oom("s", "m") == before


def test_where_no_size_is_known_to_do_the_whole_card_is_taken() -> None:
    found = NO_ESTIMATES.with_peak("s", "m", 1000).with_oom("s", "m", need_mib=None, too_small_mib=8192)
    assert (found.peak_mib("s", "m"), found.larger_than_mib("s", "m")) == (None, 8192)


def test_what_was_learned_shapes_a_demand_that_states_nothing() -> None:
    found = NO_ESTIMATES.with_oom("s", "m", need_mib=6000, too_small_mib=4096)
    shaped = with_learned(Demand(stage="s", model="m"), found)
    assert (shaped.vram_mib, shaped.larger_than) == (6000, 4096)
    stated = Demand(stage="s", model="m", vram="1GiB")
    assert with_learned(stated, found) == stated
    assert with_learned(Demand(stage="s", model="other"), found) == Demand(stage="s", model="other")


@given(st.lists(updates(), max_size=30))
def test_all_of_it_survives_json(steps: list[Update]) -> None:
    found = learned(steps)
    assert Estimates.from_json(json.loads(json.dumps(found.to_json()))) == found


@given(st.lists(updates(), max_size=10), updates())
def test_an_update_changes_no_earlier_value(steps: list[Update], step: Update) -> None:
    before = learned(steps)
    told = json.dumps(before.to_json())
    step(before)
    assert json.dumps(before.to_json()) == told


def test_stages_heard_of_longest_ago_are_forgotten_first() -> None:
    found = learned([lambda e, n=n: e.with_run(f"s{n}", None, "A", 1.0) for n in range(MOST)])
    found = found.with_run("s0", None, "A", 1.0).with_run("new", None, "A", 1.0)
    assert len(found.learned) == MOST
    assert found.work_s("s0", None) == 1.0
    assert found.work_s("s1", None) is None


def test_one_stage_or_model_can_be_forgotten() -> None:
    found = NO_ESTIMATES.with_run("a", "m", "A", 1).with_run("a", "n", "A", 1).with_run("b", "m", "A", 1)
    assert list(found.without("a").learned) == [("b", "m")]
    assert list(found.without(model="m").learned) == [("a", "n")]
    assert list(found.without("a", "m").learned) == [("a", "n"), ("b", "m")]
    assert not found.without().learned


def test_joined_prefers_its_own() -> None:
    ours, others = NO_ESTIMATES.with_run("a", None, "A", 1), NO_ESTIMATES.with_run("a", None, "A", 5).with_run("b", None, "A", 7)
    joined = ours.joined(others)
    assert (joined.work_s("a", None), joined.work_s("b", None)) == (1, 7)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_senseless_measurements_are_refused(value: float) -> None:
    with pytest.raises(BadValue):
        NO_ESTIMATES.with_run("s", "m", "A", value)


@pytest.mark.parametrize("raw", [{"version": 2, "stages": []}, {}, [], {"version": 1}, {"version": 1, "stages": [{"stage": "s"}]}, "x"], ids=repr)
def test_what_is_no_estimates_is_refused(raw: object) -> None:
    with pytest.raises(BadValue):
        Estimates.from_json(raw)  # type: ignore[arg-type]  # that is the point
