"""A TCP proxy that spoils the network between a client and any server, in whatever program that runs.

::

    async with ChaosProxy("ws://127.0.0.1:8000/") as proxy, Client(proxy.url) as client:
        proxy.delay(0.2, jitter=0.1)          # both ways, for all connections, present and future
        proxy.stall(Direction.DOWN)           # nothing more arrives from the server
        proxy.heal()
        proxy.reset()                         # an RST on each open connection
        assert proxy.counts.resets == 1

It does not look into what it carries, so TLS passes through: the client must then trust the server's certificate for
the proxy's host. Conditions hold for present and future connections, until they are set again or `heal` is called.
`reset`, `cut` and `half_close` act once, on the open connections.

It holds at most `ChaosProxy.BUFFER` bytes in each direction of a connection; then it reads no more, and the sender is
slowed down as on a real network. It works under real and under virtual time. The randomness of jitter has a seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Flag
from math import inf
from types import TracebackType
from typing import ClassVar, Final

from yarl import URL

from reconnect_fsm.testing.embedded_server import reset_connection

__all__ = ["ChaosProxy", "Counts", "Direction"]

CHUNK: Final = 16 * 1024
MOMENT: Final = 1e-5  # seconds not worth waiting; a clock may be too coarse for them, and never get there
TICK: Final = 0.02  # seconds' worth of bytes that a bandwidth lets through at a time


class Direction(Flag):
    """The direction in which bytes flow."""

    UP = 1
    """From the client to the server."""
    DOWN = 2
    """From the server to the client."""
    BOTH = 3


@dataclass
class Counts:
    """What happened since the proxy was made; you may reset the counts."""

    connections: int = 0
    """Connections that were accepted; refused ones cannot be counted."""
    unreachable: int = 0
    """Those for which the server could not be reached; the client got an RST."""
    bytes_up: int = 0
    bytes_down: int = 0
    """Bytes that were passed on."""
    swallowed: int = 0
    """Bytes that went into a black hole."""
    stalls: int = 0
    """Times that a direction of a connection held bytes back because of a stall."""
    resets: int = 0
    """Connections that the proxy reset: by `reset`, by `truncate`, or after a black hole."""
    cuts: int = 0
    """Connections that the proxy closed: by `cut` or `truncate`."""
    half_closes: int = 0
    """Connections of which the proxy closed one direction."""


@dataclass(frozen=True)
class _Conditions:
    """What one direction is like."""

    delay: float = 0.0
    jitter: float = 0.0
    bandwidth: float = inf
    piece: int = CHUNK
    every: float = 0.0
    stalled: bool = False
    black_hole: bool = False
    truncate_after: int | None = None
    truncate_with_reset: bool = False


class ChaosProxy:
    """A proxy on ``host`` and ``port`` (0: any free one) for the server at ``upstream``, a URL with host and port.

    Use it with ``async with``; call it from the loop that it was started in. Raises ValueError for a URL without host.
    """

    BUFFER: ClassVar[int] = 256 * 1024
    """Most bytes held in one direction of one connection; a chunk and the loop's buffers may come on top."""

    def __init__(self, upstream: str | URL, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self._upstream = URL(upstream)
        if self._upstream.host is None or self._upstream.port is None:
            raise ValueError(
                f"the server's address needs a host and a port, as in ws://127.0.0.1:8000/, not {upstream}"
            )
        self.counts = Counts()
        self._host = host
        self._port = port
        self._random = random.Random(seed)
        self._conditions = {Direction.UP: _Conditions(), Direction.DOWN: _Conditions()}
        self._changed = asyncio.Event()
        self._connections: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._listens = False  # or should

    # Life

    async def __aenter__(self) -> ChaosProxy:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after a `stop`, on the same port. Raises OSError if it is taken, RuntimeError if started already."""
        if self._server is not None:
            raise RuntimeError("the proxy is started already")
        self._listens = True
        await self._listen()

    async def stop(self) -> None:
        """Stop listening and reset every connection; nothing is left of them afterwards.

        Raises OSError if another program took the port between `refuse` and `heal`.
        """
        if self._server is None:
            return
        self._listens = False
        opening, self._opening = self._opening, None
        try:
            if opening is not None:
                await opening
        finally:
            self._server.close()
            self._server = None
            tasks = [connection.task for connection in self._connections]
            for connection in list(self._connections):
                connection.end(reset_connection)
            if tasks:
                await asyncio.wait(tasks)

    @property
    def url(self) -> str:
        """Where a client connects to: the server's URL with this host and port. Raises RuntimeError without a port."""
        return str(self._upstream.with_host(self._host).with_port(started(self._port)))

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start if any free one was asked for."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    # Conditions, which last

    def delay(self, seconds: float, *, jitter: float = 0.0, direction: Direction = Direction.BOTH) -> None:
        """Everything arrives so many seconds later, plus or minus ``jitter``; never out of order."""
        self._set(direction, delay=not_negative("delay", seconds), jitter=not_negative("jitter", jitter))

    def bandwidth(self, bytes_per_second: float, *, direction: Direction = Direction.BOTH) -> None:
        """Each connection gets so many bytes through a second, each way."""
        if not bytes_per_second > 0:
            raise ValueError(f"the bandwidth must be more than nothing, not {bytes_per_second!r}; see stall()")
        self._set(direction, bandwidth=bytes_per_second)

    def drip(self, size: int = 1, *, every: float = 0.05, direction: Direction = Direction.BOTH) -> None:
        """So many bytes at a time, with a pause in seconds after each."""
        if size < 1:
            raise ValueError(f"a drop has at least one byte, not {size!r}; see stall()")
        self._set(direction, piece=min(size, CHUNK), every=not_negative("every", every))

    def stall(self, direction: Direction = Direction.BOTH) -> None:
        """Nothing passes; it is kept until `heal`. Connections are still accepted."""
        self._set(direction, stalled=True)

    def black_hole(self, direction: Direction = Direction.BOTH) -> None:
        """Nothing passes, and what is sent is lost, also the FIN or RST of a connection.

        Connections are still accepted. `heal` resets those that lost something.
        """
        self._set(direction, black_hole=True)

    def truncate(self, after: int = 0, *, reset: bool = False, direction: Direction = Direction.DOWN) -> None:
        """Each connection is closed, or reset, after so many more bytes in this direction."""
        if after < 0:
            raise ValueError(f"after is a number of bytes, not {after!r}")
        for connection in list(self._connections):
            for pipe in connection.pipes(direction):
                pipe.limit = pipe.passed + after
                if after == 0:
                    connection.truncate(reset)
        self._set(direction, truncate_after=after, truncate_with_reset=reset)

    def refuse(self) -> None:
        """Do not listen: the kernel refuses attempts. Open connections stay open."""
        self._listens = False
        if self._server is not None:
            self._server.close()

    def heal(self) -> None:
        """End all conditions, and listen again."""
        holes = [direction for direction, each in self._conditions.items() if each.black_hole]
        for connection in list(self._connections):
            if any(pipe.lossy for direction in holes for pipe in connection.pipes(direction)):
                self.counts.resets += 1
                connection.end(reset_connection)
            for pipe in connection.pipes(Direction.BOTH):
                pipe.limit = None
        self._conditions = {Direction.UP: _Conditions(), Direction.DOWN: _Conditions()}
        self._tell()
        if self._server is not None and not self._listens:
            self._listens = True
            if self._opening is None or self._opening.done():
                self._opening = asyncio.get_running_loop().create_task(self._listen(), name="chaos proxy: listen again")

    # Done once

    def reset(self) -> int:
        """Reset both ends of the open connections, with RSTs. Return how many there were."""
        return self._end_all("resets", reset_connection)

    def cut(self) -> int:
        """Close both ends of the open connections, with FINs. What is on its way is lost. Return how many."""
        return self._end_all("cuts", _close)

    def half_close(self, direction: Direction = Direction.DOWN) -> int:
        """Send a FIN in this direction on the open connections; the other direction stays open. Return how many.

        What is sent in this direction afterwards is lost.
        """
        connections = list(self._connections)
        for connection in connections:
            for pipe in connection.pipes(direction):
                pipe.half_close()
        self.counts.half_closes += len(connections)
        return len(connections)

    # How it works

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, self._host, self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        if not self._listens:  # refused again meanwhile
            self._server.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        connection = _Connection(self, reader, writer)
        self._connections[connection] = None
        connection.task.add_done_callback(lambda _: self._connections.pop(connection))

    def _set(self, direction: Direction, **changes: object) -> None:
        _check_direction(direction)
        for each in (Direction.UP, Direction.DOWN):
            if each in direction:
                self._conditions[each] = replace(self._conditions[each], **changes)  # type: ignore[arg-type]
        self._tell()

    def _tell(self) -> None:
        """Wake all tasks that wait for a change of conditions."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, within: float) -> None:
        """Wait for a change of conditions, at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if within == inf else within):
                await self._changed.wait()

    def _end_all(self, counter: str, end: Callable[[asyncio.Transport], None]) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.end(end)
        setattr(self.counts, counter, getattr(self.counts, counter) + len(connections))
        return len(connections)


