"""Replays a recording: would these machines do the same again?

Machines know no clock and no chance: what they do follows from the facts that they are told, and from the random waits,
which are taken from the recording. So where another version, or a subclass, goes another way, it is another decision.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from reconnect_fsm._steps import NOT_CONTEXT, broken
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.errors import ReconnectError, is_fault
from reconnect_fsm.recorder.format import (
    CLIENT,
    FORMAT,
    MAX_TEXT,
    Json,
    Transition,
    address,
    as_list,
    as_object,
    decoded,
    encoded,
    in_words,
    is_too_deep,
    is_whole,
    same,
    shortened,
)
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import CloseInfo, sanitized

__all__ = ["Divergence", "Replay", "UnreadableRecording", "replay", "transitions_in"]

logger = logging.getLogger("reconnect_fsm")

MAX_BEFORE: Final = 5  # steps told before a divergence
MAX_SHOWN: Final = 10  # divergences that str() tells in full, and notes
MAX_MACHINES: Final = 1_000_000  # a kilobyte each
MAX_LINE: Final = 1_000_000  # characters; far more than is ever written
MAX_SECONDS: Final = 1e12  # seconds

Machine: TypeAlias = ClientFSM | RoomFSM


class UnreadableRecording(ReconnectError, ValueError):
    """A line is none of a recording, or of one that this version cannot read; ``line`` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {sanitized(what, MAX_TEXT)}")
        self.line = line


# Reading ----------------------------------------------------------------------------------------------------------


class RecordedStep(NamedTuple):
    """A step as it was recorded."""

    line: int
    at: float
    machine: str
    event: str
    args: list[Json]
    old: str
    new: str
    status: str
    reason: str
    attempt: int
    retry_in: float | None
    effects: list[Json]
    memory: dict[str, Json] | None


KINDS: Final[dict[str, Any]] = {
    "at": (int, float),
    "machine": str,
    "event": str,
    "args": list,
    "old": str,
    "new": str,
    "status": str,
    "reason": str,
    "attempt": int,
    "retry_in": (int, float, type(None)),
    "effects": list,
    "memory": (dict, type(None)),
}


class _Reader:
    """Reads a recording line by line, so that it may be as long as it likes, and whoever wrote it may mean no good."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.notes = _Notes()
        self._objects = self._parsed(lines)
        number, header = next(self._objects, (1, None))
        if header is None:
            raise UnreadableRecording(1, "the recording is empty")
        if header.get("recording") != "reconnect_fsm":
            raise UnreadableRecording(number, "this is no recording: the first line must be the header that says so")
        if header.get("format") != FORMAT:
            raise UnreadableRecording(
                number,
                f"this recording has format {_brief(header.get('format'))}, and this version reads format {FORMAT}: "
                f"use the version of reconnect-fsm that wrote it, {_brief(header.get('library'))}",
            )
        self.header = header

    def __iter__(self) -> Iterator[RecordedStep]:
        for number, told in self._objects:
            if "end" in told:
                if not str(told["end"]).startswith(("closed", "the last steps")):
                    self.notes.add(f"the recording ended early: {_brief(told['end'])}")
                continue
            if "recording" in told:
                raise UnreadableRecording(number, "another recording begins here: put it into a file of its own")
            yield _step(number, told)

    def _parsed(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Json]]]:
        cut: UnreadableRecording | None = None  # by a crash, if it is the last line
        readline = getattr(lines, "readline", None)  # of a file: it may hold but one line, without an end
        pieces = lines if readline is None else iter(partial(readline, MAX_LINE + 1), "")
        for number, line in enumerate(pieces, 1):
            if len(line) > MAX_LINE:
                raise UnreadableRecording(number, f"it has more than {MAX_LINE:,} characters")
            if not line.strip():
                continue
            if cut is not None:
                raise cut
            try:
                told = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                cut = UnreadableRecording(number, f"this is no JSON ({error}): {_beginning(line)}")
                if number == 1:
                    raise cut from error
                continue
            if (fields := as_object(told)) is None:
                raise UnreadableRecording(number, f"a line must be a JSON object, not {_beginning(line)}")
            if is_too_deep(fields):
                raise UnreadableRecording(number, "its lists and objects lie too deep inside one another")
            yield number, fields
        if cut is not None:
            self.notes.add(f"line {cut.line}, the last, is cut short and was left out")


class _Notes:
    """The first of them, and how many more."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, note: str) -> None:
        if len(self._first) < MAX_SHOWN:
            self._first.append(note)
        else:
            self._more += 1

    def told(self) -> tuple[str, ...]:
        return (*self._first, f"and {self._more:,} more notes") if self._more else tuple(self._first)


