"""Our client and the real server, npm `loro-websocket`, and beside it the real JavaScript client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from loro import EphemeralStore, LoroDoc

from documents import new_doc, text
from kit import PATIENCE, Statuses, until, until_equal
from node_peers import NodeClient, NodeServer, requires_node, skip_without_node
from reconnect_fsm import (
    Client,
    ClientStatus,
    ClientStopped,
    JoinRefused,
    Keepalive,
    RetryPolicy,
    RoomFSM,
    RoomStatus,
    StatusChange,
    UpdatesRefused,
)
from reconnect_fsm._asyncio.room import driver_of
from reconnect_fsm.adaptors import EphemeralAdaptor, LoroAdaptor
from reconnect_fsm.loro_protocol import JoinErrorCode, RoomErrorCode, UpdateStatusCode

pytestmark = requires_node


@pytest.fixture
async def server() -> AsyncIterator[NodeServer]:
    """A real server, listening."""
    skip_without_node()
    async with NodeServer() as peer:
        yield peer


@pytest.fixture
async def javascript(server: NodeServer) -> AsyncIterator[NodeClient]:
    """A real JavaScript client, connected; it reconnects almost at once."""
    async with NodeClient() as peer:
        await peer.connect(server.url, reconnect={"initialDelayMs": 10, "jitter": 0})
        yield peer


@pytest.fixture
async def client(server: NodeServer) -> AsyncIterator[Client]:
    """Our client, connected."""
    async with client_of(server) as client:
        await client.wait_connected()
        yield client


def client_of(server: NodeServer, **options: Any) -> Client:
    options = {"retry": RetryPolicy(base=0.02, cap=0.1), "keepalive": Keepalive(enabled=False), **options}
    return Client(server.url, **options)


def write(doc: LoroDoc, words: str) -> None:
    """Put words at the end of the document, and commit."""
    doc.get_text("text").push_str(words)
    doc.commit()


# --------------------------------------------------------------------------------------------------------- both clients


async def test_concurrent_edits_of_both_clients_converge(
    server: NodeServer, javascript: NodeClient, client: Client
) -> None:
    """A %LOR room shared with the JavaScript client: edits made at the same time end in one text everywhere."""
    doc = new_doc()
    await javascript.join("r")
    room = await client.join("r", LoroAdaptor(doc))
    for number in range(5):
        write(doc, f"[o{number}]")
        await javascript.insert("r", 0, f"[j{number}]")
    await room.synced()
    await until(lambda: len(text(doc)) == 40)
    await until_equal(lambda: javascript.text("r"), text(doc))
    await until_equal(lambda: server.text("r"), text(doc))
    await until_equal(lambda: sorted(text(doc)), sorted("".join(f"[o{n}][j{n}]" for n in range(5))))


async def test_ephemeral_values_go_both_ways(javascript: NodeClient, client: Client) -> None:
    """A %EPH room: each side sees the other's keys, set before and after the join."""
    store = EphemeralStore(60_000)
    store.set("early", 1)
    await javascript.join("r", crdt="%EPH")
    room = await client.join("r", EphemeralAdaptor(store))
    store.set("cursor", {"line": 3})
    await javascript.eph_set("r", "name", "ada")
    everything = {"early": 1, "cursor": {"line": 3}, "name": "ada"}
    await until_equal(lambda: javascript.eph_all("r"), everything)
    await until_equal(store.get_all_states, everything)
    await room.synced()


async def test_a_document_and_a_store_share_a_room_id(javascript: NodeClient, client: Client) -> None:
    """REJOIN-1: the CRDT type is part of what a room is known by, here and there."""
    doc, store = new_doc(), EphemeralStore(60_000)
    await asyncio.gather(javascript.join("r"), javascript.join("r", crdt="%EPH"))
    await asyncio.gather(client.join("r", LoroAdaptor(doc)), client.join("r", EphemeralAdaptor(store)))
    write(doc, "text")
    store.set("key", "value")
    await until_equal(lambda: javascript.text("r"), "text")
    await until_equal(lambda: javascript.eph_all("r"), {"key": "value"})


async def test_d_leave_the_server_puts_us_out_of_the_room(server: NodeServer, client: Client) -> None:
    """D-LEAVE: it counts one member less, and a reconnect brings only the other room back."""
    left = await client.join("left", LoroAdaptor(new_doc()))
    kept = await client.join("kept", LoroAdaptor(new_doc()))

    async def members() -> dict[str, int]:
        return {room["room"]: room["members"] for room in (await server.stats())["rooms"]}

    await until_equal(members, {"left": 1, "kept": 1})
    await left.leave()
    await until_equal(members, {"left": 0, "kept": 1})
    seen = Statuses(kept)
    await server.terminate()
    await seen.all_of("reconnecting", "joined")
    await until_equal(members, {"left": 0, "kept": 1})


