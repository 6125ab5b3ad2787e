"""The harness round the real server and the real JavaScript client: every command does what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

import node_peers
from kit import until_equal
from node_peers import NodeClient, NodeError, NodeServer, node_available, requires_node, skip_without_node
from reconnect_fsm.testing import leaks

QUICKLY = {"reconnect": {"initialDelayMs": 10, "jitter": 0}}


@pytest.fixture
async def server() -> AsyncIterator[NodeServer]:
    """A real server, listening."""
    skip_without_node()
    async with NodeServer() as peer:
        yield peer


@pytest.fixture
async def client(server: NodeServer) -> AsyncIterator[NodeClient]:
    """A real JavaScript client, connected; it reconnects almost at once."""
    async with NodeClient() as peer:
        await peer.connect(server.url, **QUICKLY)
        yield peer


@pytest.fixture
async def other(server: NodeServer) -> AsyncIterator[NodeClient]:
    """A second JavaScript client, connected."""
    async with NodeClient() as peer:
        await peer.connect(server.url, **QUICKLY)
        yield peer


@pytest.fixture
async def socket(server: NodeServer) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A plain WebSocket to the server, which answers nothing by itself."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url, autoping=False, autoclose=False) as websocket,
    ):
        yield websocket


async def members(server: NodeServer, room: str) -> int:
    """How many clients the server has in a room."""
    return sum(entry["members"] for entry in (await server.stats())["rooms"] if entry["room"] == room)


async def counted(server: NodeServer, name: Literal["clients", "joins", "updates"]) -> int:
    """One number of the stats."""
    return (await server.stats())[name]


# --- rooms -----------------------------------------------------------------------------------------------------------


@requires_node
async def test_an_edit_reaches_the_server_and_the_other_client(
    server: NodeServer, client: NodeClient, other: NodeClient
) -> None:
    """Two real clients of a %LOR room hold one text, whoever joined first."""
    await client.join("room")
    await client.insert("room", 0, "hello")
    await until_equal(lambda: server.text("room"), "hello")
    await other.join("room")
    assert await other.text("room") == "hello"
    await other.insert("room", 5, " world")
    await until_equal(lambda: client.text("room"), "hello world")
    assert await server.text("room") == "hello world"
    assert await server.text("another room") is None


@requires_node
async def test_an_ephemeral_value_reaches_the_other_client(client: NodeClient, other: NodeClient) -> None:
    """Two real clients of a %EPH room see each other's keys."""
    await client.join("room", crdt="%EPH")
    await other.join("room", crdt="%EPH")
    await client.eph_set("room", "cursor", {"line": 3})
    await other.eph_set("room", "name", "ada")
    await until_equal(lambda: other.eph_get("room", "cursor"), {"line": 3})
    await until_equal(lambda: client.eph_all("room"), {"cursor": {"line": 3}, "name": "ada"})
    assert await client.eph_get("room", "nothing") is None


@requires_node
async def test_stats_count_what_came_in(
    server: NodeServer, client: NodeClient, socket: aiohttp.ClientWebSocketResponse
) -> None:
    """Clients, rooms, members, joins, updates, leaves and pings are all counted."""
    await client.join("a:b")
    await client.insert("a:b", 0, "x")
    await socket.send_str("ping")
    assert (await socket.receive()).data == "pong"
    await until_equal(lambda: server.text("a:b"), "x")
    stats = await server.stats()
    assert stats["rooms"] == [{"room": "a:b", "crdt": "%LOR", "members": 1}]
    assert (stats["clients"], stats["handshakes"], stats["connections"]) == (2, 2, 2)
    assert (stats["joins"], stats["updates"], stats["pings"], stats["leaves"]) == (1, 1, 1, 0)
    await client.leave("a:b")
    await until_equal(lambda: members(server, "a:b"), 0)
    assert (await server.stats())["leaves"] == 1


