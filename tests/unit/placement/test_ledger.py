"""The ledger holds whatever happens; ``bench/ledger.py`` goes on for a million steps."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dgpunet_dask.model.fleet import Charge
from dgpunet_dask.testing.ledger import DEVICES, HOSTS, KINDS, POLICIES, LedgerPlay

NAMES = st.sampled_from([d.name for d in DEVICES])


class LedgerMachine(RuleBasedStateMachine):
    """Draws what happens to a `LedgerPlay`."""

    def __init__(self) -> None:
        super().__init__()
        self.play = LedgerPlay()

    @rule(kind=st.sampled_from(range(len(KINDS))))
    def place(self, kind: int) -> None:
        self.play.place(KINDS[kind])

    @rule(first=st.integers(0, len(KINDS) - 1))
    def place_many(self, first: int) -> None:
        for demand in (*KINDS[first:], *KINDS[:first]):
            self.play.place(demand)

    @precondition(lambda self: self.play.units)
    @rule(which=st.integers(0, 50), took=st.sampled_from([0.0, 0.5, 2.0]))
    def finish(self, which: int, took: float) -> None:
        self.play.finish(sorted(self.play.units)[which % len(self.play.units)], took=took)

    @precondition(lambda self: self.play.units)
    @rule(which=st.integers(0, 50))
    def run_out_of_memory(self, which: int) -> None:
        self.play.oom(sorted(self.play.units)[which % len(self.play.units)])

    @rule(name=NAMES)
    def lose(self, name: str) -> None:
        self.play.lose(name)

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        self.play.join(name)

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        self.play.leave(name)

    @rule(name=st.sampled_from([d.name for d in DEVICES if d.kind == "gpu"]), mib=st.sampled_from([0, 300, 4096, 40000]))
    def others_use(self, name: str, mib: int) -> None:
        self.play.foreign(name, mib)

    @rule(name=NAMES)
    def evict(self, name: str) -> None:
        self.play.evict(name)

    @rule(number=st.integers(0, len(POLICIES) - 1))
    def reload(self, number: int) -> None:
        self.play.policy(number)

    @rule(host=st.sampled_from([h.name for h in HOSTS]), idle_s=st.sampled_from([None, 5.0, 5000.0]))
    def owner(self, host: str, idle_s: float | None) -> None:
        self.play.owner(host, idle_s)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]), minute=st.sampled_from([60, 720]))
    def later(self, seconds: float, minute: int) -> None:
        self.play.later(seconds, minute)

    @invariant()
    def holds(self) -> None:
        assert self.play.faults() == []


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_the_checks_see_what_is_wrong() -> None:
    play = LedgerPlay()
    holder = next(iter(play.units), None) or (play.place(KINDS[0]) and next(iter(play.units)))
    device = play.units[holder].devices[0]
    assert play.faults() == []
    play.pool.charge(Charge(holder="ghost", device=device, vram_mib=1 << 20))
    told = " ".join(play.faults())
    assert "nobody has the charge of ghost" in told
    assert "overcommitted" in told
    assert "more units than may share it" in told
    play.pool.release("ghost")
    play.pool.release(holder)
    assert play.faults() == [f"{holder} has no charge on {device}"]
