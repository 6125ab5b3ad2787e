"""What is measured, and counting it without OpenTelemetry.

Names, units and attributes follow OpenTelemetry's semantic conventions: those for metrics in general (a counter counts
instances, an up-down counter ends in ``count``, durations are in seconds), and the attributes of the conventions for
servers, networks, URLs, HTTP and errors. There are no conventions for WebSockets; what is of our own is called
``reconnect_fsm.…``. Every attribute has few values, whatever a server says.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal, TypeAlias

from reconnect_fsm._asyncio.connection import Connection, observation_of
from reconnect_fsm.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    ConnectionLost,
    JoinEnded,
    JoinStarted,
    PingAnswered,
    RoomCounted,
    RoomFailed,
    StatusCounted,
    TelemetryEvent,
    observe,
)

__all__ = ["INSTRUMENTS", "Attributes", "Instrument", "Metrics", "attributes_of", "measure", "outcome_of"]

Attributes: TypeAlias = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Instrument:
    """One thing that is measured."""

    name: str
    kind: Literal["counter", "up_down_counter", "histogram"]
    unit: str
    description: str
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, in its unit."""


MOMENTS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # as HTTP's
AGES: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

CLIENTS = Instrument("reconnect_fsm.client.count", "up_down_counter", "{client}", "Clients by status.")
ATTEMPTS = Instrument("reconnect_fsm.attempts", "counter", "{attempt}", "Attempts to connect that were begun.")
ATTEMPT = Instrument("reconnect_fsm.attempt.duration", "histogram", "s", "How long attempts to connect took.", MOMENTS)
LOST = Instrument(
    "reconnect_fsm.connections.lost", "counter", "{connection}", "Connections that ended without being asked to."
)
CONNECTION = Instrument("reconnect_fsm.connection.duration", "histogram", "s", "How long connections lasted.", AGES)
PING = Instrument("reconnect_fsm.ping.duration", "histogram", "s", "Round trips of pings.", MOMENTS)
ROOMS = Instrument("reconnect_fsm.room.count", "up_down_counter", "{room}", "Tracked rooms by status.")
JOINS = Instrument("reconnect_fsm.joins", "counter", "{join}", "Joins, and joins again, that were begun.")
JOIN = Instrument("reconnect_fsm.join.duration", "histogram", "s", "How long joins took.", MOMENTS)
FAILED = Instrument("reconnect_fsm.rooms.failed", "counter", "{room}", "Rooms refused or evicted.")

INSTRUMENTS: Final = (CLIENTS, ATTEMPTS, ATTEMPT, LOST, CONNECTION, PING, ROOMS, JOINS, JOIN, FAILED)

STATUS, OUTCOME, CAUSE, CLOSE_CODE = (f"reconnect_fsm.{name}" for name in ("status", "outcome", "cause", "close_code"))
CRDT_TYPE: Final = "reconnect_fsm.crdt_type"
ERROR_TYPE: Final = "error.type"


def measure(event: TelemetryEvent) -> Iterator[tuple[Instrument, float, Attributes]]:
    """What an event adds to which instrument."""
    match event:
        case AttemptStarted():
            yield ATTEMPTS, 1, {}
        case AttemptEnded(duration=seconds):
            yield ATTEMPT, seconds, outcome_of(event)
        case ConnectionLost(duration=seconds):
            why = {CAUSE: event.cause} | ({} if event.close is None else {CLOSE_CODE: _code(event.close.code)})
            yield CONNECTION, seconds, why
            if not event.is_wanted:
                yield LOST, 1, why
        case StatusCounted(old=old, new=new):
            yield from _moved(CLIENTS, old, new)
        case PingAnswered(duration=seconds):
            yield PING, seconds, {}
        case RoomCounted(old=old, new=new):
            yield from _moved(ROOMS, old, new)
        case _:
            yield from _measure_room(event)


def _measure_room(event: TelemetryEvent) -> Iterator[tuple[Instrument, float, Attributes]]:
    match event:
        case JoinStarted(room=room):
            yield JOINS, 1, {CRDT_TYPE: room.crdt_type.name.lower()}
        case JoinEnded(room=room, duration=seconds):
            yield JOIN, seconds, {CRDT_TYPE: room.crdt_type.name.lower()} | outcome_of(event)
        case RoomFailed(room=room, error=error):
            yield FAILED, 1, {CRDT_TYPE: room.crdt_type.name.lower(), ERROR_TYPE: error}
        case _:
            pass


def outcome_of(event: AttemptEnded | JoinEnded) -> dict[str, str]:
    """The attributes of the outcome, and of the error if there was one."""
    return {OUTCOME: event.outcome} | ({} if event.error is None else {ERROR_TYPE: event.error})


def attributes_of(client: Connection) -> dict[str, str | int]:
    """The attributes that distinguish one client's measurements from another's: the server. No path, query or user.

    If the URL is a function, which is called before each attempt, the server is not known.
    """
    known: dict[str, str | int] = {"network.protocol.name": "websocket"}
    url = observation_of(client).url
    if url is not None:
        known |= {"server.address": url.host or "", "url.scheme": url.scheme}
        known |= {} if url.port is None else {"server.port": url.port}
    return known


