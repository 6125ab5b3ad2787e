"""Telemetry: what is measured is what happened, with and without OpenTelemetry's own SDK; and no secret is in it."""

from __future__ import annotations

import asyncio
import doctest
import json
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loro import LoroDoc
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families

import reconnect_fsm.telemetry
from reconnect_fsm import Client, Connection, Keepalive, RetryPolicy, Unauthorized
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.effects import Dial
from reconnect_fsm.loro_protocol import Permission
from reconnect_fsm.telemetry import (
    AttemptEnded,
    AttemptStarted,
    ConnectionLost,
    ConnectionOpened,
    JoinEnded,
    JoinStarted,
    Metrics,
    PingAnswered,
    RoomCounted,
    RoomFailed,
    StatusCounted,
    TelemetryEvent,
    instrument,
    instrumentation,
    observe,
)
from reconnect_fsm.telemetry.metrics import INSTRUMENTS
from reconnect_fsm.testing import virtual_time
from reconnect_fsm.testing.server import (
    Answer,
    Close,
    Entry,
    HangUp,
    JoinFails,
    LatePong,
    NoJoinAnswer,
    NoPong,
    RawAnswer,
    Reset,
    RoomFails,
    ScriptedServer,
    Stall,
    StopListening,
    Well,
)

SECRET = "s3cret-0f9a77"
virtual = pytest.mark.virtual_time


class Started(SpanProcessor):
    """Counts the spans that were started."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_start(self, span: Any, parent_context: object = None) -> None:
        self.spans.append(span)


class Telemetry:
    """OpenTelemetry's SDK, with all in memory."""

    def __init__(self) -> None:
        self.exporter, self.reader, self.started = InMemorySpanExporter(), InMemoryMetricReader(), Started()
        self.tracers, self.meters = TracerProvider(), MeterProvider([self.reader])
        self.tracers.add_span_processor(self.started)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, client: Connection, **options: Any) -> Callable[[], None]:
        return instrument(client, tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == f"reconnect_fsm.{name}"]

    def snapshot(self) -> dict[str, list[dict[str, Any]]]:
        """The measurements, in the shape of `Metrics.snapshot`."""
        found: dict[str, list[dict[str, Any]]] = {each.name: [] for each in INSTRUMENTS}
        data = self.reader.get_metrics_data()
        for resource in () if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        values: dict[str, Any] = {"attributes": dict(sorted((point.attributes or {}).items()))}
                        if isinstance(metric.data, Histogram):
                            values |= {"count": point.count, "sum": point.sum, "buckets": buckets(point)}
                        else:
                            values["value"] = point.value
                        found[metric.name].append(values)
        return found

    def tree(self) -> list[tuple[str, list[str]]]:
        """The roots, in order of their beginning, and the outcomes of what is below each."""
        below: dict[int, list[str]] = {}
        for span in self.started.spans:
            if span.parent is not None:
                words = f"{span.name.removeprefix('reconnect_fsm.')} {span.attributes['reconnect_fsm.outcome']}"
                below.setdefault(span.parent.span_id, []).append(words)
        roots = [span for span in self.started.spans if span.parent is None]
        return [
            (
                f"{span.name.removeprefix('reconnect_fsm.')} {span.attributes['reconnect_fsm.outcome']}",
                below.get(span.context.span_id, []),
            )
            for span in roots
        ]


