"""A head that is written down: what it was asked, what it answers, when it is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dgpunet_dask.client import talk
from dgpunet_dask.client.talk import Course, JobTalk, Line, Talk
from dgpunet_dask.cluster.calls import Call
from dgpunet_dask.errors import DgpunetError, NoHead


class Time:
    """Moves when somebody pauses."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class Head:
    """Answers by method and the path without its query. `away` counts the looks that find nobody before one does; None: nobody comes."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        self.away: int | None = 0
        self.nobody: DgpunetError = NoHead(where="here")
        self.looks = 0
        self.time = Time()
        self.told: list[dict[str, Any]] = []
        self.said: list[str] = []

    def line(self, timeout_s: float | None = None, *, embedded: bool = False) -> Line:
        return Line(self.time, lambda: embedded, self.said.append, timeout_s)

    def job(self, timeout_s: float | None = None, *, embedded: bool = False) -> JobTalk:
        return JobTalk("j", self.line(timeout_s, embedded=embedded))

    def answer(self, call: Call[Any]) -> Any:
        self.asked.append((call.method, call.path))
        name = f"{call.method} {call.path.partition('?')[0].rpartition('/')[2]}"
        found = self.answers[name]
        found = found(call) if callable(found) else found
        if isinstance(found, DgpunetError):
            raise found
        return found

    def run(self, steps: Talk[Any]) -> Any:
        course = Course(steps)
        while (step := course.step) is not None:
            try:
                found = self._done(step)
            except DgpunetError as error:
                course.fail(error)
            else:
                course.go(found)
        return course.result

    def _done(self, step: talk.Step) -> Any:
        if isinstance(step, talk.Ask):
            return self.answer(step.call)
        if isinstance(step, talk.Pause):
            self.time.at += step.seconds
        elif isinstance(step, talk.Find):
            self.looks += 1
            if self.away is None or self.looks <= self.away:
                raise self.nobody
        elif isinstance(step, talk.Do):
            return step.work()
        else:
            self.told.append(step.event)
        return None


def in_turn(*answers: Any) -> Callable[[Call[Any]], Any]:
    """Return an answer that is another each time; the last one stays."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
