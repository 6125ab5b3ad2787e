"""The in-process server: it speaks the protocol as the reference server does, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any, ClassVar

import aiohttp
import loro
import pytest
from aiohttp import WSMsgType

import tls
from kit import PATIENCE, until
from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
    MAX_MESSAGE_SIZE,
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    Permission,
    Reassembler,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
    split,
)
from reconnect_fsm.testing import EmbeddedServer, leaks

LORO = CrdtType.LORO
EPHEMERAL = CrdtType.EPHEMERAL
OK = UpdateStatusCode.OK
EMPTY_VERSION = b"\0"


class Peer:
    """A client made of a bare WebSocket and the codec."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.document = loro.LoroDoc()  # type: ignore[no-untyped-call]

    async def send(self, *messages: Message) -> None:
        for message in messages:
            await self.ws.send_bytes(encode(message))

    async def frame(self) -> aiohttp.WSMessage:
        async with asyncio.timeout(PATIENCE):
            return await self.ws.receive()

    async def receive(self) -> Message:
        frame = await self.frame()
        assert frame.type is WSMsgType.BINARY, frame
        return decode(frame.data)

    async def hears_nothing(self) -> None:
        """Answers come in order: if that to a ping is the next frame, there was nothing before it."""
        await self.ws.send_str("ping")
        frame = await self.frame()
        assert (frame.type, frame.data) == (WSMsgType.TEXT, "pong")

    async def join(
        self, room_id: str = "r", crdt: CrdtType = LORO, *, version: bytes = b"", auth: bytes = b""
    ) -> Message:
        await self.send(JoinRequest(crdt, room_id, auth, version))
        return await self.receive()

    async def update(self, *updates: bytes, room_id: str = "r", crdt: CrdtType = LORO, batch_id: int = 1) -> Message:
        await self.send(DocUpdate(crdt, room_id, updates, batch_id))
        return await self.receive()

    async def receive_update(self) -> bytes:
        """The one update of the next batch, whole or in fragments."""
        message = await self.receive()
        if isinstance(message, DocUpdate):
            (update,) = message.updates
            return update
        assert isinstance(message, DocUpdateFragmentHeader)
        reassembler = Reassembler()
        assert reassembler.begin(message, 0.0) is None
        for _ in range(message.fragment_count):
            fragment = await self.receive()
            assert isinstance(fragment, DocUpdateFragment)
            whole = reassembler.add(fragment, 0.0)
        assert isinstance(whole, bytes)
        return whole

    async def closed(self) -> tuple[int, str]:
        """The close frame that comes next."""
        frame = await self.frame()
        assert frame.type is WSMsgType.CLOSE, frame
        await self.ws.close()
        return frame.data, frame.extra or ""

    async def lost(self) -> None:
        """The connection ends without a close frame."""
        frame = await self.frame()
        assert frame.type in (WSMsgType.CLOSED, WSMsgType.ERROR), frame


