"""One open WebSocket: reads frames, writes frames, says why it closed.

What aiohttp does that we do not want is dealt with here: its own heartbeat, answers to close and ping frames, and a
`close()` that may never end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp import WSMsgType

from reconnect_fsm._asyncio.transport.tcp_info import read_counters
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.errors import NotConnected
from reconnect_fsm.keepalive import Counters
from reconnect_fsm.status import CloseInfo, FaultKind

__all__ = ["BURST", "CorkedTransport", "Data", "Socket", "WebSocket"]

Data: TypeAlias = str | bytes
Session: TypeAlias = aiohttp.ClientSession
Item: TypeAlias = Data | list[bytes] | tuple[Data | None, asyncio.Future[None]]
"""What waits to be written: a frame, a list of frames, or one whose sender waits; nothing, to wait for all before."""

BURST: Final = 128  # frames written, or read, before the event loop gets its turn
BURST_BYTES: Final = 256 * 1024  # likewise, of frames written
PONGS: Final = 16  # answers to WebSocket's own pings that may wait
DATA: Final = (WSMsgType.TEXT, WSMsgType.BINARY)
NOT_WRITTEN: Final = "the connection was lost before the message was written"
NO_STATUS_RECEIVED, ABNORMAL_CLOSURE = 1005, 1006  # RFC 6455, 7.4.1: never on the wire


class CorkedTransport:
    """Stands between aiohttp's writer and its transport: what is written within ``with burst:`` goes out together.

    A system call for each small frame costs several times what all the rest of sending it does.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None
        self.is_closing = transport.is_closing
        self.given = 0
        """Bytes written so far, whether the network has taken them or not."""
        self.held = 0
        """Bytes that go out with the rest of the burst."""

    def write(self, data: bytes) -> None:
        """Write now, or with the rest of the burst."""
        if self._held is None:
            self.given += len(data)
            self._transport.write(data)
        else:
            self._held.append(data)
            self.held += len(data)

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        held, self._held, self.held = self._held, None, 0
        if held and not self.is_closing():
            self.write(b"".join(held))


class WebSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's WebSocket, which also tells its transport: the only thing that can end a close that hangs."""

    def __init__(
        self, reader: Any, writer: Any, protocol: Any, response: aiohttp.ClientResponse, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(reader, writer, protocol, response, *args, **kwargs)
        self.response = response
        connection = response.connection
        self.transport: asyncio.Transport | None = None if connection is None else connection.transport
        self.corked: CorkedTransport | None = None
        is_as_expected = getattr(writer, "transport", None) is self.transport
        if self.transport is not None and is_as_expected:
            writer.transport = self.corked = CorkedTransport(self.transport)
        # else aiohttp has changed its private parts: each frame costs a system call

    async def more(self, most: int) -> list[Data]:
        """The messages that have been read from the network already, without waiting for any; others than data end it.

        `receive` takes five times as long for each as the rest of what is done for it here.
        """
        queue = self._reader
        waiting: Any = getattr(queue, "_buffer", ())  # if aiohttp has changed its private parts, one at a time
        data: list[Data] = []
        while waiting and len(data) < most and waiting[0][0].type in DATA:
            data.append((await queue.read()).data)
        return data


class Socket:
    """One open WebSocket: one task reads, and one writes while there is something to write.

    After `start` you must call `close`, once; it always ends within ``close_timeout`` seconds or little more.
    """

    def __init__(
        self,
        ws: WebSocket,
        close_timeout: float,
        max_msg_size: int,
        redaction: Redaction,
        blame: Callable[[], None] | None = None,
    ) -> None:
        self._ws = ws
        self._shown = redaction
        self._close_timeout = close_timeout
        self._max_msg_size = max_msg_size
        self._outbox: list[Item] = []
        self._urgent: list[str] = []
        self._pongs: list[bytes] = []
        self._closing = False
        self._complaint: int | None = None  # the close code that says what the server did wrong
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._on_alive: Callable[[], None] = _nothing
        self.blame: Callable[[], None] = blame or _nothing
        """Call it if the connection came to a bad end: the address is tried last the next time (NET-ADDR)."""
        self.opened_at = asyncio.get_running_loop().time()
        self._write_fault = ""
        # Where the kernel does not count, as asyncio's write buffer shows it at each look
        self._handed = self._flowed = 0
        self._was_full = False

    def start(
        self,
        on_messages: Callable[[list[Data]], None],
        on_alive: Callable[[], None],
        on_closed: Callable[[CloseInfo], None],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin to read and write.

        ``on_messages`` gets those that came together, `BURST` at most.
        ``on_alive`` is called for what proves life and is no message; ``on_closed`` once, unless `close` was called
        before; ``ready`` is awaited every now and then: no more is read until what came is handled.
        """
        self._on_alive = on_alive
        self._reader = asyncio.create_task(self._read(on_messages, on_closed, ready), name="reconnect_fsm reader")

    @property
    def lasted(self) -> float:
        """How long it has been open, in seconds."""
        return asyncio.get_running_loop().time() - self.opened_at

    @property
    def backlog(self) -> int:
        """How many frames, or groups of frames, wait to be written."""
        return len(self._outbox)

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport that carries it; None once that is gone."""
        return self._ws.transport

    def counters(self) -> Counters | None:
        """What has moved and what waits, for the heartbeat's verdict (LIVE-2); None if that cannot be known.

        Where the kernel does not count, what asyncio's write buffer shows stands for it: if something waited in it at
        the last look, the kernel was full, so what it took since then was taken from it by the other end.
        """
        ws = self._ws
        if ws.transport is None or ws.corked is None:
            return None
        unsent = self._unsent()
        waiting = unsent + ws.corked.held
        counters = read_counters(ws.transport)
        if counters is not None:
            return counters._replace(waiting=counters.waiting + waiting) if waiting else counters
        handed = ws.corked.given - unsent
        if self._was_full:
            self._flowed += max(handed - self._handed, 0)
        self._handed, self._was_full = handed, unsent > 0
        return Counters(acked=self._flowed, waiting=waiting)

    def is_reading(self, counters: Counters | None) -> bool:
        """Whether this program takes what comes: nothing waits in the kernel, nor between it and ``on_messages``."""
        if counters is not None and counters.unread > 0:
            return False
        if getattr(getattr(self._ws, "_reader", None), "_buffer", ()):  # of aiohttp; if it is there
            return False
        transport = self._ws.transport
        try:
            return transport is None or transport.is_closing() or transport.is_reading()
        except (AttributeError, NotImplementedError):  # a transport that cannot be paused
            return True

    def send(self, data: Data | list[bytes]) -> None:
        """Write the frame, text or binary, soon. Frames of one burst are written together. After `close`: drop it.

        A list of frames is taken from as it is written; who clears it takes back what was not.
        """
        if not self._closing:
            self._outbox.append(data)
            self._begin_to_write()

    def send_urgent(self, word: str) -> None:
        """Write a ping or pong before all that waits, whose length it would tell otherwise; each once."""
        if word not in self._urgent:
            self._urgent.append(word)
        self._begin_to_write()

    async def write(self, data: Data) -> None:
        """Write the frame, and return once it has been handed to the network (D-SEND).

        That is when asyncio's transport has taken it, which it does as long as its buffer is below its high-water mark:
        who writes faster than the network takes waits here. It is sent in its turn, and waits for no frame behind it.
        Raises NotConnected if it was not written and will not be. Cancelled, it is written all the same.
        """
        await self._handed_over(data)

    async def written(self) -> None:
        """Wait until all that was sent so far has been handed to the network. Raises NotConnected if it cannot be."""
        if self._closing or self._outbox:
            await self._handed_over(None)

    async def _handed_over(self, data: Data | None) -> None:
        if self._closing:
            raise NotConnected(NOT_WRITTEN)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox.append((data, done))
        self._begin_to_write()
        await done

    async def close(self, code: int, reason: str) -> None:
        """Write what is waiting, then the close frame; wait for the other end's; give up after the time allowed."""
        self._closing = True
        try:
            async with asyncio.timeout(self._close_timeout):
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                await self._ws.close(code=self._complaint or code, message=_fit(reason))
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError):
            pass  # it was gone already
        finally:
            await self._abort()

    async def _abort(self) -> None:
        """Let go of the transport, whatever state it is in; only then may a blocked send be cancelled (law 5)."""
        unwritten, self._outbox = self._outbox, []
        for item in unwritten:
            if isinstance(item, tuple) and not item[1].done():
                item[1].set_exception(NotConnected(NOT_WRITTEN))
        if self._ws.transport is not None:
            with contextlib.suppress(AttributeError):  # of TLS that is closed already (Python 3.11.2)
                self._ws.transport.abort()
        self._ws.response.close()
        tasks = [task for task in (self._reader, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # the loop closes the descriptor in its next turn

    async def discard(self) -> None:
        """Let go of a socket that was never started."""
        await self._abort()

    # Reading

    async def _read(
        self,
        on_messages: Callable[[list[Data]], None],
        on_closed: Callable[[CloseInfo], None],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        try:
            info = await self._read_until_closed(on_messages, ready)
        except Exception as error:  # whatever it was: a reader that dies in silence would leave a zombie behind
            info = CloseInfo(ABNORMAL_CLOSURE, f"the connection was lost ({type(error).__name__})")
        if not self._closing:
            on_closed(replace(info, lasted=self.lasted))

    async def _read_until_closed(
        self, on_messages: Callable[[list[Data]], None], ready: Callable[[], Awaitable[None]]
    ) -> CloseInfo:
        count = 0
        while True:
            message = await self._ws.receive()
            count += 1
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    batch = [message.data, *await self._ws.more(BURST - count)]
                    count += len(batch) - 1
                    on_messages(batch)
                case WSMsgType.PING:
                    self._pongs = [*self._pongs[1 - PONGS :], message.data]  # the latest of a flood (RFC 6455, 5.5.3)
                    self._begin_to_write()
                    self._on_alive()
                case WSMsgType.PONG:
                    self._on_alive()
                # Judged by the message alone: the reason is nowhere else, and close_code may say 1006 all the same.
                case WSMsgType.CLOSE if message.data == ABNORMAL_CLOSURE:
                    self._complaint = aiohttp.WSCloseCode.PROTOCOL_ERROR
                    why = "the server broke the WebSocket protocol: close code 1006 is for nobody to send"
                    return CloseInfo(ABNORMAL_CLOSURE, why, fault=FaultKind.PROTOCOL)
                case WSMsgType.CLOSE:
                    said: str = message.extra or ""  # judged as it came (D-JUDGED)
                    return CloseInfo(message.data or NO_STATUS_RECEIVED, said, shown=self._shown(said))
                case WSMsgType.ERROR:
                    return self._what_is_wrong(message.data)
                case _:  # CLOSED: no close frame came. CLOSING: we are closing it ourselves
                    return CloseInfo(ABNORMAL_CLOSURE, self._write_fault or "the connection was lost")
            if count >= BURST:
                count = 0
                await asyncio.sleep(0)  # receive() does not give way while there is something to read
                await ready()

    def _what_is_wrong(self, error: object) -> CloseInfo:
        if isinstance(error, aiohttp.WebSocketError):
            self._complaint = error.code
        if isinstance(error, aiohttp.WebSocketError) and error.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            what = f"the server sent a message of more than max_msg_size={self._max_msg_size} bytes"
            return CloseInfo(ABNORMAL_CLOSURE, what, fault=FaultKind.MESSAGE_TOO_BIG)
        # The error's words may hold the server's, and no policy knows them: they are shown, not judged.
        what = f"the server broke the WebSocket protocol: {self._shown(error)}"
        return CloseInfo(ABNORMAL_CLOSURE, what, fault=FaultKind.PROTOCOL)

    # Writing

    def _begin_to_write(self) -> None:
        if self._writer is None and not self._closing:
            self._writer = asyncio.create_task(self._write(), name="reconnect_fsm writer")

    async def _write(self) -> None:
        # A write that fails makes asyncio drop what has come and was not read yet: a close frame, say. So what is there
        # is read first: the loop looks in its next turn, and reads in that turn, after this task.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            while self._outbox or self._urgent or self._pongs:
                await self._write_urgent()
                await self._write_batch()
                if self._outbox:
                    await asyncio.sleep(0)
            self._writer = None
        except (aiohttp.ClientError, OSError):
            pass  # the reader says why; nothing is written any more
        except Exception as error:  # a writer that dies in silence would leave a zombie behind
            self._write_fault = f"this program could not write to it ({type(error).__name__})"
            if self._ws.transport is not None:
                self._ws.transport.abort()

    async def _write_batch(self) -> None:
        """Write what is written before the event loop gets its turn. Raises ConnectionError if it was not taken."""
        batch, whole = self._next_batch()
        with self._ws.corked or contextlib.nullcontext():
            for data in batch:
                if isinstance(data, bytes):
                    await self._ws.send_bytes(data)
                else:
                    await self._ws.send_str(data)
                if self._urgent or self._pongs:
                    await self._write_urgent()
        if batch and self._ws.corked is not None and self._ws.corked.is_closing():
            raise ConnectionResetError  # before or while it was written: the network has it not
        done = self._outbox[:whole]
        del self._outbox[:whole]
        for item in done:
            if isinstance(item, tuple) and not item[1].done():
                item[1].set_result(None)

    def _next_batch(self) -> tuple[list[Data], int]:
        """Many small frames or one large one; and how many of the outbox's items they complete."""
        batch: list[Data] = []
        size = whole = 0
        for item in self._outbox:
            if isinstance(item, list):
                frames: list[Any] = item
            else:
                data = item[0] if isinstance(item, tuple) else item
                frames = [] if data is None else [data]
            while frames and len(batch) < BURST and size < BURST_BYTES:
                batch.append(frames.pop(0))
                size += len(batch[-1])
            if frames:
                break
            whole += 1
        return batch, whole

    def _unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._ws.transport is None else self._ws.transport.get_write_buffer_size()

    async def _write_urgent(self) -> None:
        while self._urgent:
            await self._ws.send_str(self._urgent.pop(0))
        while self._pongs:
            await self._ws.pong(self._pongs.pop(0))


def _nothing() -> None: ...


def _fit(reason: str) -> bytes:
    """A close frame holds 123 bytes of reason (RFC 6455, 5.5)."""
    return reason.encode()[:123].decode(errors="ignore").encode()
