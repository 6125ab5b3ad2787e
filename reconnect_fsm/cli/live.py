"""The live view of ``watch``: one picture of the present status, as large as the terminal. Needs rich."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.text import Text

from reconnect_fsm.cli.views import counted, in_words, rooms_of, size, why
from reconnect_fsm.cli.watched import Update, WatchedClient, WatchedRoom
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
SIGNS: Final[Mapping[str, str]] = {  # not everyone can tell colours apart
    "connecting": "◌",
    "connected": "●",
    "joined": "●",
    "reconnecting": "◐",
    "disconnected": "○",
    "error": "✖",
}
ORDER: Final = {RoomStatus.ERROR: 0, RoomStatus.JOINED: 2}  # of the rooms; all others are between
BLOCKS: Final = "▁▂▃▄▅▆▇█"
MIN_WIDE: Final = 70  # columns; below, a line says less
MIN_LINES: Final = 12
MAX_EXPLANATION_LINES: Final = 3  # lines of the explanation


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

    def show(self, watched: WatchedClient) -> None:
        """Draw it anew."""
        watched.updates.clear()
        self._last = picture(watched, *self._console.size)
        self._live.update(self._last, refresh=True)


def picture(watched: WatchedClient, width: int, height: int) -> Group:
    """The present status, in so many columns and lines; a line that is too long is cut."""
    lines = [_status(watched), *_words(watched, width), _counts(watched), _latency(watched, width)]
    left = max(height, MIN_LINES) - len(lines) - 3  # an empty line, a heading, and where the cursor is
    if watched.rooms:
        rooms = _rooms(watched.rooms, width, max(left // 2 - 2, 1))
        lines += [Text(), _line("rooms", "bold"), *rooms]
        left -= len(rooms) + 2
    lines += [Text(), _line("what happened last", "bold")]
    lines += [_event(each, width) for each in list(watched.history)[-max(left, 1) :]]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def _status(watched: WatchedClient) -> Text:
    status = str(watched.status)
    line = _line(f"{SIGNS[status]} {status}", f"bold {STYLES[status]}")
    line.append(f" for {duration(watched.now - watched.since)}")
    if watched.next_attempt is not None and watched.state == "waiting":
        due = max(watched.next_attempt - watched.now, 0.0)
        line.append(f", attempt {watched.attempt} in ").append(duration(due), "bold")
    return line.append(f"  {watched.url}", "dim")


def _words(watched: WatchedClient, width: int) -> list[Text]:
    words = Text(sanitized(watched.explained(), MAX_EXPLANATION_LINES * width)).wrap(Console(width=width), width - 2)
    lines = [_line(f"  {each.plain.rstrip()}") for each in words if each.plain]
    if len(lines) > MAX_EXPLANATION_LINES:
        lines[MAX_EXPLANATION_LINES - 1 :] = [lines[MAX_EXPLANATION_LINES - 1].append(" …")]
    return [*lines, *([_line(f"  {watched.hint}", "bold")] if watched.hint else [])]


def _counts(watched: WatchedClient) -> Text:
    return _line(f"  {counted(watched.connects, watched.failures, watched.losses)}")


def _latency(watched: WatchedClient, width: int) -> Text:
    if not watched.latencies:
        return _line("  no latency measured yet" if watched.pings else "  no latency is measured: --no-ping", "dim")
    recent = [each * 1000 for each in watched.latencies][-min(max(width - 45, 8), 40) :]
    is_current = watched.status is ClientStatus.CONNECTED
    line = _line(f"  {'' if is_current else 'last '}latency {recent[-1]:.1f} ms ", "" if is_current else "dim")
    if len(recent) > 1:
        line.append(sparkline(recent), "cyan").append(f" {min(recent):.1f} to {max(recent):.1f} ms", "dim")
    return line


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, from 0 to the greatest."""
    maximum = max(values, default=0.0) or 1.0
    return "".join(BLOCKS[min(int(each / maximum * len(BLOCKS)), len(BLOCKS) - 1)] for each in values)


def _rooms(rooms: Sequence[WatchedRoom], width: int, limit: int) -> list[Text]:
    """Refused rooms first, then others that are not joined. Rooms for which there is no space are counted."""
    ordered = sorted(rooms, key=lambda each: ORDER.get(each.room.status, 1))
    shown, rest = (ordered, []) if len(ordered) <= limit else (ordered[: limit - 1], ordered[limit - 1 :])
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
    if width >= MIN_WIDE:
        line.append(f"{room.permission or '':<5} {size(room.crdt_type, watched.operations)}  ")
    return line.append(watched.value, "dim")


def _event(update: Update, width: int) -> Text:
    is_wide = width >= MIN_WIDE
    line = _line(f"{update['at']:8.2f}  " if is_wide else f"{update['at']:6.1f} ", "dim")
    if update["kind"] == "log":
        return line.append(in_words(update) or "", "bold")
    words = why(update)
    if update["kind"] == "room":
        words = f"{rooms_of(update)}: {words}"
    if is_wide:
        line.append(f"{update['old']:>12} → ")
    return line.append(f"{update['new']:<12} ", STYLES[str(update.get("status", update["new"]))]).append(words)


def _line(words: str, style: str = "") -> Text:
    return Text(no_wrap=True, overflow="ellipsis").append(words, style)  # what is appended later has its own style


def _fitting(words: str, cells: int) -> str:
    return set_cell_size(words if cell_len(words) <= cells else set_cell_size(words, cells - 1) + "…", cells)