Serve = Callable[[EmbeddedServer], Coroutine[Any, Any, EmbeddedServer]]
Connect = Callable[[EmbeddedServer], Coroutine[Any, Any, Peer]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers, and stops them when the clients are gone."""
    async with contextlib.AsyncExitStack() as servers:
        yield servers.enter_async_context


@pytest.fixture
async def connect(serve: Serve, session: aiohttp.ClientSession) -> AsyncIterator[Connect]:
    """Connects clients to any server, and closes them."""
    peers: list[Peer] = []

    async def connect(server: EmbeddedServer) -> Peer:
        ws = await session.ws_connect(server.url, autoclose=False, autoping=False, max_msg_size=0)
        peers.append(Peer(ws))
        return peers[-1]

    yield connect
    for peer in peers:
        await peer.ws.close()


@pytest.fixture
async def server(serve: Serve) -> EmbeddedServer:
    return await serve(EmbeddedServer())


async def settled(count: Callable[[], int]) -> None:
    """Waits until a count that goes up does so no more."""
    seen = list[int]()
    while not count() or len(seen) < 6 or len(set(seen[-6:])) > 1:
        await asyncio.sleep(0.05)
        seen.append(count())


def write(document: loro.LoroDoc, text: str) -> bytes:
    """Inserts text at the front; returns the update."""
    before = document.oplog_vv
    document.get_text("text").insert(0, text)
    document.commit()
    return document.export(loro.ExportMode.Updates(before))


def read(document: loro.LoroDoc) -> str:
    return document.get_text("text").to_string()


def new_document() -> loro.LoroDoc:
    return loro.LoroDoc()  # type: ignore[no-untyped-call]


def raw_request(server: EmbeddedServer) -> bytes:
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


# ----------------------------------------------------------------------------------------------------------- its life


async def test_it_listens_where_it_says(serve: Serve, connect: Connect) -> None:
    """A free port of the loopback address, unless another is asked for; the URL leads there."""
    server = await serve(EmbeddedServer())
    assert server.port > 0
    assert server.url == f"ws://127.0.0.1:{server.port}/"
    await (await connect(server)).hears_nothing()


async def test_ipv6_addresses_are_bracketed() -> None:
    """The URL of an IPv6 address is one."""
    assert EmbeddedServer("::1", 80).url == "ws://[::1]:80/"


async def test_tls(session: aiohttp.ClientSession) -> None:
    """With an SSL context the server speaks wss, also when it resets and stops."""
    served, trusted = tls.contexts()
    async with EmbeddedServer(ssl=served) as server:
        assert server.url.startswith("wss://")
        first = Peer(await session.ws_connect(server.url, ssl=trusted))
        await first.hears_nothing()
        server.freeze()
        server.thaw()
        await first.hears_nothing()
        server.reset_all()
        await first.lost()
        second = Peer(await session.ws_connect(server.url, ssl=trusted, autoclose=False))
        stopping = asyncio.create_task(server.stop())
        assert await second.closed() == (1001, "Server stopping")
        await stopping


async def test_stop_closes_with_1001_by_default(server: EmbeddedServer, connect: Connect) -> None:
    """The close frame of a stop is that of the reference server; then connects are refused."""
    peer = await connect(server)
    stopping = asyncio.create_task(server.stop())
    assert await peer.closed() == (1001, "Server stopping")
    await stopping
    with pytest.raises(aiohttp.ClientConnectorError):
        await connect(server)


async def test_stop_with_another_code(server: EmbeddedServer, connect: Connect) -> None:
    """Code and reason of the close frame can be chosen; a reason that fits no frame stops nothing."""
    peer = await connect(server)
    with pytest.raises(ValueError, match="reason"):
        await server.stop(1012, "x" * 124)
    await peer.hears_nothing()
    stopping = asyncio.create_task(server.stop(1012, "back soon"))
    assert await peer.closed() == (1012, "back soon")
    await stopping


async def test_it_starts_again_on_the_same_port_with_its_rooms(server: EmbeddedServer, connect: Connect) -> None:
    """Rooms outlive a stop, and so does the port."""
    peer, url = await connect(server), server.url
    await peer.join()
    update = write(peer.document, "kept")
    await peer.update(update)
    stopping = asyncio.create_task(server.stop())
    await peer.closed()
    await stopping
    await server.start()
    assert server.url == url
    peer = await connect(server)
    await peer.join()
    peer.document.import_(await peer.receive_update())
    assert read(peer.document) == "kept"


async def test_start_twice_and_stop_twice(server: EmbeddedServer) -> None:
    """A second start is a mistake, a second stop is none."""
    with pytest.raises(RuntimeError, match="started already"):
        await server.start()
    await server.stop()
    await server.stop()


async def test_a_taken_port_is_an_error(server: EmbeddedServer) -> None:
    """Two servers cannot share a port; the one that cannot listen can be stopped."""
    other = EmbeddedServer(port=server.port)
    with pytest.raises(OSError, match="in use") as taken:
        await other.start()
    assert taken.value.errno == errno.EADDRINUSE
    await other.stop()


@pytest.mark.parametrize("frozen", [False, True])
async def test_nothing_is_left_after_stop(connect: Connect, session: aiohttp.ClientSession, frozen: bool) -> None:
    """No task, timer, transport or descriptor of the server, whatever its clients were doing."""
    before = leaks.in_process() | leaks.in_loop()
    tasks, descriptors = asyncio.all_tasks(), set(os.listdir("/proc/self/fd"))
    server = EmbeddedServer()
    await server.start()
    joined, idle = await connect(server), await connect(server)
    await joined.join()
    await joined.update(write(joined.document, "x"))
    # A batch under way has a timer; a client that sends no request, or gets no answer, has a task.
    await joined.send(DocUpdateFragmentHeader(LORO, "r", 5, 2, 10))
    await joined.hears_nothing()
    with socket.create_connection(("127.0.0.1", server.port)) as mute:
        if frozen:
            server.freeze()
            mute.sendall(raw_request(server))
            await until(lambda: server.stats.attempts == 3)
        stopping = asyncio.create_task(server.stop())
        for peer in (joined, idle):
            await (peer.lost() if frozen else peer.closed())
        await stopping
        # Of the loop there is nothing left at once, but for the clients' ends of the connections.
        ours = [asyncio.current_task(), *tasks]
        assert [task for task in asyncio.all_tasks() if task not in ours] == []
    assert server.connections == 0
    assert await leaks.left_over(before) == []
    assert asyncio.all_tasks() == tasks
    assert set(os.listdir("/proc/self/fd")) == descriptors


async def test_a_frozen_server_can_be_stopped(server: EmbeddedServer, connect: Connect) -> None:
    """It sends no close frame then; started again, it is thawed."""
    peer = await connect(server)
    server.freeze()
    await server.stop()
    await peer.lost()
    await server.start()
    await (await connect(server)).hears_nothing()


async def test_stop_does_not_wait_for_an_authenticate_that_hangs(serve: Serve, connect: Connect) -> None:
    """A handler that is busy is cancelled; stopping takes no longer than the closing handshake may."""
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_room: str, _crdt: CrdtType, _auth: bytes) -> Permission:
        asked.set()
        try:
            await asyncio.get_running_loop().create_future()
            return "write"
        finally:
            for _ in range(100):
                await asyncio.sleep(0)
            cancelled.set()

    server = await serve(_Impatient(authenticate=hang))
    peer = await connect(server)
    await peer.send(JoinRequest(LORO, "r", b"", b""))
    await asked.wait()
    await server.stop()
    assert cancelled.is_set()
    assert await peer.closed() == (1001, "Server stopping")


class _Impatient(EmbeddedServer):
    CLOSE_TIMEOUT: ClassVar[float] = 0.05


# ---------------------------------------------------------------------------------------------------------- liveness


async def test_text_ping_is_answered(server: EmbeddedServer, connect: Connect) -> None:
    """The application's ping: text ``ping``, answered by ``pong``; any other text is ignored."""
    peer = await connect(server)
    await peer.ws.send_str("pong")
    await peer.ws.send_str("hello")
    await peer.hears_nothing()
    assert server.stats.pings == 1


async def test_websocket_ping_is_answered(server: EmbeddedServer, connect: Connect) -> None:
    """The ping of the WebSocket itself, with its payload."""
    peer = await connect(server)
    await peer.ws.ping(b"abc")
    frame = await peer.frame()
    assert (frame.type, bytes(frame.data)) == (WSMsgType.PONG, b"abc")


async def test_a_websocket_pong_is_ignored(server: EmbeddedServer, connect: Connect) -> None:
    """An unsolicited pong is allowed, and means nothing."""
    peer = await connect(server)
    await peer.ws.pong(b"abc")
    await peer.hears_nothing()


# ------------------------------------------------------------------------------------------------------------ joining


async def test_join_of_a_new_room(server: EmbeddedServer, connect: Connect) -> None:
    """Whoever asks may write, if nobody says otherwise; the version is that of an empty document."""
    peer = await connect(server)
    assert await peer.join() == JoinResponseOk(LORO, "r", "write", EMPTY_VERSION, b"")
    await peer.hears_nothing()


async def test_join_sends_what_the_client_lacks(server: EmbeddedServer, connect: Connect) -> None:
    """Versions are compared: all to who has nothing, the rest to who has some, nothing to who has all."""
    author = await connect(server)
    await author.join()
    first = write(author.document, "one ")
    then = author.document.oplog_vv
    second = write(author.document, "two ")
    await author.update(first, second)

    empty = await connect(server)
    answer = await empty.join()
    assert isinstance(answer, JoinResponseOk)
    assert answer.version == author.document.oplog_vv.encode()
    empty.document.import_(await empty.receive_update())
    assert read(empty.document) == "two one "

    behind = await connect(server)
    behind.document.import_(first)
    await behind.join(version=then.encode())
    update = await behind.receive_update()
    assert len(update) < len(author.document.export(loro.ExportMode.Snapshot()))
    assert update == second
    behind.document.import_(update)
    assert read(behind.document) == "two one "

    await author.join(version=author.document.oplog_vv.encode())
    await author.hears_nothing()


async def test_a_client_may_be_ahead(server: EmbeddedServer, connect: Connect) -> None:
    """A client with more than the server is let in, and sees by the version what to send."""
    peer = await connect(server)
    write(peer.document, "offline work")
    answer = await peer.join(version=peer.document.oplog_vv.encode())
    assert isinstance(answer, JoinResponseOk)
    server_has = loro.VersionVector.decode(answer.version)
    await peer.update(peer.document.export(loro.ExportMode.Updates(server_has)))
    assert read(server.document("r")) == "offline work"


@pytest.mark.parametrize("known", [False, True])
async def test_a_version_that_cannot_be_read(server: EmbeddedServer, connect: Connect, known: bool) -> None:
    """JoinError 1 with the server's version, whether or not the room has contents; who gets it is not in the room."""
    if known:
        write(server.document("r"), "x")
    version = server.document("r").oplog_vv.encode() if known else EMPTY_VERSION
    peer = await connect(server)
    answer = await peer.join(version=b"junk")
    assert isinstance(answer, JoinError)
    assert (answer.code, answer.receiver_version) == (JoinErrorCode.VERSION_UNKNOWN, version)
    assert await peer.update(b"") == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    assert set(server._rooms) == ({(LORO, "r")} if known else set())


async def test_uncommitted_changes_of_the_servers_document_are_sent(server: EmbeddedServer, connect: Connect) -> None:
    """What was written to `document` without a commit is there at the next join, in the version too."""
    server.document("r").get_text("text").insert(0, "abc")
    peer = await connect(server)
    answer = await peer.join()
    assert isinstance(answer, JoinResponseOk)
    peer.document.import_(await peer.receive_update())
    assert answer.version == peer.document.oplog_vv.encode()
    assert read(peer.document) == "abc"


async def test_rooms_of_one_id_and_several_types_are_several(server: EmbeddedServer, connect: Connect) -> None:
    """A room is its id and its CRDT type."""
    peer = await connect(server)
    await peer.join("r", EPHEMERAL)
    assert await peer.update(b"x", crdt=LORO) == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    assert await peer.update(b"x", crdt=EPHEMERAL) == Ack(EPHEMERAL, "r", 1, OK)


async def test_a_burst_of_joins_leaves_the_loop_its_turn(server: EmbeddedServer, connect: Connect) -> None:
    """10,000 JoinRequests at once are all answered in order, and others run meanwhile."""
    count, turns, done = 10_000, 0, False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    peer = await connect(server)
    server.freeze()
    for number in range(count):
        await peer.ws.send_bytes(encode(JoinRequest(LORO, f"room {number}", b"", b"")))
    watching = asyncio.create_task(others())
    server.thaw()
    for number in range(count):
        message = await peer.receive()
        assert isinstance(message, JoinResponseOk)
        assert message.room_id == f"room {number}"
    done = True
    await watching
    assert turns > count / 100
    assert server.stats.joins == count


# ----------------------------------------------------------------------------------------------------- authentication


@pytest.mark.parametrize("is_async", [False, True])
async def test_authenticate_decides(serve: Serve, connect: Connect, is_async: bool) -> None:
    """Plain or async, it gets room, type and credentials; None is JoinError 2."""
    asked: list[tuple[str, CrdtType, bytes]] = []

    def plain(room_id: str, crdt: CrdtType, auth: bytes) -> Permission | None:
        asked.append((room_id, crdt, auth))
        return {b"r": "read", b"w": "write"}.get(auth)  # type: ignore[return-value]

    async def slow(room_id: str, crdt: CrdtType, auth: bytes) -> Permission | None:
        await asyncio.sleep(0)
        return plain(room_id, crdt, auth)

    server = await serve(EmbeddedServer(authenticate=slow if is_async else plain))
    peer = await connect(server)
    assert await peer.join("a", auth=b"w") == JoinResponseOk(LORO, "a", "write", EMPTY_VERSION, b"")
    assert await peer.join("b", auth=b"r") == JoinResponseOk(LORO, "b", "read", EMPTY_VERSION, b"")
    answer = await peer.join("c", auth=b"?")
    assert answer == JoinError(LORO, "c", JoinErrorCode.AUTH_FAILED, "Authentication failed")
    assert asked == [("a", LORO, b"w"), ("b", LORO, b"r"), ("c", LORO, b"?")]

    update = write(peer.document, "x")
    assert await peer.update(update, room_id="a") == Ack(LORO, "a", 1, OK)
    for room_id in "bc":
        assert await peer.update(update, room_id=room_id) == Ack(LORO, room_id, 1, UpdateStatusCode.PERMISSION_DENIED)


async def test_an_authenticate_that_raises(serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and answered with JoinError 0, which does not show what the exception said."""

    def broken(_room: str, _crdt: CrdtType, _auth: bytes) -> Permission:
        raise LookupError("secret")

    server = await serve(EmbeddedServer(authenticate=broken))
    peer = await connect(server)
    answer = await peer.join()
    assert answer == JoinError(LORO, "r", JoinErrorCode.UNKNOWN, "authenticate raised LookupError")
    await peer.hears_nothing()
    assert "LookupError: secret" in caplog.text


# ------------------------------------------------------------------------------------------------------------ updates


async def test_updates_are_acknowledged_and_sent_on(server: EmbeddedServer, connect: Connect) -> None:
    """Ack 0 for the sender, the same batch for the other members of the room, nothing for anybody else."""
    author, member, stranger = [await connect(server) for _ in range(3)]
    await author.join()
    await member.join()
    await stranger.join("another")
    updates = write(author.document, "a"), write(author.document, "b")
    assert await author.update(*updates, batch_id=2**64 - 1) == Ack(LORO, "r", 2**64 - 1, OK)
    assert await member.receive() == DocUpdate(LORO, "r", updates, 2**64 - 1)
    await stranger.hears_nothing()
    await author.hears_nothing()
    assert read(server.document("r")) == "ba"
    assert server.stats.updates == 1


async def test_junk_is_refused_as_a_whole(server: EmbeddedServer, connect: Connect) -> None:
    """Ack 4, nobody hears of it, and nothing of the batch is taken: not what came before the junk either."""
    author, member = await connect(server), await connect(server)
    await author.join()
    await member.join()
    good = write(author.document, "a")
    for junk in (b"junk", b"", good[:-1]):
        assert await author.update(good, junk) == Ack(LORO, "r", 1, UpdateStatusCode.INVALID_UPDATE)
    await member.hears_nothing()
    assert read(server.document("r")) == ""


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_interrupts_in_loro_are_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    """loro's errors are bare BaseExceptions; Ctrl-C and its like are none of them."""

    class Interrupted:
        def __getattr__(self, _: str) -> object:
            raise interrupt

    server = EmbeddedServer()
    write(server.document("r"), "x")
    contents = server._rooms[LORO, "r"].contents
    monkeypatch.setattr(loro, "LoroDoc", Interrupted())
    with pytest.raises(interrupt):
        contents.add((b"update",))
    monkeypatch.setattr(loro, "VersionVector", type("VersionVector", (), {"decode": _raise(interrupt)}))
    with pytest.raises(interrupt):
        contents.catch_up(b"version")


def _raise(kind: type[BaseException]) -> Callable[[object], object]:
    def raiser(_: object) -> object:
        raise kind

    return raiser


async def test_an_empty_batch(server: EmbeddedServer, connect: Connect) -> None:
    """No updates are fine, and not worth telling anybody."""
    author, member = await connect(server), await connect(server)
    await author.join()
    await member.join()
    assert await author.update() == Ack(LORO, "r", 1, OK)
    await member.hears_nothing()


async def test_updates_to_a_room_that_was_not_joined(server: EmbeddedServer, connect: Connect) -> None:
    """Ack 3."""
    peer = await connect(server)
    assert await peer.update(b"x") == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    assert server.stats.updates == 0


async def test_leave(server: EmbeddedServer, connect: Connect) -> None:
    """Who left hears nothing more and may not write; leaving what was never joined is fine."""
    author, member = await connect(server), await connect(server)
    await author.join()
    await member.join()
    await member.send(Leave(LORO, "r"), Leave(LORO, "r"), Leave(LORO, "never joined"))
    await member.hears_nothing()
    await author.update(write(author.document, "a"))
    await member.hears_nothing()
    assert await member.update(b"x") == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)


async def test_a_lost_connection_leaves_its_rooms(server: EmbeddedServer, connect: Connect) -> None:
    """A member that is gone is no member; a room with nothing in it is gone with the last."""
    peer = await connect(server)
    await peer.join()
    await peer.ws.close()
    await until(lambda: server.connections == 0)
    assert await server.send("r", LORO, Leave(LORO, "r")) == 0
    assert not server._rooms


async def test_an_update_that_is_too_large(server: EmbeddedServer, connect: Connect) -> None:
    """Ack 5 for a frame a little above the limit, close code 1009 for one far above."""
    peer = await connect(server)
    await peer.join()
    frame = encode(DocUpdate(LORO, "r", (b"",), 7))
    # By hand: `encode` does not make such frames. A length of 3 bytes stands where that of the empty update was.
    size = MAX_MESSAGE_SIZE
    oversized = frame[:-9] + bytes((size & 127 | 128, size >> 7 & 127 | 128, size >> 14)) + bytes(size) + frame[-8:]
    await peer.ws.send_bytes(oversized)
    assert await peer.receive() == Ack(LORO, "r", 7, UpdateStatusCode.PAYLOAD_TOO_LARGE)
    await peer.ws.send_bytes(bytes(EmbeddedServer.MAX_FRAME_BYTES + 1))
    code, _ = await peer.closed()
    assert code == 1009


# ---------------------------------------------------------------------------------------------------------- fragments


async def test_a_large_update_travels_in_fragments_both_ways(server: EmbeddedServer, connect: Connect) -> None:
    """Fragments in, one Ack, fragments out to the members with the same batch id; as backfill in pieces that fit."""
    author, member, late = [await connect(server) for _ in range(3)]
    await author.join()
    await member.join()
    large = Random(1).randbytes(2 * FRAGMENT_SIZE).hex()
    (batch,) = split(LORO, "r", [write(author.document, large)], lambda: 9)
    assert len(batch.frames) > 2
    for frame in batch.frames:
        await author.ws.send_bytes(frame)
    assert await author.receive() == Ack(LORO, "r", 9, OK)
    for frame in batch.frames:
        assert (await member.frame()).data == frame
    await late.join()
    async with asyncio.timeout(30):
        while read(late.document) != large:
            backfill = await late.receive()
            assert isinstance(backfill, DocUpdate)
            for piece in backfill.updates:
                late.document.import_(piece)
    assert read(server.document("r")) == large


async def test_a_small_update_in_fragments_is_sent_on_whole(server: EmbeddedServer, connect: Connect) -> None:
    """How an update travelled is between two ends; the batch id stays."""
    author, member = await connect(server), await connect(server)
    await author.join()
    await member.join()
    update = write(author.document, "abc")
    half = len(update) // 2
    await author.send(
        DocUpdateFragmentHeader(LORO, "r", 3, 2, len(update)),
        DocUpdateFragment(LORO, "r", 3, 1, update[half:]),
        DocUpdateFragment(LORO, "r", 3, 0, update[:half]),
    )
    assert await author.receive() == Ack(LORO, "r", 3, OK)
    assert await member.receive() == DocUpdate(LORO, "r", (update,), 3)


async def test_fragments_that_make_no_update(server: EmbeddedServer, connect: Connect) -> None:
    """The reassembler's refusals are the Acks: no header 7, bad index 4, too much announced 5, junk 4."""
    peer = await connect(server)
    await peer.join()
    cases: list[tuple[int, list[Message], UpdateStatusCode]] = [
        (1, [DocUpdateFragment(LORO, "r", 1, 0, b"x")], UpdateStatusCode.FRAGMENT_TIMEOUT),
        (
            2,
            [DocUpdateFragmentHeader(LORO, "r", 2, 1, 4), DocUpdateFragment(LORO, "r", 2, 1, b"junk")],
            UpdateStatusCode.INVALID_UPDATE,
        ),
        (3, [DocUpdateFragmentHeader(LORO, "r", 3, 2**32 - 1, 2**32 - 1)], UpdateStatusCode.PAYLOAD_TOO_LARGE),
        (
            4,
            [DocUpdateFragmentHeader(LORO, "r", 4, 1, 4), DocUpdateFragment(LORO, "r", 4, 0, b"junk")],
            UpdateStatusCode.INVALID_UPDATE,
        ),
    ]
    for batch_id, messages, status in cases:
        await peer.send(*messages)
        assert await peer.receive() == Ack(LORO, "r", batch_id, status)
    await peer.hears_nothing()


async def test_fragments_without_permission(server: EmbeddedServer, connect: Connect) -> None:
    """One Ack 3 for the header, none for what follows it."""
    peer = await connect(server)
    await peer.send(DocUpdateFragmentHeader(LORO, "r", 1, 1, 1), DocUpdateFragment(LORO, "r", 1, 0, b"x"))
    assert await peer.receive() == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    await peer.hears_nothing()


@pytest.mark.virtual_time
async def test_fragments_that_do_not_come(server: EmbeddedServer, connect: Connect) -> None:
    """Ack 7 for each batch when its ten seconds are over, and not before."""
    peer = await connect(server)
    await peer.join()
    start = asyncio.get_running_loop().time()
    for batch_id in (1, 2):
        await peer.send(DocUpdateFragmentHeader(LORO, "r", batch_id, 2, 10))
        await peer.hears_nothing()
        await asyncio.sleep(1)
    for batch_id in (1, 2):
        assert await peer.receive() == Ack(LORO, "r", batch_id, UpdateStatusCode.FRAGMENT_TIMEOUT)
        assert asyncio.get_running_loop().time() - start == pytest.approx(Reassembler.TIMEOUT + batch_id - 1, abs=0.01)


async def test_batches_under_way_are_bounded_by_rooms(serve: Serve, connect: Connect) -> None:
    """Ack 6 for a batch in one room too many; a room whose batch is complete counts no more."""

    class OneRoom(EmbeddedServer):
        MAX_FRAGMENTED_ROOMS = 1

    server = await serve(OneRoom())
    peer = await connect(server)
    await peer.join("a", EPHEMERAL)
    await peer.join("b", EPHEMERAL)
    refused = DocUpdateFragmentHeader(EPHEMERAL, "b", 2, 1, 1), DocUpdateFragment(EPHEMERAL, "b", 2, 0, b"x")
    await peer.send(DocUpdateFragmentHeader(EPHEMERAL, "a", 1, 1, 1), *refused)
    assert await peer.receive() == Ack(EPHEMERAL, "b", 2, UpdateStatusCode.RATE_LIMITED)
    await peer.send(DocUpdateFragment(EPHEMERAL, "a", 1, 0, b"x"), *refused)
    assert await peer.receive() == Ack(EPHEMERAL, "a", 1, OK)
    assert await peer.receive() == Ack(EPHEMERAL, "b", 2, OK)


# --------------------------------------------------------------------------------------------------- what is forbidden


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"%LOR\x01r\x09", id="unknown type"),
        pytest.param(b"%LOR\x01r\x00\x05", id="cut short"),
        pytest.param(b"%LOR\x81\x01" + b"x" * 129 + b"\0\0\0", id="long room id"),
        pytest.param(encode(JoinResponseOk(LORO, "r", "write", b"")), id="JoinResponseOk"),
        pytest.param(encode(JoinError(LORO, "r", JoinErrorCode.UNKNOWN, "")), id="JoinError"),
    ],
)
async def test_a_frame_that_no_client_may_send(server: EmbeddedServer, connect: Connect, frame: bytes) -> None:
    """Close code 1002 for its sender; the others notice nothing."""
    peer, other = await connect(server), await connect(server)
    await peer.ws.send_bytes(frame)
    await peer.ws.send_bytes(frame)
    assert await peer.closed() == (1002, "Protocol error")
    await other.hears_nothing()


