"""The flight recorder: every event of the machines and what it did, as JSON lines without secrets.

The dispatcher keeps the last steps of the machines anyway: `Connection.export` writes them to a file.
`Connection.record` writes every step from now on. Both write a header, then one line for each step::

    {"recording": "reconnect_fsm", "format": 1, "library": "1.0", "python": "3.11.2", "policy": {…}, …}
    {"at": 12.5, "machine": "client", "event": "timer_fired", "args": [], "old": "waiting", "new": "retrying", …}

`replay` fires the same events in new machines and compares what they do.

No event brings a machine a URL, a header, a token or auth bytes, and what a server says is redacted before. A machine
of your own may know anything. Of its own events and context only numbers are written; of texts, bytes and values of
your own types only the type is. Its reasons are redacted, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, zip_longest
from typing import Any, Final, Self, TextIO, TypeAlias

from reconnect_fsm._steps import Step, StepLog, named_context
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import RequestJoin, StartKeepalive, StartTimer
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.recorder.format import (
    CLIENT,
    FORMAT,
    MAX_ITEMS,
    MAX_TEXT,
    SECRET,
    Json,
    Transition,
    address,
    encoded,
    private,
    same,
    shortened,
)
from reconnect_fsm.recorder.replay import Divergence, Replay, UnreadableRecording, replay, transitions_in
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import sanitized

__all__ = [
    "CLIENT",
    "Divergence",
    "File",
    "HeaderData",
    "Recorder",
    "Recording",
    "Replay",
    "Transition",
    "UnreadableRecording",
    "export",
    "replay",
    "transitions",
    "transitions_in",
]

logger = logging.getLogger("reconnect_fsm")

MIN_BYTES: Final = 10_000  # enough for the header, a step and the last line
MAX_CODES: Final = 1000  # fatal codes of a policy
MIN_DISTINCT: Final = 8  # characters of a room's id; a shorter one may be part of a word
MAX_TEXTS: Final = 100  # with hidden ids that are cached

AS_JSON: Final = json.JSONEncoder(allow_nan=False).encode  # dumps() would make an encoder for each line

Machine: TypeAlias = ClientFSM | RoomFSM
File: TypeAlias = str | os.PathLike[str] | TextIO


# Writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderData:
    """What the first line of a recording says of the client."""

    fsm: type[ClientFSM]
    room_fsm: type[RoomFSM]
    policy: RetryPolicy
    keepalive: Keepalive
    written: float
    """When, in seconds since 1970."""
    now: float | None
    """The same moment in the loop's time, if there is a loop."""


class Recorder:
    """Makes the lines of a recording: the header, and a line for each step; a machine's first line holds its context.

    ``redaction`` knows the client's secrets. ``hide_rooms`` replaces the ids of rooms by unguessable names, also in the
    server's words: the ids of ``rooms``, which exist already, and of all rooms whose steps are recorded.
    """

    def __init__(
        self, data: HeaderData, redaction: Callable[[object], str], *, hide_rooms: bool, rooms: Iterable[str] = ()
    ) -> None:
        self._data = data
        self._redaction = redaction
        self._hidden = _HiddenIds(rooms, data.room_fsm.events) if hide_rooms else None
        self._names = _MachineNames(same if self._hidden is None else self._hidden.name)
        self._text: Callable[[str], str] = same if self._hidden is None else self._hidden.text

    def header(self) -> str:
        """The first line."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            library = version("reconnect-fsm")
        except PackageNotFoundError:
            library = "unknown"
        data = self._data
        return self._line(
            {
                "recording": "reconnect_fsm",
                "format": FORMAT,
                "library": library,
                "python": ".".join(map(str, sys.version_info[:3])),
                "platform": sys.platform,
                "fsm": address(data.fsm),
                "room_fsm": address(data.room_fsm),
                "policy": self._numbers(data.policy, RetryPolicy),
                "keepalive": self._numbers(data.keepalive, Keepalive),
                "time_zero": None
                if data.now is None
                else data.written - data.now,  # seconds since 1970, at the loop's time 0
                "written": datetime.fromtimestamp(data.written, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "rooms_hidden": self._hidden is not None,
            }
        )

    def line(self, step: Step) -> str:
        """The line of a step."""
        at, room_id, fsm, event, args, old, new, reason, attempt, effects, context = step
        is_new = fsm not in self._names
        name = self._names[fsm, room_id]
        base = RoomFSM if room_id else ClientFSM
        text = self._shown if type(fsm) is base else self._careful
        fields: dict[str, Json] = {
            "at": at,
            "machine": name,
            "event": event,
            "args": [encoded(arg, text if is_known else private) for arg, is_known in _known(base, event, args)],
            "old": old,
            "new": new,
            "status": str(fsm.states[new].status),
            "reason": text(shortened(reason, MAX_TEXT)),
            "attempt": attempt,
            "retry_in": _retry_in(effects),
            "effects": [encoded(each, text) for each in effects],
        }
        if is_new and context is not None:
            named = tuple(islice(named_context(fsm, context).items(), MAX_ITEMS))
            known = {key for key, _ in named if hasattr(base, key)} - SECRET
            fields["memory"] = {key: encoded(each, text if key in known else private) for key, each in named}
        return self._line(fields)

    def expect(self, steps: Iterable[Step]) -> None:
        """Prepare for these steps: the client's may name a room before the room's own first step."""
        if self._hidden is not None:
            for step in steps:
                self._hidden.name(step[1])

    def end(self, why: str, steps: int) -> str:
        """The last line."""
        return self._line({"end": why, "steps": steps})

    def _line(self, fields: dict[str, Json]) -> str:
        return AS_JSON(fields) + "\n"

    def _shown(self, value: str | bytes) -> Json:
        """A text, or the bytes of a version that the server sent, unless a secret or a hidden id is in them."""
        if isinstance(value, str):
            return self._text(value)
        words = value.decode(errors="replace")
        return same(value) if self._careful(words) == sanitized(words) else private(value)

    def _careful(self, value: str | bytes) -> Json:
        """The words of a machine of the user's own, which may know a secret."""
        return self._text(self._redaction(value)) if isinstance(value, str) else self._shown(value)

    def _numbers(self, settings: RetryPolicy | Keepalive, base: type) -> dict[str, Json]:
        """The settings of a policy or keepalive; sets as lists, the random source not at all."""
        fields: dict[str, Json] = {"is": address(type(settings))}
        for each in dataclasses.fields(settings):
            value: Any = getattr(settings, each.name)
            text = same if hasattr(base, each.name) else private
            if type(value) in (set, frozenset, range):
                codes: list[Any] = sorted(value, key=repr)[:MAX_CODES]
                fields[each.name] = [encoded(code, text) for code in codes]
            elif each.repr:
                fields[each.name] = encoded(value, text)
        return fields


