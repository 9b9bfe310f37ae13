"""Run a case: the decision, or the course of a burst, held against what is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.cases.values import Case, Suite
from dgpunet_dask.placement.explanation import explanation, lines
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.run import Arrival, Run
from dgpunet_dask.placement.simulate import simulate


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a case.

    Parameters
    ----------
    faults
        Each way in which it is not as wanted, none where it passed.
    details
        What a failure needs to be understood, in lines.
    decision, course
        Upon a single unit, or of a burst.
    """

    file: str
    case: Case
    faults: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    decision: Decision | None = None
    course: Run | None = None

    @property
    def passed(self) -> bool:
        """Whether all is as wanted."""
        return not self.faults


def run_suite(suite: Suite) -> Iterator[Result]:
    """Run each case."""
    for case in suite.cases:
        yield run_case(case, suite.policy, suite.file)


def run_case(case: Case, policy: Policy, file: str = "") -> Result:
    """Run one case."""
    if case.submit is None:
        return _burst(case, policy, file)
    decision = place(case.fleet, case.submit, policy)
    faults = (*_outcome_faults(case, decision), *_reason_faults(case, decision))
    details = tuple(_details(case, policy)) if faults else ()
    return Result(file=file, case=case, faults=faults, details=details, decision=decision)


def _burst(case: Case, policy: Policy, file: str) -> Result:
    numbered = ((i, unit, burst.demand) for i, burst in enumerate(case.bursts) for unit in range(burst.count))
    arrivals = [Arrival(id=f"{i + 1}.{unit + 1}", demand=demand) for i, unit, demand in numbered]
    course = simulate(case.fleet, policy, arrivals)
    faults = tuple(_burst_faults(case, course))
    details = tuple(_details(case, policy, course)) if faults else ()
    return Result(file=file, case=case, faults=faults, details=details, course=course)


def _burst_faults(case: Case, course: Run) -> Iterator[str]:
    """Yield how the counts and the length of a burst differ from what is wanted. It has not ended while a unit still waits."""
    for device, count in case.want.placed.items():
        units = course.counts.get(device, 0)
        if not count.holds(units):
            yield f"wanted {count} unit(s) on {device}, but {units} ran there"
    if case.want.makespan_s is None:
        return
    left = {**course.waiting, **course.never, **course.held}
    if left:
        reasons = "; ".join(sorted(set(left.values())))
        yield f"wanted an end after {case.want.makespan_s:g} s at most, but {len(left)} unit(s) never ran: {reasons}"
    elif course.makespan_s > case.want.makespan_s + 1e-6:
        yield f"wanted an end after {case.want.makespan_s:g} s at most, but it came after {course.makespan_s:.3f} s"


def _outcome_faults(case: Case, decision: Decision) -> Iterator[str]:
    """Yield how outcome and ranking differ from what is wanted. Cards of a gang work together: their order means nothing."""
    want = case.want
    if decision.outcome != want.outcome:
        wanted = f"on {' + '.join(want.on)}" if want.outcome == "placed" else want.outcome
        yield f"wanted {wanted}, but it {told(decision)}"
        return
    if set(decision.devices) != set(want.on):
        yield f"wanted on {' + '.join(want.on)}, but it {told(decision)}"
        return
    follows = [s.device for s in decision.ranking if s.device not in decision.devices]
    if want.then and follows[: len(want.then)] != list(want.then):
        yield f"wanted {', '.join(want.then)} to follow in the ranking, but there follow {', '.join(follows) or 'none'}"


def told(decision: Decision) -> str:
    """Return what a decision does, as the end of a sentence."""
    if decision.outcome == "placed":
        return f"goes on {' + '.join(decision.devices)}"
    if decision.outcome == "never":
        return "can never run here"
    if decision.ranking and decision.waits_for is not None:
        best = decision.ranking[0].device
        return f"waits by choice: {decision.waits_for}, busy now, would finish it before {best} or any other free device"
    return "waits"


def _reason_faults(case: Case, decision: Decision) -> Iterator[str]:
    for device, code in case.reasons.items():
        verdicts = decision.refusals.get(device)
        if not verdicts:
            yield f"wanted {device} refused as {code}, but it would do"
        elif verdicts[0].code != code:
            yield f"wanted {device} refused as {code}, but its first reason is {verdicts[0].code}"


def _details(case: Case, policy: Policy, course: Run | None = None) -> Iterator[str]:
    """Yield all that a failure needs to be understood: what a burst came to, and each ranking and table of reasons."""
    if course is not None:
        counts = [f"{device} {units}" for device, units in sorted(course.counts.items())]
        left = len(course.waiting) + len(course.never) + len(course.held)
        yield f"units: {', '.join(counts) or 'none'}; {left} left; the last ended after {course.makespan_s:.3f} s"
    if case.submit is not None:
        yield from lines(explanation(case.fleet, case.submit, policy), case.name)
    for i, burst in enumerate(case.bursts, start=1):
        yield from lines(explanation(case.fleet, burst.demand, policy), f"units {i}.*, before the burst")
