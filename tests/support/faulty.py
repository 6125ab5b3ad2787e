"""Servers that misbehave, on bare TCP: all that a proper WebSocket server is too polite to do.

A behaviour is a coroutine function that is given one `Peer`, the server's end of one TCP connection. A server plays a
list of them, one for each connection that it accepts; the last one is played again and again::

    async with faulty.server(reset_in_handshake, echo) as server, Connection(server.url) as connection:
        await connection.wait_connected()
        assert server.connects == 2

It works under real and under virtual time. What a behaviour raises fails the test, but for the client being gone.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Final, TypeAlias

from reconnect_fsm._asyncio.connection import Connection
from reconnect_fsm.status import ClientStatus, StateChange, StatusChange
from reconnect_fsm.testing.embedded_server import reset_connection

__all__ = [
    "Behaviour",
    "Peer",
    "Server",
    "Watch",
    "accept_then_close",
    "accept_then_hang_up",
    "accept_then_reset",
    "answer",
    "deaf",
    "drip",
    "echo",
    "hang_up_in_handshake",
    "ignore_pings",
    "never_answer",
    "redirect",
    "reset_in_handshake",
    "server",
    "unused_port",
    "wrong_accept",
]

HOST: Final = "127.0.0.1"
GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # RFC 6455, 5.2


class Peer:
    """The server's end of one TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.head = ""
        """The request, once it was read."""
        self.frames: list[tuple[int, bytes]] = []
        """Every frame that was read, unmasked: opcode and payload."""
        self.gone = asyncio.Event()
        """Set when the behaviour has come to its end."""

    @property
    def messages(self) -> list[str | bytes]:
        """The text and binary messages that were read, but for the keepalive's pings."""
        data = [(op, payload) for op, payload in self.frames if op in (TEXT, BINARY) and payload != b"ping"]
        return [payload.decode() if op == TEXT else payload for op, payload in data]

    @property
    def closed_with(self) -> tuple[int, str] | None:
        """Code and reason of the client's close frame; 1005 if it held no code; None if there was none."""
        for op, payload in self.frames:
            if op == CLOSE:
                return (struct.unpack("!H", payload[:2])[0], payload[2:].decode()) if payload else (1005, "")
        return None

    @property
    def path(self) -> str:
        """What was asked for, query string and all."""
        return self.head.split(" ")[1]

    def header(self, name: str) -> str | None:
        """One header of the request."""
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None

    async def read_slowly(self, size: int, *, every: float) -> None:
        """Read whole frames, one at a time with a pause after each, until so many bytes have come; answer pings."""
        left = size
        while left > 0:
            _, payload = await self.receive()
            left -= len(payload)
            if payload == b"ping":
                self.send("pong")
            await asyncio.sleep(every)

    async def sip(self, size: int) -> None:
        """Read at most so many bytes, whatever they are."""
        if not await self._reader.read(size):
            raise EOFError

    async def request(self) -> None:
        """Read the request."""
        self.head = (await self._reader.readuntil(b"\r\n\r\n")).decode()

    async def upgrade(self, *headers: str, accept: str | None = None) -> None:
        """Read the request and become a WebSocket, with ``accept`` instead of the right answer to the client's key."""
        await self.request()
        key = self.header("Sec-WebSocket-Key") or ""
        accept = accept or base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *headers]
        self.write("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the client takes more."""
        await self._writer.drain()

    def send(self, data: str | bytes) -> None:
        """Send a message."""
        if isinstance(data, str):
            self.send_frame(TEXT, data.encode())
        else:
            self.send_frame(BINARY, data)

    def send_frame(self, opcode: int, payload: bytes = b"") -> None:
        """Send a frame, sensible or not."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self.write(head + payload)

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame; None: one without a code."""
        self.send_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())

    async def receive(self) -> tuple[int, bytes]:
        """Read one frame."""
        first, second = await self._reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        mask = await self._reader.readexactly(4)
        payload = await self._reader.readexactly(size)
        repeated = (mask * (size // 4 + 1))[:size]
        plain = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
        self.frames.append((first & 0x0F, plain))
        return self.frames[-1]

    async def answer_frames(self, *, pings: bool = True) -> None:
        """Answer the text frame ``ping`` (if ``pings``) and the close frame, until the client closes."""
        while True:
            opcode, payload = await self.receive()
            if opcode == TEXT and payload == b"ping" and pings:
                self.send("pong")
            elif opcode == CLOSE:
                self.send_frame(CLOSE, payload)
                self.hang_up()
                return

    async def read_on(self) -> None:
        """Read frames and answer none, until the client has gone."""
        while True:
            await self.receive()

    async def wait_gone(self) -> None:
        """Wait until the client has gone, whatever it sends until then."""
        while await self._reader.read(1 << 16):
            pass

    def freeze(self) -> None:
        """Read and answer nothing from now on: half-open."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport for both ways

    def hang_up(self) -> None:
        """Close the TCP connection: a FIN."""
        self._writer.close()

    def reset(self) -> None:
        """Tear the TCP connection down: an RST."""
        reset_connection(self._writer.transport)

    def abort(self) -> None:
        """Let go of everything, at once."""
        with contextlib.suppress(AttributeError):  # of TLS that is closed already (Python 3.11.2)
            self._writer.transport.abort()


Behaviour: TypeAlias = Callable[[Peer], Awaitable[None]]


class Server:
    """Accepts TCP connections and plays a behaviour with each."""

    def __init__(self, behaviours: tuple[Behaviour, ...], ssl: SSLContext | None, unix: str | None) -> None:
        self._behaviours = behaviours
        self._ssl = ssl
        self._unix = unix
        self._tasks: dict[asyncio.Task[None], Peer] = {}
        self._faults: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self.peers: list[Peer] = []
        """Every connection that was accepted, in order."""
        self.times: list[float] = []
        """When, by the loop's clock."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'ws' if self._ssl is None else 'wss'}://{HOST}:{self.port}/"

    @property
    def connects(self) -> int:
        """How many TCP connections were accepted."""
        return len(self.peers)

    @property
    def peer(self) -> Peer:
        """The connection accepted last."""
        return self.peers[-1]

    async def start(self) -> None:
        """Listen; once more on the same port after a `stop`, under real time."""
        if self._unix is not None:
            self._server = await asyncio.start_unix_server(self._accepted, self._unix)
            return
        self._server = await asyncio.start_server(self._accepted, HOST, self.port, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        assert self._server is not None
        self._server.close()
        for task, peer in self._tasks.items():
            peer.abort()
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for peer in self.peers:
            peer.abort()
        await self._server.wait_closed()
        if self._faults:
            raise self._faults[0]

    async def quiet(self) -> None:
        """Wait until every connection has come to its end."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = self._behaviours[min(self.connects, len(self._behaviours) - 1)]
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self.times.append(asyncio.get_running_loop().time())
        task = asyncio.get_running_loop().create_task(self._play(behaviour, peer))
        self._tasks[task] = peer
        task.add_done_callback(self._tasks.pop)

    async def _play(self, behaviour: Behaviour, peer: Peer) -> None:
        try:
            await behaviour(peer)
        except (ConnectionError, EOFError):  # the client has gone
            peer.abort()
        except Exception as fault:
            self._faults.append(fault)
            peer.abort()
        finally:
            peer.gone.set()


@asynccontextmanager
async def server(
    *behaviours: Behaviour, ssl: SSLContext | None = None, unix: str | None = None
) -> AsyncIterator[Server]:
    """A server that plays these behaviours, the last one again and again; on a Unix socket at ``unix``, if given."""
    served = Server(behaviours or (echo,), ssl, unix)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


_BOUND: Final = socket.socket()  # and never listening: whoever connects is refused, and nobody else is given the port
_BOUND.bind((HOST, 0))
atexit.register(_BOUND.close)


def unused_port() -> int:
    """A port where nobody listens, nor will: it is held, always the same one."""
    port: int = _BOUND.getsockname()[1]
    return port


# ----------------------------------------------------------------------------------------------------------- behaviours


async def echo(peer: Peer) -> None:
    """A good server: answers pings and the close frame."""
    await peer.upgrade()
    await peer.answer_frames()


async def ignore_pings(peer: Peer) -> None:
    """Reads everything, answers the close frame, but no ping."""
    await peer.upgrade()
    await peer.answer_frames(pings=False)


async def deaf(peer: Peer) -> None:
    """Half-open: accepts, then neither reads nor answers, and TCP stays as it is."""
    await peer.upgrade()
    peer.freeze()
    await asyncio.Event().wait()


async def drip(peer: Peer) -> None:
    """Sends the first byte of a long message, then one more now and then, for ever; reads nothing."""
    await peer.upgrade()
    peer.freeze()
    peer.write(struct.pack("!BBQ", 0x80 | BINARY, 127, 1 << 20))
    while True:
        peer.write(b".")
        await peer.drain()
        await asyncio.sleep(0.01)


async def never_answer(peer: Peer) -> None:
    """Reads the upgrade request and never answers it."""
    await peer.request()
    await peer.wait_gone()


async def reset_in_handshake(peer: Peer) -> None:
    """Answers the upgrade request with an RST."""
    await peer.request()
    peer.reset()


async def hang_up_in_handshake(peer: Peer) -> None:
    """Answers the upgrade request with a FIN."""
    await peer.request()
    peer.hang_up()


async def wrong_accept(peer: Peer) -> None:
    """Upgrades with a Sec-WebSocket-Accept that does not answer the client's key."""
    await peer.upgrade(accept="bm90IGl0")
    await peer.read_on()


async def accept_then_hang_up(peer: Peer) -> None:
    """Upgrades and hangs up at once, without a close frame."""
    await peer.upgrade()
    peer.hang_up()


async def accept_then_reset(peer: Peer) -> None:
    """Upgrades and sends an RST."""
    await peer.upgrade()
    await peer.drain()
    await asyncio.sleep(0.01)
    peer.reset()


def accept_then_close(code: int | None = 1000, reason: str = "", *, after: float = 0.0) -> Behaviour:
    """Upgrades and sends a close frame, ``after`` so many seconds."""

    async def behave(peer: Peer) -> None:
        await peer.upgrade()
        await asyncio.sleep(after)
        peer.send_close(code, reason)
        await peer.read_on()

    return behave


def answer(status: int, *headers: str) -> Behaviour:
    """Answers the upgrade request with an HTTP status."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.write("\r\n".join([f"HTTP/1.1 {status} No", "Content-Length: 0", *headers, "", ""]).encode())
        await peer.read_on()

    return behave


def redirect(to: str, status: int = 302) -> Behaviour:
    """Answers the upgrade request with a redirect."""
    return answer(status, f"Location: {to}")


# -------------------------------------------------------------------------------------------------------------- looking


class Watch:
    """What a connection told its listeners, and when."""

    def __init__(self, connection: Connection) -> None:
        self.changes: list[StatusChange[ClientStatus]] = []
        self.steps: list[StateChange] = []
        self.times: list[float] = []
        self._stepped = asyncio.Event()
        connection.on_status(self.changes.append)
        connection.on_transition(self._step)

    def _step(self, step: StateChange) -> None:
        self.steps.append(step)
        self.times.append(asyncio.get_running_loop().time())
        self._stepped.set()

    async def seen(self, event: str) -> StateChange:
        """Wait until an event has led to another state; the first such step."""
        while True:
            for step in self.steps:
                if step.event == event:
                    return step
            self._stepped.clear()
            await self._stepped.wait()

    @property
    def statuses(self) -> list[str]:
        """Every status, in order."""
        return [change.new.value for change in self.changes]

    @property
    def states(self) -> list[str]:
        """Every state, in order."""
        return [step.new for step in self.steps]

    @property
    def waits(self) -> list[float]:
        """Every wait before a retry, as announced, in seconds."""
        return [step.retry_in for step in self.steps if step.new == "waiting" and step.retry_in is not None]

    @property
    def waited(self) -> list[float]:
        """Every wait before a retry that came to its end, as measured, in seconds."""
        pairs = zip(self.steps, self.times, self.steps[1:], self.times[1:], strict=False)
        return [then - now for step, now, follows, then in pairs if follows.event == "timer_fired"]

    @property
    def reasons(self) -> list[str]:
        """Why each state was entered."""
        return [step.reason for step in self.steps]
