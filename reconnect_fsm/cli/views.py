"""The output of ``watch`` where there is no live view: lines of text, or JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

from reconnect_fsm.cli.watched import Update, WatchedClient
from reconnect_fsm.loro_protocol import CrdtType

__all__ = ["Lines", "View", "as_json", "as_line", "counted", "in_words", "rooms_of", "size", "why"]


class View(Protocol):
    """A context manager, entered before the client is started and left at the end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, watched: WatchedClient) -> None:
        """Show the present status, or the updates since the last call."""
        ...


class Lines:
    """Prints a line for each update, unless ``line`` returns None for it."""

    def __init__(self, out: TextIO, line: Callable[[Update], str | None]) -> None:
        self._out = out
        self._line = line
        reconfigure = getattr(out, "reconfigure", None)  # sys.stdout may have been replaced by another object
        if reconfigure is not None:
            reconfigure(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, watched: WatchedClient) -> None:
        while watched.updates:
            if (line := self._line(watched.updates.popleft())) is not None:
                print(line, file=self._out)
        self._out.flush()


def as_json(update: Update) -> str:
    """An object in one line, in ASCII: the program that reads it may have any locale."""
    return json.dumps(update)


def as_line(update: Update) -> str | None:
    """The time and the update in words; None if another line says it already."""
    words = in_words(update)
    return None if words is None else f"{update['at']:8.2f}  {words}"


def in_words(update: Update) -> str | None:
    """The update in words; None if another update says it already."""
    describe = WORDS.get(update["kind"])
    return describe(update) if describe else None


def why(update: Mapping[str, Any]) -> str:
    """The reason of a change, and when the next attempt is due."""
    if update.get("event") == "timer_fired":  # its reason is still that of the wait
        return f"attempt {update['attempt']}"
    due = update.get("retry_in")
    return str(update["reason"]) if due is None else f"{update['reason']}; attempt {update['attempt']} in {due:.1f} s"


def rooms_of(update: Mapping[str, Any]) -> str:
    """The room that changed, or how many did."""
    return f"room {update['room']}" if update.get("rooms", 1) == 1 else f"{update['rooms']:,} rooms"


def size(crdt: str, operations: int) -> str:
    """The size of a document, or of an ephemeral store."""
    return f"{operations:,} {'keys' if crdt == CrdtType.EPHEMERAL else 'operations'}"


def counted(connects: int, failures: int, losses: int) -> str:
    """The counters in words, the same in the live view and in the last line."""
    return f"connects {connects} · failed attempts {failures} · losses {losses}"


def _room(update: Mapping[str, Any]) -> str:
    allowed = f" ({update['permission']})" if update["permission"] else ""
    return f"{rooms_of(update)}: {update['old']} → {update['new']}{allowed}: {why(update)}"


def _end(update: Mapping[str, Any]) -> str:
    return f"the end: {update['status']}; {counted(update['connects'], update['failures'], update['losses'])}"


WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "start": lambda update: f"watching {update['url']}",
    "transition": lambda update: f"{update['old']} → {update['new']}: {why(update)}",
    "latency": lambda update: f"latency {update['seconds'] * 1000:.1f} ms",
    "room": _room,
    "document": lambda update: (
        f"room {update['room']}: {size(update['crdt'], update['operations'])}: {update['value']}"
    ),
    "log": lambda update: f"{update['level']}: {update['message']}",
    "end": _end,
}
