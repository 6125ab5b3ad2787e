"""A minimal server: it answers joins, updates and pings, and keeps no documents.

Run by the benchmarks in a process of its own, so that what is measured is the client. All answers to what one read of
the socket brought are written at once. ``stub_server.py [loro|centrifuge|socketio]`` says what it speaks, of the latter
two no more than it takes to let a client in and to subscribe it to channels, or connect it to namespaces.

It obeys one command a line on stdin, and answers each with a line of JSON::

    stop, start                stop listening and reset every connection; listen again on the same port
    restart                    the one and then the other
    mute                       read no more from the connections there are, as on a link that is half-open
    flood ROOM N SIZE ROOMS    send N updates of so many bytes to the connected client, for rooms ROOM0, ROOM1, …
    send N SIZE                send N binary messages of so many bytes
    edits ROOM N               send N updates of a real Loro document, each of which inserts one character into "text"
    usage                      {"cpu": seconds used since it was asked last, "connections": how many there are}

``start`` and ``restart`` answer {"at": time.monotonic() when it listened}. What it takes to make the messages of a
flood is not counted in ``usage``. It prints its port first, and ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import struct
import sys
import time
from collections.abc import Callable, Iterable

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, TEXT, CLOSE, PING, PONG = 2, 1, 8, 9, 10
ANSWERED = {CLOSE: CLOSE, PING: PONG}
JOIN_REQUEST, JOIN_RESPONSE_OK, DOC_UPDATE, FRAGMENT_HEADER, FRAGMENT, ACK = 0x00, 0x01, 0x03, 0x04, 0x05, 0x08
ACCEPTED = b"\x01\x05write\x00\x00"  # the answer's type, the permission, an empty version, no metadata


class Loro:
    """The Loro syncing protocol: every join is accepted, every batch acknowledged, and forgotten."""

    greeting = b""

    def __init__(self) -> None:
        self._fragments: dict[bytes, int] = {}  # how many are still to come, by room and batch

    def text(self, message: bytes, answers: list[bytes]) -> None:
        if message == b"ping":
            answers.append(b"\x81\x04pong")

    def binary(self, message: bytes, answers: list[bytes]) -> None:
        head = 5 + message[4]
        kind = message[head]
        if kind == JOIN_REQUEST:
            answers.append(frame(message[:head] + ACCEPTED))
        elif kind == DOC_UPDATE:
            answers.append(frame(message[:head] + b"\x08" + message[-8:] + b"\x00"))
        elif kind == FRAGMENT_HEADER:
            self._fragments[message[:head] + message[head + 1 : head + 9]] = read_varuint(message, head + 9)
        elif kind == FRAGMENT:
            batch = message[:head] + message[head + 1 : head + 9]
            self._fragments[batch] -= 1
            if not self._fragments[batch]:
                del self._fragments[batch]
                answers.append(frame(message[:head] + b"\x08" + batch[-8:] + b"\x00"))


class Centrifuge:
    """Centrifugo's protocol in JSON: lines of commands, lines of replies."""

    greeting = b""

    def text(self, message: bytes, answers: list[bytes]) -> None:
        replies = []
        for line in message.splitlines():
            command = json.loads(line)
            if "connect" in command:
                replies.append(json.dumps({"id": command["id"], "connect": {"client": "stub", "version": "0"}}))
            elif "subscribe" in command:
                replies.append(json.dumps({"id": command["id"], "subscribe": {}}))
        if replies:
            answers.append(frame("\n".join(replies).encode(), TEXT))

    def binary(self, message: bytes, answers: list[bytes]) -> None:
        raise ValueError("only JSON is spoken here")


class SocketIO:
    """Socket.IO over Engine.IO: every namespace is let in."""

    greeting = b'0{"sid":"stub","upgrades":[],"pingInterval":60000,"pingTimeout":60000,"maxPayload":1000000}'

    def text(self, message: bytes, answers: list[bytes]) -> None:
        if message.startswith(b"40"):
            namespace = message[2:].partition(b",")[0]
            answers.append(frame(b"40" + namespace + b',{"sid":"stub"}', TEXT))

    def binary(self, message: bytes, answers: list[bytes]) -> None:
        raise ValueError("no attachments are taken here")


Speaker = Loro | Centrifuge | SocketIO
SPEAKERS: dict[str, type[Speaker]] = {"loro": Loro, "centrifuge": Centrifuge, "socketio": SocketIO}


