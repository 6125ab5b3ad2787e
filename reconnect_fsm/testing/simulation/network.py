"""The network of a simulation: TCP in memory and in virtual time, with latency, and with faults for each client.

Every client has a `Link` of its own, known by the loopback address that it connects to: 127.0.0.1, 127.0.0.2 and so on
all lead to the same servers. What is written arrives after the link's latency, so a client and a server never affect
each other within one instant. This makes a run independent of how many passes of the event loop something takes, which
differs between versions of Python.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import WSMsgType
from async_solipsism import SleepForeverError
from async_solipsism import selector as solipsism_selector
from async_solipsism import socket as solipsism_socket

from reconnect_fsm.keepalive import Counters
from reconnect_fsm.testing.virtual_time import VirtualTimeLoop

__all__ = ["HOST", "End", "Frame", "Link", "NetworkLoop", "Tape"]

HOST: Final = "127.0.0.1"
MAX_PIECES: Final = 64  # of what is written at once: a large message byte by byte would take minutes
CAPACITY: Final = 64 * 1024  # bytes that one direction of a connection holds, as the buffers of two kernels would
DELAYED_ACK: Final = 0.04  # seconds that a kernel waits before it acknowledges what came
SEGMENT: Final = 500  # bytes that arrive at a time on a link of little bandwidth
LATENCY: Final = 0.02  # seconds, of a link without faults
MAX_PASSES: Final = 50_000  # of the loop within one instant: more than the longest queue takes


def _nothing() -> None: ...


@dataclass(frozen=True)
class Frame:
    """A WebSocket frame that a server sent."""

    kind: WSMsgType
    payload: bytes
    ends: int
    """How many bytes of the connection were sent up to its end."""


class Tape:
    """What a server sent to a client on one connection: the frames, as they stood on the wire."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._bytes = bytearray()
        self._begins = 0  # where in the connection `_bytes` begins
        self._is_upgraded = False

    def write(self, data: bytes) -> None:
        """The server sent these bytes."""
        self._bytes += data
        if not self._is_upgraded:
            end = self._bytes.find(b"\r\n\r\n")
            if end < 0:
                return
            self._is_upgraded = True
            self._drop(end + 4)
        while self._take_frame():
            pass

    def _take_frame(self) -> bool:
        data = self._bytes
        if len(data) < 2:
            return False
        length, at = data[1] & 0x7F, 2  # frames of servers have no mask
        if length >= 126:
            at = 4 if length == 126 else 10
            if len(data) < at:
                return False
            length = int.from_bytes(data[2:at], "big")
        if len(data) < at + length:
            return False
        end = self._begins + at + length
        self.frames.append(Frame(_kind(data[0]), bytes(data[at : at + length]), end))
        self._drop(at + length)
        return True

    def _drop(self, size: int) -> None:
        del self._bytes[:size]
        self._begins += size


def _kind(first_byte: int) -> WSMsgType:
    try:
        return WSMsgType(first_byte & 0x0F)
    except ValueError:
        return WSMsgType.ERROR  # no frame at all, as of a refused upgrade


class Link:
    """The way between one client and the servers. Times are seconds, one way; sizes are bytes."""

    def __init__(self, loop: NetworkLoop) -> None:
        self._loop = loop
        self._open = asyncio.Event()
        self._open.set()
        self.ends: dict[End, None] = {}
        """The client's ends of TCP connections, from connecting until they are closed."""
        self._everybody: dict[End, None] = {}
        self.gulp: int | None = None
        """Most bytes that can be read at once; more, though they have arrived, take another turn of the loop. A program
        takes no time in a simulation, so this stands for what comes while it is at work."""
        self.attempts = 0
        """How many connections the client has tried to make."""
        self.on_attempt: Callable[[], None] = _nothing
        """Called when the client tries to make a connection."""
        self.restore()

    def restore(self) -> None:
        """Be a good link: fast and open, also for bytes that are on their way."""
        self.latency = LATENCY
        self.max_piece: int | None = None
        """Most bytes that arrive at a time, of small messages; None for no limit."""
        self.rate: float | None = None
        """Bytes a second; None for no limit."""
        self.unblock()
        for end in self._everybody:
            end.hasten()

    @property
    def blocked(self) -> bool:
        """Whether nothing gets through at present."""
        return not self._open.is_set()

    def block(self) -> None:
        """Let nothing through, in either direction, new connections included. Nothing is lost: TCP sends it again."""
        self._open.clear()

    def unblock(self) -> None:
        """Let through what was held up, and all that follows."""
        self._open.set()

    def cut(self) -> int:
        """Reset every connection at both ends, as a router does that has forgotten them; return how many."""
        for end in tuple(self.ends):
            end.cut()
        return len(self.ends)

    async def connect(self, address: tuple[Any, ...]) -> End:
        """Connect to a server, after one round trip. Raises ConnectionRefusedError if no server listens."""
        self.attempts += 1
        self.on_attempt()
        await asyncio.sleep(2 * self.latency)
        await self._open.wait()
        listener = self._loop.listeners.get(address[1])
        if listener is None:
            raise ConnectionRefusedError("nobody listens there")
        there = listener.connect(self, address)
        try:
            end = await there
        except asyncio.CancelledError:
            if there.done() and not there.cancelled() and there.exception() is None:
                there.result().close()  # accepted in the very moment in which the caller gave up
            raise
        return end

    def opened(self, end: End) -> None:
        self._everybody[end] = None

    def closed(self, end: End) -> None:
        self._everybody.pop(end, None)
        self.ends.pop(end, None)

    def now(self) -> float:
        time: float = self._loop.time()
        return time


