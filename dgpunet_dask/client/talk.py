"""What a client does, step by step: submit, follow, wait, and find a head again that was killed. Pure: it says what to do and is told what came of it.

A *talk* is a generator of steps. `sync` carries them out one after another, `aio` from asyncio, so that both behave alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, NamedTuple, TypeVar

from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.calls import Call, unknown_key
from dgpunet_dask.cluster.wire import JobArray
from dgpunet_dask.errors import (
    CodeNotAllowed,
    DgpunetError,
    HeadAway,
    JobLost,
    NoHead,
    NoSuchJob,
    NotAllowed,
    OtherUser,
    StillRunning,
)
from dgpunet_dask.model.job import FINAL_STATES, JobStatus

T = TypeVar("T")

#: How long one question for events may stay unanswered, in seconds.
POLL_S: Final = 20.0
#: How long a head that is gone may take to come back.
RETURN_S: Final = 60.0
#: How often it is looked for.
LOOK_EVERY_S: Final = 0.25
#: A head that starts makes a new key for its own host: so long after it was gone, a key that it does not know may be the last one. Where the
#: key is in the head's own file, what does not know it is no head of ours (another's, on the port of one that is gone), and ours is waited for.
NEW_KEY_S: Final = 10.0
AWAY: Final = "the head does not answer; waiting for it"


class Ask(NamedTuple):
    """Send this and be told the answer, or the error."""

    call: Call[Any]


class Pause(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


class Find(NamedTuple):
    """Look where the cluster answers now, and go on with that; NoHead where none does."""


class Do(NamedTuple):
    """Call this, which may block, and be told what it returns."""

    work: Callable[[], Any]


class Tell(NamedTuple):
    """Give this event to whoever listens."""

    event: dict[str, Any]


Step = Ask | Pause | Find | Do | Tell
Talk = Generator[Step, Any, T]


class Course(Generic[T]):
    """A talk under way.

    `step` is what is to be done next, `None` at its end; then `result` is there.
    """

    def __init__(self, talk: Talk[T]) -> None:
        self._talk = talk
        self._results: list[T] = []
        self.step: Step | None = None
        self.go(None)

    @property
    def result(self) -> T:
        """What the talk came to."""
        return self._results[0]

    def go(self, told: object) -> None:
        """Say what came of the step."""
        self._advance(lambda: self._talk.send(told))

    def fail(self, error: DgpunetError) -> None:
        """Say what went wrong with it."""
        self._advance(lambda: self._talk.throw(error))

    def _advance(self, move: Callable[[], Step]) -> None:
        try:
            self.step = move()
        except StopIteration as end:
            self.step = None
            self._results.append(end.value)


def ask(call: Call[T]) -> Talk[T]:
    """Ask once; a head that does not answer is NoHead."""
    answer: T = yield Ask(call)
    return answer


def search_request(query: str, *, k: int, path: str | None, lang: str | None, kind: str | Sequence[str], rerank: str | None) -> dict[str, Any]:
    """Return what the API is asked for one query's hits."""
    kinds = [kind] if isinstance(kind, str) else list(kind)
    return {"queries": [{"query": query}], "k": k, "path": path, "lang": lang, "kind": kinds, "rerank": rerank}


def search(index: str, request: Mapping[str, Any]) -> Talk[dict[str, Any]]:
    """Search for one query, and return its answer."""
    answers: list[dict[str, Any]] = yield Ask(calls.search(index, request))
    return answers[0]


