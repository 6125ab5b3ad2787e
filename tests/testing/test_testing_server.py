"""The scripted server: each misbehaviour, as the real client sees it; and every byte at which it can stop.

Most run under virtual time, where an hour costs nothing; the byte-level ones under real time and TLS too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, cast

import pytest
from loro import LoroDoc

import tls
from faulty import Watch
from figures import Figures
from kit import PATIENCE, until
from reconnect_fsm import Client, ClientStopped, JoinRefused, Keepalive, NotConnected, RetryPolicy
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.loro_protocol import CrdtType
from reconnect_fsm.testing import virtual_time
from reconnect_fsm.testing.server import (
    Answer,
    Bytes,
    Close,
    HangUp,
    JoinFails,
    LatePong,
    Misbehaviour,
    NoJoinAnswer,
    NoPong,
    Played,
    RawAnswer,
    Reset,
    RoomFails,
    ScriptedServer,
    Send,
    SlowAcks,
    Stall,
    StopListening,
    Well,
)

SMALL_STEP = 23  # bytes between the places tried in the small version of the proof
FEW_BYTES = 250  # the answer to the upgrade, an answer to a join, a pong, an ack
KEEPALIVE = Keepalive(interval=2.0, timeout=1.0)
virtual = pytest.mark.virtual_time


def policy(**options: Any) -> RetryPolicy:
    """Quick retries, the same each time."""
    return RetryPolicy(**{"base": 0.1, "cap": 1.0, "jitter": 0, "stable_after": 0, **options})


def make_client(server: ScriptedServer, **options: Any) -> Client:
    return Client(server.url, **{"retry": policy(), "keepalive": KEEPALIVE, "connect_timeout": 2.0, **options})


def acts(server: ScriptedServer) -> list[Misbehaviour]:
    """What took effect, in order."""
    return [played.act for played in server.played]


# --------------------------------------------------------------------------------------------------- values and scripts


def test_misbehaviours_print_as_they_are_written() -> None:
    """So that a record can be read, and played again."""
    shown = [
        "Answer(503, {'Retry-After': '3'})",
        "Answer(200, body=b'<html>', after=1.5)",
        "Stall(at=40)",
        "Stall(after=2.0)",
        "Close(1008, 'x')",
        "Close(None)",
        "Reset()",
        "LatePong(2.0)",
        "NoPong()",
        "Send(b'\\x00')",
        "RoomFails(2, 'evicted', 'r')",
        "JoinFails(2)",
        "JoinFails(2, room_id='r')",
        "RoomFails(2, after=1.0)",
        "Well()",
    ]
    written = [eval(each) for each in shown]
    assert [repr(each) for each in written] == shown


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("Answer(503)", TypeError, "a script is made of misbehaviours"),
        ((StopListening(1), NoPong()), ValueError, "StopListening is an entry of its own"),
        (Close(70_000), ValueError, "from 0 to 65535"),
        (Close(1000, "x" * 200), ValueError, "the limit is 123"),
        (RoomFails(99), ValueError, "99 is not a valid RoomErrorCode"),
        (JoinFails(99), ValueError, "99 is not a valid JoinErrorCode"),
        (Answer, TypeError, "a script is made of misbehaviours"),
        (Answer(99), ValueError, "from 100 to 999, not 99"),
        (Answer(503, after=-1), ValueError, "is a number of seconds, not -1"),
        (SlowAcks(-1), ValueError, "is a number of seconds, not -1"),
        (Stall(at=-1), ValueError, "is a number of bytes, not -1"),
        (Stall(at=40, after=2), ValueError, "at= or after=, not both"),
        (Send(cast(Any, 3)), TypeError, "a message is bytes or str, not 3"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_where_it_is_given(entry: Any, error: type[Exception], message: str) -> None:
    """And not when its turn comes."""
    with pytest.raises(error, match=message):
        ScriptedServer([None, entry])
    with pytest.raises(error, match=message):
        ScriptedServer().follow(entry)


@pytest.mark.parametrize("act", [Answer(503), RawAnswer(b""), StopListening(1)])
def test_what_is_for_an_attempt_cannot_be_inflicted(act: Misbehaviour) -> None:
    """It is too late for it."""
    with pytest.raises(ValueError, match="is for a future connection attempt"):
        ScriptedServer().inflict(act)


@virtual
async def test_a_script_has_an_entry_for_each_attempt() -> None:
    """They are played in turn, each recorded with the attempt it was for; then the server behaves well."""
    script = [Answer(503), None, (Close(1012, "restarting", after=1.0), NoPong()), Well()]
    async with ScriptedServer(script) as server, make_client(server) as client:
        assert server.script == [(Answer(503),), (), script[2], (Well(),)]
        await client.wait_connected()
        assert acts(server) == [Answer(503), Well()]
        server.inflict(HangUp())
        await until(lambda: server.accepted == 4)
        await client.wait_connected()
        await asyncio.sleep(60)
        assert [(played.attempt, played.act) for played in server.played] == [
            (1, Answer(503)),
            (2, Well()),
            (2, HangUp()),
            (3, Close(1012, "restarting", after=1.0)),
            (4, Well()),
        ]
        times = [played.time for played in server.played]
        assert times == sorted(times)
        assert server.script == []


@virtual
async def test_another_script_takes_the_place_of_the_old_one() -> None:
    """From the next attempt on."""
    async with ScriptedServer([Answer(401)]) as server:
        server.follow(Answer(502), Answer(504))
        async with make_client(server) as client:
            await client.wait_connected()
            assert acts(server) == [Answer(502), Answer(504), Well()]
            server.follow()
            assert server.script == []


# ---------------------------------------------------------------------------------------------- instead of a connection


@virtual
async def test_refuse_is_refused_by_the_kernel() -> None:
    """Nobody listens for so long, however many attempts are made; it begins when it is next."""
    async with ScriptedServer([None, StopListening(3.0), Answer(503)]) as server, make_client(server) as client:
        watch = Watch(client)
        await client.wait_connected()
        began = asyncio.get_running_loop().time()
        assert acts(server) == [StopListening(3.0), Well()]  # it is next as soon as the first has begun
        server.inflict(HangUp())
        await watch.seen("dial_failed")
        await client.wait_connected()
        assert asyncio.get_running_loop().time() - began >= 3.0
        refused = [step for step in watch.steps if step.event == "dial_failed" and "refused" in step.reason.lower()]
        assert len(refused) > 2
        assert acts(server) == [StopListening(3.0), Well(), HangUp(), Answer(503), Well()]
        assert server.accepted == 3


async def test_refuse_under_real_time_keeps_the_port() -> None:
    """The first entry holds from the start; two in a row add up."""
    async with ScriptedServer([StopListening(0.2), StopListening(0.2)]) as server:
        port = server.port
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE), make_client(server) as client:
            await client.wait_connected()
        assert server.port == port
        assert acts(server) == [StopListening(0.2), StopListening(0.2), Well()]


async def test_a_server_can_be_stopped_while_it_refuses() -> None:
    """Nothing is left then, and it can be started again; the same while it begins to listen again."""
    server = ScriptedServer([StopListening(3600)])
    await server.start()
    await server.stop()
    server.follow(StopListening(0.01), StopListening(3600))
    await server.start()
    await until(lambda: len(server.played) == 3)
    await server.stop()
    server.follow()
    async with server, make_client(server) as client, asyncio.timeout(PATIENCE):
        await client.wait_connected()


@virtual
@pytest.mark.parametrize("status", [200, 204, 302, 400, 404, 418, 429, 500, 503])
async def test_any_http_answer(status: int) -> None:
    """With headers and a body, and late if wanted; what is fatal is the client's business."""
    answer = Answer(status, {"Retry-After": "3", "Location": "/"}, b"" if status == 204 else b"sorry", after=0.5)
    async with ScriptedServer([answer]) as server, make_client(server) as client:
        watch = Watch(client)
        await client.wait_connected()
        failed = await watch.seen("dial_failed")
        assert str(status) in failed.reason or status in (302,)
        assert failed.retry_in == 3.0  # D-HTTP: of any refusal
        assert acts(server) == [answer, Well()]


