"""Secrets planted everywhere, and a server that says all of them back: they are in nothing that is shown (D-JUDGED)."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from loro import LoroDoc
from pytest_aiohttp.plugin import AiohttpRawServer
from yarl import URL

from kit import PATIENCE, until
from reconnect_fsm import Client, ClientStopped, JoinRefused, RetryPolicy, Room
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.loro_protocol import (
    DocUpdate,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    RoomError,
    RoomErrorCode,
    decode,
    encode,
)

PLANTED = {
    "user": "the-user-of-the-url",
    "password": "p%ss/word of the url",
    "query": "query~t0ken+%2f",
    "fragment": "fragment-t0ken",
    "header": "header-t0ken",
    "session's header": "session-header-t0ken",
    "middleware": "middleware-t0ken",
    "cookie": "cookie-t0ken",
    "the server's cookie": "set-cookie-t0ken",
    "subprotocol": "subprotocol-t0ken",
    "params": "params t0ken",
    "room's auth": "auth-t0ken-é",
    "refused room's auth": '{"token": "json-auth-t0ken"}',
    "room that was left": "left-auth-t0ken",
}


def says(name: str) -> str:
    """What a server says of it, quoted in whichever way."""
    secret = PLANTED[name]
    return {"query": str(URL(f"/?{secret}", encoded=True).query_string), "params": "params+t0ken"}.get(name, secret)


def echoing(how: str, words: str) -> Callable[[web.BaseRequest], Awaitable[web.WebSocketResponse]]:
    """A server of three rooms that says these words in this way."""

    async def serve(request: web.BaseRequest) -> web.WebSocketResponse:
        asked = [each.strip() for each in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        ws = web.WebSocketResponse(protocols=asked)
        ws.set_cookie("s", PLANTED["the server's cookie"])
        await ws.prepare(request)
        seen = 0
        async for message in ws:
            if message.type is not aiohttp.WSMsgType.BINARY or not isinstance(decode(message.data), JoinRequest):
                continue
            join: Any = decode(message.data)
            if join.room_id != "refused" or how != "JoinError":
                await ws.send_bytes(encode(JoinResponseOk(join.crdt, join.room_id, "write", b"", b"")))
            else:
                await ws.send_bytes(
                    encode(JoinError(join.crdt, join.room_id, JoinErrorCode.APP_ERROR, words, None, words))
                )
            seen += 1
            if seen == 3:
                if "close" in how:
                    await ws.close(code=1008 if "fatal" in how else 4000, message=words.encode())
                elif how == "RoomError":
                    await ws.send_bytes(encode(RoomError(join.crdt, "refused", RoomErrorCode.EVICTED, words)))
        return ws

    return serve


async def errors_of(room: Room) -> list[object]:
    """What awaiting it raises, shown in every way."""
    try:
        async with asyncio.timeout(0 if room.status == "reconnecting" else PATIENCE):
            await room
    except (ClientStopped, JoinRefused) as error:
        told = [repr(error), str(error), vars(error), getattr(error, "cause", None)]
        return [*told, *traceback.format_exception(error)]
    except TimeoutError:
        pass
    return []


def logged(records: list[logging.LogRecord]) -> str:
    """What was logged, with what formatters and filters can see of it; but for the server's own log."""
    ours = [each for each in records if each.name in ("reconnect_fsm", "asyncio")]
    return "".join(f"{each.getMessage()} {vars(each)}" for each in ours)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("how", ["close", "fatal close", "JoinError", "RoomError"])
