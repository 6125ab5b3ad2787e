"""Replays a recording: would these machines do the same again?

Machines know no clock and no random source. What they do follows from the events, and from the random waits, which are
taken from the recording. So if another version or a subclass behaves differently, it decides differently.
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

from reconnect_fsm._steps import NOT_CONTEXT
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

MAX_BEFORE: Final = 5  # steps shown before a divergence
MAX_SHOWN: Final = 10  # divergences that str() shows in full; notes
MAX_MACHINES: Final = 1_000_000  # a kilobyte each
MAX_LINE: Final = 1_000_000  # characters; far more than a recorder writes
MAX_SECONDS: Final = 1e12

Machine: TypeAlias = ClientFSM | RoomFSM


class UnreadableRecording(ReconnectError, ValueError):
    """A line does not belong to a recording, or this version cannot read it; ``line`` counts from 1."""

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
    """Reads a recording line by line. It may be of any length, and it is not trusted."""

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
        for number, fields in self._objects:
            if "end" in fields:
                if not str(fields["end"]).startswith(("closed", "the last steps")):
                    self.notes.add(f"the recording ended early: {_brief(fields['end'])}")
                continue
            if "recording" in fields:
                raise UnreadableRecording(number, "another recording begins here: put it into a file of its own")
            yield _step(number, fields)

    def _parsed(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Json]]]:
        cut: UnreadableRecording | None = None  # a crash may cut the last line
        readline = getattr(lines, "readline", None)  # of a file, which may be one endless line
        pieces = lines if readline is None else iter(partial(readline, MAX_LINE + 1), "")
        for number, line in enumerate(pieces, 1):
            if len(line) > MAX_LINE:
                raise UnreadableRecording(number, f"it has more than {MAX_LINE:,} characters")
            if not line.strip():
                continue
            if cut is not None:
                raise cut
            try:
                value = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                cut = UnreadableRecording(number, f"this is no JSON ({error}): {_beginning(line)}")
                if number == 1:
                    raise cut from error
                continue
            if (fields := as_object(value)) is None:
                raise UnreadableRecording(number, f"a line must be a JSON object, not {_beginning(line)}")
            if is_too_deep(fields):
                raise UnreadableRecording(number, "its lists and objects lie too deep inside one another")
            yield number, fields
        if cut is not None:
            self.notes.add(f"line {cut.line}, the last, is cut short and was left out")


class _Notes:
    """Keeps the first notes, and counts the others."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, note: str) -> None:
        if len(self._first) < MAX_SHOWN:
            self._first.append(note)
        else:
            self._more += 1

    def shown(self) -> tuple[str, ...]:
        """The first notes, and how many more there are."""
        return (*self._first, f"and {self._more:,} more notes") if self._more else tuple(self._first)


def _log_error(what: str, error: BaseException) -> None:
    logger.error("%s raised %s", what, type(error).__name__, exc_info=error)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def _brief(value: Json) -> str:
    return shortened(str(value))


def _beginning(line: str) -> str:
    return shortened(line[: 2 * MAX_TEXT].strip())


def _step(line: int, values: dict[str, Json]) -> RecordedStep:
    for name, kind in KINDS.items():
        value = values.get(name)
        if not isinstance(value, kind) or (isinstance(value, int | float) and not abs(value) < MAX_SECONDS):
            raise UnreadableRecording(line, f"{name!r} of this step is missing or makes no sense: {_brief(value)}")
    fields: dict[str, Any] = {name: values.get(name) for name in KINDS}
    return RecordedStep(line=line, **fields)


def transitions_in(lines: Iterable[str]) -> list[Transition]:
    """The transitions in a recording, for a picture. Raises UnreadableRecording, which names the line."""
    return [
        Transition(step.at, *(getattr(step, name) for name in Transition._fields[1:]))
        for step in _Reader(lines)
        if step.old != step.new or step.effects
    ]


# Replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step in which a machine does something else than was recorded; ``str()`` describes it."""

    machine: str
    """``"client"``, or a room's id."""
    line: int
    """Of the recording, counted from 1."""
    event: str
    """The event that fired."""
    recorded: str
    """What the recorded machine did, in words."""
    replayed: str
    """What this machine does."""
    before: tuple[str, ...] = ()
    """The machine's last steps before it, in words."""
    is_certain: bool = True
    """False if the recording lacks a part of the machine's context, so that this may be no difference of versions."""

    def __str__(self) -> str:
        lines = [f"line {self.line}: {self.machine} behaves differently on {self.event}"]
        lines += [f"  before    {each}" for each in self.before]
        lines += [f"  recorded  {self.recorded}", f"  replayed  {self.replayed}"]
        if not self.is_certain:
            lines.append("  A part of the machine's context is not recorded, so this may be no difference.")
        return _printable(lines)


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of a replay; ``str()`` describes it."""

    header: dict[str, Any]
    """The recording's first line."""
    machines: tuple[str, ...]
    """``"client"`` and the rooms' ids, in the order of their first steps."""
    steps: int
    """The number of recorded steps."""
    divergences: tuple[Divergence, ...]
    """The first of each machine, in the order in which they happened."""
    notes: tuple[str, ...] = ()
    """Remarks, such as that the last line was cut short."""

    def __str__(self) -> str:
        machines = "1 machine" if len(self.machines) == 1 else f"{len(self.machines):,} machines"
        found = f"{len(self.divergences):,} behaved differently" if self.divergences else "all did the same"
        if other := sum(not each.is_certain for each in self.divergences):
            found += f", {other:,} of them not for certain"
        first, more = self.divergences[:MAX_SHOWN], len(self.divergences) - MAX_SHOWN
        lines = [*map(str, first), *([f"and {more:,} machines more"] if more > 0 else []), *self.notes]
        return _printable([*lines, f"{self.steps:,} steps of {machines}: {found}"])


def _printable(lines: list[str]) -> str:
    """Remove control characters: the file is not trusted, and the text goes to a terminal."""
    return "\n".join(sanitized(line, 2 * MAX_TEXT) for each in lines for line in each.split("\n"))


@dataclass(slots=True)
class _Machine:
    """One machine of a replay."""

    fsm: Machine
    is_known: bool
    """Whether all of its context is known."""
    before: tuple[str, ...] = ()
    is_over: bool = False
    """It has behaved differently; its later steps prove nothing."""


class _RecordedPolicy:
    """Makes a copy of a policy that returns the recorded delays, and that judges redacted close reasons as recorded."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._given = policy
        self._wait: float | None = None
        self._fault = ""
        self._was_refused = False
        self.policy = copy(policy)
        # the dataclass is frozen
        vars(self.policy).update(delay=self._delay, no_sooner=self._no_sooner, is_fatal_close=self._is_fatal_close)

    def expect(self, step: RecordedStep) -> None:
        """Prepare for this step."""
        effects = [as_object(each) or {} for each in step.effects]
        waits = [each.get("seconds") for each in effects if each.get("is") == "StartTimer"]
        self._wait = next((float(each) for each in reversed(waits) if isinstance(each, int | float)), None)
        raised = re.match(r"the machine \S+ raised (\w+);", step.reason) if step.new != step.old else None
        self._fault = raised[1] if raised and step.event != "faulted" else ""
        changes = [as_object(each.get("change")) or {} for each in effects]
        self._was_refused = any((as_object(each.get("stop")) or {}).get("name") == "REFUSED" for each in changes)

    def _delay(self, attempt: int) -> float:
        if self._fault:
            raise type(self._fault, (Exception,), {})
        if self._wait is not None:
            return self._wait
        return min(
            self.policy.base * 2.0 ** min(max(attempt - 1, 0), 32), self.policy.cap
        )  # none was recorded: this wait is new

    def _is_fatal_close(self, info: CloseInfo) -> bool:
        """The machine judged the server's own words (D-JUDGED); redacted words do not say how."""
        return self._given.is_fatal_close(info) or (info.is_redacted and self._was_refused)

    def _no_sooner(self, retry_after: float) -> float:
        return (
            0.0 if self._wait is None or not retry_after else self._wait
        )  # the recorded wait is the longer of the two


