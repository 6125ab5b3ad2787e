"""The inspector: what it lets in, what it tells, and the page in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from chromium import WIDTHS, looking_at
from kit import until, until_equal
from reconnect_fsm import Client, ClientFSM, ClientStatus, Connection, Keepalive, RetryPolicy
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm.diagrams import picture
from reconnect_fsm.diagrams.ink import COLOURS
from reconnect_fsm.inspector import Inspector, demo_inspector, inspect, room_counts, run, run_demo, server, viewer
from reconnect_fsm.inspector.access import Access
from reconnect_fsm.inspector.demo import NullAdaptor
from reconnect_fsm.inspector.observer import Stream
from reconnect_fsm.inspector.room_counts import Query, RoomCounts
from reconnect_fsm.loro_protocol import CrdtType, RoomError, RoomErrorCode
from reconnect_fsm.testing import EmbeddedServer, leaks

if TYPE_CHECKING:
    from playwright.async_api import Page

PAGE_SIZE: Final = files("reconnect_fsm.inspector") / "page"
QUICK: Final = RetryPolicy(base=0.05, cap=0.2)
PINGS: Final = Keepalive(interval=0.1, timeout=2.0)
NOWHERE: Final = "ws://127.0.0.1:9/"


# ----------------------------------------------------------------------------------------------- a viewer in a program


class Told:
    """A viewer without a browser: keeps the latest of what it is told, by name, and everything of the streams."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.messages = 0
        self.latest: dict[str, Any] = {}
        self.streams: dict[str, list[Any]] = {"transitions": [], "latency": []}
        self.fresh_starts = 0

    async def listen(self) -> None:
        async for message in self.ws:
            self.messages += 1
            news = json.loads(message.data)
            for name, kept in self.streams.items():
                part = news.pop(name, None)
                if part is not None:
                    if part["afresh"]:
                        self.fresh_starts += 1
                        kept.clear()
                    kept += part["items"]
            self.latest |= news

    async def ask(self, **what: Any) -> None:
        await self.ws.send_json(what)

    async def look(self, *states: str, text: str = "", page: int = 0) -> None:
        await self.ask(look={"states": states, "text": text, "page": page})

    @property
    def state(self) -> str:
        return str(self.latest.get("client", {}).get("state"))

    @property
    def rooms(self) -> dict[str, Any]:
        found: dict[str, Any] = self.latest.get("rooms", {})
        return found

    @property
    def counts(self) -> dict[str, int]:
        return {state: number for state, _, number in self.rooms.get("counts", ())}


def origin(inspector: Inspector) -> str:
    return "/".join(inspector.url.split("/")[:3])


@asynccontextmanager
async def viewing(inspector: Inspector) -> AsyncIterator[Told]:
    """A viewer, until the block ends."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{inspector.url}live", headers={"Origin": origin(inspector)}) as ws,
    ):
        told = Told(ws)
        listening = asyncio.create_task(told.listen())
        try:
            yield told
        finally:
            listening.cancel()
            await asyncio.wait({listening})


async def answer(
    inspector: Inspector, path: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of the answer to one request; ``path`` begins at the token, or with / at the root."""
    url = origin(inspector) + path if path is not None and path.startswith("/") else inspector.url + (path or "")
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return response.status, await response.text(), dict(response.headers)


UPGRADE: Final = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@asynccontextmanager
async def idle() -> AsyncIterator[Inspector]:
    """The inspector of a client that was never started."""
    async with Inspector(Client(NOWHERE)) as inspector:
        yield inspector


# -------------------------------------------------------------------------------------------------- who may look at it


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "", "127.0.0.1.example.org"])
def test_listens_on_this_machine_only(host: str) -> None:
    """An address that others can reach is refused, and the error says what to do instead."""
    with pytest.raises(ValueError, match="this machine only"):
        Inspector(Client(NOWHERE), host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
async def test_any_loopback_address_will_do(host: str) -> None:
    """The address of the page names the one it listens on."""
    async with Inspector(Client(NOWHERE), host=host) as inspector:
        assert (await answer(inspector))[0] == 200
        assert inspector.url.startswith("http://127.0.0.")


async def test_the_token_is_needed_for_everything() -> None:
    """Without it, or with another, there is no page, no script, no picture and no WebSocket."""
    async with idle() as inspector:
        token = inspector.url.split("/")[3]
        assert len(token) >= 32
        for wrong in ("", token[:-1], token + "x", token.swapcase(), "%00", "%ff%fe"):
            for name in ("", "main.js", "machine.svg", "live"):
                status, text, _ = await answer(inspector, f"/{wrong}/{name}", Origin=origin(inspector), **UPGRADE)
                assert (status, token in text) == (403, False), (wrong, name)
        assert (await answer(inspector, "/"))[0] == 403
        assert (await answer(inspector, "/favicon.ico"))[0] == 403


async def test_each_start_has_a_token_of_its_own() -> None:
    """An address that somebody kept opens nothing later."""
    inspector = Inspector(Client(NOWHERE))
    urls = set()
    for _ in range(2):
        async with inspector:
            urls.add(inspector.url.split("/")[3])
    assert len(urls) == 2


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.nip.io:{port}"]
)
async def test_a_name_that_was_made_to_resolve_to_us_is_refused(host: str) -> None:
    """DNS rebinding: the browser says whom it thinks it talks to."""
    async with idle() as inspector:
        port = origin(inspector).rpartition(":")[2]
        assert (await answer(inspector, Host=host.format(port=port)))[0] == 403
        assert (await answer(inspector, Host=f"localhost:{port}"))[0] == 200