async def test_what_clients_may_send_and_nobody_needs(server: EmbeddedServer, connect: Connect) -> None:
    """An Ack and a RoomError are ignored."""
    peer = await connect(server)
    await peer.send(Ack(LORO, "r", 1, UpdateStatusCode.UNKNOWN), RoomError(LORO, "r", RoomErrorCode.EVICTED, ""))
    await peer.hears_nothing()


async def test_a_request_that_is_no_upgrade(server: EmbeddedServer, session: aiohttp.ClientSession) -> None:
    """HTTP 400."""
    async with session.get(server.url.replace("ws", "http")) as response:
        assert response.status == 400
    assert server.stats.connects == 0


async def test_rooms_are_bounded(serve: Serve, connect: Connect) -> None:
    """A join of one room too many is refused, for the connection and for the server; a rejoin is not."""

    class Small(EmbeddedServer):
        MAX_ROOMS = 2
        MAX_ROOMS_PER_CONNECTION = 1

    too_many = JoinErrorCode.UNKNOWN, "Too many rooms"
    server = await serve(Small())
    peers = [await connect(server) for _ in range(3)]
    for peer, room_id in zip(peers, "ab", strict=False):
        assert isinstance(await peer.join(room_id), JoinResponseOk)
    for peer, room_id in zip(peers, "cdc", strict=True):
        answer = await peer.join(room_id)
        assert isinstance(answer, JoinError)
        assert (answer.code, answer.message) == too_many
    assert isinstance(await peers[0].join("a"), JoinResponseOk)
    assert isinstance(await peers[2].join("a"), JoinResponseOk)


