"""How ``watch`` shows what happens where there is no live view: as lines for people, or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

from reconnect_fsm.cli.observer import News, Observer
from reconnect_fsm.loro_protocol import CrdtType

__all__ = ["Lines", "View", "as_json", "as_line", "counted", "in_words", "rooms_of", "size", "why"]


class View(Protocol):
    """Entered before anything happens, and left when all is over."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, observer: Observer) -> None:
        """Show how it stands, or what is new. Called again and again."""
        ...


class Lines:
    """A line for each piece of news that ``line`` has one for."""

    def __init__(self, out: TextIO, line: Callable[[News], str | None]) -> None:
        self._out = out
        self._line = line
        reconfigure = getattr(out, "reconfigure", None)  # of a file; somebody may have put something else there
        if reconfigure is not None:
            reconfigure(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, observer: Observer) -> None:
        while observer.news:
            if (line := self._line(observer.news.popleft())) is not None:
                print(line, file=self._out)
        self._out.flush()


def as_json(news: News) -> str:
    """An object in one line, in ASCII: what reads it may have any locale."""
    return json.dumps(news)


def as_line(news: News) -> str | None:
    """When, and in words what; None for what another line tells already."""
    words = in_words(news)
    return None if words is None else f"{news['at']:8.2f}  {words}"


def in_words(news: News) -> str | None:
    """What happened; None for what is told already by other news."""
    tell = WORDS.get(news["kind"])
    return tell(news) if tell else None


def why(news: Mapping[str, Any]) -> str:
    """The reason of a change, and when the next attempt is due."""
    if news.get("event") == "timer_fired":  # its reason is still that of the wait
        return f"attempt {news['attempt']}"
    due = news.get("retry_in")
    return str(news["reason"]) if due is None else f"{news['reason']}; attempt {news['attempt']} in {due:.1f} s"


def rooms_of(news: Mapping[str, Any]) -> str:
    """Which room changed, or how many did."""
    return f"room {news['room']}" if news.get("rooms", 1) == 1 else f"{news['rooms']:,} rooms"


def size(crdt: str, operations: int) -> str:
    """How large a document is, or an ephemeral store."""
    return f"{operations:,} {'keys' if crdt == CrdtType.EPHEMERAL else 'operations'}"


def counted(connects: int, failures: int, losses: int) -> str:
    """The same words in the live view and in the end."""
    return f"connects {connects} · failed attempts {failures} · losses {losses}"


def _room(news: Mapping[str, Any]) -> str:
    allowed = f" ({news['permission']})" if news["permission"] else ""
    return f"{rooms_of(news)}: {news['old']} → {news['new']}{allowed}: {why(news)}"


def _end(news: Mapping[str, Any]) -> str:
    return f"the end: {news['status']}; {counted(news['connects'], news['failures'], news['losses'])}"


WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "start": lambda news: f"watching {news['url']}",
    "transition": lambda news: f"{news['old']} → {news['new']}: {why(news)}",
    "latency": lambda news: f"latency {news['seconds'] * 1000:.1f} ms",
    "room": _room,
    "document": lambda news: f"room {news['room']}: {size(news['crdt'], news['operations'])}: {news['value']}",
    "log": lambda news: f"{news['level']}: {news['message']}",
    "end": _end,
}