def _known(base: type[ClientFSM | RoomFSM], event: str, args: tuple[Any, ...]) -> Iterator[tuple[Any, bool]]:
    """The arguments of an event, and whether each is one of an event of ours, which holds no secret."""
    names = base.events[event].parameters if event in base.events else ()
    for arg, name in zip_longest(args, names[: len(args)], fillvalue=None):
        yield arg, name is not None and name not in SECRET


class _HiddenIds:
    """Replaces ids of rooms by unguessable names, also within texts: a server may name the room it speaks of."""

    def __init__(self, rooms: Iterable[str], events: Collection[str]) -> None:
        self._events = events
        self._key = secrets.token_bytes(16)
        self._names: dict[str, str] = {"": ""}
        self._lengths: list[int] = []  # of the ids, the longest first
        self._texts: dict[str, str] = {}
        for room in rooms:
            self.name(room)

    def name(self, room: str) -> str:
        """The name that is written instead of this id."""
        name = self._names.get(room)
        if name is None:
            digest = hashlib.blake2s(room.encode(errors="replace"), key=self._key, digest_size=6)
            name = f"room-{digest.hexdigest()}"
            for each in (room, sanitized(room)):  # as it is, and as it is shown
                self._names[each] = name
                if len(each) not in self._lengths:
                    self._lengths = sorted({*self._lengths, len(each)}, reverse=True)
            self._texts.clear()
        return name

    def text(self, words: str) -> str:
        """The text without ids. A short id must stand alone: ``room`` is not found in ``room_closed``."""
        if words in self._events:  # the name of an event is read by machines
            return words
        if (known := self._texts.get(words)) is not None:
            return known
        shown: list[str] = []
        at = 0
        while at < len(words):
            length = next((each for each in self._lengths if self._is_id(words, at, at + each)), 0)
            shown.append(self._names[words[at : at + length]] or words[at])
            at += length or 1
        if len(self._texts) >= MAX_TEXTS:
            self._texts.clear()
        self._texts[words] = found = "".join(shown)
        return found

    def _is_id(self, words: str, start: int, end: int) -> bool:
        if words[start:end] not in self._names or end > len(words):
            return False
        around = words[max(start - 1, 0) : start] + words[end : end + 1]
        return end - start >= MIN_DISTINCT or not any(each.isalnum() or each == "_" for each in around)