class _Connection:
    """One connection: two sockets and two pipes between them."""

    def __init__(self, proxy: ChaosProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._pipes: dict[Direction, _Pipe] = {}
        self._ended = False
        self.task = asyncio.get_running_loop().create_task(self._run(), name="chaos proxy: connection")

    def pipes(self, direction: Direction) -> Iterator[_Pipe]:
        _check_direction(direction)
        return (pipe for each, pipe in self._pipes.items() if each in direction)

    def end(self, how: Callable[[asyncio.Transport], None]) -> None:
        """End both sockets, at once."""
        if not self._ended:
            self._ended = True
            for writer in self._writers:
                how(writer.transport)  # type: ignore[arg-type]  # it is one for both ways
            self.task.cancel()

    def truncate(self, reset: bool) -> None:
        if self._ended:
            return
        if reset:
            self._proxy.counts.resets += 1
        else:
            self._proxy.counts.cuts += 1
        self.end(reset_connection if reset else _close)

    async def _run(self) -> None:
        try:
            await self._carry()
        except asyncio.CancelledError:
            if not self._ended:
                raise
        finally:
            for writer in self._writers:
                if not writer.transport.is_closing():
                    writer.transport.abort()

    async def _carry(self) -> None:
        proxy, upstream = self._proxy, self._proxy._upstream
        reader, writer = self._client
        try:
            server_reader, server_writer = await asyncio.open_connection(upstream.host, upstream.port)
        except OSError:
            proxy.counts.unreachable += 1
            self.end(reset_connection)
            return
        self._writers.append(server_writer)
        up = self._pipes[Direction.UP] = _Pipe(proxy, self, Direction.UP, reader, server_writer)
        down = self._pipes[Direction.DOWN] = _Pipe(proxy, self, Direction.DOWN, server_reader, writer)
        async with asyncio.TaskGroup() as group:
            for pipe in (up, down):
                group.create_task(pipe.read(), name="chaos proxy: reader")
                group.create_task(pipe.write(), name="chaos proxy: writer")
        for each in self._writers:
            each.close()
        for each in self._writers:
            with suppress(ConnectionError):
                await each.wait_closed()  # what was written is still on its way


@dataclass(frozen=True)
class _Chunk:
    data: bytes
    """Nothing: the sender is done."""
    arrived: float
    jitter: float
    """Of the jitter in force, from -1 to 1."""
    reset: bool = False
    """The sender is done because its connection was reset."""


class _Pipe:
    """One direction of a connection: a reader and a writer with a bounded buffer between them."""

    def __init__(
        self,
        proxy: ChaosProxy,
        connection: _Connection,
        direction: Direction,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
    ) -> None:
        self.passed = 0
        """Bytes, so far."""
        after = proxy._conditions[direction].truncate_after
        self.limit = after
        self.lossy = False
        """Something was lost that should have been passed on."""
        self._proxy = proxy
        self._connection = connection
        self._direction = direction
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[_Chunk] = deque()
        self._held = 0
        self._moved = asyncio.Event()
        self._half_closed = False
        self._free_at = -inf

    @property
    def _conditions(self) -> _Conditions:
        return self._proxy._conditions[self._direction]

    async def read(self) -> None:
        """Read until the end."""
        while True:
            while self._held >= self._proxy.BUFFER:
                self._moved.clear()
                await self._moved.wait()
            reset = False
            try:
                data = await self._source.read(CHUNK)
            except ConnectionError:
                data, reset = b"", True
            self._held += len(data)
            self._chunks.append(_Chunk(data, self._loop.time(), self._proxy._random.uniform(-1, 1), reset))
            self._moved.set()
            if not data:
                return

    async def write(self) -> None:
        """Pass it on when its time has come."""
        while True:
            while not self._chunks:
                self._moved.clear()
                await self._moved.wait()
            chunk = self._chunks[0]
            await self._its_time(chunk)
            if not chunk.data:
                await self._finish(chunk.reset)
                return
            left = await self._deal_with(chunk.data)
            if left is None:
                return
            self._held -= len(chunk.data) - len(left)
            if left:
                self._chunks[0] = replace(chunk, data=left)
            else:
                self._chunks.popleft()
            self._moved.set()

    async def _its_time(self, chunk: _Chunk) -> None:
        stalled = False
        while not self._half_closed:
            conditions = self._conditions
            if conditions.stalled and not stalled:
                stalled = True
                self._proxy.counts.stalls += 1
            due = chunk.arrived + max(conditions.delay + chunk.jitter * conditions.jitter, 0)
            wait = inf if conditions.stalled else max(due, self._free_at) - self._loop.time()
            if wait <= MOMENT or conditions.black_hole:
                return
            await self._proxy._change(wait)

    async def _finish(self, reset: bool) -> None:
        """The sender is done: pass that on."""
        if self._half_closed:
            return
        if self._conditions.black_hole:
            self.lossy = True
            await asyncio.Event().wait()  # the peer does not learn of it; heal() resets the connection
        if reset:
            self._connection.end(reset_connection)
        else:
            self._write_eof()

    async def _deal_with(self, data: bytes) -> bytes | None:
        """Pass on, or drop, what may pass now. Return what is left; None if that was the end."""
        conditions = self._conditions
        if self._half_closed:
            return b""
        if conditions.black_hole:
            self.lossy = True
            self._proxy.counts.swallowed += len(data)
            return b""
        size = min(len(data), conditions.piece)
        if conditions.bandwidth < inf:
            size = min(size, max(int(conditions.bandwidth * TICK), 1))
        if self.limit is not None:
            size = min(size, self.limit - self.passed)
        try:
            self._sink.write(data[:size])
            await self._sink.drain()
        except ConnectionError:
            self._connection.end(reset_connection)
            return None
        self._count(size)
        self._free_at = self._loop.time() + max(conditions.every, size / conditions.bandwidth)
        if self.limit is not None and self.passed >= self.limit:
            self._connection.truncate(conditions.truncate_with_reset)
            return None
        return data[size:]

    def _count(self, size: int) -> None:
        self.passed += size
        if self._direction is Direction.UP:
            self._proxy.counts.bytes_up += size
        else:
            self._proxy.counts.bytes_down += size

    def _write_eof(self) -> None:
        if not self._sink.is_closing():
            with suppress(OSError):  # the other end has gone
                self._sink.write_eof()

    def half_close(self) -> None:
        """Send a FIN; further bytes are dropped."""
        if not self._half_closed:
            self._half_closed = True
            self._write_eof()
            self._proxy._tell()


def _close(transport: asyncio.Transport) -> None:
    """A FIN; without waiting for a peer that does not read."""
    if transport.get_write_buffer_size():
        transport.abort()
    else:
        transport.close()


def started(port: int) -> int:
    """The port, or RuntimeError if there is none as yet."""
    if port == 0:
        raise RuntimeError("not started yet, so there is no port: ask for the address inside of `async with`")
    return port


def _check_direction(direction: object) -> None:
    if not isinstance(direction, Direction):
        raise TypeError(f"a direction is Direction.UP, Direction.DOWN or Direction.BOTH, not {direction!r}")


def not_negative(name: str, seconds: float) -> float:
    """The seconds, or ValueError if they are none."""
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"{name} is a number of seconds, not {seconds!r}")
    return seconds