async def test_a_client_that_does_not_read_is_dropped(serve: Serve, connect: Connect) -> None:
    """What waits for it is bounded; its connection is aborted, and the sender is not slowed down."""

    class Small(EmbeddedServer):
        MAX_BACKLOG_BYTES = 100_000

    server = await serve(Small())
    peer = await connect(server)
    sent = await server.send_raw(bytes(60_000)) + await server.send_raw(bytes(60_000))
    await peer.frame()
    await peer.frame()
    assert (sent, server.connections) == (2, 1)
    server.freeze()
    assert await server.send_raw(bytes(60_000)) + await server.send_raw(bytes(60_000)) == 2
    server.thaw()
    await peer.lost()
    await until(lambda: server.connections == 0)


async def test_nothing_is_read_from_a_client_that_does_not_read(server: EmbeddedServer, connect: Connect) -> None:
    """While much waits for a client, its messages wait too, and nothing is lost: not the connection either."""
    joins, persisted = 60, CrdtType.EPHEMERAL_PERSISTED
    author, lazy = await connect(server), await connect(server)
    await author.join(crdt=persisted)
    update = Random(1).randbytes(200_000)
    for _ in range(10):
        await author.update(update, crdt=persisted)
    for _ in range(joins):
        await lazy.send(JoinRequest(persisted, "r", b"", b""))
    await settled(lambda: server.stats.joins)
    assert 1 < server.stats.joins < 1 + joins
    for _ in range(joins):
        assert isinstance(await lazy.receive(), JoinResponseOk)
        for _ in range(10):
            assert await lazy.receive_update() == update
    await lazy.hears_nothing()