class Stub(asyncio.Protocol):
    """One connection."""

    def __init__(self, connections: set[Stub], speaker: type[Speaker]) -> None:
        self._connections = connections
        self._speaker = speaker()
        self._open = False
        self._rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self._open:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = data
                return
            self._upgrade(head)
            data = rest
        self._rest, answers = frames(data, self._speaker)
        if answers:
            self.transport.write(b"".join(answers))
            if answers[-1][0] == 0x80 | CLOSE:
                self.transport.close()

    def _upgrade(self, head: bytes) -> None:
        lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        key = next(value for name, value in lines if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key.strip() + GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        if self._speaker.greeting:
            self.transport.write(frame(self._speaker.greeting, TEXT))
        self._open = True


def frames(data: bytes, speaker: Speaker) -> tuple[bytes, list[bytes]]:
    """Take whole frames from what was read: what is left, and the answers."""
    at, end, answers = 0, len(data), list[bytes]()
    while end - at >= 6:
        size, start = data[at + 1] & 0x7F, at + 6
        if size >= 126:
            longer = 2 if size == 126 else 8
            size, start = int.from_bytes(data[at + 2 : at + 2 + longer], "big"), start + longer
        if end < start + size:
            break
        mask, masked = data[start - 4 : start], data[start : start + size]
        opcode, at = data[at] & 0x0F, start + size
        whole = int.from_bytes(masked, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        payload = whole.to_bytes(size, "big")
        if opcode == BINARY:
            speaker.binary(payload, answers)
        elif opcode == TEXT:
            speaker.text(payload, answers)
        elif opcode in ANSWERED:
            answers.append(frame(payload, ANSWERED[opcode]))
    return data[at:], answers


def frame(payload: bytes, opcode: int = BINARY) -> bytes:
    """A frame of the server's."""
    size, first = len(payload), 0x80 | opcode
    if size < 126:
        return bytes((first, size)) + payload
    return struct.pack("!BBH" if size < 1 << 16 else "!BBQ", first, 126 if size < 1 << 16 else 127, size) + payload


def varuint(value: int) -> bytes:
    """ULEB128."""
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def read_varuint(data: bytes, at: int) -> int:
    """The ULEB128 at this place."""
    value = shift = 0
    while data[at] >= 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift


def doc_updates(rooms: list[str], updates: Iterable[bytes]) -> bytes:
    """Frames of one DocUpdate each, for the rooms in turn."""
    heads = [b"%LOR" + varuint(len(room.encode())) + room.encode() + bytes((DOC_UPDATE, 1)) for room in rooms]
    return b"".join(
        frame(heads[number % len(heads)] + varuint(len(update)) + update + number.to_bytes(8, "big"))
        for number, update in enumerate(updates)
    )


@functools.cache
def loro_edits(count: int) -> list[bytes]:
    """So many updates of a real document."""
    from loro import LoroDoc

    made: list[bytes] = []
    doc = LoroDoc()

    def keep(update: bytes) -> bool:
        made.append(update)
        return True

    subscription = doc.subscribe_local_update(keep)
    text = doc.get_text("text")
    for number in range(count):
        text.insert(number, "x")
        doc.commit()
    subscription.unsubscribe()
    return made


class Server:
    """Listens, and carries out commands."""

    def __init__(self, speaker: type[Speaker]) -> None:
        self._speaker = speaker
        self._connections: set[Stub] = set()
        self._server: asyncio.Server
        self._used = 0.0
        self.port = 0

    async def start(self) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Stub(self._connections, self._speaker), "127.0.0.1", self.port, backlog=16_384
        )
        at = time.monotonic()
        self.port = self._server.sockets[0].getsockname()[1]
        return {"at": at}

    async def stop(self) -> None:
        self._server.close()
        for each in tuple(self._connections):
            each.transport.abort()
        await self._server.wait_closed()

    async def restart(self) -> dict[str, float]:
        await self.stop()
        return await self.start()

    def mute(self) -> None:
        for each in self._connections:
            each.transport.pause_reading()

    def flood(self, room: str, count: str, size: str, rooms: str) -> None:
        payload = bytes(int(size))
        names = [f"{room}{number}" for number in range(int(rooms))]
        self._send(lambda: doc_updates(names, (payload for _ in range(int(count)))))

    def send(self, count: str, size: str) -> None:
        self._send(lambda: frame(bytes(int(size))) * int(count))

    def edits(self, room: str, count: str) -> None:
        self._send(lambda: doc_updates([room], loro_edits(int(count))))

    def usage(self) -> dict[str, float]:
        now = time.process_time()
        used, self._used = now - self._used, now
        return {"cpu": used, "connections": len(self._connections)}

    def _send(self, make: Callable[[], bytes]) -> None:
        began = time.process_time()
        made = make()
        self._used += time.process_time() - began
        for each in self._connections:
            each.transport.write(made)

    async def obey(self, line: str) -> object:
        name, *args = line.split()
        if name not in ("start", "stop", "restart", "mute", "flood", "send", "edits", "usage"):
            return {"error": f"no such command: {name}"}
        result = getattr(self, name)(*args)
        return await result if asyncio.iscoroutine(result) else result


async def main(speaks: str = "loro") -> None:
    """Serve until stdin closes."""
    loop = asyncio.get_running_loop()
    server = Server(SPEAKERS[speaks])
    await server.start()
    print(server.port, flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode():
        print(json.dumps(await server.obey(line)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
