"""Order and promptness (D-ORDER, D-NOW), and who may call and wait (D-STOP, D-THREAD), with users who use callbacks."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, web
from pytest_aiohttp.plugin import AiohttpRawServer
from yarl import URL

from doubles import Notebook
from kit import until
from reconnect_fsm import Client, ClientFSM, ClientStopped, Connection, Keepalive, NotConnected, RetryPolicy, RoomFSM
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm.loro_protocol import CrdtType, DocUpdate, JoinRequest, JoinResponseOk, Leave, decode, encode
from reconnect_fsm.machine import ANY, STAY, event, row
from reconnect_fsm.testing import EmbeddedServer

QUICK = RetryPolicy(base=0.02, cap=0.05, random=random.Random(1))
OFF = Keepalive(enabled=False)
MANY = 2_000  # rooms: many slices


Handler = Callable[[web.WebSocketResponse, int], Awaitable[None]]
Serve = Callable[[Handler], Awaitable[URL]]


@pytest.fixture
def serve(aiohttp_raw_server: AiohttpRawServer) -> Serve:
    """Starts a server that runs the handler for each connection, counted from 1; returns its address."""

    async def start(handler: Handler) -> URL:
        numbers = itertools.count(1)

        async def accept(request: web.BaseRequest) -> web.WebSocketResponse:
            number = next(numbers)
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            await handler(ws, number)
            return ws

        server = await aiohttp_raw_server(accept)
        return server.make_url("/")

    return start


async def listen(ws: web.WebSocketResponse) -> None:
    async for _ in ws:
        pass


# ------------------------------------------------------------------------------------------------------------- D-ORDER


@pytest.mark.parametrize("kind", [Connection, Client])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_d_order_messages_are_handled_in_the_order_in_which_they_came(  # noqa: C901
    kind: Any, turns: int, serve: Serve
) -> None:
    """D-ORDER: also when the callback calls the client at each of them; and all of them before the close."""
    bursts, size = 12, 50

    async def handler(ws: web.WebSocketResponse, number: int) -> None:
        if number == 1:
            for each in range(bursts * size):
                await ws.send_str(str(each))
                if each % size == 0:
                    for _ in range(turns):
                        await asyncio.sleep(0)
            await ws.close(code=1000)
        else:
            await listen(ws)

    got: list[int] = []
    at_close: list[int] = []

    def on_message(data: str | bytes) -> None:
        got.append(int(data))
        client.connect()
        client.set_online(True)
        if kind is Client and len(got) % 7 == 0:
            client.join(f"room {len(got)}", Notebook())
        if len(got) % 5 == 0:
            raise ValueError("on purpose")

    async with kind(await serve(handler), keepalive=OFF, retry=QUICK) as client:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        client.on_message(on_message)
        lost = asyncio.Event()

        def on_status(change: Any) -> None:
            if change.old == "connected":
                at_close.extend(got)
                lost.set()

        client.on_status(on_status)
        async with asyncio.timeout(30):
            await lost.wait()
        assert at_close == list(range(bursts * size))


async def test_d_order_what_is_left_of_a_connection_that_is_given_up_is_dropped(serve: Serve) -> None:
    """D-NOW: after `retry_now()` in a callback nothing of the old connection is handled, not even of the same read."""

    async def handler(ws: web.WebSocketResponse, number: int) -> None:
        for each in range(100):
            await ws.send_str(f"{number}/{each}")
        await listen(ws)

    got: list[str] = []
    second = asyncio.Event()

    def on_message(data: str | bytes) -> None:
        got.append(str(data))
        if data == "1/30":
            client.retry_now()
            client.retry_now()
        if data == "2/99" or data == "3/99":
            second.set()

    async with Connection(await serve(handler), keepalive=OFF, retry=QUICK) as client:
        client.on_message(on_message)
        async with asyncio.timeout(30):
            await second.wait()
    first = [each for each in got if each.startswith("1/")]
    assert first == [f"1/{each}" for each in range(31)]
    assert got[31:] == [f"{got[31][0]}/{each}" for each in range(100)]


async def test_d_order_a_room_hears_of_each_thing_once_and_in_order() -> None:
    """Law 3: connections come and go faster than the rooms can be notified; each is notified of all of it, in order."""
    async with EmbeddedServer() as server, Client(server.url, keepalive=OFF, retry=QUICK) as client:
        rooms = [client.join(f"r{number}", Notebook()) for number in range(MANY)]
        async with asyncio.timeout(60):
            await asyncio.gather(*rooms)
            heard: dict[str, list[tuple[str, str]]] = {room.id: [] for room in rooms}
            for room in rooms:
                room.on_status(lambda change, id=room.id: heard[id].append((change.old, change.new)))
            for _ in range(3):
                client.retry_now()
                await client.wait_connected()
                await asyncio.sleep(0)
            client.close()
            client.connect()
            await asyncio.gather(*rooms, return_exceptions=True)  # ClientStopped, for some of them
            await asyncio.gather(*rooms)
        for changes in heard.values():
            assert changes[0][0] == "joined"
            assert changes[-1][1] == "joined"
            assert [old for old, _ in changes[1:]] == [new for _, new in changes[:-1]]
            assert ("joined", "disconnected") in changes or ("reconnecting", "disconnected") in changes
        states = {room.state for room in rooms}
        assert states == {"joined"}


# --------------------------------------------------------------------------------------------------------------- D-NOW


@asynccontextmanager
async def many_joined() -> AsyncIterator[tuple[Client, list[Room]]]:
    async with EmbeddedServer() as server, Client(server.url, keepalive=OFF, retry=QUICK) as client:
        rooms = [client.join(f"r{number}", Notebook()) for number in range(MANY)]
        async with asyncio.timeout(60):
            await asyncio.gather(*rooms)
        yield client, rooms


async def test_d_now_calls_have_acted_when_they_return() -> None:
    """D-NOW: with rooms by the thousand, and while they are still being notified of what came before."""
    async with many_joined() as (client, rooms):
        for turns in range(1, 4):
            client.retry_now()
            assert client.status == "connecting"
            client.set_online(False)
            assert (client.status, client.state) == ("reconnecting", "paused")
            client.set_online(True)
            assert client.state != "paused"
            client.close()
            assert client.status == "disconnected"
            client.connect()
            assert client.status == "connecting"
            async with asyncio.timeout(60):
                await client.wait_connected()
            assert client.status == "connected"
            new = client.join(f"new {turns}", Notebook())
            assert new.status == "connecting"
            rooms[turns].leave()
            assert rooms[turns].status == "disconnected"
            assert rooms[turns] not in client.rooms
            async with asyncio.timeout(60):
                await new


async def test_d_now_the_loop_has_its_turn_while_rooms_are_notified() -> None:
    """Law 3: in slices; in the turns between them others run, and calls act."""
    async with many_joined() as (client, rooms):
        client.close()
        turns = 0
        while any(room.status == "joined" for room in rooms):
            await asyncio.sleep(0)
            turns += 1
        assert turns > MANY // 1_000
        client.connect()
        async with asyncio.timeout(60):
            await asyncio.gather(*rooms)


async def test_d_now_within_a_callback_as_soon_as_the_event_is_complete(serve: Serve) -> None:
    """D-NOW: what a callback asks for has happened before the next message is handled."""

    async def handler(ws: web.WebSocketResponse, number: int) -> None:
        for each in ("one", "two"):
            await ws.send_str(each)
        await listen(ws)

    seen: list[tuple[str, str, int]] = []
    done = asyncio.Event()

    def on_message(data: str | bytes) -> None:
        seen.append((str(data), client.status.value, len(client.rooms)))
        if data == "one":
            client.join("a", Notebook())
            client.join("b", Notebook()).leave()
            seen.append(("joined", client.status.value, len(client.rooms)))
        else:
            done.set()

    async with Client(await serve(handler), keepalive=OFF, retry=QUICK) as client:
        client.on_message(on_message)
        async with asyncio.timeout(30):
            await done.wait()
        assert [each[0] for each in seen] == ["one", "joined", "two"]
        assert seen[2] == ("two", "connected", 1)


async def test_conn_5_wait_connected_does_not_return_for_a_connection_that_was_given_up() -> None:
    """CONN-5, D-NOW: neither while one is given up, nor if that happens in the moment in which it was opened."""
    async with EmbeddedServer() as server, Client(server.url, keepalive=OFF, retry=QUICK) as client:
        await client.wait_connected()
        client.retry_now()
        waiting = asyncio.create_task(client.wait_connected())
        opened: list[str] = []

        def force_error(change: Any) -> None:
            opened.append(change.new)
            if change.new == "connected" and opened.count("connected") < 3:
                client.retry_now()  # in the turn in which it was opened, before `waiting` had its own

        client.on_status(force_error)
        async with asyncio.timeout(30):
            await waiting
        assert client.status == "connected"
        assert opened.count("connected") == 3


async def test_conn_5_the_promise_can_be_taken_now_kept_shared_and_awaited_twice() -> None:
    """CONN-5: before the start, by several, again; as an awaitable, a task, in gather and wait_for."""
    async with EmbeddedServer() as server:
        client = Client(server.url, keepalive=OFF, retry=QUICK)
        promise = client.wait_connected()
        waiters = [asyncio.create_task(client.wait_connected()), asyncio.ensure_future(promise)]
        shared = client.wait_connected()
        async with client, asyncio.timeout(30):
            await asyncio.gather(*waiters)
            await shared
            await shared
            await asyncio.wait_for(client.wait_connected(), 30)
            client.retry_now()
            await shared
            assert client.status == "connected"
        client.wait_connected()  # left alone, it warns of nothing


# -------------------------------------------------------------------------------------------------- D-STOP, D-THREAD


async def test_d_stop_an_operation_that_begins_while_it_is_stopped_raises_at_once() -> None:
    """D-STOP: not one of a client that was never started; `wait_connected()` is none, it waits on."""
    async with EmbeddedServer() as server:
        client = Client(server.url, keepalive=OFF, retry=QUICK)
        with pytest.raises(NotConnected):
            await client.ping()  # never started: not stopped
        await client.connect()
        await client.close()
        with pytest.raises(ClientStopped):
            await client.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.wait_connected(), 0.05)
        await client.connect()  # which starts it again
        await client.close()


async def test_d_stop_an_attempt_that_leads_nowhere_raises() -> None:
    """D-STOP: a machine of the user's that stays stopped on `connect()` keeps nobody waiting."""

    class Forbidden(ClientFSM):
        def is_forbidden(self) -> bool:
            return True

        connect_requested = ClientFSM.connect_requested.first(
            row((ClientFSM.disconnected, ClientFSM.error), to=ClientFSM.disconnected, when=is_forbidden)
        )

    client = Client("ws://127.0.0.1:9", fsm=Forbidden)
    async with asyncio.timeout(30):
        for _ in range(2):
            with pytest.raises(ClientStopped):
                await client.connect()
    await client.close()