@requires_node
async def test_a_room_that_was_left_is_not_rejoined(server: NodeServer, client: NodeClient) -> None:
    """After `leave` the JavaScript client forgets the room; the one it stays in comes back after a drop."""
    await client.join("left")
    await client.join("kept")
    await client.leave("left")
    with pytest.raises(NodeError, match="not joined: %LOR left"):
        await client.text("left")
    await server.terminate()
    await until_equal(
        lambda: client.room_statuses("kept"), ["connecting", "joined", "reconnecting", "reconnecting", "joined"]
    )
    assert await counted(server, "joins") == 3
    assert (await members(server, "kept"), await members(server, "left")) == (1, 0)


@requires_node
async def test_room_error_evicts(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """RoomError 2 goes to the members, and puts them out of the room."""
    await socket.send_bytes(b"%EPH\x04room\x00\x00\x00")  # a JoinRequest, without auth or version
    assert (await socket.receive()).data[:10] == b"%EPH\x04room\x01"
    assert await server.room_error("room", 2) == 0
    assert await server.room_error("room", 2, "go", crdt="%EPH") == 1
    assert (await socket.receive()).data == b"%EPH\x04room\x06\x02\x02go"
    assert await members(server, "room") == 0


@requires_node
async def test_room_error_can_suggest_a_rejoin(server: NodeServer, client: NodeClient) -> None:
    """RoomError 1 leaves the members in, and a client asks again."""
    await client.join("room")
    assert await server.room_error("room", 1, "once more") == 1
    await until_equal(lambda: client.room_statuses("room"), ["connecting", "joined", "reconnecting", "joined"])
    assert (await server.stats())["joins"] == 2
    assert await members(server, "room") == 1


@requires_node
async def test_auth_decides_on_joins(server: NodeServer, client: NodeClient) -> None:
    """Joins are refused, or need a token; a room's own setting goes before the general one."""
    await server.auth(None)
    await server.auth("write", token="sésame", room="cave")
    with pytest.raises(NodeError, match="Join failed: 2"):
        await client.join("room")
    with pytest.raises(NodeError, match="Join failed: 2"):
        await client.join("cave", auth="open")
    await client.join("cave", auth="sésame")
    assert await members(server, "cave") == 1


@requires_node
async def test_a_reader_cannot_write(server: NodeServer, client: NodeClient) -> None:
    """With "read" an update arrives and is not applied."""
    await server.auth("read")
    await client.join("room")
    await client.insert("room", 0, "x")
    await until_equal(lambda: counted(server, "updates"), 1)
    assert await server.text("room") == ""


@requires_node
async def test_a_join_can_be_left_unanswered(server: NodeServer, client: NodeClient) -> None:
    """With "hang" the server takes a join and says nothing; the helper's own bound ends the wait."""
    await server.auth("hang")
    with pytest.raises(NodeError, match=r"client\.mjs join: no answer within 0\.2 s"):
        await client.join("room", within=0.2)
    assert client.room_statuses("room") == ["connecting"]


# --- connections -----------------------------------------------------------------------------------------------------


@requires_node
async def test_stop_says_1001(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """A graceful stop sends a close frame, and nobody listens afterwards."""
    await server.stop()
    message = await socket.receive()
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "Server stopping")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.ws_connect(server.url)


@requires_node
@pytest.mark.parametrize(("keep_rooms", "expected"), [(True, "hello"), (False, None)])
async def test_restart_on_the_same_port(
    server: NodeServer, client: NodeClient, keep_rooms: bool, expected: str | None
) -> None:
    """A stopped server starts again on its port, with its documents or without."""
    await client.join("room")
    await client.insert("room", 0, "hello")
    await until_equal(lambda: server.text("room"), "hello")
    await client.close()  # it would bring its copy back
    url = server.url
    await server.stop()
    await server.start(keep_rooms=keep_rooms)
    assert server.url == url
    assert await server.text("room") == expected
    async with aiohttp.ClientSession() as session, session.ws_connect(url):
        assert await counted(server, "clients") == 1


@requires_node
async def test_the_client_comes_back_after_a_restart(server: NodeServer, client: NodeClient) -> None:
    """The real client reconnects and rejoins; what it wrote meanwhile gets through."""
    await client.join("room")
    await server.stop()
    await until_equal(lambda: "reconnecting" in client.room_statuses("room"), True)
    await client.insert("room", 0, "offline")
    await server.start(keep_rooms=True)
    await until_equal(lambda: server.text("room"), "offline")
    assert client.statuses[:3] == ["connecting", "connected", "disconnected"]
    assert await client.status() == "connected"


@requires_node
async def test_close_ends_the_client(server: NodeServer, client: NodeClient) -> None:
    """A closed JavaScript client is gone from the server and stays away."""
    await client.close()
    await until_equal(lambda: counted(server, "clients"), 0)
    assert await client.status() == "disconnected"


@requires_node
async def test_kick_sends_code_and_reason(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """The code and the reason of a close frame are the caller's."""
    assert await server.kick(4401, "auth_failed") == 1
    message = await socket.receive()
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4401, "auth_failed")


@requires_node
async def test_terminate_sends_no_close_frame(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """A terminated connection just ends."""
    assert await server.terminate() == 1
    assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSED


@requires_node
async def test_pause_is_half_open(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """A paused connection stays and gives no pong; one made later works; resume lets the pong through."""
    assert await server.pause() == 1
    await socket.send_str("ping")
    pong = asyncio.create_task(socket.receive())
    async with aiohttp.ClientSession() as session, session.ws_connect(server.url) as later:
        await later.send_str("ping")
        assert (await later.receive()).data == "pong"
        stats = await server.stats()
        assert (stats["clients"], stats["pings"]) == (2, 1)
    assert not pong.done()
    await server.resume()
    assert (await pong).data == "pong"
    assert (await server.stats())["pings"] == 2


@requires_node
async def test_pause_holds_back_what_the_server_says(server: NodeServer, client: NodeClient) -> None:
    """Nothing is written to a paused connection until it is resumed."""
    await client.join("room")
    await server.pause()
    await server.room_error("room", 1)
    assert await client.text("room") == ""
    assert client.room_statuses("room") == ["connecting", "joined"]
    await server.resume()
    await until_equal(lambda: client.room_statuses("room"), ["connecting", "joined", "reconnecting", "joined"])


@requires_node
async def test_stop_reaches_paused_connections(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """A stop does not wait for half-open connections: it resumes them and closes."""
    await server.pause()
    await server.stop()
    assert (await socket.receive()).data == 1001


@requires_node
async def test_http_refuse_answers_the_handshake(server: NodeServer) -> None:
    """A handshake gets the status and the headers asked for, until it is let in again."""
    async with aiohttp.ClientSession() as session:
        await server.http_refuse(401)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(server.url)
        assert refused.value.status == 401
        await server.http_refuse(503, {"Retry-After": "7"})
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(server.url)
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "7"
        await server.http_refuse(None)
        async with session.ws_connect(server.url):
            stats = await server.stats()
    assert (stats["handshakes"], stats["connections"]) == (3, 1)


# --- processes -------------------------------------------------------------------------------------------------------


@requires_node
async def test_a_command_that_fails_says_why(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """What the script threw is in the error; the peer goes on."""
    with pytest.raises(NodeError, match=r"server\.mjs nonsense: no such command: nonsense"):
        await server.call("nonsense")
    with pytest.raises(NodeError, match="already started"):
        await server.start()
    with pytest.raises(NodeError, match="First argument must be a valid error code number"):
        await server.kick(1006)
    await server.stop()
    await server.stop()


@requires_node
async def test_a_port_that_is_taken_is_an_error(server: NodeServer) -> None:
    """Entering fails with the reason, and leaves no process behind."""
    second = NodeServer()
    second.port = server.port
    with pytest.raises(NodeError, match="EADDRINUSE"):
        await second.__aenter__()
    with pytest.raises(ProcessLookupError):
        os.kill(second.pid, 0)


@requires_node
async def test_a_server_that_died_shows_its_stderr(server: NodeServer, socket: aiohttp.ClientWebSocketResponse) -> None:
    """The real server dies of a JoinError from a client; the next commands tell of it."""
    await socket.send_bytes(b"%LOR" + b"\x01r" + b"\x02" + b"\x00" + b"\x00")
    assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSED
    for _ in range(2):
        with pytest.raises(NodeError, match=r"(?s)stats: the process is gone.*Unsupported message type: 2"):
            await server.stats()


@requires_node
async def test_a_command_in_flight_fails_when_the_process_dies(server: NodeServer, client: NodeClient) -> None:
    """Nobody waits for an answer that cannot come."""
    await server.auth("hang")
    join = asyncio.create_task(client.join("room"))
    await until_equal(lambda: client.room_statuses("room"), ["connecting"])
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(NodeError, match="join: the process is gone"):
        await join


@requires_node
@pytest.mark.parametrize("end", ["politely", "dead", "stopped"])
async def test_nothing_is_left(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, file descriptor or task outlives the context, even of a peer that hangs."""
    skip_without_node()

    before = leaks.in_process() | leaks.in_loop()
    async with NodeServer() as server:
        assert leaks.in_process().keys() - before.keys()
        if end == "dead":
            os.kill(server.pid, signal.SIGKILL)
        if end == "stopped":
            monkeypatch.setattr(node_peers, "EXIT_TIMEOUT", 0.05)
            os.kill(server.pid, signal.SIGSTOP)
    assert await leaks.left_over(before) == []
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


# --- what needs no Node ----------------------------------------------------------------------------------------------


@pytest.fixture
def fake_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with only a node 18 and an npm that notes its calls, and an empty package of ours."""
    _script(tmp_path / "node", "echo v18.0.0")
    _script(tmp_path / "npm", 'echo "$@" >> calls; mkdir -p node_modules')
    (tmp_path / "package.json").write_text("{}")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(node_peers, "NODE_DIR", tmp_path)
    return tmp_path


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_no_node_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without node or npm on the PATH the reason says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_available.__wrapped__() == "node and npm are not on the PATH"


@pytest.mark.parametrize("answer", ["v16.20.2", "what?"])
def test_an_old_node_is_a_reason(fake_node: Path, answer: str) -> None:
    """A Node older than the packages need is as good as none."""
    _script(fake_node / "node", f"echo {answer}")
    assert node_available.__wrapped__() == f"node {answer} is older than 18"


def test_a_failed_install_is_a_reason_and_is_tried_again(fake_node: Path) -> None:
    """What npm wrote last is the reason; a node_modules it left half done does not count."""
    _script(fake_node / "npm", "mkdir node_modules; echo no network >&2; exit 3")
    assert node_available.__wrapped__() == "npm install exited with 3: no network"
    _script(fake_node / "npm", "exit 0")
    assert node_available.__wrapped__() is None


def test_it_installs_once_for_each_set_of_pins(fake_node: Path) -> None:
    """Two at once run npm once between them; a changed package.json runs it again."""
    _script(fake_node / "npm", 'sleep 0.1; echo "$@" >> calls; mkdir -p node_modules')
    threads = [threading.Thread(target=node_available.__wrapped__) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = fake_node / "calls"
    assert calls.read_text() == "install --no-audit --no-fund --loglevel=error\n"
    (fake_node / "package.json").write_text('{"private": true}')
    assert node_available.__wrapped__() is None
    assert len(calls.read_text().splitlines()) == 2


def test_without_node_a_test_is_skipped_and_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is to believe that the real peers were tried when they were not; CI has to try them."""
    monkeypatch.setattr(node_peers, "node_available", lambda: "no node")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="the real peers cannot run: no node"):
        skip_without_node()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI has to run the real peers: no node"):
        skip_without_node()