# -------------------------------------------------------------------------------------------------- rooms that are logs


@pytest.mark.parametrize("crdt", [crdt for crdt in CrdtType if crdt is not LORO])
async def test_other_rooms_are_logs(server: EmbeddedServer, connect: Connect, crdt: CrdtType) -> None:
    """No version; who joins gets every update as it came, whatever version it tells."""
    author, late = await connect(server), await connect(server)
    assert await author.join(crdt=crdt) == JoinResponseOk(crdt, "r", "write", b"", b"")
    assert await author.update(b"one", b"", crdt=crdt) == Ack(crdt, "r", 1, OK)
    assert await author.update(b"two", crdt=crdt) == Ack(crdt, "r", 1, OK)
    assert await late.join(crdt=crdt, version=b"junk") == JoinResponseOk(crdt, "r", "write", b"", b"")
    backfill = await late.receive()
    assert isinstance(backfill, DocUpdate)
    assert backfill.updates == (b"one", b"", b"two")


@pytest.mark.parametrize("crdt", CrdtType)
async def test_what_is_kept_when_nobody_is_in_the_room(
    server: EmbeddedServer, connect: Connect, crdt: CrdtType
) -> None:
    """Presence is forgotten, everything else is kept."""
    peer = await connect(server)
    await peer.join(crdt=crdt)
    await peer.update(write(peer.document, "x"), crdt=crdt)
    await peer.send(Leave(crdt, "r"))
    await peer.join(crdt=crdt)
    if crdt in (EPHEMERAL, CrdtType.YJS_AWARENESS):
        await peer.hears_nothing()
    else:
        await peer.receive_update()