async def test_results_are_coroutines() -> None:
    """`create_task(client.close())` and the like work; left alone they neither run twice nor warn."""
    async with EmbeddedServer() as server:
        client = Client(server.url, keepalive=OFF, retry=QUICK)
        async with asyncio.timeout(30):
            await asyncio.create_task(client.connect())
            room = client.join("a", Notebook())
            await asyncio.create_task(client.retry_now())
            await room
            await asyncio.create_task(room.leave())
            await asyncio.create_task(client.close())
        assert client.status == "disconnected"


@pytest.mark.parametrize("running", [True, False], ids=["in a loop of its own", "without a loop"])
async def test_d_thread_calls_and_waits_from_another_thread_raise(running: bool) -> None:
    """D-THREAD: at once, and nothing happens; `set_online` alone may be called."""
    completions: dict[str, str] = {}

    def run(name: str, call: Callable[[], Any]) -> None:
        async def main() -> None:
            await asyncio.wait_for(call(), 30)

        try:
            if running:
                asyncio.run(main())
            else:
                call().close()
        except Exception as error:
            completions[name] = type(error).__name__
        else:
            completions[name] = "returned"

    async with EmbeddedServer() as server, Client(server.url, keepalive=OFF, retry=QUICK) as client:
        room = await client.join("a", Notebook())
        calls = {
            "connect": client.connect,
            "retry_now": client.retry_now,
            "close": client.close,
            "wait_connected": client.wait_connected,
        }
        if running:
            calls |= {"ping": client.ping, "send": lambda: client.send("x")}  # type: ignore[dict-item]

        def elsewhere() -> None:
            for name, call in calls.items():
                run(name, call)
            client.set_online(False)
            client.set_online(True)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await until(lambda: not thread.is_alive())
        thread.join()
        assert completions == dict.fromkeys(calls, "RuntimeError")
        await room
        assert client.status == "connected"