# -------------------------------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize("keep_rooms", [True, False], ids=["it kept the rooms", "it forgot the rooms"])
async def test_a_restarted_server_gets_what_was_edited_while_it_was_down(server: NodeServer, keep_rooms: bool) -> None:
    """REJOIN-2 D-ACK: edits from before and during the outage are there, whether or not the server kept its rooms."""
    doc, store = new_doc(), EphemeralStore(60_000)
    async with client_of(server) as client:
        room = client.join("r", LoroAdaptor(doc))
        presence = client.join("r", EphemeralAdaptor(store))
        write(doc, "before ")
        store.set("key", "before")
        await asyncio.gather(room.synced(), presence)
        await until_equal(lambda: server.text("r"), "before ")
        seen = Statuses(room)
        await server.stop()
        await seen.all_of("reconnecting")
        write(doc, "while down ")
        store.set("other", "while down")
        await server.start(keep_rooms=keep_rooms)
        await asyncio.gather(room.synced(), presence.synced())
        write(doc, "after")
        await until_equal(lambda: server.text("r"), "before while down after")
        async with NodeClient() as late:
            await late.connect(server.url)
            await late.join("r", crdt="%EPH")
            await until_equal(lambda: late.eph_all("r"), {"key": "before", "other": "while down"})


async def test_edits_of_both_sides_during_an_outage_meet(
    server: NodeServer, javascript: NodeClient, client: Client
) -> None:
    """REJOIN-2: both clients go on while the server is away; afterwards all three hold the same."""
    doc = new_doc()
    await javascript.join("r")
    room = await client.join("r", LoroAdaptor(doc))
    seen = Statuses(room)
    await server.stop()
    await seen.all_of("reconnecting")
    write(doc, "ours")
    await javascript.insert("r", 0, "theirs")
    await server.start()
    await room
    await until(lambda: len(text(doc)) == len("ourstheirs"))
    await until_equal(lambda: javascript.text("r"), text(doc))
    await until_equal(lambda: server.text("r"), text(doc))


@pytest.mark.parametrize(("code", "reason"), [(1008, ""), (4401, ""), (1000, "permission_changed")])
async def test_a_fatal_kick_stops_us_until_we_are_told_to_go_on(
    server: NodeServer, client: Client, code: int, reason: str
) -> None:
    """RETRY-3 D-STOP: the client stays away, the room stays tracked; connect() joins it again, edits and all."""
    doc = new_doc()
    room = await client.join("r", LoroAdaptor(doc))
    await server.kick(code, reason)
    await until(lambda: client.status is ClientStatus.DISCONNECTED)
    assert (room.status, client.rooms) == (RoomStatus.DISCONNECTED, (room,))
    assert (await server.stats())["connections"] == 1
    write(doc, "offline")
    await client.connect()
    await room.synced()
    assert await server.text("r") == "offline"


@pytest.mark.parametrize("code", [1011, 1001, 1012, None], ids=["1011", "1001", "1012", "terminated"])
async def test_any_other_kick_is_survived(server: NodeServer, client: Client, code: int | None) -> None:
    """CONN-3 REJOIN-2: the client comes back by itself, and the room with it."""
    doc, heard = new_doc(), list[str]()
    room = await client.join("r", LoroAdaptor(doc))
    room.on_status(lambda change: heard.append(change.new.value))
    assert await (server.terminate() if code is None else server.kick(code, "because")) == 1
    write(doc, "meanwhile")
    await until(lambda: heard == ["reconnecting", "joined"])
    await room.synced()
    assert await server.text("r") == "meanwhile"


async def test_a_half_open_connection_is_noticed_and_replaced(server: NodeServer) -> None:
    """LIVE-2: the server is there and says nothing; the missing pong ends it, and the room is joined anew."""
    doc, losses = new_doc(), list[str]()
    async with client_of(server, keepalive=Keepalive(interval=0.3, timeout=0.3), close_timeout=0.2) as client:
        client.on_status(lambda change: losses.append(change.reason) if change.new == "reconnecting" else None)
        room = await client.join("r", LoroAdaptor(doc))
        assert await server.pause() == 1
        write(doc, "into the void")
        await until(lambda: losses)
        assert "no answer to a ping" in losses[0]
        await room.synced()
        assert await server.text("r") == "into the void"
        assert client.latency is None or client.latency > 0
    await server.resume()


