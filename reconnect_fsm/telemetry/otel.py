"""Turns telemetry events into spans and measurements of OpenTelemetry; the only module that imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final, TypeAlias

from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider, get_meter
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)

from reconnect_fsm._asyncio.room import Room
from reconnect_fsm.status import ClientStatus
from reconnect_fsm.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    ConnectionLost,
    JoinEnded,
    JoinStarted,
    StatusCounted,
    TelemetryEvent,
)
from reconnect_fsm.telemetry.metrics import (
    CAUSE,
    CLOSE_CODE,
    CRDT_TYPE,
    ERROR_TYPE,
    INSTRUMENTS,
    OUTCOME,
    Attributes,
    Instrument,
    measure,
    outcome_of,
)

__all__ = ["Exporter"]

SCOPE: Final = "reconnect_fsm"
UNDER_WAY: Final = (ClientStatus.CONNECTING, ClientStatus.RECONNECTING)
HTTP_STATUS: Final = "http.response.status_code"
RETRY, ATTEMPTS, ROOM_ID, DURATION, REASON = (
    f"reconnect_fsm.{name}" for name in ("retry", "attempts", "room_id", "duration", "reason")
)
LOST: Final = "reconnect_fsm.connection.lost"
ALONE: Final = Context()  # not the current context, which is that of the task or timer that runs

Details: TypeAlias = Mapping[str, str | int | float]


class Exporter:
    """Exports the events of one client. Its memory is bounded by the joins under way."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        known: Attributes,
        room_ids: bool,
    ) -> None:
        meter = get_meter(SCOPE, _version(), meter_provider)
        self._record = {each: _recorder(meter, each) for each in INSTRUMENTS}
        self._tracer = get_tracer(SCOPE, _version(), tracer_provider)
        self._known = known
        self._room_ids = room_ids
        self._trace = ALONE  # of the present connection, or of the way to it
        self._way: _Span | None = None
        self._attempts = 0
        self._attempt: _Span | None = None
        self._joins: dict[Room, _Span] = {}
        self._lost: ConnectionLost | None = None

    def export(self, event: TelemetryEvent) -> None:
        """Record what the event measures; begin and end spans."""
        for each, value, attributes in measure(event):
            self._record[each](value, {**self._known, **attributes})
        match event:
            case ConnectionLost():
                self._lost = event
            case StatusCounted(new=None):
                self._end_all(event.at)
            case StatusCounted():
                self._status_changed(event)
            case AttemptStarted(at=at, retry=retry):
                self._attempts += 1
                self._attempt = self._begin("attempt", at, SpanKind.CLIENT, {RETRY: retry})
            case AttemptEnded(at=at, failure=failure) if self._attempt is not None:
                attempt, self._attempt = self._attempt, None  # first, because an exporter may raise
                if failure is not None and failure.http_status is not None:
                    attempt.set(HTTP_STATUS, failure.http_status)
                attempt.end(at, outcome_of(event), None if failure is None else failure.why)
            case JoinStarted():
                self._begin_join(event)
            case JoinEnded(at=at, room=room, outcome=outcome) if room in self._joins:
                why = room.reason if self._room_ids else event.error or ""  # a server may name the room in its words
                self._joins.pop(room).end(at, outcome_of(event), why if outcome == "refused" else None)
            case _:
                pass

    def _status_changed(self, event: StatusCounted) -> None:
        lost, self._lost = self._lost, None
        is_under_way = event.new in UNDER_WAY
        if self._way is None and (is_under_way or (lost is not None and not lost.is_wanted)):
            name = "connect" if event.new is ClientStatus.CONNECTING else "reconnect"
            self._trace, self._attempts = ALONE, 0
            self._way = self._begin(name, event.at, SpanKind.INTERNAL, {})
            self._trace = self._way.as_parent()
            if lost is not None:
                self._way.add_event(LOST, _loss(lost, event.reason))
        if self._way is not None and not is_under_way:
            way, self._way = self._way, None
            way.set(ATTEMPTS, self._attempts)
            if event.new is ClientStatus.CONNECTED:
                way.end(event.at, {OUTCOME: "connected"})
            elif event.cause == "close_requested":
                way.end(event.at, {OUTCOME: "cancelled"})
            else:
                way.end(event.at, {OUTCOME: "failed", ERROR_TYPE: event.cause}, event.reason)

    def _begin_join(self, event: JoinStarted) -> None:
        room = event.room
        join = self._begin("join", event.at, SpanKind.CLIENT, {CRDT_TYPE: room.crdt_type.name.lower()})
        if self._room_ids:
            join.set(ROOM_ID, room.id)
        self._joins[room] = join

    def _end_all(self, at: float) -> None:
        """The observation ends: end all spans; their outcome is not known."""
        spans = (*self._joins.values(), self._attempt, self._way)
        self._joins.clear()
        self._attempt = self._way = None
        for span in spans:
            if span is not None:
                span.end(at, {})

    def _begin(self, name: str, at: float, kind: SpanKind, details: Details) -> _Span:
        began = time.time_ns()
        attributes = {**self._known, **details}
        return _Span(
            self._tracer.start_span(f"{SCOPE}.{name}", self._trace, kind, attributes, start_time=began), at, began
        )


class _Span:
    """A span that begins by the clock and lasts by the event loop's time, which is never set back."""

    __slots__ = ("_at", "_began", "_span")

    def __init__(self, span: Span, at: float, began: int) -> None:
        self._span = span
        self._at = at  # in the loop's seconds
        self._began = began  # the same by the clock, in nanoseconds

    def set(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, value)

    def add_event(self, name: str, details: Details) -> None:
        self._span.add_event(name, details, self._began)

    def as_parent(self) -> Context:
        """The context for child spans, also after this span has ended; it holds only the ids."""
        return set_span_in_context(NonRecordingSpan(self._span.get_span_context()), ALONE)

    def end(self, at: float, details: Details, error: str | None = None) -> None:
        """End it at that time of the loop; with an error if there was one, in words without secrets."""
        self._span.set_attributes(details)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._began + max(0, round((at - self._at) * 1e9)))


def _loss(lost: ConnectionLost, reason: str) -> Details:
    details: dict[str, str | int | float] = {CAUSE: lost.cause, REASON: reason, DURATION: lost.duration}
    return details if lost.close is None else details | {CLOSE_CODE: lost.close.code}


def _recorder(meter: Meter, each: Instrument) -> Callable[[float, Attributes], None]:
    match each.kind:
        case "counter":
            return meter.create_counter(each.name, each.unit, each.description).add
        case "up_down_counter":
            return meter.create_up_down_counter(each.name, each.unit, each.description).add
        case "histogram":
            return meter.create_histogram(
                each.name, each.unit, each.description, explicit_bucket_boundaries_advisory=each.bounds
            ).record


def _version() -> str:
    try:
        return version("reconnect-fsm")
    except PackageNotFoundError:
        return ""
