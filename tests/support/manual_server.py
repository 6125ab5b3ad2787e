"""A server that does nothing by itself: a test takes each message and says what is answered.

It runs in virtual time, where pytest-aiohttp's servers cannot: those listen on a socket of the kernel's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import pytest
from aiohttp import WSMsgType, web

from doubles import Notebook
from kit import client_of
from reconnect_fsm import Client, Room, RoomStatus, StatusChange
from reconnect_fsm.adaptors import Adaptor
from reconnect_fsm.loro_protocol import (
    CrdtType,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Message,
    Permission,
    RoomError,
    RoomErrorCode,
    decode,
    encode,
)
from reconnect_fsm.testing.virtual_time import serving

__all__ = ["Heard", "ManualServer", "Peer", "joined", "manual", "manual_server", "room_error"]

PATIENCE: Final = 120.0  # seconds, of virtual time as a rule, for what must come
M = TypeVar("M", bound="Message | str")


class Peer:
    """The server's end of one connection: a test says what it answers."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self._ws = ws
        self._transport = transport
        self.inbox: asyncio.Queue[Message | str] = asyncio.Queue()

    async def next(self, kind: type[M]) -> M:
        """What comes next; it has to be of this kind."""
        async with asyncio.timeout(PATIENCE):
            message = await self.inbox.get()
        assert isinstance(message, kind), message
        return message

    async def send(self, *messages: Message | bytes | str) -> None:
        for message in messages:
            if isinstance(message, str):
                await self._ws.send_str(message)
            else:
                await self._ws.send_bytes(message if isinstance(message, bytes) else encode(message))

    async def let_in(self, version: bytes = b"", permission: Permission = "write") -> JoinRequest:
        """Take the JoinRequest that comes next, and accept it."""
        request = await self.next(JoinRequest)
        await self.send(JoinResponseOk(request.crdt, request.room_id, permission, version))
        return request

    async def turn_away(
        self, code: JoinErrorCode, message: str = "no", *, version: bytes | None = None, app_code: str | None = None
    ) -> JoinRequest:
        """Take the JoinRequest that comes next, and refuse it."""
        request = await self.next(JoinRequest)
        await self.send(JoinError(request.crdt, request.room_id, code, message, version, app_code))
        return request

    async def hears_nothing_else(self) -> None:
        """Answers come in order: when that to a ping is next, there was nothing before it."""
        await self._ws.send_str("ping")
        assert await self.next(str) == "pong"

    def drop(self) -> None:
        """End the TCP connection without a close frame."""
        self._transport.abort()

    async def close(self, code: int) -> None:
        await self._ws.close(code=code)


class ManualServer:
    """A server that does nothing by itself."""

    def __init__(self) -> None:
        self.url = ""
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        peer = Peer(ws, request.transport)
        self._peers.put_nowait(peer)
        async for message in ws:
            peer.inbox.put_nowait(message.data if message.type is WSMsgType.TEXT else decode(message.data))
        return ws

    async def peer(self) -> Peer:
        """The connection that comes next."""
        async with asyncio.timeout(PATIENCE):
            return await self._peers.get()


@asynccontextmanager
async def manual_server() -> AsyncIterator[ManualServer]:
    server = ManualServer()
    async with serving(server.handle) as url:
        server.url = str(url)
        yield server


@pytest.fixture
async def manual() -> AsyncIterator[ManualServer]:
    """A manual server, started."""
    async with manual_server() as server:
        yield server


@asynccontextmanager
async def joined(
    manual: ManualServer, adaptor: Adaptor | None = None, **options: Any
) -> AsyncIterator[tuple[Client, Room, Peer]]:
    """A client in one room of a manual server."""
    async with client_of(manual.url, **options) as client:
        room = client.join("r", adaptor or Notebook())
        peer = await manual.peer()
        await peer.let_in()
        await room
        yield client, room, peer


def room_error(code: RoomErrorCode, message: str = "") -> RoomError:
    return RoomError(CrdtType.ELO, "r", code, message)


class Heard(list[str]):
    """A status listener that remembers the new statuses."""

    def __call__(self, change: StatusChange[RoomStatus]) -> None:
        assert change.old is not change.new
        self.append(change.new.value)