async def test_a_handshake_refused_with_401_is_final_until_we_are_told_to_go_on(server: NodeServer) -> None:
    """D-HTTP D-STOP: one attempt, `join` raises ClientStopped; connect() works once the server lets us in."""
    await server.http_refuse(401)
    async with client_of(server) as client:
        room = client.join("r", LoroAdaptor(new_doc()))
        with pytest.raises(ClientStopped, match="401"):
            await room
        assert (await server.stats())["handshakes"] == 1
        await server.http_refuse(None)
        await client.connect()
        await room


async def test_a_ping_is_answered(client: Client) -> None:
    """LIVE-1: text ping, text pong."""
    assert await client.ping() > 0


# --------------------------------------------------------------------------------------------------------- permissions


async def test_bad_auth_is_a_refused_join(server: NodeServer, client: Client) -> None:
    """REJOIN-3: JoinError 2 with the wrong token; with the right one, asked of a function, the room is joined."""
    await server.auth("write", token="sésame")
    with pytest.raises(JoinRefused) as caught:
        await client.join("r", LoroAdaptor(new_doc()), auth=b"open")
    assert caught.value.code == JoinErrorCode.AUTH_FAILED
    assert client.rooms == ()

    async def token() -> bytes:
        return "sésame".encode()

    room = await client.join("r", LoroAdaptor(new_doc()), auth=token)
    assert room.permission == "write"


async def test_d_ack_the_edits_of_a_reader_reach_the_adaptor(server: NodeServer, client: Client) -> None:
    """D-ACK: with "read" an edit is refused and handed back, while what others write still comes."""
    refusals: list[tuple[Sequence[bytes], UpdateStatusCode]] = []
    doc, writer = new_doc(), new_doc()
    await server.auth("read", room="r")
    room = await client.join("r", LoroAdaptor(doc, on_refused=lambda *refusal: refusals.append(refusal)))
    assert room.permission == "read"
    write(doc, "not allowed")
    with pytest.raises(UpdatesRefused):
        await room.synced()
    await until(lambda: refusals)
    ((updates, status),) = refusals
    assert status is UpdateStatusCode.PERMISSION_DENIED
    copy = new_doc()
    copy.import_(updates[0])
    assert text(copy) == "not allowed"
    assert await server.text("r") == ""
    await server.auth("write", room="r")
    async with client_of(server) as other:
        theirs = await other.join("r", LoroAdaptor(writer))
        write(writer, "allowed")
        await theirs.synced()
        await until(lambda: "allowed" in text(doc).replace("not allowed", ""))


async def test_rejoin_3_a_revoked_permission_shows_as_error(server: NodeServer, client: Client) -> None:
    """REJOIN-3 OK-4: the rejoin is refused: the room is in error and dropped, the other room comes back."""
    room, other = await client.join("r", LoroAdaptor(new_doc())), await client.join("other", LoroAdaptor(new_doc()))
    await server.auth(None, room="r")
    await server.terminate()
    await until(lambda: room.status is RoomStatus.ERROR)
    await other
    assert client.rooms == (other,)
    with pytest.raises(JoinRefused):
        await room.synced()


async def test_d_roomerr_an_evicted_room_is_in_error_and_can_be_joined_again(
    server: NodeServer, client: Client
) -> None:
    """D-ROOMERR: evicted, its listener joins anew inside the callback, and that room works."""
    doc = new_doc()
    again = []

    def listener(change: StatusChange[RoomStatus]) -> None:
        if change.new is RoomStatus.ERROR:
            again.append(client.join("r", LoroAdaptor(doc)))

    room = await client.join("r", LoroAdaptor(doc), on_status=listener)
    assert await server.room_error("r", RoomErrorCode.EVICTED, "go away") == 1
    await until(lambda: again)
    assert "go away" in room.reason
    await again[0]
    write(doc, "back")
    await again[0].synced()
    assert await server.text("r") == "back"


async def test_d_roomerr_a_suggested_rejoin_is_followed_once(server: NodeServer, client: Client) -> None:
    """D-ROOMERR: one immediate rejoin; the second suggestion has to wait for the interval."""
    room = await client.join("r", LoroAdaptor(new_doc()))
    await server.room_error("r", RoomErrorCode.REJOIN_SUGGESTED)
    await until(lambda: driver_of(room).fsm.joins == 2)
    await server.room_error("r", RoomErrorCode.REJOIN_SUGGESTED)
    await until(lambda: room.state == "resync_delayed")
    assert (await server.stats())["joins"] == 2