def test_d_stop_a_client_that_outlived_its_loop_can_be_used_again() -> None:
    """D-STOP, REJOIN-2: with messages unhandled, rooms half notified, calls that wait: it ended with the loop."""
    urls: list[str] = []
    client = Client(lambda: urls[-1], keepalive=OFF, retry=QUICK)
    rooms: list[Room] = []
    waiting: list[asyncio.Future[None]] = []

    async def slow() -> bytes:
        await asyncio.sleep(0.2)
        return b""

    async def first() -> None:
        async with EmbeddedServer() as server:
            urls.append(server.url)
            client.start()
            rooms.extend(client.join(f"r{number}", Notebook()) for number in range(1_000))
            rooms.append(client.join("slow", Notebook(), auth=slow))
            waiting.extend(map(asyncio.ensure_future, (client.wait_connected(), client.connect())))
            await rooms[0]
            client.retry_now()  # they are not all notified when the loop ends

    async def second() -> None:
        async with EmbeddedServer() as server, asyncio.timeout(60):
            urls.append(server.url)
            client.start()
            await client.wait_connected()
            await asyncio.gather(*rooms)
            await client.close()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(first())
    loop.run_until_complete(asyncio.sleep(0))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    asyncio.run(second())
    assert {room.status.value for room in rooms} == {"disconnected"}
    assert len(client.rooms) == 1_001


