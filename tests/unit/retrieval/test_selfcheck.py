"""The self-check: what it decides of measurements, what it measures, and what it remembers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval import selfcheck
from dgpunet_dask.retrieval.selfcheck import Candidate, Measured, Memory, choose, key_of, measure, probes, recalled, trial

TEXTS = selfcheck.Trial(("warm",), ("timed",))
EXACT, HALF, SLOW = Candidate("openvino", "fp32"), Candidate("openvino", "bf16"), Candidate("torch", "bf16")


@pytest.mark.parametrize(
    ("measured", "wanted"),
    [
        ([Measured(HALF, 1.0, 0.9999), Measured(EXACT, 3.0, 1.0)], HALF),
        ([Measured(HALF, 1.0, 0.9989), Measured(EXACT, 3.0, 1.0)], EXACT),  # fast, and not close enough
        ([Measured(HALF, 4.0, 0.9999), Measured(EXACT, 3.0, 1.0)], EXACT),  # a processor that only emulates it
        ([Measured(HALF, why="RuntimeError: no"), Measured(EXACT, 3.0, 1.0)], EXACT),
        ([Measured(HALF, 1.0, None), Measured(EXACT, why="RuntimeError: no")], None),  # nothing to compare with
        ([Measured(HALF, 1.0, float("nan")), Measured(EXACT, 3.0, 1.0)], EXACT),
        ([Measured(HALF, 1.0, 0.999), Measured(SLOW, 1.0, 1.0)], HALF),  # of equals the first
        ([], None),
    ],
)
def test_the_fastest_that_stays_close_is_chosen(measured, wanted):
    assert choose(measured) == wanted


@given(
    measured=st.lists(
        st.builds(
            Measured, st.builds(Candidate, st.sampled_from(["a", "b", "c"]), st.sampled_from(["fp32", "bf16"])),
            st.none() | st.floats(0, 100), st.none() | st.floats(-1, 1),
        ),
        max_size=6,
    ),
)  # fmt: skip
def test_what_is_chosen_is_close_and_none_that_is_close_is_faster(measured):
    good = [m for m in measured if m.seconds is not None and m.cosine is not None and m.cosine >= selfcheck.CLOSE_ENOUGH]
    chosen = choose(measured)
    assert (chosen is None) == (not good)
    if chosen is not None:
        assert min(m.seconds for m in good) == min(m.seconds for m in good if m.candidate == chosen)


class Bench:
    """Candidates that take as long and are as far off as they are told, on a timer that they move."""

    def __init__(self, **taken: tuple[float, float]) -> None:
        self.taken = taken
        self.now = 0.0
        self.order: list[str] = []
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def timer(self) -> float:
        return self.now

    def run(self, candidate: Candidate) -> Callable[[Sequence[str]], np.ndarray]:
        self.order.append(candidate.precision)
        if candidate.precision not in self.taken:
            raise RuntimeError("no such thing here")
        seconds, cosine = self.taken[candidate.precision]

        def embed(texts: Sequence[str]) -> np.ndarray:
            self.seen.append((candidate.precision, tuple(texts)))
            self.now += seconds
            return np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]], np.float32)

        return embed


def test_every_candidate_is_timed_and_compared_with_float32():
    bench = Bench(fp32=(3.0, 1.0), bf16=(1.0, 0.5))
    found = measure([HALF, EXACT], bench.run, bench.timer, TEXTS)
    assert bench.order == ["fp32", "bf16"]  # what others are compared with comes first
    assert bench.seen == [(name, texts) for name in ("fp32", "bf16") for texts in (("warm",), ("timed",))]
    assert [m.candidate for m in found] == [HALF, EXACT]
    assert [m.seconds for m in found] == [1.0, 3.0]
    assert [m.cosine for m in found] == pytest.approx([0.5, 1.0])


def test_a_candidate_that_fails_is_told_and_costs_the_others_nothing(caplog):
    bench = Bench(fp32=(3.0, 1.0))
    half, exact = measure([HALF, EXACT], bench.run, bench.timer, TEXTS)
    assert half == Measured(HALF, why="RuntimeError: no such thing here")
    assert choose([half, exact]) == EXACT
    assert "openvino at bf16 cannot run this model here" in caplog.text


def test_a_lack_of_memory_is_told_from_what_will_never_work():
    def run(candidate: Candidate) -> Callable[[Sequence[str]], np.ndarray]:
        raise MemoryError if candidate == HALF else ValueError

    assert [m.passing for m in measure([HALF, EXACT], run, float, TEXTS)] == [True, False]


def test_what_was_asked_wrongly_is_said_at_once():
    def run(candidate: Candidate) -> Callable[[Sequence[str]], np.ndarray]:
        raise BadValue(what="truncate_dim", value=0, why="it must be 1 at least")

    with pytest.raises(BadValue):
        measure([HALF, EXACT], run, float, TEXTS)


def test_a_candidate_is_gone_before_the_next_one_is_loaded():
    alive: weakref.WeakSet[Loaded] = weakref.WeakSet()

    class Loaded:
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return np.ones((1, 1), np.float32)

    def run(candidate: Candidate) -> Callable[[Sequence[str]], np.ndarray]:
        assert not alive
        alive.add(loaded := Loaded())
        return loaded

    assert [m.why for m in measure([HALF, EXACT, SLOW], run, float, TEXTS)] == [None, None, None]


def test_without_float32_nothing_is_known_to_be_close():
    bench = Bench(bf16=(1.0, 1.0))
    found = measure([HALF, EXACT], bench.run, bench.timer, TEXTS)
    assert choose(found) is None


def test_probes_are_many_and_of_all_lengths():
    lengths = [len(text) for text in probes()]
    assert len(lengths) >= 15
    assert min(lengths) < 5
    assert max(lengths) > 800
    assert len(set(probes())) == len(probes())


def test_a_card_is_tried_on_more_and_on_nothing_that_it_was_warmed_with():
    assert trial(on_card=False) == (probes(), probes())
    warm, timed = trial(on_card=True)
    assert not set(warm) & set(timed)
    assert len(set(timed)) == len(timed) == 768
    assert sum(map(len, timed)) > 3 * 16384 * 4  # several batches of its budget, at four characters a token
    assert len({text.count("\n") for text in timed}) >= 16


def test_a_finding_is_kept_and_added_to(tmp_path):
    memory = Memory(tmp_path / "engines")
    assert memory.recall("k") == {}
    memory.remember("k", chosen={"engine": "openvino", "precision": "bf16"})
    memory.remember("k", batch=512)
    again = Memory(tmp_path / "engines").recall("k")
    assert again == {"chosen": {"engine": "openvino", "precision": "bf16"}, "batch": 512}
    assert recalled(again) == HALF
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"chosen": {"engine": "x"}}', '{"chosen": [1]}', '{"chosen": {"other": 1}}'])
def test_a_damaged_finding_is_none(tmp_path, text):
    (tmp_path / "k.json").write_text(text)
    assert recalled(Memory(tmp_path).recall("k")) is None


def test_a_folder_that_cannot_be_written_costs_a_warning_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file")
    memory.remember("k", batch=1)
    assert memory.recall("k") == {}
    assert "cannot be kept" in caplog.text


def test_a_finding_holds_for_one_model_device_and_set_of_versions():
    device = {"device": "a card", "threads": 2, "torch": "2"}
    keys = {
        key_of("d", device, None), key_of("e", device, None), key_of("d", device | {"torch": "3"}, None), key_of("d", device, 64),
        key_of("d", device | {"device": "another card"}, None), key_of("d", device | {"threads": 4}, None),
    }  # fmt: skip
    assert len(keys) == 6
    assert key_of("d", dict(reversed(device.items())), None) in keys


def test_the_processor_is_told_with_its_instructions_and_the_libraries_with_their_versions():
    found = selfcheck.identity("cpu", 2)
    assert found["threads"] == 2
    assert len(found["device"]) > 10
    assert found["tokenizers"] is not None
    assert found == selfcheck.identity("cpu", 2)