@dataclass
class Line:
    """The line to the head over which one job is talked about, and what is done when it breaks.

    Parameters
    ----------
    now
        Gives seconds that never go back.
    embedded
        Whether the head ends with its last command, so that none can follow it.
    say
        Is told once that the head is waited for.
    timeout_s
        How long all of it may take; ``None``: as long as it takes.
    new_key_s
        How long a head that knows the key may take to come back.
    """

    now: Callable[[], float]
    embedded: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda _: None
    timeout_s: float | None = None
    new_key_s: float = NEW_KEY_S
    until: float | None = field(init=False)
    moved: bool = False

    def __post_init__(self) -> None:
        self.until = None if self.timeout_s is None else self.now() + self.timeout_s

    def left_s(self, most_s: float) -> float:
        """Return the seconds until the time is over, at most `most_s`."""
        return most_s if self.until is None else max(0.0, min(most_s, self.until - self.now()))

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.until is not None and self.now() >= self.until

    def again(self, error: DgpunetError) -> Talk[None]:
        """Find the head again after `error`.

        Raises
        ------
        DgpunetError
            `error`, if it is another matter, or no head came back within `RETURN_S` seconds.
        """
        if self.embedded() or not (isinstance(error, NoHead) or unknown_key(error)):
            raise error
        end = self.now() + (self.new_key_s if unknown_key(error) else RETURN_S)
        if isinstance(error, NoHead):
            self.say(AWAY)
        told = ""
        while True:
            try:
                yield Find()
            except (NoHead, NotAllowed) as still:
                if isinstance(still, HeadAway) and still.fields.get("full") and str(still) != told:
                    told = str(still)
                    self.say(told)
                if self.now() >= end or self.over or not (isinstance(still, NoHead) or unknown_key(still)):
                    raise still if isinstance(still, HeadAway) else error from still
                yield Pause(self.left_s(LOOK_EVERY_S))
            else:
                self.moved = True
                return


@dataclass
class JobTalk:
    """What is said about one job over a line that may break."""

    job_id: str
    line: Line

    def ask(self, call: Call[T], instead: Call[T] | None = None) -> Talk[T]:
        """Ask about the job, of the next head if this one goes. Where too much is asked at once, ask later, and then `instead` if there is one.

        Raises
        ------
        JobLost
            If no head comes back, or the one that does knows no such job.
        StillRunning
            If the line's time is over before a head answers.
        """
        while True:
            try:
                answer: T = yield Ask(call)
            except (NoHead, NotAllowed) as error:
                yield from self._again(error)
            except NoSuchJob as error:
                if self.line.moved:
                    raise JobLost(job_id=self.job_id) from error
                raise
            except DgpunetError as error:
                if error.code != "http_429":
                    raise
                yield from self._later(error)
                call = instead or call
            else:
                return answer

    def _later(self, error: DgpunetError) -> Talk[None]:
        """Wait as long as the head has said."""
        if self.line.over:
            raise StillRunning(job_id=self.job_id, timeout_s=self.line.timeout_s) from error
        yield Pause(self.line.left_s(float(error.fields.get("wait_s", LOOK_EVERY_S))))

    def _again(self, error: DgpunetError) -> Talk[None]:
        try:
            yield from self.line.again(error)
        except NoHead as gone:
            if self.line.over:
                raise StillRunning(job_id=self.job_id, timeout_s=self.line.timeout_s) from gone
            if isinstance(gone, HeadAway):
                raise
            raise JobLost(job_id=self.job_id) from gone

    def events(self, since: int = 0) -> Talk[JobStatus | None]:
        """Tell the job's events after number `since` until it has ended, and return it; ``None`` once the line's time is over.

        A job that is tried again has ended before: only its state, which is asked for, says that this is the end.
        """
        ended: JobStatus | None = None
        while True:
            wait_s = 0.0 if ended else self.line.left_s(POLL_S)
            found = yield from self.ask(calls.events(self.job_id, since, wait_s), instead=calls.events(self.job_id, since))
            for event in found:
                since = max(since, int(event["seq"]))
                yield Tell(event)
            if ended and not found:
                return ended
            if self.line.over:
                return None
            if ended or not found or _may_end(found):  # a lost head leaves no last event, and the next may still tell more
                status = yield from self.ask(calls.show(self.job_id))
                ended = status if status.state in FINAL_STATES else None
                if ended and found and _is_end(found[-1]):
                    return ended

    def wait(self, since: int = 0) -> Talk[JobStatus]:
        """Tell the events, and return the job once it has ended.

        Raises
        ------
        StillRunning
            If the line's time is over before.
        """
        status = (yield from self.events(since)) or (yield from self.ask(calls.show(self.job_id)))
        if status.state not in FINAL_STATES:
            raise StillRunning(job_id=self.job_id, timeout_s=self.line.timeout_s)
        return status