@virtual
async def test_a_fatal_http_answer_stops_the_client() -> None:
    """RETRY-3: as from any server."""
    async with ScriptedServer([Answer(401)]) as server, make_client(server) as client:
        with pytest.raises(ClientStopped, match="401"):
            await client.connect()
        assert server.accepted == 1


@virtual
@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00" * 100, b"HTTP/1.1 2"],
)
async def test_a_raw_answer_is_sent_as_it_is(data: bytes) -> None:
    """Then the server hangs up."""
    async with ScriptedServer([RawAnswer(data)]) as server, make_client(server) as client:
        await client.wait_connected()
        assert acts(server) == [RawAnswer(data), Well()]


# ---------------------------------------------------------------------------------------------------- to the connection


async def recovers(act: Misbehaviour, *, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> tuple[bool, int]:
    """Whether a client whose first connection suffers ``act`` was cut off; it joins and synchronises all the same.

    The second number is how many bytes a connection that behaves well has sent.
    """
    server = ScriptedServer([act], ssl=tls[0] if tls else None)
    options = {"ssl": tls[1]} if tls else {}
    async with server, make_client(server, connect_timeout=0.5, close_timeout=0.2, **options) as client:
        document = LoroDoc()  # type: ignore[no-untyped-call]
        document.get_text("text").insert(0, "hello")
        document.commit()
        room = client.join("r", LoroAdaptor(document))
        async with asyncio.timeout(PATIENCE):
            while server.accepted < 2 and act not in acts(server):
                await asyncio.sleep(0.01)
                if room.status == "joined":
                    await room.synced()
                    break
            for _ in range(2):  # the first ping may be what it suffers at
                await client.wait_connected()
                await room
                await room.synced()
                with suppress(NotConnected):
                    await client.ping()
                    break
            else:
                raise AssertionError("it was cut off twice")
        assert server.document("r").get_text("text").to_string() == "hello"
        (attempt, *_) = server._attempts
        return act in acts(server), attempt.wire.sent


Kind = Callable[[int], Misbehaviour]
AT_A_BYTE: list[Kind] = [lambda at: Stall(at=at), lambda at: Reset(at=at), lambda at: HangUp(at=at)]


def every_byte(step: int, first: int = 0) -> dict[str, int]:
    """Try each kind at every so many bytes of all that a short session sends, under virtual time."""
    _, sent = virtual_time.run(partial(recovers, Well()))
    places = range(first, sent, step)
    struck = 0
    for kind in AT_A_BYTE:
        for at in places:
            did, _ = virtual_time.run(partial(recovers, kind(at)))
            struck += did
    return {"places": len(places), "runs": len(places) * len(AT_A_BYTE), "struck": struck, "bytes": sent}


def test_at_some_bytes() -> None:
    """Half-open, reset, or closed at some bytes of a session: the client is joined and in step afterwards."""
    counted = every_byte(SMALL_STEP)
    assert counted["struck"] > 0.5 * counted["runs"]  # the last bytes may never be sent


@pytest.mark.proof
@pytest.mark.slow
def test_at_every_byte(figures: Figures) -> None:
    """The same at every byte."""
    counted = every_byte(1)
    assert counted["struck"] > 0.5 * counted["runs"]
    figures("stall, reset and FIN of the server at every byte of a session", **counted, violations=0)


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    return tls.contexts()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("at", [0, 1, 40, 160])
@pytest.mark.parametrize("kind", AT_A_BYTE, ids=["stall", "reset", "hang up"])
async def test_at_a_byte_under_real_time(
    kind: Kind, at: int, secure: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """On real sockets, in clear and encrypted, the same entry does the same."""
    struck, _ = await recovers(kind(at), tls=contexts if secure else None)
    assert struck


async def test_a_stall_sends_exactly_that_many_bytes() -> None:
    """Seen from a bare socket; what was held back comes when it is healed."""
    async with ScriptedServer([Stall(at=12)]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")  # no upgrade: an answer, and the end
        assert await reader.readexactly(12) == b"HTTP/1.1 400"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        assert server.inflict(Well()) == 1
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).startswith(b" Bad Request\r\n")
        writer.close()


@virtual
@pytest.mark.parametrize("act", [Stall(after=5.0), Stall()])
async def test_half_open(act: Stall) -> None:
    """LIVE-2: after the upgrade nothing comes any more, and only the pings tell."""
    async with ScriptedServer([act]) as server, make_client(server) as client:
        watch = Watch(client)
        await watch.seen("pong_missed")
        began = server.played[0].time
        assert asyncio.get_running_loop().time() - began <= KEEPALIVE.interval + KEEPALIVE.timeout + 0.1
        await client.wait_connected()
        assert acts(server) == [act, Well()]


@virtual
async def test_a_stall_holds_back_and_goes_on() -> None:
    """Inflicted on an open connection and ended again, nothing is lost: neither what was sent nor what came."""
    async with ScriptedServer() as server, make_client(server, keepalive=Keepalive(60, 60)) as client:
        heard: list[Any] = []
        client.on_message(heard.append)
        await client.wait_connected()
        assert server.inflict(Stall()) == 1
        assert await server.send_raw("late") == 1
        assert server.inflict(Send("later")) == 1
        ping = asyncio.ensure_future(client.ping(timeout=60))
        await asyncio.sleep(30)
        assert not heard
        assert not ping.done()
        server.inflict(Well())
        assert await ping >= 30
        assert heard == ["late", "later"]
        assert server.accepted == 1


@virtual
async def test_a_stalled_server_stops_at_once() -> None:
    """What is stalled is aborted; it could not answer a close frame."""
    server = ScriptedServer([Stall()])
    await server.start()
    async with make_client(server) as client:
        await client.wait_connected()
        began = asyncio.get_running_loop().time()
        await server.stop()
        assert asyncio.get_running_loop().time() == began
        await until(lambda: client.status != "connected")


@virtual
async def test_a_server_that_does_not_read_pushes_back() -> None:
    """A stalled server takes in no more than a few buffers' worth."""
    size = 1 << 22
    async with ScriptedServer([Stall(at=0)]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        await until(lambda: acts(server) == [Stall(at=0)])
        writer.write(b"x" * size)
        await asyncio.sleep(60)
        assert writer.transport.get_write_buffer_size() > size - (1 << 18)
        writer.transport.abort()


@virtual
@pytest.mark.parametrize("act", [Reset(), HangUp(), Reset(after=3.0), HangUp(after=3.0)])
async def test_accept_then_drop(act: Misbehaviour) -> None:
    """The upgrade is answered, and then the connection dropped; the client comes again."""
    async with ScriptedServer([act]) as server, make_client(server) as client:
        watch = Watch(client)
        await until(lambda: server.accepted == 2)
        await client.wait_connected()
        assert {"socket_closed", "dial_failed"} & {step.event for step in watch.steps}
        assert acts(server) == [act, Well()]


# ----------------------------------------------------------------------------------------------------- in the WebSocket


@virtual
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (Close(1012, "restarting", after=1.0), "closed with code 1012: restarting"),
        (Close(4321), "closed with code 4321"),
        (Close(None), "closed with code 1005"),
        (Close(1011, "x" * 123), "closed with code 1011: " + "x" * 123),
    ],
)
async def test_any_close_code_and_reason(act: Close, reason: str) -> None:
    """As the client hears it."""
    async with ScriptedServer([act]) as server, make_client(server) as client:
        watch = Watch(client)
        closed = await watch.seen("socket_closed")
        assert closed.reason == reason
        await client.wait_connected()


@virtual
async def test_accept_then_close_again_and_again_is_not_hammered() -> None:
    """D-STABLE: a script may be as long as it takes."""
    script = [Close(1012)] * 5
    async with ScriptedServer(script) as server, make_client(server, retry=policy(stable_after=5.0)) as client:
        watch = Watch(client)
        await until(lambda: server.accepted == 6)
        await client.wait_connected()
        assert watch.waits == [0.1, 0.2, 0.4, 0.8, 1.0]


@virtual
@pytest.mark.parametrize(
    "act",
    [
        Bytes(b"\x83\x01x"),  # an unknown opcode
        Bytes(b"\xc1\x01x"),  # a reserved bit
        Bytes(b"\x89\x7e\x00\xff" + b"x" * 255),  # a ping that is too long
        Bytes(b"\x80\x00"),  # a continuation of nothing
        Bytes(b"\x88\x01\x03"),  # half a close code
    ],
)
async def test_malformed_frames(act: Bytes) -> None:
    """The client ends the connection, and comes again."""
    async with ScriptedServer([act]) as server, make_client(server) as client:
        await until(lambda: server.accepted == 2)
        await client.wait_connected()
        assert acts(server) == [act, Well()]


@virtual
async def test_messages_sensible_or_not() -> None:
    """Text and binary, at once and later; what is no Loro message costs nothing but a line in the log."""
    script = [(Send("hello", after=1.0), Send(b"\xff\xff", after=2.0), Send("again", after=3.0))]
    async with ScriptedServer(script) as server, make_client(server) as client:
        heard: list[Any] = []
        client.on_message(heard.append)
        await asyncio.sleep(10)
        assert [each for each in heard if isinstance(each, str)] == ["hello", "again"]
        assert len(acts(server)) >= 3


@virtual
async def test_no_pong_and_late_pong() -> None:
    """LIVE-2: a missing pong ends the connection; a late one, if it comes in time, is a long round trip."""
    async with ScriptedServer([NoPong(), LatePong(0.75)]) as server, make_client(server) as client:
        watch = Watch(client)
        latencies: list[float] = []
        client.on_latency(latencies.append)
        await watch.seen("pong_missed")
        await until(lambda: len(latencies) == 2)
        assert latencies == pytest.approx([0.75, 0.75])
        assert acts(server) == [NoPong(), LatePong(0.75)]
        assert [played.times for played in server.played] == [1, 2]
        assert server.stats.pings == 3


@virtual
async def test_a_pong_that_is_too_late() -> None:
    """It belongs to a connection that is gone, and is sent to nobody."""
    async with ScriptedServer([LatePong(1.5)]) as server, make_client(server) as client:
        watch = Watch(client)
        await watch.seen("pong_missed")
        await client.wait_connected()
        await asyncio.sleep(10)
        assert client.status == "connected"


# --------------------------------------------------------------------------------------------------------- in the rooms


async def joined(client: Client, room_id: str = "r") -> tuple[Any, LoroDoc]:
    document = LoroDoc()  # type: ignore[no-untyped-call]
    room = client.join(room_id, LoroAdaptor(document))
    await room
    return room, document


@virtual
async def test_join_fails() -> None:
    """REJOIN-3: in the rooms that are meant, and only there."""
    async with ScriptedServer([JoinFails(2, "no", room_id="secret")]) as server, make_client(server) as client:
        await joined(client, "public")
        with pytest.raises(JoinRefused, match="no") as refused:
            await joined(client, "secret")
        assert refused.value.code == 2
        assert acts(server) == [JoinFails(2, "no", room_id="secret")]


@virtual
async def test_join_fails_with_version_unknown() -> None:
    """D-VERSION: other versions are tried, a few times."""
    async with ScriptedServer([JoinFails(1)]) as server, make_client(server) as client:
        with pytest.raises(JoinRefused):
            await joined(client)
        assert server.played == [Played(1, JoinFails(1), server.played[0].time, times=server.played[0].times)]
        assert 1 < server.played[0].times <= 3


@virtual
async def test_no_answer_to_a_join() -> None:
    """D-TIMEOUT: it is asked again; once the server is inflicted with good behaviour, it is let in."""
    async with ScriptedServer([NoJoinAnswer()]) as server, make_client(server) as client:
        room = client.join("r", LoroAdaptor(LoroDoc()))  # type: ignore[no-untyped-call]
        await until(lambda: server.stats.joins == 2)
        assert room.status == "connecting"
        assert server.played[0].times == 2
        server.inflict(Well())
        await room


@virtual
async def test_room_fails() -> None:
    """D-ROOMERR: RoomError 1 is followed by another join in the session, any other ends the room that is meant."""
    script = [(RoomFails(1, "come back", "a", after=1.0), RoomFails(2, "evicted", "b"))]
    async with ScriptedServer(script) as server, make_client(server) as client:
        room, _ = await joined(client, "a")
        evicted, _ = await joined(client, "b")
        await until(lambda: evicted.status == "error")
        await until(lambda: driver_of(room).fsm.joins == 2)
        assert room.status == "joined"
        assert set(acts(server)) == set(script[0])


@virtual
async def test_room_errors_can_be_inflicted() -> None:
    """On the rooms that are joined now; a room that was left meanwhile is spared."""
    async with ScriptedServer() as server, make_client(server) as client:
        one, _ = await joined(client, "one")
        two, _ = await joined(client, "two")
        server.inflict(RoomFails(2, "evicted", after=5.0))
        await asyncio.sleep(1)
        await two.leave()
        await until(lambda: one.status == "error")
        assert server.played[-1].times == 1
        third, _ = await joined(client, "three")
        await asyncio.sleep(10)
        assert third.status == "joined"


@virtual
@pytest.mark.parametrize("seconds", [1.5, inf])
async def test_slow_acks(seconds: float) -> None:
    """What is not acknowledged yet is not synced; other things go on."""
    async with ScriptedServer([SlowAcks(seconds)]) as server, make_client(server) as client:
        room, document = await joined(client)
        began = asyncio.get_running_loop().time()
        document.get_text("text").insert(0, "hello")
        document.commit()
        synced = asyncio.ensure_future(room.synced())
        await until(lambda: server.stats.updates == 1)
        assert await client.ping() < 1
        if seconds == inf:
            await asyncio.sleep(60)
            assert not synced.done()
            server.inflict(Reset())  # the rejoin makes up for it (D-ACK)
        await synced
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(1.5, abs=0.2) if seconds == 1.5 else took > 60
        assert acts(server)[0] == SlowAcks(seconds)


@virtual
async def test_what_is_late_is_bounded() -> None:
    """A server that owes too many acks loses the rest."""

    class Small(ScriptedServer):
        MAX_LATE = 3

    async with Small([SlowAcks(1000)]) as server, make_client(server) as client:
        _, document = await joined(client)
        for number in range(10):
            document.get_text("text").insert(0, str(number))
            document.commit()
            await asyncio.sleep(0.1)
        (attempt,) = server._attempts
        assert server.stats.updates > 3
        assert len(attempt._timers) == 3


@virtual
async def test_it_can_be_told_all_that_an_embedded_server_can() -> None:
    """Its own means of misbehaviour work beside the script."""
    async with ScriptedServer([None, Answer(502)]) as server, make_client(server) as client:
        room, _ = await joined(client)
        server.freeze()
        ping = asyncio.ensure_future(client.ping())
        await asyncio.sleep(0.5)
        assert not ping.done()
        server.thaw()
        await ping
        server.refuse_upgrades(503)
        server.reset_all()
        await until(lambda: server.accepted >= 3)
        server.refuse_upgrades(None)
        await until(lambda: room.status == "joined")
        assert server.document("r") is not None
        assert await server.send("r", CrdtType.LORO, _leave()) == 1
        await server.close_all(1012, "bye")
        await client.wait_connected()


def _leave() -> Any:
    from reconnect_fsm.loro_protocol import RoomError, RoomErrorCode

    return RoomError(CrdtType.LORO, "r", RoomErrorCode.REJOIN_SUGGESTED, "come back")


def test_a_script_is_a_list() -> None:
    """And it says so."""
    with pytest.raises(TypeError, match=r"a script is a list of entries: \[Answer\(503\)\]"):
        ScriptedServer(cast(Any, Answer(503)))


def test_there_is_no_address_before_the_start() -> None:
    """A client would dial port 0 for ever."""
    with pytest.raises(RuntimeError, match="not started yet"):
        _ = ScriptedServer().url