async def test_a_large_log_is_sent_in_fragments(server: EmbeddedServer, connect: Connect) -> None:
    """An update that came in fragments goes out in fragments, also from a log."""
    peer = await connect(server)
    await peer.join(crdt=EPHEMERAL)
    large = Random(1).randbytes(FRAGMENT_SIZE + 1)
    (batch,) = split(EPHEMERAL, "r", [large], lambda: 1)
    for frame in batch.frames:
        await peer.ws.send_bytes(frame)
    assert await peer.receive() == Ack(EPHEMERAL, "r", 1, OK)
    late = await connect(server)
    await late.join(crdt=EPHEMERAL)
    assert await late.receive_update() == large


async def test_logs_are_bounded(serve: Serve, connect: Connect) -> None:
    """A full log refuses with Ack 5, but one of presence lets go of the oldest."""

    class Small(EmbeddedServer):
        MAX_LOG_BYTES = 2 * (64 + 10)

    elo = CrdtType.ELO
    server = await serve(Small())
    peer = await connect(server)
    await peer.join(crdt=elo)
    assert await peer.update(b"0123456789", b"0123456789", crdt=elo) == Ack(elo, "r", 1, OK)
    assert await peer.update(b"", crdt=elo) == Ack(elo, "r", 1, UpdateStatusCode.PAYLOAD_TOO_LARGE)
    await peer.join(crdt=EPHEMERAL)
    assert await peer.update(b"a", b"b", b"c", crdt=EPHEMERAL) == Ack(EPHEMERAL, "r", 1, OK)
    await peer.join(crdt=EPHEMERAL)
    backfill = await peer.receive()
    assert isinstance(backfill, DocUpdate)
    assert backfill.updates == (b"b", b"c")