def _is_end(event: Mapping[str, Any]) -> bool:
    return event["kind"] == "state" and event["state"] in FINAL_STATES


def _may_end(found: Sequence[Mapping[str, Any]]) -> bool:
    return any(_is_end(event) for event in found)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is to be run, beside its parameters.

    Parameters
    ----------
    after
        Ids of jobs that must be done before it starts.
    retry
        How often it is started again by itself if it fails; committed units are kept.
    allow_failed
        How many of its units may fail for good while the job still counts as done.
    key
        Names this submission: sent again with the same key, it is the same job.
    shared
        Whether every user of the cluster may read it.
    array
        Parameters that differ, a mapping for each job.
    """

    after: Sequence[str] = ()
    retry: int = 0
    allow_failed: int = 0
    key: str | None = None
    shared: bool = False
    array: Sequence[Mapping[str, Any]] | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return what of it is said to a head: only what is not as usual."""
        said = {"after": list(self.after), "retry": self.retry, "allow_failed": self.allow_failed, "key": self.key, "shared": self.shared}
        found = {name: value for name, value in said.items() if value}
        return found if self.array is None else {**found, "array": [dict(row) for row in self.array]}

    def keyed(self, key: str) -> JobOptions:
        """Return the same with `key` where none was given."""
        return self if self.key is not None else replace(self, key=key)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A workload on its way to a head.

    Parameters
    ----------
    name, digest
        Of the workload.
    shipped
        Whether every head of this release has it by its name.
    pack
        Returns its files; may block.
    params
        The job's parameters, complete.
    user
        Who asks, by the name on this machine: whose job it is where the key is an operator's.
    """

    name: str
    digest: str
    shipped: bool
    pack: Callable[[], bytes]
    params: Mapping[str, Any]
    user: str | None = None

    def request(self) -> Talk[dict[str, Any]]:
        """See that the head has the workload, and return what a request says of it.

        Raises
        ------
        CodeNotAllowed
            If the workload is the caller's own and this key may not send code.
        """
        return {"workload": (yield from self._known()), "params": dict(self.params), "user": self.user}

    def _known(self) -> Talk[str]:
        if (yield from ask(calls.has_workload(self.digest))):
            return self.digest
        packed: bytes = yield Do(self.pack)
        try:
            yield Ask(calls.add_workload(self.digest, packed))
        except NotAllowed as error:
            if unknown_key(error):
                raise
            if not self.shipped:
                raise CodeNotAllowed(workload=self.name) from error
            return self.name  # the head's own files of that name
        return self.digest


def submit(parcel: Parcel, options: JobOptions, line: Line) -> Talk[JobStatus | JobArray]:
    """Submit; where the connection is lost, find the head again and send the same once more.

    `options` must have a key: with it, what had arrived before the connection was lost is not submitted twice.
    """
    while True:
        try:
            request = {**(yield from parcel.request()), **options.to_wire()}
            accepted: JobStatus | JobArray = yield Ask(calls.submit(request) if options.array is None else calls.submit_array(request))
        except OtherUser:
            if parcel.user is None:
                raise
            parcel = replace(parcel, user=None)  # the name on this machine, which nobody has asked for: the key's user it is
        except (NoHead, NotAllowed) as error:
            yield from line.again(error)
        else:
            return accepted


def plan(parcel: Parcel, after: Sequence[str] = ()) -> Talk[dict[str, Any]]:
    """Ask where each stage could go now, of a job that would follow those with the ids `after`."""
    return (yield from ask(calls.plan({**(yield from parcel.request()), "after": list(after)})))


def jobs(*, state: str | None = None, owner: str | None = None) -> Talk[list[JobStatus]]:
    """Ask for the jobs, oldest first."""
    return (yield from ask(calls.jobs(state=state, owner=owner)))