class _MachineNames:
    """A name for each machine. A room's is its id; a later room with the same id has a number, too."""

    def __init__(self, shown: Callable[[str], str] = same) -> None:
        self._shown = shown
        self._names: dict[Machine, str] = {}
        self._count = Counter({CLIENT: 1})

    def __contains__(self, fsm: Machine) -> bool:
        return fsm in self._names

    def __getitem__(self, which: tuple[Machine, str]) -> str:
        fsm, room_id = which
        name = self._names.get(fsm)
        if name is None:
            name = shown = self._shown(room_id) if room_id else CLIENT
            if room_id:
                while self._count[name]:
                    self._count[shown] += 1
                    name = f"{shown} ({self._count[shown]})"
                self._count[name] += 1
            self._names[fsm] = name
        return name


def _retry_in(effects: Iterable[object]) -> float | None:
    """The wait for the next attempt that begins; other effects tell it from the timer of a join or a keepalive."""
    kinds = {type(each): each for each in effects}
    timer = kinds.get(StartTimer)
    return (
        timer.seconds
        if isinstance(timer, StartTimer) and kinds.keys().isdisjoint((RequestJoin, StartKeepalive))
        else None
    )


class Recording:
    """A complete recording, from `Connection.record` until it is closed, at the latest with the client.

    As a context manager it is closed at the end of the block. It ends by itself when ``max_bytes`` are written or
    writing fails, which is logged; neither harms the client.
    """

    def __init__(self, log: StepLog, recorder: Recorder, file: File, *, max_bytes: int) -> None:
        if log.sink is not None:
            raise RuntimeError("this client is being recorded already: close that recording first")
        if not max_bytes >= MIN_BYTES:
            raise ValueError(f"max_bytes must be at least {MIN_BYTES:,}, not {max_bytes!r}")
        self._log = log
        self._recorder = recorder
        self._max_bytes = max_bytes
        self._file, self._is_ours = _opened(file)
        self.size = 0
        """Bytes written so far."""
        self.steps = 0
        """Steps written so far."""
        self.ended: str | None = None
        """Why it has ended, in words; None as long as it goes on."""
        log.sink = self
        recorder.expect(log.log)
        self._safely(lambda: self._write(recorder.header()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recording of {self.steps} steps, {self.ended or 'going on'}>"

    def close(self) -> None:
        """End the recording, and close the file if it was given by its path. Closing it twice does nothing."""
        self._safely(lambda: self._end("closed by this program"))

    def closed(self) -> None:
        """The client is closed (`StepSink`)."""
        self._safely(lambda: self._end("closed with the client"))

    def step(self, step: Step) -> None:
        """An event has fired (`StepSink`)."""
        self._safely(lambda: self._add(step))

    def _add(self, step: Step) -> None:
        line = self._recorder.line(step)
        if self.size + len(line) > self._max_bytes - MIN_BYTES // 10:
            why = f"it has reached its limit of {self._max_bytes:,} bytes"
            logger.warning("the recording ended: %s", why)
            self._end(why)
            return
        self._write(line)
        self.steps += 1
        if not step[1]:  # the client's own steps are few and important: they must survive a crash
            self._file.flush()

    def _write(self, line: str) -> None:
        self._file.write(line)
        self.size += len(line)

    def _end(self, why: str) -> None:
        if self.ended is None:
            self.ended = why
            self._log.sink = None
            try:
                self._write(self._recorder.end(why, self.steps))
                self._file.flush()
            finally:
                if self._is_ours:
                    self._file.close()

    def _safely(self, do: Callable[[], None]) -> None:
        """A full disk, or a value that cannot be written, ends the recording and nothing else."""
        try:
            do()
        except Exception as error:
            what = f"writing it raised {type(error).__name__}"
            logger.warning("the recording ended: %s", what, exc_info=not isinstance(error, OSError))
            if self.ended is None:
                self._safely(lambda: self._end(what))


def _opened(file: File) -> tuple[TextIO, bool]:
    """The file to write to, and whether we close it. A new file is readable by its owner alone."""
    if not isinstance(file, str | os.PathLike):
        return file, False
    private = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return open(private, "w", encoding="ascii", newline="\n", buffering=2**16), True


def export(steps: Iterable[Step], recorder: Recorder, file: File) -> int:
    """Write these steps as a recording; return their number. Raises OSError if the file cannot be written."""
    kept = tuple(steps)
    recorder.expect(kept)
    target, is_ours = _opened(file)
    try:
        target.write(recorder.header())
        for step in kept:
            target.write(recorder.line(step))
        target.write(recorder.end("the last steps, exported", len(kept)))
    finally:
        if is_ours:
            target.close()
    return len(kept)


def transitions(steps: Iterable[Step]) -> list[Transition]:
    """The transitions among the steps: those that changed a state or had effects."""
    names = _MachineNames()
    return [
        Transition(
            at, names[fsm, room_id], event, old, new, str(fsm.states[new].status), reason, attempt, _retry_in(effects)
        )
        for at, room_id, fsm, event, _, old, new, reason, attempt, effects, _ in steps
        if old != new or effects
    ]