def _moved(instrument: Instrument, old: str | None, new: str | None) -> Iterator[tuple[Instrument, float, Attributes]]:
    if old is not None:
        yield instrument, -1, {STATUS: str(old)}
    if new is not None:
        yield instrument, 1, {STATUS: str(new)}


def _code(code: int) -> str:
    """Close codes from 3000 on are free to use: a server could send two thousand of them."""
    return str(code) if 1000 <= code < 1016 else f"{code // 1000}xxx"


Key: TypeAlias = tuple[tuple[str, str | int], ...]


@dataclass(slots=True)
class _Histogram:
    """How many values were at most each bound (the last: at most infinity), and their sum."""

    counts: list[int]
    total: float = 0.0

    def add(self, value: float, bounds: tuple[float, ...]) -> None:
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value


class Metrics:
    """Counts what clients do, without OpenTelemetry.

    ::

        metrics = Metrics()
        metrics.observe(client)

        async def scrape(request: web.Request) -> web.Response:
            return web.Response(text=metrics.exposition(), headers={"Content-Type": Metrics.CONTENT_TYPE})

    Use it in the thread of the event loop, as a client.
    """

    CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._values: dict[Instrument, dict[Key, float]] = {each: {} for each in INSTRUMENTS}
        self._histograms: dict[Instrument, dict[Key, _Histogram]] = {each: {} for each in INSTRUMENTS}

    def observe(self, client: Connection, attributes: Attributes | None = None) -> Callable[[], None]:
        """Count this client, too. Returns a function that ends it: call it once the client is closed for good, or it is
        counted as disconnected for ever.

        ``attributes`` are added to those that say which server it is; each should have few values.
        """
        known = attributes_of(client) | dict(attributes or {})
        return observe(client, lambda event: self._count(event, known))

    def snapshot(self) -> dict[str, list[dict[str, Any]]]:
        """All measurements by instrument, as plain values for JSON.

        ``{"reconnect_fsm.attempts": [{"attributes": {"server.address": "example.org", …}, "value": 3}], …}``; in place
        of ``value`` a histogram has ``count``, ``sum`` and ``buckets`` (how many were at most so much).
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for each in INSTRUMENTS:
            values = [{"attributes": dict(key), "value": value} for key, value in self._values[each].items()]
            found[each.name] = values + [
                {
                    "attributes": dict(key),
                    "count": sum(histogram.counts),
                    "sum": histogram.total,
                    "buckets": dict(_buckets(each, histogram)),
                }
                for key, histogram in self._histograms[each].items()
            ]
        return found

    def exposition(self) -> str:
        """All measurements in Prometheus' text format; names are converted as OpenTelemetry's exporter does."""
        lines: list[str] = []
        for each in INSTRUMENTS:
            name = each.name.replace(".", "_") + SUFFIXES[each.kind]
            lines += [f"# HELP {name} {each.description}", f"# TYPE {name} {TYPES[each.kind]}"]
            lines += [f"{name}{_labels(key)} {value}" for key, value in self._values[each].items()]
            for key, histogram in self._histograms[each].items():
                for bound, count in _buckets(each, histogram):
                    lines.append(f"{name}_bucket{_labels((*key, ('le', bound)))} {count}")
                lines += [
                    f"{name}_sum{_labels(key)} {histogram.total!r}",
                    f"{name}_count{_labels(key)} {sum(histogram.counts)}",
                ]
        return "\n".join(lines) + "\n"

    def _count(self, event: TelemetryEvent, known: Attributes) -> None:
        for instrument, value, attributes in measure(event):
            key = tuple(sorted({**known, **attributes}.items()))
            if instrument.kind == "histogram":
                histogram = self._histograms[instrument].get(key)
                if histogram is None:
                    histogram = self._histograms[instrument][key] = _Histogram([0] * (len(instrument.bounds) + 1))
                histogram.add(value, instrument.bounds)
            else:
                values = self._values[instrument]
                values[key] = values.get(key, 0) + value


TYPES: Final = {"counter": "counter", "up_down_counter": "gauge", "histogram": "histogram"}
SUFFIXES: Final = {"counter": "_total", "up_down_counter": "", "histogram": "_seconds"}
UNFIT: Final = re.compile(r"^(?=\d)|[^a-zA-Z0-9_]")  # in the name of a label, which may not begin with a digit either
ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _buckets(instrument: Instrument, histogram: _Histogram) -> Iterator[tuple[str, int]]:
    return zip([*(f"{bound:g}" for bound in instrument.bounds), "+Inf"], accumulate(histogram.counts), strict=True)


def _labels(key: Key) -> str:
    pairs = [f'{UNFIT.sub("_", name)}="{str(value).translate(ESCAPES)}"' for name, value in key]
    return "{" + ",".join(pairs) + "}" if pairs else ""
