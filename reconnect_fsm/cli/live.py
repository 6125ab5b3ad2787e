"""The live view of ``watch``: one picture of how it stands, as large as the terminal. Needs rich."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.text import Text

from reconnect_fsm.cli.observer import News, Observer, WatchedRoom
from reconnect_fsm.cli.views import counted, in_words, rooms_of, size, why
from reconnect_fsm.recorder.explain import duration
from reconnect_fsm.status import ClientStatus, RoomStatus, sanitized

__all__ = ["Live", "picture", "sparkline"]

STYLES: Final[Mapping[str, str]] = {
    "connecting": "blue",
    "connected": "green",
    "joined": "green",
    "reconnecting": "yellow",
    "disconnected": "magenta",
    "error": "red",
}
SIGNS: Final[Mapping[str, str]] = {  # a colour alone does not tell everybody
    "connecting": "◌",
    "connected": "●",
    "joined": "●",
    "reconnecting": "◐",
    "disconnected": "○",
    "error": "✖",
}
ORDER: Final = {RoomStatus.ERROR: 0, RoomStatus.JOINED: 2}  # of the rooms; all others are between
BLOCKS: Final = "▁▂▃▄▅▆▇█"
NARROW: Final = 70  # columns; below, less is said in a line
FEWEST_LINES: Final = 12
MOST_WORDS: Final = 3  # lines of the explanation


class Live:
    """Draws on standard output while it is entered, and leaves the last picture there."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._live = RichLive(console=self._console, auto_refresh=False, screen=True, vertical_overflow="crop")
        self._last = Group()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        self._console.print(self._last)

    def show(self, observer: Observer) -> None:
        """Draw it anew."""
        observer.news.clear()
        self._last = picture(observer, *self._console.size)
        self._live.update(self._last, refresh=True)


def picture(observer: Observer, width: int, height: int) -> Group:
    """How it stands, in so many columns and lines; a line that is too long is cut."""
    lines = [_status(observer), *_words(observer, width), _counts(observer), _latency(observer, width)]
    left = max(height, FEWEST_LINES) - len(lines) - 3  # an empty line, a heading, and where the cursor is
    if observer.rooms:
        rooms = _rooms(observer.rooms, width, max(left // 2 - 2, 1))
        lines += [Text(), _line("rooms", "bold"), *rooms]
        left -= len(rooms) + 2
    lines += [Text(), _line("what happened last", "bold")]
    lines += [_event(each, width) for each in list(observer.history)[-max(left, 1) :]]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def _status(observer: Observer) -> Text:
    status = str(observer.status)
    line = _line(f"{SIGNS[status]} {status}", f"bold {STYLES[status]}")
    line.append(f" for {duration(observer.now - observer.since)}")
    if observer.next_attempt is not None and observer.state == "waiting":
        due = max(observer.next_attempt - observer.now, 0.0)
        line.append(f", attempt {observer.attempt} in ").append(duration(due), "bold")
    return line.append(f"  {observer.url}", "dim")


def _words(observer: Observer, width: int) -> list[Text]:
    words = Text(sanitized(observer.explained(), MOST_WORDS * width)).wrap(Console(width=width), width - 2)
    lines = [_line(f"  {each.plain.rstrip()}") for each in words if each.plain]
    if len(lines) > MOST_WORDS:
        lines[MOST_WORDS - 1 :] = [lines[MOST_WORDS - 1].append(" …")]
    return [*lines, *([_line(f"  {observer.hint}", "bold")] if observer.hint else [])]


def _counts(observer: Observer) -> Text:
    return _line(f"  {counted(observer.connects, observer.failures, observer.losses)}")


def _latency(observer: Observer, width: int) -> Text:
    if not observer.latencies:
        return _line("  no latency measured yet" if observer.pings else "  no latency is measured: --no-ping", "dim")
    lately = [each * 1000 for each in observer.latencies][-min(max(width - 45, 8), 40) :]
    is_current = observer.status is ClientStatus.CONNECTED
    line = _line(f"  {'' if is_current else 'last '}latency {lately[-1]:.1f} ms ", "" if is_current else "dim")
    if len(lately) > 1:
        line.append(sparkline(lately), "cyan").append(f" {min(lately):.1f} to {max(lately):.1f} ms", "dim")
    return line


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, from 0 to the greatest."""
    most = max(values, default=0.0) or 1.0
    return "".join(BLOCKS[min(int(each / most * len(BLOCKS)), len(BLOCKS) - 1)] for each in values)


def _rooms(rooms: Sequence[WatchedRoom], width: int, most: int) -> list[Text]:
    """Those that were refused first, then others that are not joined; those without space are counted."""
    ordered = sorted(rooms, key=lambda each: ORDER.get(each.room.status, 1))
    shown, rest = (ordered, []) if len(ordered) <= most else (ordered[: most - 1], ordered[most - 1 :])
    names = min(max((cell_len(each.room.id) for each in shown), default=0), width // 3)
    lines = [_room(each, width, names) for each in shown]
    if rest:
        joined = sum(each.room.status is RoomStatus.JOINED for each in rest)
        lines.append(_line(f"  … {len(rest):,} more, {joined:,} of them joined", "dim"))
    return lines


def _room(watched: WatchedRoom, width: int, names: int) -> Text:
    room, status = watched.room, str(watched.room.status)
    line = _line(f"{SIGNS[status]} ", STYLES[status])
    line.append(_fitting(sanitized(room.id), names))
    line.append(f" {status:<12} ", STYLES[status])
    if room.status is not RoomStatus.JOINED:
        return line.append(room.reason)
    if width >= NARROW:
        line.append(f"{room.permission or '':<5} {size(room.crdt_type, watched.operations)}  ")
    return line.append(watched.value, "dim")


def _event(news: News, width: int) -> Text:
    is_wide = width >= NARROW
    line = _line(f"{news['at']:8.2f}  " if is_wide else f"{news['at']:6.1f} ", "dim")
    if news["kind"] == "log":
        return line.append(in_words(news) or "", "bold")
    words = why(news)
    if news["kind"] == "room":
        words = f"{rooms_of(news)}: {words}"
    if is_wide:
        line.append(f"{news['old']:>12} → ")
    return line.append(f"{news['new']:<12} ", STYLES[str(news.get("status", news["new"]))]).append(words)


def _line(words: str, style: str = "") -> Text:
    return Text(no_wrap=True, overflow="ellipsis").append(words, style)  # what is appended later has its own style


def _fitting(words: str, cells: int) -> str:
    return set_cell_size(words if cell_len(words) <= cells else set_cell_size(words, cells - 1) + "…", cells)