def _log_error(what: str, error: BaseException) -> None:
    logger.error("%s raised %s", what, type(error).__name__, exc_info=error)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def _brief(value: Json) -> str:
    return shortened(str(value))


def _beginning(line: str) -> str:
    return shortened(line[: 2 * MAX_TEXT].strip())


def _step(line: int, told: dict[str, Json]) -> RecordedStep:
    for name, kind in KINDS.items():
        value = told.get(name)
        if not isinstance(value, kind) or (isinstance(value, int | float) and not abs(value) < MAX_SECONDS):
            raise UnreadableRecording(line, f"{name!r} of this step is missing or makes no sense: {_brief(value)}")
    fields: dict[str, Any] = {name: told.get(name) for name in KINDS}
    return RecordedStep(line=line, **fields)


def transitions_in(lines: Iterable[str]) -> list[Transition]:
    """The transitions of a recording, for a picture. Raises UnreadableRecording, which names the line."""
    return [
        Transition(told.at, *(getattr(told, name) for name in Transition._fields[1:]))
        for told in _Reader(lines)
        if told.old != told.new or told.effects
    ]


# Replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a machine first goes another way than was recorded; ``str()`` tells it in several lines."""

    machine: str
    """``"client"``, or a room's id."""
    line: int
    """Of the recording, counted from 1."""
    event: str
    """The fact that it was told."""
    recorded: str
    """What the machine did then, in words."""
    now: str
    """What this one does."""
    before: tuple[str, ...] = ()
    """The machine's last steps before it, in words."""
    is_certain: bool = True
    """False if not all that the machine named_context is known, so that this may be no difference between versions."""

    def __str__(self) -> str:
        lines = [f"line {self.line}: {self.machine} goes another way on {self.event}"]
        lines += [f"  before    {each}" for each in self.before]
        lines += [f"  recorded  {self.recorded}", f"  now       {self.now}"]
        if not self.is_certain:
            lines.append("  Not all that the machine knew is recorded, so this may be no difference.")
        return _printable(lines)


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay; ``str()`` tells it."""

    header: dict[str, Any]
    """The recording's first line."""
    machines: tuple[str, ...]
    """``"client"`` and the rooms' ids, in the order of their first steps."""
    steps: int
    """How many were recorded."""
    divergences: tuple[Divergence, ...]
    """The first of each machine, in the order in which they happened."""
    notes: tuple[str, ...] = ()
    """What else is to be known, such as that the last line was cut short."""

    def __str__(self) -> str:
        machines = "1 machine" if len(self.machines) == 1 else f"{len(self.machines):,} machines"
        found = f"{len(self.divergences):,} went another way" if self.divergences else "all went the same way"
        if other := sum(not each.is_certain for each in self.divergences):
            found += f", {other:,} of them perhaps"
        first, more = self.divergences[:MAX_SHOWN], len(self.divergences) - MAX_SHOWN
        lines = [*map(str, first), *([f"and {more:,} machines more"] if more > 0 else []), *self.notes]
        return _printable([*lines, f"{self.steps:,} steps of {machines}: {found}"])


def _printable(lines: list[str]) -> str:
    """Whoever made the file must not command the terminal."""
    return "\n".join(sanitized(line, 2 * MAX_TEXT) for each in lines for line in each.split("\n"))


@dataclass(slots=True)
class _Machine:
    """One machine of a replay."""

    fsm: Machine
    is_known: bool
    """Whether all that it remembers is known."""
    before: tuple[str, ...] = ()
    is_over: bool = False
    """It has gone another way; what comes then says nothing."""


