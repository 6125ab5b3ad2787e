"""Measurements of a client: for a metrics page, for OpenTelemetry, or for a function of yours.

Everything measurable goes through one hook, `observe`: it calls a function with an `TelemetryEvent` for each attempt,
connection, join and ping, and for each change of status. The rest of this package uses it:

- `Metrics` counts by itself and needs nothing else; Prometheus can scrape it.
- `instrument` hands the same measurements, and spans, to OpenTelemetry; it needs the extra
  ``pip install 'reconnect-fsm[opentelemetry]'``.
- A ``match`` statement of yours feeds whatever you have::

    def count(event: TelemetryEvent) -> None:
        match event:
            case AttemptEnded(duration=seconds, outcome=outcome):
                statsd.timing(f"reconnect.attempt.{outcome}", seconds)
            case ConnectionLost(cause="pong_missed"):
                statsd.increment("reconnect.dead_links")

    unobserve = observe(client, count)

Without an observer it costs nothing. No event holds a query string, a header, a token or auth bytes.
"""

from reconnect_fsm.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    ConnectionLost,
    ConnectionOpened,
    JoinEnded,
    JoinStarted,
    PingAnswered,
    RoomCounted,
    RoomFailed,
    StatusCounted,
    TelemetryEvent,
    observe,
)
from reconnect_fsm.telemetry.instrumentation import instrument
from reconnect_fsm.telemetry.metrics import Metrics

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "ConnectionLost",
    "ConnectionOpened",
    "JoinEnded",
    "JoinStarted",
    "Metrics",
    "PingAnswered",
    "RoomCounted",
    "RoomFailed",
    "StatusCounted",
    "TelemetryEvent",
    "instrument",
    "observe",
]