def replay(
    lines: Iterable[str],
    *,
    fsm: type[ClientFSM] = ClientFSM,
    room_fsm: type[RoomFSM] = RoomFSM,
    policy: RetryPolicy | None = None,
    words: bool = False,
) -> Replay:
    """Fire the recorded events in new machines, and compare each step with the recorded one.

    Parameters:
        lines: of a recording, such as an open file.
        fsm: the class of the client's machine.
        room_fsm: the class of the rooms' machines.
        policy: decides what is fatal, and the limit of attempts; by default a `RetryPolicy` with the recorded numbers.
            The waits are always the recorded ones.
        words: compare reasons and messages too, not only states and effects.

    Raises UnreadableRecording, which names the line.
    """
    reader = _Reader(lines)
    run = _Replayer(reader, fsm, room_fsm, policy, words)
    for step in reader:
        try:
            run.step(step)
        except UnreadableRecording:
            raise
        except Exception as error:  # not the machine's, which is part of the result: the recording is forged or damaged
            what = f"this step makes no sense ({type(error).__name__}: {error})"
            raise UnreadableRecording(step.line, what) from error
    return Replay(reader.header, tuple(run.machines), run.steps, tuple(run.divergences), reader.notes.shown())


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
        # Where the ids of rooms are hidden, they are hidden in our words to the server, too.
        self.words_of = WORDS | ({"CloseSocket": ("reason",)} if reader.header.get("rooms_hidden") else {})
        self.recorded = _RecordedPolicy(policy if policy is not None else self._policy_of(reader.header))
        for name, used in (("fsm", fsm), ("room_fsm", room_fsm)):
            if (recorded := reader.header.get(name)) not in (None, address(used)):
                self.notes.add(
                    f"recorded with {_brief(recorded)}, replayed with {address(used)}: {name}= takes another class"
                )

    def step(self, step: RecordedStep) -> None:
        """Replay one step, and keep the divergence, if it is one."""
        self.steps += 1
        machine = self.machines.get(step.machine)
        if machine is None:
            machine = self.machines[step.machine] = self._first_step(step)
        if machine.is_over:
            return
        replayed = self._replay_step(machine, step)
        recorded = _describe(step.old, step.new, step.effects)
        if replayed is not None:
            machine.is_over = True
            in_full = f"{recorded}: {step.reason}" if self.words else recorded
            self.divergences.append(
                Divergence(step.machine, step.line, step.event, in_full, replayed, machine.before, machine.is_known)
            )
        machine.before = (*machine.before, f"line {step.line}: {step.event}: {recorded}")[-MAX_BEFORE:]

    def _replay_step(self, machine: _Machine, step: RecordedStep) -> str | None:
        """Fire the event; return what the machine does, in words, if it is something else than was recorded."""
        fsm = machine.fsm
        if step.old not in fsm.states:
            return f"there is no state {step.old}"
        if step.event not in fsm.events:
            return f"there is no event {step.event}"
        if fsm.state != step.old:
            self.notes.add(
                f"line {step.line}: {step.machine} was in {fsm.state}, and is in {step.old} without a recorded event"
            )
            machine.is_known = False
            fsm.jump_to(fsm.states[step.old])
        args = [self._decoded(step, each) for each in step.args]
        machine.is_known = machine.is_known and is_whole(step.args)
        self.recorded.expect(step)
        raised = ""
        try:
            effects: Iterable[object] = fsm.events[step.event].fire(fsm, *args)
        except BaseException as error:  # loro's errors are no Exceptions (D-GUARD)
            if not is_fault(error):
                raise
            effects, raised = fsm.fault(error, _log_error), f"; it raised {error!r}"
        done = [encoded(each, same) for each in effects]
        if fsm.state != step.new or self._shape(done) != self._shape(step.effects):
            return _describe(step.old, fsm.state, done) + raised
        if self.words and shortened(fsm.reason, MAX_TEXT) != step.reason:
            return f"{_describe(step.old, fsm.state, done)}: {fsm.reason}"
        return None

    def _decoded(self, step: RecordedStep, value: Json) -> Any:
        try:
            return decoded(value)
        except ValueError as error:
            raise UnreadableRecording(step.line, str(error)) from error

    def _first_step(self, step: RecordedStep) -> _Machine:
        """The machine as it was before its first step."""
        if len(self.machines) == MAX_MACHINES:
            raise UnreadableRecording(step.line, f"there are more than {MAX_MACHINES:,} machines in it")
        fsm: Machine = (self.fsm if step.machine == CLIENT else self.room_fsm)(self.recorded.policy)
        context = step.memory or {}
        # `join_requested` is the first event of a room, so a new machine has all of its context.
        is_known = step.memory is not None or (step.old == fsm.initial.name and step.event == "join_requested")
        is_fresh = step.old == fsm.initial.name and context.get("reason") == fsm.reason  # no event fired in it before
        machine = _Machine(fsm, is_known)
        if step.old in fsm.states:
            fsm.jump_to(fsm.states[step.old])
        for name, each in context.items():
            if name in NOT_CONTEXT or name.startswith("__") or name in fsm.events:
                raise UnreadableRecording(step.line, f"no machine has an attribute {_brief(name)} in its context")
            if not is_whole(each):
                machine.is_known &= is_fresh  # it is then what a new machine has
                continue
            try:
                setattr(fsm, name, self._decoded(step, each))
            except AttributeError:
                machine.is_known = False  # this class has no such attribute
        return machine

    def _shape(self, effects: list[Json]) -> list[Json]:
        return effects if self.words else [_without_words(each, self.words_of) for each in effects]

    def _policy_of(self, header: dict[str, Json]) -> RetryPolicy:
        recorded = as_object(header.get("policy")) or {}
        if (kind := recorded.get("is")) != address(RetryPolicy):
            self.notes.add(
                f"recorded with the policy {_brief(kind)}: give it as policy=, or closes may be judged differently"
            )
        known = {each.name for each in dataclasses.fields(RetryPolicy)} - {"random"}
        try:
            numbers: dict[str, Any] = {
                name: value if (codes := as_list(value)) is None else frozenset(codes)
                for name, value in recorded.items()
                if name in known and as_object(value) is None
            }
            return RetryPolicy(**numbers)
        except (TypeError, ValueError) as error:
            self.notes.add(f"the recorded policy is invalid: {error}")
            return RetryPolicy()


WORDS: Final[dict[str, tuple[str, ...]]] = {
    "StatusChange": ("reason",),
    "NotifyRooms": ("why",),
    "ReportOutage": ("why", "next"),
    "ClientStopped": ("words", "reason"),
    "JoinRefused": ("words", "message"),
    "RoomLeft": ("words",),
}
"""The fields that are only words for a human. Not the reason of a CloseSocket: it is sent to the server."""


def _without_words(value: Json, words_of: dict[str, tuple[str, ...]]) -> Json:
    """An effect without its words: other words are no other behaviour."""
    if (fields := as_object(value)) is None:
        return value
    left_out = words_of.get(str(fields.get("is")), ())
    return {key: _without_words(each, words_of) for key, each in fields.items() if key not in left_out}


def _describe(old: str, new: str, effects: Iterable[Json]) -> str:
    """A step in words: the states, and the effects."""
    asked = ", ".join(shortened(in_words(each)) for each in effects)
    return f"{old} → {new}" + (f"; {shortened(asked, 600)}" if asked else "") if old != new or asked else f"stays {old}"