async def test_d_timeout_a_join_that_hangs_is_asked_again(server: NodeServer) -> None:
    """D-TIMEOUT: the server took the request and never answered; the next one gets in."""

    delayed = asyncio.Event()

    class Impatient(RoomFSM):
        join_timeout = 0.3

        def state_changed(self) -> None:
            super().state_changed()
            if self.state == "join_delayed":  # for a moment, as often as it is not answered
                delayed.set()

    await server.auth("hang")
    async with client_of(server, room_fsm=Impatient) as client:
        room = client.join("r", LoroAdaptor(new_doc()))
        async with asyncio.timeout(PATIENCE):
            await delayed.wait()
        await server.auth("write")
        await room
        assert client.status is ClientStatus.CONNECTED


# ------------------------------------------------------------------------------------------------------------- D-RESYNC


async def test_d_resync_a_second_request_on_the_same_connection(server: NodeServer, client: Client) -> None:
    """D-RESYNC: the server answers it as it does the first, with what we lack; the session goes on."""
    ours, theirs = new_doc(), new_doc()
    room = await client.join("r", LoroAdaptor(ours))
    statuses: list[str] = []
    room.on_status(lambda change: statuses.append(change.new.value))
    async with client_of(server) as other:
        await other.join("r", LoroAdaptor(theirs))
        write(theirs, "theirs ")
        await until(lambda: text(ours) == "theirs ")
        await server.auth("read", room="r")
        await room.resync()
        assert room.permission == "read"
        write(ours, "ours ")
        with pytest.raises(UpdatesRefused):
            await room.synced()
        write(theirs, "more of ")
        await until(lambda: "more of " in text(ours))
        await server.auth("write", room="r")
        await room.resync()
        assert (room.permission, room.is_synced) == ("write", True)
        await until(lambda: text(theirs) == text(ours))
        assert "ours " in text(theirs)
    assert statuses == []
    assert (await server.stats())["joins"] == 4


async def test_d_resync_what_the_server_refuses_for_a_while_arrives(server: NodeServer, client: Client) -> None:
    """D-RESYNC: it took our right to write away, and gave it back; neither told us."""
    doc = new_doc()
    room = await client.join("r", LoroAdaptor(doc, on_refused=lambda *_: None))
    write(doc, "c")
    await room.synced()
    await server.auth("read", room="r")
    async with client_of(server) as other:  # the permission is that of the last request to join
        await room.resync()
        await server.auth("write", room="r")
        write(doc, "b")
        write(doc, "a")
        with pytest.raises(UpdatesRefused):
            await room.synced()
        await room.resync()
        copy = new_doc()
        await other.join("r", LoroAdaptor(copy))
        await until(lambda: text(copy) == "cba")


# ------------------------------------------------------------------------------------------------------------ fragments


async def test_fragments_carry_a_large_update_up(server: NodeServer, client: Client) -> None:
    """One operation of 1 MB, which cannot be cut, reaches the server in fragments, and is acknowledged."""
    doc, large = new_doc(), "0123456789abcdef" * 65_536
    room = await client.join("r", LoroAdaptor(doc))
    doc.get_map("map").insert("key", large)
    write(doc, "after it")
    await room.synced()
    assert await server.text("r") == "after it"
    assert (await server.stats())["fragments"] >= 4


async def test_fragments_of_the_javascript_client_come_down(javascript: NodeClient, client: Client) -> None:
    """One edit of 1 MB that the JavaScript client made reaches us in fragments."""
    doc, large = new_doc(), "0123456789abcdef" * 65_536
    await javascript.join("r")
    await client.join("r", LoroAdaptor(doc))
    await javascript.insert("r", 0, large)
    await until(lambda: text(doc) == large)


async def test_a_state_too_large_for_the_server_to_send_is_a_room_error(server: NodeServer, client: Client) -> None:
    """D-ROOMERR: the server lets us in, fails to send its state, says so with a JoinError: the room is in error."""
    doc, copy = new_doc(), new_doc()
    small = await client.join("small", LoroAdaptor(new_doc()))
    room = await client.join("r", LoroAdaptor(doc))
    write(doc, "0123456789abcdef" * 65_536)
    await room.synced()
    async with client_of(server) as other:
        late = other.join("r", LoroAdaptor(copy))
        with pytest.raises(JoinRefused):
            await late.synced()
        assert late.status is RoomStatus.ERROR
        assert other.rooms == ()
        assert await other.join("small", LoroAdaptor(new_doc()))
    assert small.status is RoomStatus.JOINED
