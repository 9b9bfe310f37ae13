"""Run a case: the decision, or the course of a burst, held against what is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.cases.values import Case, Suite
from dgpunet_dask.placement.explain import explain
from dgpunet_dask.placement.place import place


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a case. `faults`: each way in which it is not as wanted, none where it passed. `decision`: of single work."""

    file: str
    case: Case
    faults: tuple[str, ...] = ()
    decision: Decision | None = None

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
    assert case.submit is not None
    decision = place(case.fleet, case.submit, policy)
    faults = (*_outcome_faults(case, decision), *_reason_faults(case, decision))
    return Result(file=file, case=case, faults=faults, decision=decision)


def _outcome_faults(case: Case, decision: Decision) -> Iterator[str]:
    """Yield how outcome and ranking differ from what is wanted. Cards of a gang work together, so that their order means nothing."""
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


def details(result: Result) -> str:
    """Return all that a failure needs to be understood, in lines."""
    return "" if result.decision is None else explain(result.decision, result.case.name)