class _RecordedPolicy:
    """Makes a copy of a policy whose delays are those that were recorded, and that judges what was redacted alike."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._given = policy
        self._wait: float | None = None
        self._fault = ""
        self._was_refused = False
        self.policy = copy(policy)
        # it is frozen
        vars(self.policy).update(delay=self._delay, no_sooner=self._no_sooner, is_fatal_close=self._is_fatal_close)

    def expect(self, told: RecordedStep) -> None:
        """This step comes next."""
        effects = [as_object(each) or {} for each in told.effects]
        waits = [each.get("seconds") for each in effects if each.get("is") == "StartTimer"]
        self._wait = next((float(each) for each in reversed(waits) if isinstance(each, int | float)), None)
        raised = re.match(r"the machine \S+ raised (\w+);", told.reason) if told.new != told.old else None
        self._fault = raised[1] if raised and told.event != "faulted" else ""
        changes = [as_object(each.get("change")) or {} for each in effects]
        self._was_refused = any((as_object(each.get("stop")) or {}).get("name") == "REFUSED" for each in changes)

    def _delay(self, attempt: int) -> float:
        if self._fault:
            raise type(self._fault, (Exception,), {})
        if self._wait is not None:
            return self._wait
        return min(self.policy.base * 2.0 ** min(max(attempt - 1, 0), 32), self.policy.cap)  # none was: this is new

    def _is_fatal_close(self, info: CloseInfo) -> bool:
        """What the server said was judged as it said it (D-JUDGED); what was redacted does not tell."""
        return self._given.is_fatal_close(info) or (info.is_redacted and self._was_refused)

    def _no_sooner(self, retry_after: float) -> float:
        return 0.0 if self._wait is None or not retry_after else self._wait  # it is the longer of the two


def replay(
    lines: Iterable[str],
    *,
    fsm: type[ClientFSM] = ClientFSM,
    room_fsm: type[RoomFSM] = RoomFSM,
    policy: RetryPolicy | None = None,
    words: bool = False,
) -> Replay:
    """Tell fresh machines the recorded facts, and compare what they do with what was recorded, step by step.

    Parameters:
        lines: of a recording, such as an open file.
        fsm: the class of the client's machine.
        room_fsm: the class of the rooms' machines.
        policy: decides what is fatal, and how often is too often; by default a `RetryPolicy` with the recorded numbers.
            The waits are always those that were recorded.
        words: compare reasons and messages too, not only states and effects.

    Raises UnreadableRecording, which names the line.
    """
    reader = _Reader(lines)
    run = _Replayer(reader, fsm, room_fsm, policy, words)
    for told in reader:
        try:
            run.step(told)
        except UnreadableRecording:
            raise
        except Exception as error:  # a machine's own are told as what it does: this is what somebody made up
            what = f"this step makes no sense ({type(error).__name__}: {error})"
            raise UnreadableRecording(told.line, what) from error
    return Replay(reader.header, tuple(run.machines), run.steps, tuple(run.divergences), reader.notes.told())


class _Replayer:
    def __init__(
        self,
        reader: _Reader,
        fsm: type[ClientFSM],
        room_fsm: type[RoomFSM],
        policy: RetryPolicy | None,
        words: bool,
    ) -> None:
        self.fsm, self.room_fsm, self.words = fsm, room_fsm, words
        self.machines: dict[str, _Machine] = {}
        self.divergences: list[Divergence] = []
        self.notes = reader.notes
        self.steps = 0
        # Where ids of rooms were hidden, they were in our own words to the server too.
        self.wording = WORDS | ({"CloseSocket": ("reason",)} if reader.header.get("rooms_hidden") else {})
        self.recorded = _RecordedPolicy(policy if policy is not None else self._policy_of(reader.header))
        for name, used in (("fsm", fsm), ("room_fsm", room_fsm)):
            if (recorded := reader.header.get(name)) not in (None, address(used)):
                self.notes.add(
                    f"recorded with {_brief(recorded)}, replayed with {address(used)}: {name}= takes another class"
                )

    def step(self, told: RecordedStep) -> None:
        self.steps += 1
        machine = self.machines.get(told.machine)
        if machine is None:
            machine = self.machines[told.machine] = self._first_step(told)
        if machine.is_over:
            return
        now = self._replay_step(machine, told)
        then = _describe(told.old, told.new, told.effects)
        if now is not None:
            machine.is_over = True
            recorded = f"{then}: {told.reason}" if self.words else then
            self.divergences.append(
                Divergence(told.machine, told.line, told.event, recorded, now, machine.before, machine.is_known)
            )
        machine.before = (*machine.before, f"line {told.line}: {told.event}: {then}")[-MAX_BEFORE:]

    def _replay_step(self, machine: _Machine, told: RecordedStep) -> str | None:
        """Tell the machine the fact; return what it does, in words, if that is something else than was recorded."""
        fsm = machine.fsm
        if told.old not in fsm.states:
            return f"there is no state {told.old}"
        if told.event not in fsm.events:
            return f"there is no fact {told.event}"
        if fsm.state != told.old:
            self.notes.add(
                f"line {told.line}: {told.machine} was in {fsm.state}, and is in {told.old} without a recorded fact"
            )
            machine.is_known = False
            fsm.jump_to(fsm.states[told.old])
        args = [self._decoded(told, each) for each in told.args]
        machine.is_known = machine.is_known and is_whole(told.args)
        self.recorded.expect(told)
        raised = ""
        try:
            effects: Iterable[object] = fsm.events[told.event].fire(fsm, *args)
        except BaseException as error:  # loro's, for one, is no Exception (D-GUARD)
            if not is_fault(error):
                raise
            effects, raised = broken(fsm, error, _log_error), f"; it raised {error!r}"
        done = [encoded(each, same) for each in effects]
        if fsm.state != told.new or self._shape(done) != self._shape(told.effects):
            return _describe(told.old, fsm.state, done) + raised
        if self.words and shortened(fsm.reason, MAX_TEXT) != told.reason:
            return f"{_describe(told.old, fsm.state, done)}: {fsm.reason}"
        return None

    def _decoded(self, told: RecordedStep, value: Json) -> Any:
        try:
            return decoded(value)
        except ValueError as error:
            raise UnreadableRecording(told.line, str(error)) from error

    def _first_step(self, told: RecordedStep) -> _Machine:
        if len(self.machines) == MAX_MACHINES:
            raise UnreadableRecording(told.line, f"there are more than {MAX_MACHINES:,} machines in it")
        fsm: Machine = (self.fsm if told.machine == CLIENT else self.room_fsm)(self.recorded.policy)
        memory = told.memory or {}
        # A room is asked for once, when it is made.
        is_known = told.memory is not None or (told.old == fsm.initial.name and told.event == "join_requested")
        is_fresh = told.old == fsm.initial.name and memory.get("reason") == fsm.reason  # nothing was told to it before
        machine = _Machine(fsm, is_known)
        if told.old in fsm.states:
            fsm.jump_to(fsm.states[told.old])
        for name, each in memory.items():
            if name in NOT_CONTEXT or name.startswith("__") or name in fsm.events:
                raise UnreadableRecording(told.line, f"no machine remembers something called {_brief(name)}")
            if not is_whole(each):
                machine.is_known &= is_fresh  # it is what a machine begins with, then
                continue
            try:
                setattr(fsm, name, self._decoded(told, each))
            except AttributeError:
                machine.is_known = False  # this class has no such thing to remember
        return machine

    def _shape(self, effects: list[Json]) -> list[Json]:
        return effects if self.words else [_without_words(each, self.wording) for each in effects]

    def _policy_of(self, header: dict[str, Json]) -> RetryPolicy:
        told = as_object(header.get("policy")) or {}
        if (kind := told.get("is")) != address(RetryPolicy):
            self.notes.add(
                f"recorded with the policy {_brief(kind)}: what it takes for fatal is known only if policy= is given"
            )
        known = {each.name for each in dataclasses.fields(RetryPolicy)} - {"random"}
        try:
            numbers: dict[str, Any] = {
                name: value if (codes := as_list(value)) is None else frozenset(codes)
                for name, value in told.items()
                if name in known and as_object(value) is None
            }
            return RetryPolicy(**numbers)
        except (TypeError, ValueError) as error:
            self.notes.add(f"the recorded policy cannot be: {error}")
            return RetryPolicy()


WORDS: Final[dict[str, tuple[str, ...]]] = {
    "StatusChange": ("reason",),
    "NotifyRooms": ("why",),
    "ReportOutage": ("why", "next"),
    "ClientStopped": ("words", "reason"),
    "JoinRefused": ("words", "message"),
    "RoomLeft": ("words",),
}
"""Where a value only tells a human what happened. Not the reason of a CloseSocket: the server is told it."""


def _without_words(value: Json, wording: dict[str, tuple[str, ...]]) -> Json:
    """An effect, but for what is worded: another wording is not another way."""
    if (told := as_object(value)) is None:
        return value
    left_out = wording.get(str(told.get("is")), ())
    return {key: _without_words(each, wording) for key, each in told.items() if key not in left_out}


def _describe(old: str, new: str, effects: Iterable[Json]) -> str:
    """A step in words: the states, and what was asked for."""
    asked = ", ".join(shortened(in_words(each)) for each in effects)
    return f"{old} → {new}" + (f"; {shortened(asked, 600)}" if asked else "") if old != new or asked else f"stays {old}"