async def test_without_loro(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, documents are logs too, and `document` says what is missing."""
    monkeypatch.setitem(sys.modules, "loro", None)
    server = await serve(EmbeddedServer())
    peer = await connect(server)
    assert await peer.join(version=b"junk") == JoinResponseOk(LORO, "r", "write", b"", b"")
    assert await peer.update(b"opaque") == Ack(LORO, "r", 1, OK)
    await peer.join()
    assert await peer.receive_update() == b"opaque"
    with pytest.raises(ModuleNotFoundError, match=r"reconnect-fsm\[loro\]"):
        server.document("r")


async def test_a_state_too_large_for_the_protocol(server: EmbeddedServer, connect: Connect) -> None:
    """A document that exports more than any client would take is refused, with its size."""
    document = server.document("r")
    document.get_map("map").insert("key", Random(1).randbytes(Reassembler.MAX_BATCH_BYTES + 1))
    document.commit()
    peer = await connect(server)
    answer = await peer.join()
    assert isinstance(answer, JoinError)
    assert answer.code is JoinErrorCode.UNKNOWN
    assert "the limit is 67108864" in answer.message


async def test_forget(server: EmbeddedServer, connect: Connect) -> None:
    """All rooms are gone, and so are their members."""
    peer = await connect(server)
    await peer.join()
    await peer.update(write(peer.document, "x"))
    server.forget()
    assert await peer.update(b"x") == Ack(LORO, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    assert await peer.join() == JoinResponseOk(LORO, "r", "write", EMPTY_VERSION, b"")


# ------------------------------------------------------------------------------------------------------- how it closes


@pytest.mark.parametrize(("code", "answer"), [(4000, 4000), (1000, 1000)])
async def test_a_clients_close_is_answered(
    server: EmbeddedServer, session: aiohttp.ClientSession, code: int, answer: int
) -> None:
    """With its own code; the TCP connection ends after that."""
    async with session.ws_connect(server.url) as ws:
        assert await ws.close(code=code)
        assert ws.close_code == answer
    await until(lambda: server.connections == 0)


async def test_a_close_without_a_code_is_answered_without_one(server: EmbeddedServer) -> None:
    """Neither side says why, and the server then closes the TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_request(server) + b"\x88\x80\0\0\0\0")
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    assert await reader.read() == b"\x88\x00"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4401, "auth_failed"), (1006, "x" * 123), (65535, "")])
async def test_close_all(server: EmbeddedServer, connect: Connect, code: int, reason: str) -> None:
    """Every client gets the frame, also one that nobody should send; the server goes on serving."""
    peers = [await connect(server) for _ in range(3)]
    closing = asyncio.create_task(server.close_all(code, reason))
    for peer in peers:
        assert await peer.closed() == (code, reason)
    await closing
    assert server.connections == 0
    await (await connect(server)).hears_nothing()


async def test_close_all_comes_after_what_was_sent_before(server: EmbeddedServer, connect: Connect) -> None:
    """A close frame does not overtake."""
    peer = await connect(server)
    sent = await server.send_raw("first")
    closing = asyncio.create_task(server.close_all(4000, "then"))
    assert (sent, (await peer.frame()).data) == (1, "first")
    assert await peer.closed() == (4000, "then")
    await closing


async def test_close_all_refuses_nonsense(server: EmbeddedServer) -> None:
    """A code or reason that fits no frame, or a server that is frozen."""
    with pytest.raises(ValueError, match="close code"):
        await server.close_all(65536)
    with pytest.raises(ValueError, match="reason"):
        await server.close_all(1000, "x" * 124)
    server.freeze()
    with pytest.raises(RuntimeError, match="thaw"):
        await server.close_all()


@pytest.mark.virtual_time
async def test_a_client_that_does_not_answer_the_close(server: EmbeddedServer) -> None:
    """Its connection is aborted when its time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_request(server))
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: server.connections == 1)
    start = asyncio.get_running_loop().time()
    await server.close_all(4000)
    assert asyncio.get_running_loop().time() - start == pytest.approx(EmbeddedServer.CLOSE_TIMEOUT, abs=0.01)
    assert server.connections == 0
    assert await reader.read() == b"\x88\x02" + (4000).to_bytes(2, "big")
    writer.close()


async def test_reset_all(server: EmbeddedServer) -> None:
    """The client's TCP gets a reset, not an end; also where the upgrade was not answered yet."""
    loop = asyncio.get_running_loop()
    server.freeze()
    with socket.create_connection(("127.0.0.1", server.port)) as pending:
        pending.setblocking(False)
        await loop.sock_sendall(pending, raw_request(server))
        await until(lambda: server.stats.attempts == 1)
        server.reset_all()
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(pending, 1)
    server.thaw()
    with socket.create_connection(("127.0.0.1", server.port)) as open_:
        open_.setblocking(False)
        await loop.sock_sendall(open_, raw_request(server))
        assert b" 101 " in await loop.sock_recv(open_, 65536)
        await until(lambda: server.connections == 1)
        server.reset_all()
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(open_, 1)
    await until(lambda: server.connections == 0)
    assert server.stats.connects == 1
    await server.stop()
    server.reset_all()  # nothing to reset


# ------------------------------------------------------------------------------------------------------- how it freezes


@pytest.mark.virtual_time
async def test_freeze_makes_connections_half_open(server: EmbeddedServer, connect: Connect) -> None:
    """For an hour nothing is answered or sent, not even a WebSocket ping; then everything is, in order."""
    peer = await connect(server)
    await peer.join()
    server.freeze()
    server.freeze()
    await peer.ws.send_str("ping")
    await peer.ws.ping(b"x")
    await server.send_raw("late")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await peer.ws.receive()
    assert (server.stats.pings, server.connections) == (0, 1)
    server.thaw()
    heard = [await peer.frame() for _ in range(3)]
    assert [frame.type for frame in heard] == [WSMsgType.TEXT, WSMsgType.TEXT, WSMsgType.PONG]
    assert [heard[0].data, heard[1].data] == ["late", "pong"]


@pytest.mark.virtual_time
async def test_freeze_leaves_upgrades_unanswered(
    server: EmbeddedServer, connect: Connect, session: aiohttp.ClientSession
) -> None:
    """TCP connects while frozen, and no answer comes; who gave up meanwhile is not counted as a connection."""
    server.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await session.ws_connect(server.url)
    assert server.stats.attempts == 1
    patient = asyncio.create_task(connect(server))
    await until(lambda: server.stats.attempts == 2)
    server.thaw()
    await (await patient).hears_nothing()
    assert (server.stats.connects, server.connections) == (1, 1)


async def test_a_frozen_server_stops_reading(server: EmbeddedServer, connect: Connect) -> None:
    """What a client sends fills the kernel's buffers, and then waits; after a thaw it all arrives."""
    peer = await connect(server)
    server.freeze()
    frame, sent = encode(DocUpdate(EPHEMERAL, "r", (bytes(100_000),), 1)), 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(400):
            await peer.ws.send_bytes(frame)
            sent += 1

    flooding = asyncio.create_task(flood())
    await settled(lambda: sent)
    assert not flooding.done()
    server.thaw()
    denied = Ack(EPHEMERAL, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    for _ in range(400):
        assert await peer.receive() == denied
    await flooding


# ----------------------------------------------------------------------------------------------- how else it misbehaves


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {}),
        (403, {}),
        (404, {}),
        (429, {"Retry-After": "7"}),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        (500, {}),
        (200, {}),
    ],
)
async def test_refuse_upgrades(server: EmbeddedServer, connect: Connect, status: int, headers: dict[str, str]) -> None:
    """An HTTP answer with these headers instead of the upgrade, until told otherwise."""
    server.refuse_upgrades(status, headers)
    for _ in range(2):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(server)
        assert refused.value.status == status
        assert refused.value.headers is not None
        assert headers.items() <= dict(refused.value.headers).items()
    assert (server.stats.attempts, server.stats.connects) == (2, 0)
    server.refuse_upgrades(None)
    await (await connect(server)).hears_nothing()