def buckets(point: Any) -> dict[str, int]:
    bounds = [*(f"{bound:g}" for bound in point.explicit_bounds), "+Inf"]
    return {bound: sum(point.bucket_counts[: at + 1]) for at, bound in enumerate(bounds)}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def rounded(snapshot: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
    """In one order, without what addition in another order makes of floats, nor what is nought."""
    return {
        name: sorted(
            (
                {key: round(value, 6) if isinstance(value, float) else value for key, value in each.items()}
                for each in values
                if each.get("value") != 0
            ),
            key=repr,
        )
        for name, values in snapshot.items()
    }


def total(snapshot: dict[str, list[dict[str, Any]]], name: str, **attributes: object) -> float:
    """The sum of one instrument's values, or the count of a histogram's, of those that have these attributes."""
    wanted = {f"reconnect_fsm.{key}": value for key, value in attributes.items()}
    values = [each for each in snapshot[f"reconnect_fsm.{name}"] if wanted.items() <= each["attributes"].items()]
    return float(sum(each.get("value", each.get("count")) for each in values))


def policy(**options: Any) -> RetryPolicy:
    return RetryPolicy(**{"base": 1.0, "cap": 4.0, "jitter": 0, "stable_after": 0, **options})


def client_of(server: ScriptedServer, **options: Any) -> Client:
    return Client(server.url, retry=policy(), keepalive=Keepalive(interval=5.0, timeout=2.0), **options)


def join(client: Client, room_id: str = "notes", **options: Any) -> Any:
    return client.join(room_id, LoroAdaptor(LoroDoc()), **options)


# ---------------------------------------------------------------------------------------------------------------- spans


@virtual
async def test_the_spans_of_an_outage() -> None:
    """One trace a connection: a root for the way to it, its attempts and joins below, with what happened to each."""
    telemetry = Telemetry()
    script: list[Entry] = [Answer(503, after=0.25), StopListening(1.5), None, Answer(401)]
    async with ScriptedServer(script) as server:
        client = client_of(server)
        telemetry.instrument(client, attributes={"app": "notes"})
        async with client:
            await join(client)
            await asyncio.sleep(10.0)
            server.inflict(Reset())
            await asyncio.sleep(10.0)
    assert telemetry.tree() == [
        ("connect connected", ["attempt failed", "attempt failed", "attempt connected", "join joined"]),
        ("reconnect failed", ["attempt failed"]),
    ]
    connect, reconnect = telemetry.named("connect")[0], telemetry.named("reconnect")[0]
    first, second, third, last = telemetry.named("attempt")
    assert [round(seconds(span), 3) for span in (first, second, third, connect)] == [0.25, 0.0, 0.0, 3.25]
    assert [span.kind for span in (connect, first, telemetry.named("join")[0])] == [
        SpanKind.INTERNAL,
        SpanKind.CLIENT,
        SpanKind.CLIENT,
    ]
    here = {
        "app": "notes",
        "network.protocol.name": "websocket",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "url.scheme": "ws",
    }
    assert first.attributes == here | {
        "error.type": "503",
        "http.response.status_code": 503,
        "reconnect_fsm.outcome": "failed",
        "reconnect_fsm.retry": 0,
    }
    assert second.attributes == here | {
        "error.type": "network",
        "reconnect_fsm.outcome": "failed",
        "reconnect_fsm.retry": 1,
    }
    assert third.attributes == here | {"reconnect_fsm.outcome": "connected", "reconnect_fsm.retry": 2}
    assert connect.attributes == here | {"reconnect_fsm.outcome": "connected", "reconnect_fsm.attempts": 3}
    assert telemetry.named("join")[0].attributes == here | {
        "reconnect_fsm.crdt_type": "loro",
        "reconnect_fsm.outcome": "joined",
    }
    assert [(span.status.status_code, span.status.description) for span in (first, second, third, last, reconnect)] == [
        (StatusCode.ERROR, "the server answered HTTP 503"),
        (StatusCode.ERROR, "could not connect: Connection refused"),
        (StatusCode.UNSET, None),
        (StatusCode.ERROR, "the server answered HTTP 401"),
        (StatusCode.ERROR, "the server answered HTTP 401"),
    ]
    assert reconnect.attributes is not None
    assert reconnect.attributes["error.type"] == "dial_failed"
    (lost,) = reconnect.events
    assert (lost.name, dict(lost.attributes or {})) == (
        "reconnect_fsm.connection.lost",
        {
            "reconnect_fsm.cause": "socket_closed",
            "reconnect_fsm.close_code": 1006,
            "reconnect_fsm.duration": 10.0,
            "reconnect_fsm.reason": "the connection was lost",
        },
    )


@virtual
@pytest.mark.parametrize(
    ("end", "root", "outcome"),
    [
        pytest.param("close", "connect cancelled", "attempt cancelled", id="closed"),
        pytest.param("offline", "connect cancelled", "attempt cancelled", id="offline"),
        pytest.param("retry_now", "connect connected", "attempt cancelled", id="asked for afresh"),
    ],
)
async def test_spans_end_when_an_attempt_is_cancelled(end: str, root: str, outcome: str) -> None:
    """A dial that is given up is no failure; its span ends all the same."""
    telemetry = Telemetry()
    async with ScriptedServer([Stall(at=0)]) as server:
        client = client_of(server)
        telemetry.instrument(client)
        async with client:
            await asyncio.sleep(3.0)
            if end == "offline":
                client.set_online(False)
                await asyncio.sleep(3.0)
            elif end == "retry_now":
                await client.retry_now()
    (tree,) = telemetry.tree()
    assert (tree[0], tree[1][0]) == (root, outcome)
    cancelled = telemetry.named("attempt")[0]
    assert round(seconds(cancelled), 3) == 3.0
    assert cancelled.status.status_code is StatusCode.UNSET
    assert len(telemetry.spans) == len(telemetry.started.spans)


@virtual
async def test_a_connection_that_ends_for_good_is_seen_too() -> None:
    """A fatal close leads to no attempt: a root of its own says so. One that this program asked for is none."""
    telemetry = Telemetry()
    async with ScriptedServer([Close(4401, "token expired", after=7.0)]) as server:
        client = client_of(server)
        telemetry.instrument(client)
        async with client:
            await asyncio.sleep(10.0)
            assert client.status == "disconnected"
            await client.connect()
    assert [root for root, _ in telemetry.tree()] == ["connect connected", "reconnect failed", "connect connected"]
    (failed,) = telemetry.named("reconnect")
    assert failed.status.description == "closed with code 4401: token expired"
    assert seconds(failed) == 0.0
    assert [(event.attributes or {})["reconnect_fsm.close_code"] for event in failed.events] == [4401]


@virtual
async def test_the_spans_of_joins() -> None:
    """Joined, refused, never answered: how each came out, and how long it took."""
    telemetry = Telemetry()

    def unauthorized() -> bytes:
        raise Unauthorized("no")

    script = [(JoinFails(2, "no", room_id="refused"),), NoJoinAnswer()]
    async with ScriptedServer(script) as server:
        client = client_of(server, room_fsm=type("Patient", (reconnect_fsm.RoomFSM,), {"join_timeout": 2.0}))
        telemetry.instrument(client, room_ids=True)
        async with client:
            join(client, "refused"), join(client, "unauthorized", auth=unauthorized)
            await join(client, "joined")
            server.inflict(Reset())
            await asyncio.sleep(5.0)
    assert [
        (
            span.attributes["reconnect_fsm.room_id"],
            span.attributes["reconnect_fsm.outcome"],
            span.attributes.get("error.type"),
        )
        for span in telemetry.named("join")
        if span.attributes is not None
    ] == [
        ("unauthorized", "refused", "credentials_failed"),
        ("refused", "refused", "auth_failed"),
        ("joined", "joined", None),
        ("joined", "abandoned", None),
    ]
    refused, abandoned = telemetry.named("join")[1], telemetry.named("join")[3]
    assert refused.status.description == "the server refused the room: no (JoinError 0x02)"
    assert abandoned.status.status_code is StatusCode.UNSET
    assert round(seconds(abandoned), 3) == 4.0  # it was asked for when the first wait of 1 s was over


@virtual
async def test_a_join_that_the_connection_takes_with_it_is_abandoned() -> None:
    """It ends with that connection; asked for over the next one, it is a join of that one's trace."""
    telemetry = Telemetry()
    async with ScriptedServer([(NoJoinAnswer(), Reset(after=3.0))]) as server:
        client = client_of(server)
        telemetry.instrument(client)
        async with client:
            await join(client)
    assert [round(seconds(span), 3) for span in telemetry.named("join")] == [3.0, 0.0]
    assert telemetry.tree() == [
        ("connect connected", ["attempt connected", "join abandoned"]),
        ("reconnect connected", ["attempt connected", "join joined"]),
    ]


@virtual
async def test_what_is_under_way_when_it_is_let_go_of_ends() -> None:
    """How it will come out is not known, so no outcome is told; but no span is left open, and none begins any more."""
    telemetry = Telemetry()
    async with ScriptedServer([(NoJoinAnswer(), Reset(after=3.0)), Stall(at=0)]) as server:
        client = client_of(server)
        async with client:
            stop = telemetry.instrument(client)
            await asyncio.sleep(1.0)
            join(client)
            await asyncio.sleep(1.0)
            stop()
            assert [
                span.name for span in telemetry.spans if "reconnect_fsm.outcome" not in (span.attributes or {})
            ] == ["reconnect_fsm.join"]
            stop = telemetry.instrument(client)
            await asyncio.sleep(3.0)
            stop()
            await asyncio.sleep(30.0)
    open_ended = [span for span in telemetry.spans if "reconnect_fsm.outcome" not in (span.attributes or {})]
    assert [(span.name, round(seconds(span), 3)) for span in open_ended] == [
        ("reconnect_fsm.join", 1.0),
        ("reconnect_fsm.attempt", 1.0),
        ("reconnect_fsm.reconnect", 2.0),
    ]
    assert len(telemetry.spans) == len(telemetry.started.spans)


@virtual
async def test_a_span_of_the_programs_own_is_no_parent() -> None:
    """Timers and tasks keep the context of whoever began them: for ever, if that were a parent."""
    telemetry = Telemetry()
    async with ScriptedServer([Reset(after=1.0)]) as server:
        client = client_of(server)
        telemetry.instrument(client)
        with trace.get_tracer("test", tracer_provider=telemetry.tracers).start_as_current_span("request"):
            client.start()
        await asyncio.sleep(5.0)
        await client.close()
    assert [span.name for span in telemetry.spans if span.parent is None] == [
        "request",
        "reconnect_fsm.connect",
        "reconnect_fsm.reconnect",
    ]


# --------------------------------------------------------------------------------------------------------------- events


def brief(event: TelemetryEvent) -> str:
    match event:
        case StatusCounted() | RoomCounted():
            return f"{type(event).__name__} {event.old} → {event.new}"
        case AttemptEnded() | JoinEnded():
            return f"{type(event).__name__} {event.outcome} {event.error} {event.duration:.2f}"
        case ConnectionLost():
            return f"ConnectionLost {event.cause} {event.duration:.2f}"
        case RoomFailed():
            return f"RoomFailed {event.error}"
        case PingAnswered():
            return f"PingAnswered {event.duration:.2f}"
        case _:
            return type(event).__name__


@virtual
async def test_the_events_of_a_dead_link() -> None:
    """The hook, told in full: what was there, what happened, and at the end the same taken back."""
    events: list[str] = []
    async with ScriptedServer([NoPong(), LatePong(0.5)]) as server:
        client = client_of(server)
        unobserve = observe(client, lambda event: events.append(brief(event)))
        async with client:
            await join(client)
            await asyncio.sleep(14.0)
            unobserve()
            unobserve()
            await asyncio.sleep(20.0)
    assert events == [
        "StatusCounted None → disconnected",
        "StatusCounted disconnected → connecting",
        "AttemptStarted",
        "RoomCounted None → connecting",
        "AttemptEnded connected None 0.00",
        "StatusCounted connecting → connected",
        "ConnectionOpened",
        "JoinStarted",
        "JoinEnded joined None 0.00",
        "RoomCounted connecting → joined",
        "ConnectionLost pong_missed 7.00",
        "StatusCounted connected → reconnecting",
        "RoomCounted joined → reconnecting",
        "AttemptStarted",
        "AttemptEnded connected None 0.00",
        "StatusCounted reconnecting → connected",
        "ConnectionOpened",
        "JoinStarted",
        "JoinEnded joined None 0.00",
        "RoomCounted reconnecting → joined",
        "PingAnswered 0.50",
        "RoomCounted joined → None",
        "StatusCounted connected → None",
    ]


@virtual
async def test_observed_from_the_middle() -> None:
    """Of a client that runs already: it is told what there is, and how long the connection has lasted at its end."""
    events: list[str] = []
    async with ScriptedServer([Well(), Stall(at=0)]) as server, client_of(server) as client:
        await join(client)
        await asyncio.sleep(3.0)
        unobserve = observe(client, lambda event: events.append(brief(event)))
        server.inflict(Reset())
        await asyncio.sleep(2.0)
        unobserve()
        observe(client, lambda event: events.append(brief(event)))
        await client.close()
    assert events == [
        "StatusCounted None → connected",
        "RoomCounted None → joined",
        "ConnectionLost socket_closed 3.00",
        "StatusCounted connected → reconnecting",
        "RoomCounted joined → reconnecting",
        "AttemptStarted",
        "RoomCounted reconnecting → None",
        "StatusCounted reconnecting → None",
        "StatusCounted None → reconnecting",  # the attempt that is under way is not told of
        "RoomCounted None → reconnecting",
        "StatusCounted reconnecting → disconnected",
        "RoomCounted reconnecting → disconnected",
    ]


@virtual
async def test_a_room_that_is_put_out_is_counted_once() -> None:
    """It is in no status any more, so the gauge alone would not tell; what comes afterwards for it changes nothing."""
    events: list[str] = []
    async with ScriptedServer() as server, client_of(server) as client:
        room = await join(client)
        observe(client, lambda event: events.append(brief(event)))
        server.inflict(RoomFails(2, "out"))
        await asyncio.sleep(1.0)
        await room.leave()
    assert [event for event in events if event.startswith("Room")] == [
        "RoomCounted None → joined",
        "RoomFailed evicted",
        "RoomCounted joined → None",
    ]


@virtual
async def test_an_observer_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """D-LISTEN holds for it too; and what cannot be one is refused."""
    heard: list[TelemetryEvent] = []

    def broken(event: TelemetryEvent) -> None:
        raise ZeroDivisionError

    async def coroutine(event: TelemetryEvent) -> None: ...

    async with ScriptedServer() as server:
        client = client_of(server)
        observe(client, broken)
        observe(client, heard.append)
        async with client:
            await asyncio.wait_for(client.wait_connected(), 5.0)
        with pytest.raises(TypeError, match="plain function"):
            observe(client, coroutine)
    assert [type(event) for event in heard][-2:] == [ConnectionLost, StatusCounted]
    assert "a callback of telemetry.observe raised" in caplog.text


@virtual
async def test_an_exporter_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither at the beginning of a span nor at its end; and what can be told is told."""

    class Raising(SpanProcessor):
        def on_start(self, span: Any, parent_context: object = None) -> None:
            if span.name.endswith("attempt"):
                raise ZeroDivisionError

        def on_end(self, span: ReadableSpan) -> None:
            if not span.name.endswith("attempt"):
                raise ZeroDivisionError

    telemetry = Telemetry()
    async with ScriptedServer([Reset(after=3.0)]) as server:
        client = client_of(server)
        telemetry.instrument(client)
        telemetry.tracers.add_span_processor(Raising())
        async with client:
            await join(client)
            await asyncio.sleep(10.0)
            assert client.status == "connected"
    assert [span.name.rpartition(".")[2] for span in telemetry.spans] == ["connect", "join", "reconnect", "join"]
    assert "a callback of telemetry.observe raised" in caplog.text


@virtual
async def test_hundreds_of_clients_are_counted_together() -> None:
    """One `Metrics` for all of them; when all are let go of, nothing is left but what happened."""
    metrics = Metrics()
    async with ScriptedServer([Reset(after=1.0)] * 50) as server:
        clients = [client_of(server) for _ in range(200)]
        stops = [metrics.observe(client) for client in clients]
        for client in clients:
            client.start()
        await asyncio.sleep(10.0)
        counted = metrics.snapshot()
        assert total(counted, "client.count", status="connected") == 200
        assert (total(counted, "attempts"), total(counted, "connections.lost")) == (250, 50)
        for stop in stops:
            stop(), stop()
        for client in clients:
            await client.close()
    left = metrics.snapshot()
    assert {each["value"] for each in left["reconnect_fsm.client.count"]} == {0}
    assert len(left["reconnect_fsm.client.count"]) <= 5
    drivers = [connection_driver_of(client) for client in clients]
    assert not any(driver.dispatcher.observers or driver.on_latency for driver in drivers)


async def test_nothing_is_kept_of_rooms_that_are_gone() -> None:
    """However many came and went: of a client that is observed no more than of one that is not."""
    async with ScriptedServer() as server, client_of(server) as client:
        unobserve = observe(client, lambda event: None)
        ((_, told),) = connection_driver_of(client).dispatcher.observers._callbacks
        watch = told.__self__  # type: ignore[attr-defined]
        for number in range(50):
            room = await join(client, f"r{number}")
            assert list(watch._tracked) == [room]
            await room.leave()
        assert (watch._tracked, watch._joining) == ({}, {})
        unobserve()
        assert not connection_driver_of(client).dispatcher.observers
        assert not connection_driver_of(client).on_latency


def test_a_loop_that_ends_without_close_leaves_no_span() -> None:
    """The client that is started again in another loop has lost its connection; telemetry hears of it then."""
    telemetry, clients = Telemetry(), list[Client]()

    async def first() -> None:
        client = client_of(server)
        clients.append(client)
        telemetry.instrument(client)
        client.start()
        await asyncio.sleep(0.0)

    async def second() -> None:
        async with clients[0]:
            pass

    server: Any = SimpleNamespace(url="ws://127.0.0.1:9")
    asyncio.run(first())
    asyncio.run(second())
    assert [root for root, _ in telemetry.tree()] == ["connect cancelled", "connect cancelled"]
    assert len(telemetry.spans) == len(telemetry.started.spans)


# ----------------------------------------------------------------------------------------------- what happened, counted

ACTS = st.sampled_from(
    [
        Answer(503),
        Answer(500, after=0.5),
        StopListening(1.0),
        Stall(at=0),
        Reset(after=3.0),
        HangUp(at=10),
        Close(1012, after=2.0),
        Close(4400, after=2.0),
        NoPong(),
        JoinFails(2, room_id="a"),
        NoJoinAnswer(),
        RoomFails(1, room_id="b", after=1.0),
        RoomFails(2, room_id="b", after=2.0),
        Well(),
    ]
)
COMMANDS = (
    "close",
    "connect",
    "retry_now",
    "offline",
    "online",
    "join a",
    "join b",
    "leave a",
    "leave b",
    "ping",
    "wait",
)


@settings(max_examples=60)
@given(st.lists(ACTS, max_size=8), st.lists(st.tuples(st.sampled_from(COMMANDS), st.floats(0.0, 6.0)), max_size=12))
def test_what_is_counted_is_what_happened(script: list[Entry], commands: list[tuple[str, float]]) -> None:
    """Through any outage: attempts are dials, gauges are what the client shows at every step, every span ends."""
    virtual_time.run(lambda: outage(script, commands))


async def outage(script: list[Entry], commands: list[tuple[str, float]]) -> None:
    telemetry, metrics, dials, events = Telemetry(), Metrics(), list[float](), list[TelemetryEvent]()

    class Counted(Client):
        def run_effect(self, effect: Any) -> None:
            dials.extend([0.0] * isinstance(effect, Dial))
            super().run_effect(effect)

    async with ScriptedServer(script) as server:
        client = Counted(server.url, retry=policy(), keepalive=Keepalive(interval=5.0, timeout=2.0))
        stops = [telemetry.instrument(client), metrics.observe(client), observe(client, events.append)]

        def look(_: object) -> None:
            """Is called after a step was counted and before its effects ran, so rooms that are over are still there."""
            shown = Counter(str(room.status) for room in client.rooms if room.state not in ("left", "error"))
            counted = metrics.snapshot()
            statuses = ("connecting", "joined", "reconnecting", "disconnected", "error")
            assert {each: total(counted, "room.count", status=each) for each in statuses} == {
                each: shown[each] for each in statuses
            }
            assert total(counted, "client.count") == total(counted, "client.count", status=str(client.status)) == 1

        wrong: list[BaseException] = []

        def looked(told: object) -> None:
            try:
                look(told)
            except AssertionError as error:
                wrong.append(error)

        connection_driver_of(client).dispatcher.observers.add(looked)
        async with client:
            for command, wait in commands:
                obey(client, command)
                await asyncio.sleep(wait)
        assert wrong == []
        counted, measured = metrics.snapshot(), telemetry.snapshot()

        kinds = Counter(type(event) for event in events)
        assert kinds[AttemptStarted] == kinds[AttemptEnded] == len(dials) == total(counted, "attempts")
        assert total(counted, "attempt.duration") == len(telemetry.named("attempt")) == len(dials)
        assert kinds[ConnectionOpened] == kinds[ConnectionLost] == total(counted, "connection.duration")
        assert kinds[JoinStarted] == kinds[JoinEnded] == len(telemetry.named("join")) == total(counted, "joins")
        assert total(counted, "attempt.duration", outcome="connected") == kinds[ConnectionOpened]
        assert total(counted, "client.count", status="disconnected") == 1
        assert total(counted, "room.count") == len(client.rooms)
        assert len(telemetry.spans) == len(telemetry.started.spans)
        assert rounded(counted) == rounded(measured)
        assert exposed(metrics) == rounded_samples(counted)
        for stop in stops:
            stop()
        for nothing_left in (metrics.snapshot(), telemetry.snapshot()):
            assert {each["value"] for name in GAUGES for each in nothing_left[name]} <= {0}


def obey(client: Client, command: str) -> None:
    match command.split():
        case ["join", room_id]:
            if room_id not in [room.id for room in client.rooms]:
                join(client, room_id)
        case ["leave", room_id]:
            for room in client.rooms:
                if room.id == room_id:
                    room.leave()
        case ["close" | "connect" | "retry_now" as name]:
            getattr(client, name)()
        case ["offline" | "online" as name]:
            client.set_online(name == "online")
        case _:
            pass


GAUGES = [each.name for each in INSTRUMENTS if each.kind == "up_down_counter"]


def exposed(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus reads."""
    families = text_string_to_metric_families(metrics.exposition())
    return {
        (sample.name, frozenset(sample.labels.items())): round(sample.value, 6)
        for family in families
        for sample in family.samples
    }


def rounded_samples(snapshot: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What it should read."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for each in INSTRUMENTS:
        name = each.name.replace(".", "_")
        for values in snapshot[each.name]:
            # As OpenTelemetry's names are turned into Prometheus'
            labels = {
                (re.sub(r"^(?=\d)|\W", "_", key, flags=re.ASCII), str(value))
                for key, value in values["attributes"].items()
            }
            if each.kind == "histogram":
                samples[f"{name}_seconds_sum", frozenset(labels)] = round(values["sum"], 6)
                samples[f"{name}_seconds_count", frozenset(labels)] = values["count"]
                for bound, count in values["buckets"].items():
                    samples[f"{name}_seconds_bucket", frozenset({*labels, ("le", bound)})] = count
            else:
                samples[name + ("_total" if each.kind == "counter" else ""), frozenset(labels)] = values["value"]
    return samples


@virtual
async def test_attributes_have_few_values_whatever_a_server_says() -> None:
    """A hundred close codes of its own: two series."""
    codes = [*range(3000, 3050), *range(4500, 4550), 1000, 1001, 1011]
    metrics = Metrics()
    async with ScriptedServer([Close(code) for code in codes]) as server:
        client = Client(server.url, retry=RetryPolicy(base=0.01, cap=0.01, stable_after=0, fatal_close_codes=()))
        metrics.observe(client)
        async with client:
            await asyncio.sleep(30.0)
    counted = metrics.snapshot()["reconnect_fsm.connections.lost"]
    assert {each["attributes"]["reconnect_fsm.close_code"]: each["value"] for each in counted} == {
        "3xxx": 50,
        "4xxx": 50,
        "1000": 1,
        "1001": 1,
        "1011": 1,
    }


@virtual
async def test_clients_are_told_apart() -> None:
    """By the server, by a URL that is not known before it is asked for, by attributes of the user's."""
    metrics = Metrics()
    async with ScriptedServer() as one, ScriptedServer() as two:
        clients = [client_of(one), client_of(two), Client(lambda: two.url)]
        for client, name in zip(clients, ("first", "second", "third"), strict=True):
            metrics.observe(client, {"client": name, "quoted": '"\\\n', "1st-name": "of a label"})
            await client.connect()
            await client.close()
    assert [
        (each["attributes"]["client"], each["attributes"].get("server.port"), each["value"])
        for each in metrics.snapshot()["reconnect_fsm.attempts"]
    ] == [("first", one.port, 1), ("second", two.port, 1), ("third", None, 1)]
    assert exposed(metrics) == rounded_samples(metrics.snapshot())


# -------------------------------------------------------------------------------------------------------------- secrets

ECHOES: dict[str, Entry] = {
    "an HTTP answer": RawAnswer(f"HTTP/1.1 500 {SECRET}\r\nX-Told: {SECRET}\r\nContent-Length: 0\r\n\r\n".encode()),
    "a close reason": Close(4000, f"no {SECRET}", after=0.1),
    "a fatal close reason": Close(1008, f"no {SECRET}", after=0.1),
    "a JoinError": JoinFails(2, f"no {SECRET} in private-diary"),
    "a RoomError": RoomFails(2, f"no {SECRET}", after=0.1),
}


@virtual
@pytest.mark.parametrize("echo", ECHOES)
async def test_no_secret_is_in_any_of_it(echo: str) -> None:
    """Token in query, password, header, cookie, auth; said back by the server; and the room's id, unless asked for."""
    telemetry, metrics, events = Telemetry(), Metrics(), list[TelemetryEvent]()

    async def admit(room_id: str, crdt: object, auth: bytes) -> Permission:
        assert auth == SECRET.encode()
        return "write"

    async with ScriptedServer([ECHOES[echo]], authenticate=admit) as server:
        url = server.url.replace("://", f"://user:{SECRET}@") + f"?token={SECRET}"
        headers = {"X-Token": SECRET, "Cookie": f"session={SECRET}"}
        client = Client(url, headers=headers, retry=policy(max_attempts=3))
        telemetry.instrument(client), metrics.observe(client), observe(client, events.append)
        async with client:
            join(client, "private-diary", auth=SECRET.encode())
            await asyncio.sleep(5.0)
    told = [span.to_json() for span in telemetry.spans]
    told += [json.dumps(telemetry.snapshot()), json.dumps(metrics.snapshot()), metrics.exposition()]
    assert len(told) > 5
    assert [each for each in told if SECRET in each or "private-diary" in each or "token" in each] == []
    assert [event for event in events if SECRET in repr(event)] == []


# ---------------------------------------------------------------------------------------------------------- the package


def test_opentelemetry_is_not_imported_until_it_is_asked_for() -> None:
    """Whoever only counts, or does not, need not have it."""
    code = (
        "import sys, reconnect_fsm.telemetry\n"
        "assert reconnect_fsm.telemetry.Metrics().exposition()\n"
        "print([each for each in sys.modules if each.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what works without it; nothing is begun by half."""
    for name in [each for each in sys.modules if each.startswith(("opentelemetry", "reconnect_fsm.telemetry.otel"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(reconnect_fsm.telemetry, "otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    client = Connection("ws://127.0.0.1:9")
    with pytest.raises(ImportError, match=r"pip install 'reconnect-fsm\[opentelemetry\]'.*telemetry\.Metrics"):
        instrument(client)
    assert not connection_driver_of(client).dispatcher.observers


def test_the_example_of_instrument() -> None:
    """It runs as it stands."""
    (found,) = doctest.DocTestFinder(recurse=False).find(instrument, "instrument", globs={"asyncio": asyncio})
    assert len(found.examples) > 10
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert result.failed == 0


async def test_the_example_of_the_hook() -> None:
    """A ``match`` statement of the user's: the code of the package's own text runs."""
    text = reconnect_fsm.telemetry.__doc__ or ""
    code = "\n".join(line.removeprefix("    ") for line in text.split("::\n")[1].split("\n\nWithout")[0].splitlines())
    said: list[tuple[object, ...]] = []
    statsd = SimpleNamespace(timing=lambda *what: said.append(what), increment=lambda *what: said.append(what))
    async with ScriptedServer() as server:
        client = client_of(server)
        names = {**vars(reconnect_fsm.telemetry), "statsd": statsd, "client": client}
        exec(compile(code, "<the package's text>", "exec"), names)
        async with client:
            await client.wait_connected()
    assert [what[0] for what in said] == ["reconnect.attempt.connected"]


def test_the_names_keep_to_the_conventions() -> None:
    """Dots and lower case; counters are plural, up-down counters end in ``count``, histograms are in seconds."""
    for each in INSTRUMENTS:
        assert each.name.startswith("reconnect_fsm.")
        assert each.name == each.name.lower()
        match each.kind:
            case "histogram":
                assert each.name.endswith(".duration")
                assert (each.unit, bool(each.bounds)) == ("s", True)
            case "up_down_counter":
                assert each.name.endswith(".count")
            case "counter":
                assert each.name.endswith("s") or each.name.rsplit(".", 1)[0].endswith("s")


def test_all_that_is_public_is_exported() -> None:
    """Every event has a name here."""
    assert {each.__name__ for each in TelemetryEvent.__subclasses__()} <= set(reconnect_fsm.telemetry.__all__)
    assert isinstance(instrumentation, types.ModuleType)
