"""A stage host and the memory of its card: torch is capped at the charge before anything is loaded, and what it took is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.errors import ForeignMemory, StageFailed, StageOutOfMemory
from dgpunet_dask.stagehost.frames import pack, unpack
from tests.integration.stagehost.helpers import Agent, spec, until

#: A card of 24 GiB as torch shows it. ``$FAKE_OTHERS`` names a file with the MiB that other processes take.
FAKE_TORCH = '''
import os
from pathlib import Path

MIB = 1 << 20
TOTAL, CONTEXT = 24576 * MIB, 400 * MIB


class OutOfMemoryError(RuntimeError):
    pass


def others():
    return int(Path(os.environ["FAKE_OTHERS"]).read_text()) * MIB


class cuda:
    fraction, used, cached, peak, started = 1.0, 0, 0, 0, False

    @staticmethod
    def is_available():
        return True

    @classmethod
    def init(cls):
        cls.started = True

    @classmethod
    def is_initialized(cls):
        return cls.started

    @staticmethod
    def get_device_properties(device):
        return type("Properties", (), {"total_memory": TOTAL})

    @classmethod
    def set_per_process_memory_fraction(cls, fraction, device):
        cls.started, cls.fraction = True, fraction

    @classmethod
    def mem_get_info(cls, device):
        return TOTAL - CONTEXT - cls.used - cls.cached - others(), TOTAL

    @classmethod
    def memory_reserved(cls, device):
        return cls.used + cls.cached

    @classmethod
    def max_memory_allocated(cls, device):
        return cls.peak

    @classmethod
    def reset_peak_memory_stats(cls, device):
        cls.peak = cls.used

    @classmethod
    def empty_cache(cls):
        cls.cached = 0
        Path(os.environ["FAKE_OTHERS"]).with_name("trimmed").touch()

    @classmethod
    def take(cls, mib):
        """Allocate; not torch's."""
        cls.started, size, cls.cached = True, mib * MIB, 0
        free, allowed = cls.mem_get_info(0)[0], cls.fraction * TOTAL
        if cls.used + size > allowed or size > free:
            raise OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {mib:.2f} MiB. GPU 0 has a total capacity of 24.00 GiB of which "
                f"{free / MIB:.2f} MiB is free. Including non-PyTorch memory, this process has {(cls.used + CONTEXT) / MIB:.2f} MiB memory "
                f"in use. {allowed / MIB:.2f} MiB allowed; Of the allocated memory {cls.used / MIB:.2f} MiB is allocated by PyTorch."
            )
        cls.used += size
        cls.peak = max(cls.peak, cls.used)

    @classmethod
    def drop(cls, mib):
        """Free; not torch's."""
        cls.used -= mib * MIB
        cls.cached += mib * MIB
'''

STAGES = """
from dgpunet_dask import Stage


class Hungry(Stage):
    def load(self, *, weights: int) -> None:
        import torch  # the usual place, where importing it is expensive

        self.torch = torch
        torch.cuda.take(3 * weights)
        torch.cuda.drop(2 * weights)

    def __call__(self, batch):
        for mib in batch:
            self.torch.cuda.take(mib)
            self.torch.cuda.drop(mib)
            yield round(self.torch.cuda.fraction * 24576)


class Clumsy(Hungry):
    def __call__(self, batch):
        try:
            list(super().__call__(batch))
        except RuntimeError as error:
            raise ValueError("the batch failed") from error
"""


@pytest.fixture
def others(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the agent's stages find a torch with a card, and give the file of what other processes take of it."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text(FAKE_TORCH)
    file = tmp_path / "others"
    file.write_text("0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("FAKE_OTHERS", str(file))
    agent.write(STAGES)
    return file


def on_card(name: str = "Hungry", *, charge: int, weights: int = 400, **more: Any) -> Any:
    return spec(name, device="3090", torch_device="cuda:0", vram_mib=charge, resident_mib=64, load={"weights": weights}, **more)


def call(agent: Agent, which: Any, *mib: int) -> Any:
    return agent.client.call(which, pack(list(mib)))


def test_the_cap_is_the_charge_less_the_context_and_follows_the_charge(agent: Agent, others: Path) -> None:
    assert unpack(call(agent, on_card(charge=4096), 10).frames) == [4096 - 400]
    pids = agent.pids()
    assert unpack(call(agent, on_card(charge=8192), 10).frames) == [8192 - 400]
    assert agent.pids() == pids, "another charge loads nothing anew"


def test_what_was_taken_is_told(agent: Agent, others: Path) -> None:
    first, second = call(agent, on_card(charge=4096), 2000), call(agent, on_card(charge=4096), 500)
    assert (first.peak_mib, second.peak_mib) == (2800, 1300)
    assert first.load_s is not None
    assert first.load_s > 0
    assert second.load_s is None, "only the call that had to load tells"
    (resident,) = agent.now(agent.hosts.residents)["3090"]
    assert (resident["mib"], resident["load_s"]) == (800, first.load_s), "what the load took for a while is given back"


def test_a_load_beyond_the_charge_fails_before_it_has_taken_it(agent: Agent, others: Path) -> None:
    with pytest.raises(StageOutOfMemory) as failure:
        call(agent, on_card(charge=1024), 10)
    assert (failure.value.fields["peak_mib"], failure.value.fields["charge_mib"]) == (1600, 1024)
    until(lambda: not agent.pids(), "the process that failed to load has ended")


def test_an_overrun_is_told_with_its_peak_and_the_next_call_gets_a_fresh_process(agent: Agent, others: Path) -> None:
    call(agent, on_card(charge=4096), 10)
    before = agent.pids()
    with pytest.raises(StageOutOfMemory) as failure:
        call(agent, on_card(charge=4096), 4000)
    assert failure.value.fields["peak_mib"] == 4800
    result = call(agent, on_card(charge=7200), 4000)
    assert result.peak_mib == 4800
    assert agent.pids() != before


def test_an_overrun_in_the_stage_s_own_words_is_recognised(agent: Agent, others: Path) -> None:
    with pytest.raises(StageOutOfMemory):
        call(agent, on_card("Clumsy", charge=4096), 4000)


def test_a_card_that_others_fill_is_no_overrun(agent: Agent, others: Path) -> None:
    call(agent, on_card(charge=4096), 10)
    before = agent.pids()
    others.write_text("22000")
    with pytest.raises(ForeignMemory, match=r"1776MiB were free where stage hungry was promised 4GiB"):
        call(agent, on_card(charge=4096), 2000)
    others.write_text("0")
    call(agent, on_card(charge=4096), 2000)
    assert agent.pids() == before, "its own memory is in order: the model stays loaded"


def test_what_torch_keeps_for_later_goes_back_to_the_card_when_no_call_comes(agent: Agent, others: Path) -> None:
    call(agent, on_card(charge=4096), 10)
    others.with_name("trimmed").unlink()
    call(agent, on_card(charge=4096), 10)
    until(lambda: others.with_name("trimmed").exists(), "the cache is emptied")


def test_on_a_cpu_nothing_is_capped_nor_measured(agent: Agent, others: Path) -> None:
    result = call(agent, spec("Hungry", load={"weights": 1000}), 10)
    assert unpack(result.frames) == [24576]
    assert result.peak_mib is None
    with pytest.raises(StageFailed):
        call(agent, spec("Hungry", load={"weights": 1000}), 30000)