@pytest.mark.parametrize("other", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""])
async def test_another_site_cannot_open_the_websocket(other: str) -> None:
    """Nor can one that does not say who it is."""
    async with idle() as inspector:
        port = origin(inspector).rpartition(":")[2]
        headers = {"Origin": other.format(port=port)} if other else {}
        assert (await answer(inspector, "live", **UPGRADE, **headers))[0] == 403
        assert inspector.viewers == 0
        assert (await answer(inspector, "main.js", Origin="http://evil.example"))[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_nothing_but_get_is_answered(method: str) -> None:
    """A form of another site can change nothing; not even one that knows the token."""
    async with idle() as inspector:
        assert (await answer(inspector, "", method))[0] == 405
        assert (await answer(inspector, "", method, Origin="http://evil.example"))[0] == 403
        _, _, headers = await answer(inspector, "", "OPTIONS")
        assert not [name for name in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    "name", ["../server.py", "..%2fserver.py", "page/main.js", "%2e%2e/access.py", "nothing", "live"]
)
async def test_only_the_files_of_the_page_are_served(name: str) -> None:
    """There is no path from a request to the file system."""
    async with idle() as inspector:
        assert (await answer(inspector, name))[0] in (403, 404)


async def test_an_address_without_its_last_slash_leads_to_the_page() -> None:
    """What the page loads is beside it, so it is not served there."""
    async with idle() as inspector, aiohttp.ClientSession() as session:
        async with session.get(inspector.url.rstrip("/"), allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (308, f"/{inspector.url.split('/')[3]}/")
        async with session.get(inspector.url.rstrip("/")) as response:
            assert (str(response.url), response.status) == (inspector.url, 200)


@pytest.mark.parametrize("target", ["OPTIONS *", "CONNECT {host}"])
async def test_a_request_that_names_no_path_is_refused_like_any_other(target: str) -> None:
    """HTTP knows two such; neither is an error of ours in the log."""
    async with idle() as inspector:
        host = origin(inspector).removeprefix("http://")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(f"{target.format(host=host)} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        writer.close()


@pytest.mark.parametrize(
    ("host", "port", "shown"),
    [("127.0.0.1", 8000, "127.0.0.1:8000"), ("::1", 8000, "[::1]:8000"), ("127.0.0.1", 80, "127.0.0.1")],
)
def test_the_address_is_written_as_browsers_do(host: str, port: int, shown: str) -> None:
    """IPv6 in brackets, and without the port if it is HTTP's own: what the browser then says is let in."""
    access = Access(host, port)
    assert access.url.startswith(f"http://{shown}/")
    headers = {"Host": shown, "Origin": f"http://{shown}", "Upgrade": "websocket"}
    path = access.url.removeprefix(f"http://{shown}")
    assert access.refusal(make_mocked_request("GET", path, headers)) is None


async def test_what_a_browser_may_do_with_an_answer() -> None:
    """Nothing from elsewhere, no inline script or style, no frames, no copies; of refusals too."""
    async with idle() as inspector:
        for path in ("", "main.js", "machine.svg", "missing", "/"):
            _, _, headers = await answer(inspector, path)
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"


async def test_a_hostile_host_header_is_not_repeated() -> None:
    """The policy of a refusal names no host of the asker's."""
    async with idle() as inspector:
        _, text, headers = await answer(inspector, Host="evil.example")
        assert "evil" not in text + str(headers)


async def test_no_secret_reaches_the_page() -> None:
    """Not the user's name and password, nor the query of the URL, nor the auth of a room."""
    client = Client("ws://alice:passw0rd@127.0.0.1:9/path?token=s3cret#frag")
    client.join("r", NullAdaptor(), auth=b"r00mkey")
    async with Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.rooms)
        everything = json.dumps(told.latest)
    assert told.latest["client"]["url"] == "ws://127.0.0.1:9/path"
    assert not [each for each in ("alice", "passw0rd", "s3cret", "frag", "r00mkey") if each in everything]


async def test_the_token_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is asked for, at whatever level."""
    caplog.set_level("DEBUG")
    async with Client(NOWHERE) as client, Inspector(client) as inspector, viewing(inspector) as told:
        await answer(inspector, "missing")
        await told.ask(do="close")
        token = inspector.url.split("/")[3]
        await until(lambda: told.state == "disconnected")
    own = [
        record for record in caplog.records if record.name != "asyncio"
    ]  # its debug log shows the test's own session
    assert not [record for record in own if token in record.getMessage()]


async def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is told so; when one goes there is room again."""
    monkeypatch.setattr(server, "MAX_VIEWERS", 2)
    async with idle() as inspector:
        async with viewing(inspector), viewing(inspector):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with viewing(inspector):
                    pass
            assert refused.value.status == 503
        await until(lambda: inspector.viewers == 0)
        async with viewing(inspector) as told:
            await until(lambda: told.latest)


@pytest.mark.parametrize(
    "nonsense",
    ["", "{", "[]", '{"do": "steal"}', '{"do": 1}', '{"cause": "x"}', '{"look": {}}', "[" * 4000, "x" * 5000,
     '{"look": {"states": [], "text": "", "page": 1e400}}'],
)  # fmt: skip
async def test_what_is_no_question_ends_a_viewer_and_nothing_else(nonsense: str) -> None:
    """A page of ours does not ask such things."""
    async with idle() as inspector, viewing(inspector) as told, viewing(inspector) as other:
        await told.ws.send_str(nonsense)
        await until(lambda: told.ws.closed)
        await until(lambda: inspector.viewers == 1)
        await other.ask(do="offline")
        await until(lambda: other.latest["client"]["online"] is False)


async def test_who_asks_too_fast_is_heard_at_leisure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script with the token can steer the client, but not count its event loop."""
    monkeypatch.setattr(viewer, "MIN_REQUEST_INTERVAL", 0.5)
    client = Client(NOWHERE)
    async with Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.latest)
        for number in range(50):
            await told.ask(do=("offline", "online")[number % 2])
        await until(lambda: told.latest["client"]["online"] is False)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.25)
        assert connection_driver_of(client).dispatcher.log
        took = asyncio.get_running_loop().time() - began
        assert (
            len(connection_driver_of(client).dispatcher.log) < 25 + 2 * took / 0.5
        )  # of fifty, on a machine as busy as it may be


# -------------------------------------------------------------------------------------------------------- what it tells


async def test_a_viewer_is_told_what_the_client_goes_through() -> None:
    """All of it: states, transitions with their reasons, round trips, and what can be asked for."""
    async with (
        EmbeddedServer() as place,
        Client(place.url, retry=QUICK, keepalive=PINGS) as client,
        Inspector(client) as inspector,
        viewing(inspector) as told,
    ):
        await client.wait_connected()
        await until(lambda: told.state == "connected" and told.streams["latency"])
        assert told.latest["actions"]["connect"] == "connected already, or an attempt is under way"
        await place.stop(1012, "maintenance")
        await until(lambda: told.state in ("waiting", "retrying"))
        await place.start()
        await until(lambda: told.state == "connected")
        lost = next(each for each in told.streams["transitions"] if each["event"] == "socket_closed")
        assert (lost["old"], lost["new"], lost["attempt"]) == ("connected", "waiting", 1)
        assert lost["reason"] == "closed with code 1012: maintenance"
        await until(lambda: [what for _, what in told.streams["latency"]].count("made") >= 1)
        assert "lost" in [what for _, what in told.streams["latency"]]


async def test_buttons_do_what_they_say() -> None:
    """Connect, retry, close, offline and online reach the client; each is marked while it would do nothing."""
    async with (
        EmbeddedServer() as place,
        Inspector(client := Client(place.url)) as inspector,
        viewing(inspector) as told,
    ):
        await until(lambda: told.state == "disconnected")
        assert told.latest["actions"]["close"] == "disconnected already"
        await told.ask(do="connect")
        await until(lambda: told.state == "connected")
        await told.ask(do="retry")
        await until(lambda: place.stats.connects == 2 and told.state == "connected")
        await told.ask(do="offline")
        await until(lambda: told.state == "paused" and told.latest["actions"]["offline"])
        await told.ask(do="online")
        await until(lambda: told.state == "connected")
        await told.ask(do="close")
        await until(lambda: told.state == "disconnected")
        await client.close()


async def test_what_happened_before_it_was_started_is_shown_too() -> None:
    """The client remembers its last transitions."""
    async with EmbeddedServer() as place, Client(place.url) as client:
        await client.join("client", NullAdaptor(CrdtType.EPHEMERAL))  # whose own are left out, whatever it is called
        async with Inspector(client) as inspector, viewing(inspector) as told:
            await until(lambda: told.streams["transitions"])
            assert [each["event"] for each in told.streams["transitions"]] == ["start_requested", "socket_opened"]


async def test_what_is_still_to_be_told_is_not_shown_twice() -> None:
    """A client with much to do tells its callbacks of a transition later than it notes it."""
    async with EmbeddedServer() as place:
        client = Client(place.url)
        for number in range(1000):
            client.join(f"{number}", NullAdaptor(CrdtType.EPHEMERAL))
        async with client, Inspector(client) as inspector, viewing(inspector) as told:
            await client.wait_connected()
            await until(lambda: told.counts.get("joined") == 1000)
            assert [each["event"] for each in told.streams["transitions"]] == ["start_requested", "socket_opened"]


async def test_the_page_shows_the_beginning_of_what_explain_says() -> None:
    """Why it is as it is and what comes next; what happened last and the rooms are on the page anyway."""
    async with EmbeddedServer() as place, Client(place.url) as client, Inspector(client) as inspector:
        await client.wait_connected()
        assert "What happened last" in client.explain()
        async with viewing(inspector) as told:
            await until(lambda: told.latest)
            assert re.fullmatch(r"Connected for [\d.]+ \w+\.", told.latest["explanation"])
            assert client.explain().startswith(told.latest["explanation"].partition(" for ")[0])


async def test_the_explanation_counts_down() -> None:
    """It is told anew while nothing happens but that time goes by."""
    retry = RetryPolicy(base=60, cap=60, jitter=0)
    async with Client(NOWHERE, retry=retry) as client, Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.state == "waiting")
        seen: set[str] = set()  # one of each second that was drawn, of those that go by
        await until(lambda: seen.add(told.latest["explanation"]) or len(seen) > 2)  # type: ignore[func-returns-value]
        assert all(re.search(r"retry 1, is in (\d+ s|1 min)", each) for each in seen)


async def test_a_connection_without_rooms_can_be_inspected() -> None:
    """The page then has no part about rooms."""
    async with Inspector(Connection(NOWHERE)) as inspector, viewing(inspector) as told:
        await until(lambda: told.latest)
        assert "rooms" not in told.latest


async def test_faults_run_one_at_a_time_and_end_with_the_inspector() -> None:
    """A fault is marked while it is under way; one that raises is reported, and harms nothing."""
    began: list[str] = []

    async def slow() -> None:
        began.append("slow")
        await asyncio.Event().wait()

    def broken() -> None:
        raise OSError("details")

    async with Inspector(Client(NOWHERE), faults={"slow": slow, "broken": broken}) as inspector:
        async with viewing(inspector) as told:
            await told.ask(cause="slow")
            await told.ask(cause="slow")
            await told.ask(cause="broken")
            await until(lambda: "notices" in told.latest)
            assert told.latest["notices"] == ["broken: raised OSError; the log tells where"]
            await until(lambda: told.latest["faults"] == [["slow", True], ["broken", False]])
        assert began == ["slow"]


def test_a_stream_tells_what_was_missed() -> None:
    """Who has read so far gets the rest, and is told when some of it is gone."""
    stream: Stream[int] = Stream(3)
    for number in range(5):
        stream.add(number)
    assert stream.since(5) == (False, [])
    assert stream.since(3) == (False, [3, 4])
    assert stream.since(2) == (False, [2, 3, 4])
    assert stream.since(1) == (True, [2, 3, 4])


async def test_news_are_coalesced() -> None:
    """A client that flaps a thousand times in a moment is told of in a message or two, with the last of it."""
    client = Client(NOWHERE)
    async with Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.messages)
        before = told.messages
        for _ in range(500):
            client.connect()
            client.close()
        await until(lambda: told.streams["transitions"] and told.state == "disconnected")
        assert [each["n"] for each in told.streams["transitions"]] == list(range(701, 1001))
        assert told.messages - before <= 3
        await client.close()


async def test_a_viewer_that_does_not_read_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs what the kernel buffers, and no more; the client does not notice."""
    monkeypatch.setattr(viewer, "MAX_SEND_TIME", 0.2)
    monkeypatch.setattr(room_counts, "PAGE_SIZE", 5000)
    client = Client(NOWHERE)
    for number in range(5000):
        client.join(f"{number:0128}", NullAdaptor())
    async with Inspector(client) as inspector:
        host, port = origin(inspector).removeprefix("http://").split(":")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, (host, int(port)))
        headers = {"Host": f"{host}:{port}", "Origin": origin(inspector), **UPGRADE}
        path = inspector.url.removeprefix(origin(inspector))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await loop.sock_sendall(deaf, f"GET {path}live HTTP/1.1\r\n{head}\r\n".encode())
        await until(lambda: inspector.viewers == 1)
        with deaf:
            for number in range(200):  # another look at the rooms each, which is 800 kB to tell
                text = json.dumps({"look": {"states": ["disconnected"] * (number % 2), "text": "", "page": 0}}).encode()
                try:
                    await loop.sock_sendall(deaf, bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
                except ConnectionError:
                    break
                await asyncio.sleep(0.1)
            await until(lambda: inspector.viewers == 0)


# ---------------------------------------------------------------------------------------------------------------- rooms


async def test_rooms_are_counted_filtered_and_paged() -> None:
    """By state and by what their ids contain, in any case; a page that is not there is the last one."""
    client = Client(NOWHERE)
    for number in range(120):
        client.join(f"Room {number}", NullAdaptor())
    client.start()
    async with Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.counts.get("queued") == 120)
        assert [row[0] for row in told.rooms["rows"]] == [f"Room {number}" for number in range(50)]
        await told.look(text="rOOm 11")
        await until(lambda: told.rooms["matching"] == 11)
        await told.look("joined", text="")
        await until(lambda: told.rooms["matching"] == 0 and told.rooms["total"] == 120)
        await told.look("queued", page=99)
        await until(lambda: told.rooms["page"] == 2)
        assert len(told.rooms["rows"]) == 20
    await client.close()


async def test_a_room_in_error_is_still_shown_until_it_is_joined_again() -> None:
    """The client forgets it; who looks wants to know."""
    async with (
        EmbeddedServer() as place,
        Client(place.url) as client,
        Inspector(client) as inspector,
        viewing(inspector) as told,
    ):
        room = await client.join("r", NullAdaptor(CrdtType.EPHEMERAL))
        await client.join("other", NullAdaptor(CrdtType.EPHEMERAL))
        await until(lambda: told.counts.get("joined") == 2)
        out = RoomError(CrdtType.EPHEMERAL, "r", RoomErrorCode.EVICTED, "begone")
        await place.send("r", CrdtType.EPHEMERAL, out)
        await until(lambda: told.counts == told.counts | {"joined": 1, "error": 1})
        assert room.status == "error"
        assert "begone" in told.rooms["rows"][1][4]
        await client.join("r", NullAdaptor(CrdtType.EPHEMERAL))
        await until(lambda: told.counts == told.counts | {"joined": 2, "error": 0})


async def test_no_room_is_kept_alive_by_it() -> None:
    """Left rooms and their documents are free to go, though somebody looks; all of them once nobody does."""
    client = Client(NOWHERE)
    counted = RoomCounts(client)
    for number in range(3):
        client.join(f"{number}", NullAdaptor())
    await counted.count(Query())
    assert len(counted._known) == 3
    client.rooms[0].leave()
    await counted.count(Query())
    assert len(counted._known) == 2
    assert not counted._refused
    counted.forget()
    assert not counted._known


async def test_counting_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rooms there are, the event loop gets its turn between slices of them."""
    client = Client(NOWHERE)
    for number in range(50):
        client.join(f"{number}", NullAdaptor())
    monkeypatch.setattr(room_counts, "SLICE_SIZE", 10)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await RoomCounts(client).count(Query())
    task.cancel()
    assert turns >= 4


# ------------------------------------------------------------------------------------------------------------- its cost


async def test_it_costs_the_loop_nothing_while_nobody_looks() -> None:
    """No task and no timer: a listening socket, and what happens is noted."""
    client = Client(NOWHERE)
    before = leaks.in_loop()
    async with Inspector(client) as inspector:
        new = {what[0] for what in leaks.in_loop() if what not in before}  # type: ignore[index]
        assert new == {"watched"}
        async with viewing(inspector) as told:
            await until(lambda: told.latest)
        await until(lambda: inspector.viewers == 0)
        new = {what[0] for what in leaks.in_loop() if what not in before}  # type: ignore[index]
        assert "timer" not in new


async def test_rooms_are_not_counted_again_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a fact, or another question, has them counted."""
    taken: list[Query] = []
    count = RoomCounts.count

    async def counted(self: RoomCounts, query: Query) -> tuple[dict[str, Any], float]:
        taken.append(query)
        return await count(self, query)

    monkeypatch.setattr(RoomCounts, "count", counted)
    monkeypatch.setattr(viewer, "POLL_INTERVAL", 0.01)
    client = Client(NOWHERE)
    client.join("r", NullAdaptor())
    async with Inspector(client) as inspector, viewing(inspector) as told:
        await until(lambda: told.rooms)
        await asyncio.sleep(0.5)
        assert len(taken) == 1
        client.join("s", NullAdaptor())
        await until(lambda: told.rooms["total"] == 2)
        assert len(taken) <= 3


async def test_counting_takes_a_bounded_share_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 10,000 rooms in which something happens all the time, and two viewers: a twentieth, and one count more."""
    costs: list[float] = []
    count = RoomCounts.count

    async def counted(self: RoomCounts, query: Query) -> tuple[dict[str, Any], float]:
        room_counts, cost = await count(self, query)
        costs.append(cost)
        return room_counts, cost

    monkeypatch.setattr(viewer, "POLL_INTERVAL", 0.01)  # so that nothing else holds it back
    monkeypatch.setattr(RoomCounts, "count", counted)
    client = Client(NOWHERE)
    for number in range(10_000):
        client.join(f"room {number}", NullAdaptor())
    loop = asyncio.get_running_loop()
    async with Inspector(client) as inspector, viewing(inspector) as one, viewing(inspector) as two:
        await until(lambda: one.rooms and two.rooms)
        costs.clear()
        began = loop.time()
        while loop.time() < began + 2:
            client.join("once more", NullAdaptor()).leave()
            await asyncio.sleep(0.005)
        assert costs
        assert sum(costs) <= 0.05 * (loop.time() - began) + 2 * max(costs)


# ----------------------------------------------------------------------------------------------------------------- life


async def test_it_begins_and_ends_any_number_of_times() -> None:
    """Starting twice is refused; stopping twice is not; the client is never touched."""
    client = Client(NOWHERE)
    inspector = Inspector(client)
    with pytest.raises(RuntimeError, match="no address before it is started"):
        _ = inspector.url
    for _ in range(2):
        await inspector.start()
        with pytest.raises(RuntimeError, match="started already"):
            await inspector.start()
        await inspector.stop()
        await inspector.stop()
    assert client.status == "disconnected"
    assert not connection_driver_of(client).on_transition._callbacks
    assert not connection_driver_of(client).on_latency._callbacks


async def test_a_port_that_is_taken_leaves_nothing_behind() -> None:
    """The error is the system's, and the client is let go of."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        client = Client(NOWHERE)
        with pytest.raises(OSError, match="address already in use"):
            await Inspector(client, port=taken.getsockname()[1]).start()
        assert not connection_driver_of(client).on_transition._callbacks


async def test_it_ends_though_somebody_looks() -> None:
    """The viewer is told that it is over; and so when the client has ended before it."""
    async with EmbeddedServer() as place:
        client = Client(place.url)
        inspector = Inspector(client)
        await inspector.start()
        client.start()
        async with viewing(inspector) as told:
            await until(lambda: told.state == "connected")
            await client.close()
            await until(lambda: told.state == "disconnected")
            await inspector.stop()
            await until(lambda: told.ws.closed)
            assert told.ws.close_code == 1001


def test_the_client_of_another_loop_is_refused() -> None:
    """It would be steered from a thread that is not its own."""
    client = Client(NOWHERE)
    loop = asyncio.new_event_loop()
    connection_driver_of(client).dispatcher.loop = loop

    async def begin() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await Inspector(client).start()

    asyncio.run(begin())
    loop.close()


def test_what_is_no_client_is_refused() -> None:
    """At once, with its name."""
    with pytest.raises(TypeError, match="shows a Client or a Connection, not 'ws"):
        Inspector(NOWHERE)  # type: ignore[arg-type]


async def test_the_one_line_prints_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` writes the address to stderr, once."""
    async with inspect(Client(NOWHERE)) as inspector:
        assert capsys.readouterr().err == f"inspector: open {inspector.url} in a browser on this machine\n"


@pytest.mark.parametrize("of_demo", [True, False])
async def test_the_commands_last_until_cancelled(of_demo: bool) -> None:
    """They tell the address once, and clean up."""
    told: list[str] = []
    work = run_demo(rooms=3, tell=told.append) if of_demo else run(NOWHERE, rooms=["a"], tell=told.append, retry=QUICK)
    task = asyncio.create_task(work)
    await until(lambda: told)
    async with aiohttp.ClientSession() as session, session.get(told[0]) as response:
        assert response.status == 200
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert len(told) == 1


# ----------------------------------------------------------------------------------------------------- its page's files


def test_all_files_of_the_page_are_served_and_shipped() -> None:
    """Those in the directory are those that the server knows."""
    assert {file.name for file in PAGE_SIZE.iterdir()} == {file for file, _ in server.FILES.values()}


def test_the_page_names_no_address() -> None:
    """No CDN, no font, no beacon: nothing that a browser would fetch from elsewhere; and nothing inline."""
    for file in PAGE_SIZE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?i:https?:)//|\burl\(|@import|['\"]//", text), file
        assert not re.search(r"(?i)innerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file
    html = (PAGE_SIZE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?i)\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", html)


def test_the_colours_are_those_of_the_diagrams() -> None:
    """By status, light and dark, and the same in both."""
    light, dark = (PAGE_SIZE / "inspector.css").read_text(encoding="utf-8").split("prefers-color-scheme: dark", 1)
    for status in map(str, ClientStatus):  # those of rooms have the same
        colour = COLOURS[status]
        assert f"--{status}: {colour.line}; --{status}-fill: {colour.fill};" in light
        assert f"--{status}: {colour.dark_line}; --{status}-fill: {colour.dark_fill};" in dark


async def test_pictures_have_no_style_of_their_own_and_lose_none() -> None:
    """The page's policy allows none inside of elements: it is in the style sheet."""
    async with idle() as inspector:
        _, drawing, _ = await answer(inspector, "machine.svg")
        _, cards, _ = await answer(inspector, "machine-cards.svg")
        _, style, _ = await answer(inspector, "machine.css")
    for each in (drawing, cards):
        assert "<style" not in each
        assert ' style="' not in each
        assert all(f'data-state="{name}"' in each for name in ClientFSM.states)
    assert re.findall("<style>(.*?)</style>", picture(ClientFSM), re.DOTALL)[0] in style


# ---------------------------------------------------------------------------------------------------- in a real browser

in_browser = pytest.mark.browser


@asynccontextmanager
async def looking(
    inspector: Inspector, *, width: int = 1440, dark: bool = False, still: bool = True
) -> AsyncIterator[Page]:
    """The inspector's page in a real Chromium, once it is alive. Fails if it scrolls sideways in the end."""
    async with looking_at(inspector.url, width=width, dark=dark, still=still) as page:
        await page.goto(inspector.url)
        await page.locator("#drawing .lit").first.wait_for()
        yield page
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def shows(page: Page, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until it does."""
    await page.locator(selector, has_text=text).first.wait_for()


async def lit(page: Page, state: str) -> None:
    """Wait until this state, and no other, is lit in the picture, and the words say the same."""
    await page.wait_for_function(
        "state => { const lit = [...document.querySelectorAll('#drawing .lit')].map(each => each.dataset.state);"
        " return lit.length === 1 && lit[0] === state }",
        arg=state,
    )
    assert await page.locator("#machine-now .badge").inner_text() == state


async def moved(page: Page) -> set[str]:
    """The moves that the highlighted parts of the picture stand for, all of them."""
    moves = await page.locator("#drawing .moved").evaluate_all("all => all.map(each => each.dataset.moves)")
    assert moves
    return set.intersection(*(set(each.split()) for each in moves))


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).click()


@in_browser
async def test_the_page_follows_the_client_through_an_outage() -> None:
    """State lit, last move, reason, timeline, latency and rooms: as the client says, before, during and after."""
    async with (
        EmbeddedServer() as place,
        Client(place.url, retry=RetryPolicy(base=0.3, cap=0.3, jitter=0), keepalive=PINGS) as client,
        Inspector(client) as inspector,
    ):
        for number in range(3):
            client.join(f"room {number}", NullAdaptor(CrdtType.EPHEMERAL))
        async with looking(inspector) as page:
            await lit(page, "connected")
            assert await moved(page) == {"socket_opened:connecting:connected"}
            await shows(page, "#status", "connected")
            await shows(page, "#latency-summary", re.compile(r"Last [\d.]+ ms, median [\d.]+ ms"))
            await page.get_by_role("button", name="joined 3").wait_for()

            await place.stop(1012, "maintenance")
            await shows(page, "#status", "reconnecting")
            await shows(
                page, "#timeline tr", re.compile(r"socket_closed\s*connected → waiting.*1012: maintenance", re.DOTALL)
            )
            await shows(
                page, "#timeline tr", re.compile(r"dial_failed\s*retrying → waiting.*retry 2 in 0.30 s", re.DOTALL)
            )
            await shows(page, "#explanation", re.compile(r"retry \d+, is in 0\.\d s"))
            await page.get_by_role("button", name="stale 3").wait_for()
            # It goes to and fro: at some moment both agree.
            agreed = ("waiting", {"dial_failed:retrying:waiting"}, "waiting")

            async def seen() -> tuple[str, set[str], str]:
                return (client.state, await moved(page), client.state)

            await until_equal(seen, agreed)

            await place.start()
            await lit(page, "connected")
            assert await moved(page) == {"socket_opened:retrying:connected"}
            await page.get_by_role("button", name="joined 3").wait_for()
            await shows(page, "#latency-summary", "lost once")
            assert await page.locator("#latency .outage").count() == 1
            assert await page.locator("#latency .trip").count() >= 2
            said = await page.locator("#said").inner_text()
            assert said == "The client is connected."


@in_browser
async def test_the_buttons_of_the_page_steer_the_client() -> None:
    """Each does to the real client what it says; while it would do nothing it says why."""
    async with EmbeddedServer() as place, Inspector(client := Client(place.url)) as inspector:
        async with looking(inspector) as page:
            await lit(page, "disconnected")
            close = page.get_by_role("button", name="Close", exact=True)
            assert await close.get_attribute("aria-disabled") == "true"
            await close.click(force=True)  # playwright waits in vain for one that is marked
            await shows(page, "#hint", "Close would do nothing: disconnected already.")
            await press(page, "Connect")
            await lit(page, "connected")
            await press(page, "Retry now")
            await until(lambda: place.stats.connects == 2)
            await lit(page, "connected")
            await press(page, "Go offline")
            await lit(page, "paused")
            assert client.state == "paused"
            await press(page, "Go online")
            await lit(page, "connected")
            await press(page, "Close")
            await lit(page, "disconnected")
            assert client.status == "disconnected"
        await client.close()


@in_browser
async def test_the_faults_of_the_demo_server_have_buttons() -> None:
    """Those that are fatal, those that are not, half-open, refused dials, unanswered joins and a room put out."""
    quick = RetryPolicy(base=0.1, cap=0.2, stable_after=0.5)
    async with (
        demo_inspector(rooms=5, retry=quick, keepalive=Keepalive(0.3, 0.3)) as inspector,
        looking(inspector) as page,
    ):
        await page.get_by_role("button", name="joined 5").wait_for()
        for fault, event in (
            ("Reset all connections", "socket_closed"),
            ("Close with 1011 (a crash)", "1011: a worker crashed"),
        ):
            await press(page, fault)
            await shows(page, "#timeline tr", event)
            await page.get_by_role("button", name="joined 5").wait_for()
        await press(page, "Fall silent (half-open)")
        await shows(page, "#timeline tr", "pong_missed")
        await press(page, "Speak again")
        await lit(page, "connected")
        await press(page, "Answer dials with 503")
        await press(page, "Reset all connections")
        await shows(page, "#timeline tr", "HTTP 503")
        await press(page, "Ignore joins")
        await press(page, "Accept dials")
        await page.get_by_role("button", name="rejoining 5").wait_for()
        await press(page, "Answer joins")
        await press(page, "Retry now")
        await page.get_by_role("button", name="joined 5").wait_for()
        await press(page, "Evict the client from a room")
        await page.get_by_role("button", name="error 1").click()
        await shows(page, "#list tr", re.compile(r"room 1\b.*evicted by the demo", re.DOTALL))
        await press(page, "Join all rooms again")
        await page.get_by_role("button", name="joined 5").wait_for()
        await press(page, "Stop the server")
        await shows(page, "#timeline tr", "1012: maintenance")
        await press(page, "Start the server")
        await lit(page, "connected")
        await press(page, "Close with 4401 (fatal)")
        await lit(page, "disconnected")
        await shows(page, "#explanation", "4401: token expired")


@in_browser
async def test_ten_thousand_rooms_stay_usable() -> None:
    """One page of rows in the document; counts, filter, search and paging answer, through a reconnect too."""
    async with demo_inspector(rooms=10_000) as inspector, looking(inspector) as page:
        await page.get_by_role("button", name="joined 10,000").wait_for()
        assert await page.locator("#list tbody tr").count() == 50
        assert await page.evaluate("document.querySelectorAll('*').length") < 2500
        await page.get_by_role("searchbox", name="Id contains").fill("room 1,23")
        await shows(page, "#shown", "1 to 10 of 10 rooms, of 10,000 in all")
        assert await page.locator("#list tbody th").all_inner_texts() == [f"room 1,23{number}" for number in range(10)]
        await page.get_by_role("searchbox").fill("")
        await shows(page, "#shown", "1 to 50 of 10,000 rooms")
        await press(page, "Next")
        await shows(page, "#shown", "51 to 100 of 10,000 rooms")
        await press(page, "Previous")
        await shows(page, "#shown", "1 to 50 of 10,000 rooms")
        await page.get_by_role("button", name="stale 0").click()
        await shows(page, "#shown", "No room matches, of 10,000 in all")
        await page.get_by_role("button", name="stale 0").click()
        await press(page, "Retry now")
        await shows(page, "#timeline tr", "retry_requested")
        await page.get_by_role("button", name="joined 10,000").wait_for()


@in_browser
async def test_the_page_can_be_used_without_a_mouse() -> None:
    """Every control is reached with Tab, shows that it has the focus, and is pressed with a key."""
    async with demo_inspector(rooms=3) as inspector, looking(inspector) as page:
        await page.get_by_role("button", name="joined 3").wait_for()
        reached: list[str] = []
        for _ in range(80):
            await page.keyboard.press("Tab")
            name, outlined = await page.evaluate(
                "(e => e === document.body ? ['', true] : [e.ariaLabel || e.textContent.trim() || e.id,"
                " getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)"
            )
            if not name or (reached and name == reached[0]):
                break
            assert outlined, name
            reached.append(name)
        wanted = ["Skip to the machine", "Connect", "Retry now", "Close", "Go offline", "Go online", "Stop the server"]
        assert reached[:7] == wanted
        for name in ("The machine, drawn", "Transitions of the client, the latest first", "search", "List of rooms"):
            assert name in reached
        await page.get_by_role("button", name="Close", exact=True).focus()
        await page.keyboard.press("Enter")
        await lit(page, "disconnected")
        await page.get_by_role("button", name="Connect", exact=True).focus()
        await page.keyboard.press("Space")
        await lit(page, "connected")


@in_browser
async def test_the_page_has_names_and_roles() -> None:
    """For who hears it: landmarks, headings, tables, live regions, and a picture that says what it shows."""
    async with demo_inspector(rooms=3) as inspector, looking(inspector) as page:
        await page.get_by_role("button", name="joined 3").wait_for()
        for role, names in {
            "heading": ("Inspector", "The machine", "Timeline", "Latency", "Rooms", "What you can ask of the client"),
            "region": ("The machine", "Timeline", "Latency", "Rooms", "The machine, drawn"),
            "img": ("ClientFSM: now in connected",),
            "table": ("Timeline", "Rooms"),
            "columnheader": ("Time", "Event", "From → to", "Reason", "Room", "Kind", "State", "May"),
            "rowheader": ("room 1", "room 2", "room 3"),
            "searchbox": ("Id contains",),
        }.items():
            for name in names:
                assert await page.get_by_role(role, name=name, exact=True).count(), (role, name)  # type: ignore[arg-type]
        await shows(page, "#latency-summary", "round trip")
        assert await page.get_by_role("img", name=re.compile("Latency over time. Last")).count() == 1
        assert await page.locator("#said").get_attribute("aria-live") == "polite"
        assert await page.locator("html").get_attribute("lang") == "en"
        assert await page.evaluate("[...document.querySelectorAll('[id]')].length") == await page.evaluate(
            "new Set([...document.querySelectorAll('[id]')].map(each => each.id)).size"
        )


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_page_fits_and_can_be_read(width: int, dark: bool, tmp_path: Path) -> None:
    """At three widths, light and dark: nothing sticks out, and all text has the contrast that it needs (WCAG AA)."""
    async with demo_inspector(rooms=60) as inspector, looking(inspector, width=width, dark=dark) as page:
        await page.get_by_role("button", name="joined 60").wait_for()
        await press(page, "Stop the server")
        await shows(page, "#timeline tr", "dial_failed")
        await page.screenshot(path=tmp_path / "page.png", full_page=True)
        faint = await page.evaluate(CONTRASTS)
        assert faint == []
        drawing = await page.locator("#drawing > svg").bounding_box()
        assert drawing is not None
        assert 250 < drawing["width"] <= width
        assert (await page.locator("#from-most-states").count() == 1) == (width == 360)  # cards on a phone


CONTRASTS: Final = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = each => {
    for (; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll('body *:not(svg *)')].filter(each =>
    [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && each.checkVisibility());
  return texts.map(each => {
    const [a, b] = [light(rgb(getComputedStyle(each).color)), light(ground(each))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.textContent.trim()];
  }).filter(([ratio]) => ratio < 4.5);
}"""
"""What has too little contrast with what it stands on."""


@in_browser
async def test_motion_stops_for_who_asked_for_it() -> None:
    """The light of the present state glows, unless the reader's system says no."""
    moving = "() => document.getAnimations().length"
    async with idle() as inspector:
        async with looking(inspector, still=False) as page:
            assert await page.evaluate(moving)
        async with looking(inspector, still=True) as page:
            assert not await page.evaluate(moving)


@in_browser
async def test_the_page_says_when_the_inspector_is_gone_and_comes_back() -> None:
    """What it shows is then marked as old; it goes on by itself when there is an answer again."""
    async with idle() as inspector, looking(inspector) as page:
        for viewer_ in list(inspector._viewers):
            viewer_.leave()
        await page.get_by_role("alert").filter(has_text="does not answer").wait_for()
        await page.wait_for_function("() => !document.body.classList.contains('stale')")
        await press(page, "Go offline")
        await (
            page.get_by_role("button", name="Go online", exact=True)
            .and_(page.locator('[aria-disabled="false"]'))
            .wait_for()
        )


@in_browser
async def test_what_others_say_is_text_and_never_markup() -> None:
    """A room or a reason that looks like HTML is shown as it is."""
    evil = "<img src=x onerror=alert(1)>"
    async with (
        EmbeddedServer() as place,
        Client(place.url) as client,
        Inspector(client, faults={evil: lambda: None}) as inspector,
    ):
        await client.join(evil, NullAdaptor(CrdtType.EPHEMERAL))
        async with looking(inspector) as page:
            await place.close_all(4400, evil)
            await shows(page, "#explanation", evil)
            await shows(page, "#timeline tr", evil)
            await shows(page, "#list th", evil)
            await shows(page, "#faults button", evil)
            assert await page.locator("img").count() == 0