class _Pipe:
    """One direction of a connection: what is written is read once it has arrived. Stands in for a solipsism queue."""

    def __init__(self, link: Link, tape: Tape | None = None) -> None:
        self._link = link
        self.tape = tape
        self.written = 0
        """Bytes, in all, that the sender handed over."""
        self.taken = 0
        """Bytes, in all, that the receiver has read."""
        self._under_way: deque[tuple[float, bytes]] = deque()  # when it arrives, and what
        self._unacked: deque[tuple[float, int]] = deque()  # when it arrives, and how many bytes were written until then
        self._acked = 0
        self._arrived = 0
        self._size = 0
        self._sent_until = 0.0  # when the last byte left the sender
        self._last = 0.0  # when the last byte arrives
        self._end: float | None = None  # when the end of it arrives
        self.is_reset = False
        self.abandoned = False  # it will not be read

    def write(self, data: Any) -> int:
        if self._end is not None:
            raise BrokenPipeError
        if self._size >= CAPACITY:
            raise BlockingIOError
        with memoryview(data).cast("B") as view:
            taken = bytes(view[: CAPACITY - self._size])
        self.written += len(taken)
        if self.tape is not None:
            self.tape.write(taken)
        if not self.abandoned:
            whole = len(taken) if self._link.rate is None else SEGMENT  # with little bandwidth, one after another
            size = max(self._link.max_piece or whole, len(taken) // MAX_PIECES, 1)
            for at in range(0, len(taken), size):
                piece = taken[at : at + size]
                arrival = self._arrival(len(piece))
                self._under_way.append((arrival, piece))
                self._size += len(piece)
                self._unacked.append((arrival, self.written - len(taken) + at + len(piece)))
        return len(taken)

    def _arrival(self, size: int) -> float:
        """Never before what was written earlier."""
        now, rate = self._link.now(), self._link.rate
        self._sent_until = max(self._sent_until, now) + (size / rate if rate else 0.0)
        self._last = max(self._last, self._sent_until + self._link.latency)
        return self._last

    def end(self, reset: bool = False) -> None:
        """No more is written; with a reset, what has not been read is lost too."""
        if self._end is None or (reset and not self.is_reset):
            if reset:
                self._forget()
                self._sent_until = self._last = 0.0  # nor does it wait behind what is lost
            self._end = self._arrival(0)
            self.is_reset = reset

    def cut(self) -> None:
        """Reset, here and now, whatever the link does."""
        self._forget()
        self._end, self.is_reset = 0.0, True

    def hasten(self) -> None:
        """Let what is under way arrive as if it was sent just now."""
        at = self._link.now() + self._link.latency
        self._under_way = deque((min(when, at), data) for when, data in self._under_way)
        self._unacked = deque((min(when, at), total) for when, total in self._unacked)
        self._sent_until, self._last = 0.0, min(self._last, at)
        if self._end is not None:
            self._end = min(self._end, at)

    def _forget(self) -> None:
        self._under_way.clear()
        self._size = 0

    def read(self, size: int = -1) -> bytes:
        """What has arrived, as kernels do it, but no more than ``size``, and than the link gives at once."""
        gulp = self._link.gulp
        left = size = size if gulp is None else gulp if size < 0 else min(size, gulp)
        parts = []
        while left and self._is_due(self._head()):
            _, data = self._under_way.popleft()
            if 0 <= left < len(data):
                self._under_way.appendleft((0.0, data[left:]))
                data = data[:left]
            parts.append(data)
            left -= len(data) if size >= 0 else 0
        if parts:
            data = b"".join(parts)
            self._size -= len(data)
            self.taken += len(data)
            return data
        if not self._under_way and self._is_due(self._end):
            if self.is_reset:
                raise ConnectionResetError
            return b""
        raise BlockingIOError

    @property
    def acked(self) -> int:
        """Bytes of which the sender's kernel knows that the receiver's has them."""
        if not self._link.blocked:
            until = self._link.now() - self._link.latency - DELAYED_ACK
            while self._unacked and self._unacked[0][0] <= until:
                self._acked = self._unacked.popleft()[1]
        return self._acked

    @property
    def arrived(self) -> int:
        """Bytes that the receiver's kernel has got, read or not."""
        waiting = sum(len(data) for when, data in self._under_way if self._is_due(when))
        self._arrived = max(self._arrived, self.taken + waiting)
        return self._arrived

    def _head(self) -> float | None:
        return self._under_way[0][0] if self._under_way else None

    def _is_due(self, at: float | None) -> bool:
        if at is None or (self._link.blocked and at > 0):
            return False
        return at <= self._link.now() + 1e-9

    def read_ready(self) -> bool:
        return self._is_due(self.next_arrival(always=True))

    def next_arrival(self, always: bool = False) -> float | None:
        """When there is something to read; None if there is nothing under way, or it cannot get through."""
        return None if self._link.blocked and not always else (self._head() if self._under_way else self._end)

    def write_ready(self) -> bool:
        return self._end is not None or self._size <= CAPACITY // 2  # as kernels do it: not for each byte that leaves

    @property
    def has_unread(self) -> bool:
        return bool(self._under_way)


class End(solipsism_socket.Socket):  # type: ignore[misc]  # it is not typed
    """One end of a TCP connection."""

    def __init__(self, link: Link, incoming: _Pipe, outgoing: _Pipe, here: object, there: object) -> None:
        super().__init__(incoming, outgoing, here, there)
        self._read_queue: _Pipe | None
        self._write_queue: _Pipe | None
        self._link = link
        self._in = incoming
        self._out = outgoing
        self._resets = False
        link.opened(self)

    def setsockopt(self, level: int, option: int, value: Any, length: int | None = None) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._resets = value == struct.pack("ii", 1, 0)

    def send(self, data: Any, flags: int = 0) -> int:
        self._check_closed()
        taken = self._out.write(data)
        if self._out.abandoned:
            self._in.end(reset=True)  # the other end has closed: that is its answer
        return taken

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        return self.send(b"".join(buffers))

    def shutdown(self, how: int) -> None:
        self._check_closed()
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._out.end()

    def close(self) -> None:
        if self._read_queue is None:
            return
        self._out.end(reset=self._resets or self._in.has_unread)  # RFC 1122, 4.2.2.13: unread data is lost
        self._in.abandoned = True
        self._read_queue = self._write_queue = None
        self._link.closed(self)

    def cut(self) -> None:
        self._in.cut()
        self._out.cut()

    def hasten(self) -> None:
        self._in.hasten()

    def next_arrival(self) -> float | None:
        return None if self._read_queue is None else self._in.next_arrival()

    @property
    def tape(self) -> Tape:
        """What the server has sent; of the client's end."""
        assert self._in.tape is not None
        return self._in.tape

    @property
    def taken(self) -> int:
        """Bytes that were read here."""
        return self._in.taken

    def counters(self) -> Counters:
        """What a kernel would have counted of this end's connection."""
        received, acked = self._in.arrived, self._out.acked
        return Counters(received, acked, self._out.written - acked, received - self._in.taken)


class _Listener(solipsism_socket.ListenSocket):  # type: ignore[misc]  # it is not typed
    """A listening socket. Each connection that waits to be accepted has a future and its link."""

    def connect(self, link: Link, address: object) -> asyncio.Future[End]:
        waiter: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._queue.append((waiter, (link, address)))
        return waiter

    def accept(self) -> tuple[End, object]:
        while self._queue:
            waiter, (link, address) = self._queue.popleft()
            if not waiter.done():
                up, down = _Pipe(link), _Pipe(link, Tape())
                here = ("127.0.0.1", link.attempts, 0, 0)
                client = End(link, down, up, here, address)
                link.ends[client] = None
                waiter.set_result(client)
                return End(link, up, down, address, here), here
        raise BlockingIOError

    def next_arrival(self) -> None:
        return None


class _Selector(solipsism_selector.Selector):  # type: ignore[misc]  # it is not typed
    """Lets time pass when no task has anything to do: until the next timer, or until the next byte arrives."""

    def __init__(self, clock: Any, on_quiet: Callable[[], bool]) -> None:
        super().__init__(clock)
        self._on_quiet = on_quiet

    def select(self, timeout: float | None = None) -> list[Any]:
        ready: list[Any] = super().select(0)
        if ready or (timeout is not None and timeout <= 0) or self._on_quiet():
            return ready
        reading = [key.fd.socket for key in self.get_map().values() if key.events & selectors.EVENT_READ]
        arrivals = [at for each in reading if (at := each.next_arrival()) is not None]
        if arrivals:
            until = min(arrivals) - self.clock.time()
            timeout = until if timeout is None else min(timeout, until)
        if timeout is None:
            raise SleepForeverError("all tasks wait, and nothing is going to happen")
        self.clock.advance(max(timeout, self.clock.resolution))
        return list(super().select(0))


class NetworkLoop(VirtualTimeLoop):
    """A virtual-time loop with such a network, on which something can be checked at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._clock: Any = self._selector.clock
        self._selector: Any = _Selector(self._clock, self._quiet)
        self.links: dict[str, Link] = {}
        """By the address to which the client connects."""
        self.listeners: dict[int, _Listener] = {}
        """By port."""
        self.stalled = 0.0
        """Seconds, in all, that `stall` has taken."""
        self.on_step: Callable[[], None] = _nothing
        """Called after every pass of the loop."""
        self.on_quiet: Callable[[], None] = _nothing
        """Called whenever all tasks wait, before time passes."""
        self.on_busy: Callable[[], None] = _nothing
        """Called when no time passes for `MAX_PASSES` passes."""
        self.on_timer: Callable[[asyncio.TimerHandle, tuple[Any, ...]], None] | None = None
        """Called with every new timer and its arguments."""
        self._passes = 0
        self._instant = 0.0

    def link(self, host: str) -> Link:
        """The link of the client that connects to this address; made at the first call."""
        if host not in self.links:
            self.links[host] = Link(self)
        return self.links[host]

    def stall(self, seconds: float) -> None:
        """Block the loop: time passes, and nothing runs."""
        self._clock.advance(seconds)
        self.stalled += seconds

    def awake(self) -> float:
        """The time, less what `stall` has taken of it."""
        time: float = self.time()
        return time - self.stalled

    def _quiet(self) -> bool:
        """Whether there is something to do after all."""
        self.on_quiet()
        return bool(self._ready)

    # asyncio's own

    def _run_once(self) -> None:
        super()._run_once()
        if self._instant != self.time():
            self._passes, self._instant = 0, self.time()
        self._passes += 1
        if self._passes == MAX_PASSES:
            self.on_busy()
        if self._passes > 2 * MAX_PASSES:
            raise RuntimeError(f"the loop was busy for {self._passes} passes, and no time went by")
        self.on_step()

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle = super().call_at(when, callback, *args, context=context)
        if self.on_timer is not None:
            self.on_timer(timer, args)
        return timer

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, **options: Any
    ) -> Any:
        if isinstance(sock, End):
            extra = {**(extra or {}), "reconnect_fsm.counters": sock.counters}
        return super()._make_socket_transport(sock, protocol, waiter, extra=extra, **options)

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        sock = _Listener((host, port, 0, 0))
        server = await super().create_server(factory, sock=sock, **options)
        self.listeners[sock.getsockname()[1]] = sock
        return server

    def _stop_serving(self, sock: Any) -> None:
        self.listeners.pop(sock.getsockname()[1], None)
        super()._stop_serving(sock)

    async def aiohappyeyeballs_start_connection(self, addr_infos: Any, **options: Any) -> Any:
        """What aiohttp's connector calls, through `virtual_time.in_memory_connections`."""
        address = addr_infos[0][4]
        return await self.link(address[0]).connect(address)