def test_d_stop_rooms_that_had_not_heard_of_a_close_when_the_loop_ended_are_joined_again() -> None:
    """D-STOP, REJOIN-2: ``close()`` that is not awaited ends with the loop, before all rooms were told."""
    client = Client(lambda: server.url, keepalive=OFF, retry=QUICK)
    rooms: list[Room] = []

    async def first() -> None:
        client.start()
        rooms.extend(client.join(f"r{number}", Notebook()) for number in range(MANY))
        await asyncio.gather(*rooms)
        client.close()

    async def second() -> None:
        rooms.append(client.join("another", Notebook()))
        assert {room.status.value for room in rooms[:-1]} == {"disconnected"}
        async with client, asyncio.timeout(60):
            await asyncio.gather(*rooms)

    loop = asyncio.new_event_loop()  # the server's, which goes on
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = EmbeddedServer()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
        asyncio.run(first())
        asyncio.run(second())
        assert server.stats.joins == 2 * MANY + 1
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("moment", ["connected", "dialling", "with a session that the program forgets, too"])
def test_d_stop_a_program_that_forgets_close_is_told_of_no_session_that_is_not_its_own(
    moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """D-STOP: the loop ends without `close`, then the client is collected: nothing warns of what is inside it."""

    async def hangs() -> str:
        await asyncio.sleep(60)
        return "ws://h/"

    async def forgetful() -> None:
        async with EmbeddedServer() as server:
            session = ClientSession() if "session" in moment else None
            client = Client(hangs if moment == "dialling" else server.url, retry=QUICK, session=session)
            client.start()
            if moment == "dialling":
                await asyncio.sleep(0)
            else:
                await client.ready()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(forgetful())
        gc.collect()
    told = [str(each.message) for each in warned if "client session" in str(each.message)]
    assert len(told) == (1 if "session" in moment else 0)  # of the program's own
    assert caplog.text.count("Unclosed client session") == len(told)


async def test_d_stop_ready_waits_or_raises() -> None:
    """D-STOP: connected: at once. Never started: it waits. Stopped, or stopped meanwhile: ClientStopped."""
    async with EmbeddedServer() as server, asyncio.timeout(30):
        client = Client(server.url, keepalive=OFF, retry=QUICK)
        waiting = asyncio.create_task(client.ready())
        await asyncio.sleep(0)
        client.start()
        await waiting
        await client.ready()
        client.retry_now()
        waiting = asyncio.create_task(client.ready())
        await asyncio.sleep(0)
        client.close()
        for again in (waiting, client.ready()):
            with pytest.raises(ClientStopped):
                await again
        await client.close()


class Metered(ClientFSM):
    """Knows of networks that cost money."""

    __slots__ = ("metered",)

    @event(row(ANY, to=STAY))
    def metered_changed(self, metered: bool) -> None:
        """The network costs money now, or no longer does."""
        self.metered = metered


async def test_d_now_tell_has_acted_when_it_returns() -> None:
    """ANY-TELL, D-NOW, D-THREAD: an event of the user's own machine; from another thread soon."""
    client = Client("ws://127.0.0.1:9", fsm=Metered, retry=QUICK)
    async with client:
        client.tell(Metered.metered_changed, True)
        assert client.machine.metered is True  # type: ignore[attr-defined]
        await asyncio.to_thread(client.tell, Metered.metered_changed, metered=False)
        await asyncio.sleep(0)
        assert client.machine.metered is False  # type: ignore[attr-defined]
        assert "start_requested" in [each.event for each in client.transitions()]


async def test_the_machine_of_a_client_is_for_reading() -> None:
    """It is the live one. An event that it fired itself would have no effects: that raises, and changes nothing."""
    client = Client("ws://127.0.0.1:9", fsm=Metered, retry=QUICK)
    machine = client.machine
    assert isinstance(machine, Metered)
    assert (machine.state, machine.may(Metered.metered_changed)) == ("disconnected", True)
    with pytest.raises(AttributeError):
        client.machine = Metered()  # type: ignore[misc]
    async with client:
        assert client.machine is machine
        assert machine.state == client.state == "connecting"
        client.tell(Metered.metered_changed, True)
        with pytest.raises(RuntimeError, match=r"client\.tell\(Metered\.metered_changed, \.\.\.\)"):
            machine.metered_changed(False)
        with pytest.raises(RuntimeError, match="is for reading"):
            machine.close_requested()
        assert (machine.metered, machine.state) == (True, "connecting")
    assert Metered().metered_changed(True) == []  # one of the program's own, that no client drives


class ByName(ClientFSM):
    """Its event wants a name, which an event cannot have."""

    @event(row(ANY, to=STAY))
    def metered_changed(self, *, metered: bool) -> None:
        """The network costs money now, or no longer does."""


def test_an_event_takes_its_arguments_by_position() -> None:
    """ANY-TELL: TypeError at once for one that does not."""
    with pytest.raises(TypeError, match="metered_changed: an event takes its arguments by position, metered too"):
        Client("ws://127.0.0.1:9", fsm=ByName).tell(ByName.metered_changed, metered=True)


def test_tell_refuses_what_is_no_event_of_the_users_machine() -> None:
    """TypeError at once: another machine's, one that the driver fires, arguments that do not fit."""
    client = Client("ws://127.0.0.1:9", fsm=Metered)
    for event_, args, words in (
        (Metered.socket_opened, (), "is an event that the client fires itself"),
        (RoomFSM.join_requested, (), "takes an event of Metered"),
        ("metered_changed", (True,), "takes an event of Metered"),
        (Metered.metered_changed, (), "missing a required argument"),
        (Metered.metered_changed, (1, 2), "too many positional arguments"),
    ):
        with pytest.raises(TypeError, match=words):
            client.tell(event_, *args)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes an event of ClientFSM"):
        Client("ws://127.0.0.1:9").tell(Metered.metered_changed, True)


# -------------------------------------------------------------------------------------------------------------- rooms


async def test_d_order_the_first_update_does_not_overtake_the_answer_to_the_join(serve: Serve) -> None:  # noqa: C901
    """D-ORDER: rooms whose callbacks join others; each room's update is handled after its JoinResponseOk."""
    rooms = 150

    async def handler(ws: web.WebSocketResponse, number: int) -> None:
        asked: dict[str, JoinRequest] = {}

        async def answer(join: JoinRequest) -> None:
            await ws.send_bytes(encode(JoinResponseOk(join.crdt, join.room_id, "write", b"", b"")))

        async for message in ws:
            if message.type is not WSMsgType.BINARY or isinstance(join := decode(message.data), Leave):
                continue
            assert isinstance(join, JoinRequest)
            asked[join.room_id] = join
            if len(asked) > rooms:
                await answer(join)
            elif len(asked) == rooms:
                for each in list(asked.values()):
                    await answer(each)
                for each in list(asked.values()):
                    await asyncio.sleep(0)
                    await ws.send_bytes(encode(DocUpdate(CrdtType.ELO, each.room_id, (b"hello",), 1)))

    async with Client(await serve(handler), keepalive=OFF, retry=QUICK) as client:

        def follow(change: Any) -> None:
            if change.new == "joined":
                for _ in range(3):
                    client.join(f"more {len(client.rooms)}", Notebook())

        books = [Notebook() for _ in range(rooms)]
        for number, book in enumerate(books):
            client.join(f"r{number}", book, on_status=follow)
        await until(lambda: all(book.applied for book in books))
        assert all(book.applied == [b"hello"] for book in books)