async def test_refuse_upgrades_with_a_redirect(serve: Serve, server: EmbeddedServer, connect: Connect) -> None:
    """A redirect is an answer like any other: a client that follows it arrives there."""
    target = await serve(EmbeddedServer())
    server.refuse_upgrades(302, {"Location": target.url.replace("ws", "http")})
    await (await connect(server)).hears_nothing()
    assert (server.stats.connects, target.stats.connects) == (0, 1)


async def test_drop_on_accept(server: EmbeddedServer, connect: Connect) -> None:
    """The upgrade is answered, and the connection ends without a close frame."""
    server.drop_on_accept = True
    await (await connect(server)).lost()
    assert (server.stats.connects, server.connections) == (1, 0)
    server.drop_on_accept = False
    await (await connect(server)).hears_nothing()


async def test_ignore_joins(server: EmbeddedServer, connect: Connect) -> None:
    """Joins get no answer, and are counted; everything else works."""
    peer = await connect(server)
    server.ignore_joins = True
    await peer.send(JoinRequest(LORO, "r", b"", b""))
    await peer.hears_nothing()
    assert server.stats.joins == 1
    server.ignore_joins = False
    assert isinstance(await peer.join(), JoinResponseOk)


async def test_hold_acks(server: EmbeddedServer, connect: Connect) -> None:
    """Updates are taken and sent on, their acks kept until released; those of who is gone are lost."""
    author, member, gone = [await connect(server) for _ in range(3)]
    for peer in (author, member, gone):
        await peer.join(crdt=EPHEMERAL)
    server.hold_acks = True
    await gone.send(DocUpdate(EPHEMERAL, "r", (b"z",), 9))
    await gone.hears_nothing()
    await gone.ws.close()
    await author.send(DocUpdate(EPHEMERAL, "r", (b"a",), 1), DocUpdate(EPHEMERAL, "r", (b"b",), 2))
    assert [await member.receive_update() for _ in range(3)] == [b"z", b"a", b"b"]
    assert await author.receive_update() == b"z"
    await author.hears_nothing()
    server.hold_acks = False
    server.release_acks()
    assert [await author.receive(), await author.receive()] == [
        Ack(EPHEMERAL, "r", 1, OK),
        Ack(EPHEMERAL, "r", 2, OK),
    ]
    assert await author.update(b"c", crdt=EPHEMERAL) == Ack(EPHEMERAL, "r", 1, OK)


async def test_send(server: EmbeddedServer, connect: Connect) -> None:
    """Any message, also a wrong one, to every member of the room and nobody else."""
    members, stranger = [await connect(server) for _ in range(2)], await connect(server)
    for peer in members:
        await peer.join()
    message = JoinError(LORO, "another room", JoinErrorCode.APP_ERROR, "because", app_code="teapot")
    assert await server.send("r", LORO, message) == 2
    for peer in members:
        assert await peer.receive() == message
    await stranger.hears_nothing()
    assert await server.send("nobody's", LORO, message) == 0
    with pytest.raises(ProtocolError):
        await server.send("r", LORO, Leave(LORO, "x" * 129))


@pytest.mark.parametrize("code", [RoomErrorCode.REJOIN_SUGGESTED, RoomErrorCode.EVICTED])
async def test_a_room_error_puts_the_members_out(server: EmbeddedServer, connect: Connect, code: RoomErrorCode) -> None:
    """Who gets it may not write until it joins again."""
    peer = await connect(server)
    await peer.join(crdt=EPHEMERAL)
    error = RoomError(EPHEMERAL, "r", code, "out")
    assert await server.send("r", EPHEMERAL, error) == 1
    assert await peer.receive() == error
    denied = Ack(EPHEMERAL, "r", 1, UpdateStatusCode.PERMISSION_DENIED)
    assert await peer.update(b"x", crdt=EPHEMERAL) == denied
    await peer.join(crdt=EPHEMERAL)
    assert await peer.update(b"x", crdt=EPHEMERAL) == Ack(EPHEMERAL, "r", 1, OK)


@pytest.mark.parametrize("data", ["text", b"binary", b"", "\N{SNOWMAN}"])
async def test_send_raw(server: EmbeddedServer, connect: Connect, data: str | bytes) -> None:
    """Any frame, to every client whether it is in a room or not."""
    peers = [await connect(server) for _ in range(2)]
    assert await server.send_raw(data) == 2
    for peer in peers:
        frame = await peer.frame()
        assert (frame.type, frame.data) == (WSMsgType.TEXT if isinstance(data, str) else WSMsgType.BINARY, data)


async def test_stats(server: EmbeddedServer, connect: Connect) -> None:
    """What came in is counted over all connections; `connections` is how many there are now."""
    first, second = await connect(server), await connect(server)
    await first.join()
    await second.join()
    await first.update(write(first.document, "x"))
    await first.hears_nothing()
    await first.ws.close()
    await until(lambda: server.connections == 1)
    stats = server.stats
    assert (stats.attempts, stats.connects, stats.joins, stats.updates, stats.pings) == (2, 2, 2, 1, 1)


@pytest.mark.virtual_time
async def test_it_serves_in_virtual_time(serve: Serve, connect: Connect) -> None:
    """The whole of it works on a loop whose clock jumps: also a restart on the same port."""
    server = await serve(EmbeddedServer())
    peer = await connect(server)
    await peer.join()
    await peer.update(write(peer.document, "x"))
    stopping = asyncio.create_task(server.stop())
    await peer.closed()
    await stopping
    await server.start()
    peer = await connect(server)
    await peer.join()
    peer.document.import_(await peer.receive_update())
    assert read(peer.document) == "x"
    server.reset_all()
    await peer.lost()