async def test_d_judged_a_secret_that_is_said_back_is_shown_nowhere(
    name: str, how: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, aiohttp_raw_server: AiohttpRawServer
) -> None:
    """In no log, reason, cause, repr, error, traceback, recording, nor what is kept for an export."""
    caplog.set_level(logging.DEBUG)
    words = f"denied: {says(name)}!"

    async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers["X-Signed"] = PLANTED["middleware"]
        return await handler(request)

    shown: list[object] = []
    recording = io.StringIO()
    jar = aiohttp.CookieJar(unsafe=True)
    server = await aiohttp_raw_server(echoing(how, words))
    async with aiohttp.ClientSession(
        headers={"X-Own": PLANTED["session's header"]}, cookie_jar=jar, middlewares=(sign,)
    ) as session:
        jar.update_cookies({"c": PLANTED["cookie"]}, server.make_url("/"))
        url = server.make_url("/").with_scheme("ws").with_user(PLANTED["user"]).with_password(PLANTED["password"])
        address = URL(f"{url}?q={PLANTED['query']}#{PLANTED['fragment']}", encoded=True)
        client = Client(
            lambda: address,
            session=session,
            retry=RetryPolicy(base=1000.0, cap=1000.0),
            headers={"X-Key": f"Bearer {PLANTED['header']}"},
            protocols=("v1", PLANTED["subprotocol"]),
            params={"p": PLANTED["params"]},
        )
        client.on_status(shown.append)
        client.on_transition(shown.append)
        with client.record(recording):
            client.start()
            rooms = [
                client.join(room, LoroAdaptor(LoroDoc()), auth=PLANTED[auth].encode(), on_status=shown.append)
                for room, auth in (
                    ("kept", "room's auth"),
                    ("left", "room that was left"),
                    ("refused", "refused room's auth"),
                )
            ]
            over = {"close": "waiting", "fatal close": "disconnected"}.get(how)
            await until(lambda: client.state == over if over else rooms[2].status == "error")
            rooms[1].leave()
            shown += [
                client.reason,
                client.explain(),
                client.transitions(),
                client,
                rooms,
                [each.reason for each in rooms],
            ]
            shown += [getattr(client, "cause", None), asyncio.all_tasks()]
            client.export(tmp_path / "export")
            for room in (rooms[0], rooms[2]):
                shown += await errors_of(room)
        await client.close()
    where = {
        "log": logged(caplog.records),
        "shown": repr(shown) + "".join(map(str, shown)),
        "recording": recording.getvalue(),
        "export": (tmp_path / "export").read_text(),
    }
    secret = says(name).removeprefix("q=")
    told = {place: text for place, text in where.items() if secret in text or PLANTED[name] in text}
    assert {place: text[max(text.find(secret) - 300, 0) :][:600] for place, text in told.items()} == {}
    assert any("denied: …" in text for text in where.values())  # it was said, and shown without


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_d_judged_words_that_are_not_shown_cost_nothing(
    level: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    aiohttp_raw_server: AiohttpRawServer,
) -> None:
    """Junk updates: of a thousand refusals ten are logged, and only for those the words are made fit."""
    made_fit = 0
    redact = Redaction.__call__

    def counting(self: Redaction, words: object) -> str:
        nonlocal made_fit
        made_fit += 1
        return redact(self, words)

    monkeypatch.setattr(Redaction, "__call__", counting)
    caplog.set_level(level, "reconnect_fsm")

    async def serve(request: web.BaseRequest) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        join: Any = decode((await ws.receive()).data)
        await ws.send_bytes(encode(JoinResponseOk(join.crdt, join.room_id, "write", b"", b"")))
        for number in range(1_000):
            await ws.send_bytes(encode(DocUpdate(join.crdt, join.room_id, (b"junk",), number)))
        await ws.send_str("done")
        async for _ in ws:
            pass
        return ws

    server = await aiohttp_raw_server(serve)
    done = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with Client(str(server.make_url("/"))) as client:
        client.on_message(lambda _: done.set())
        client.join("notes", LoroAdaptor(LoroDoc()), auth=b"auth-t0ken")
        async with asyncio.timeout(PATIENCE):
            await done.wait()
    logged = sum("refused a batch" in each.getMessage() for each in caplog.records)
    assert logged >= 1
    assert made_fit <= logged + 5
    assert logged <= 10 if level == logging.INFO else logged >= 10
