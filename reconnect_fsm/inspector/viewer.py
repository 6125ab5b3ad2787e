"""One open page: it is sent what has changed since the last update, and its buttons are requests.

There is no queue. A slow viewer gets all that it has missed in one update, or a fresh start if that is no longer kept.
So memory does not grow with a viewer that does not read; after `MAX_SEND_TIME` seconds it is disconnected.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, Final, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from reconnect_fsm.inspector.observer import Observer, Stream, last_step
from reconnect_fsm.inspector.room_counts import Query, RoomCounts

__all__ = ["Viewer", "ViewerContext"]

logger = logging.getLogger("reconnect_fsm")

MAX_UPDATES_PER_SECOND: Final = 20
POLL_INTERVAL: Final = 0.25  # seconds between two counts of the rooms
MIN_REQUEST_INTERVAL: Final = 0.02  # seconds
MAX_SHARE: Final = 0.05  # of the event loop's time for counting rooms, for all viewers together
MAX_SEND_TIME: Final = 10.0  # seconds until a viewer must have read an update
CLOSE_TIMEOUT: Final = 1.0  # seconds
MAX_MESSAGE_SIZE: Final = 4096  # bytes of a request
MAX_SEARCH_TEXT: Final = 200  # characters
MAX_STATES: Final = 50


class ViewerContext(Protocol):
    """What all viewers of an inspector share."""

    @property
    def viewers(self) -> int: ...
    def faults(self) -> list[tuple[str, bool]]: ...
    def cause(self, name: str) -> None: ...


class Viewer:
    """A WebSocket to a page. ``changed`` is set whenever there may be an update for it."""

    def __init__(self, context: ViewerContext, observer: Observer, room_counts: RoomCounts | None) -> None:
        self.changed = asyncio.Event()
        self._context = context
        self._observer = observer
        self._room_counts = room_counts
        self._leave = asyncio.Event()
        self._notices: list[str] = []
        self._query = Query()
        self._sent: dict[str, Any] = {}
        self._transitions = self._latency = 0  # how many of them were sent
        self._counted: tuple[object, Query] | None = None  # the last step when the rooms were counted, and the query
        self._cost = 0.0  # seconds of the loop for the last count

    def notice(self, words: str) -> None:
        """Send these words once."""
        self._notices = [*self._notices, words][-10:]
        self.changed.set()

    def leave(self) -> None:
        """End the WebSocket, soon."""
        self._leave.set()

    async def serve(self, request: web.BaseRequest) -> web.WebSocketResponse:
        """Serve it until the page is closed, or `leave` is called."""
        ws = web.WebSocketResponse(timeout=CLOSE_TIMEOUT, compress=False, max_msg_size=MAX_MESSAGE_SIZE)
        await ws.prepare(request)
        work: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._send_updates(ws), name="inspector viewer: send"),
            asyncio.create_task(self._receive(ws), name="inspector viewer: receive"),
            asyncio.create_task(self._leave.wait(), name="inspector viewer: leave"),
        }
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in work:
                task.cancel()
            for result in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(result, TimeoutError):  # it does not read, so it would not read a close frame
                    if request.transport is not None:
                        request.transport.abort()
                elif isinstance(result, Exception) and not isinstance(result, ConnectionError):
                    logger.error("serving a viewer of the inspector failed", exc_info=result)
        await ws.close(code=WSCloseCode.GOING_AWAY)
        return ws

    # Sending

    async def _send_updates(self, ws: web.WebSocketResponse) -> None:
        while not ws.closed:
            self.changed.clear()
            update = await self._update()
            if update:
                async with asyncio.timeout(MAX_SEND_TIME):
                    await ws.send_str(json.dumps(update, separators=(",", ":")))
            await asyncio.sleep(max(1 / MAX_UPDATES_PER_SECOND, self._cost * self._context.viewers / MAX_SHARE))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self.changed.wait()

    async def _update(self) -> dict[str, Any]:
        """What has changed since the last update."""
        observer = self._observer
        values: dict[str, Any] = {
            "client": observer.present(),
            "explanation": observer.explanation(),
            "actions": observer.actions(),
            "faults": self._context.faults(),
        }
        self._cost = 0.0
        if self._room_counts is not None:
            step, query = last_step(observer.client), self._query
            if self._counted is None or self._counted[0] is not step or self._counted[1] != query:
                self._counted = step, query  # before the count: a step meanwhile means another count
                values["rooms"], self._cost = await self._room_counts.count(query)
        update = {name: value for name, value in values.items() if name not in self._sent or self._sent[name] != value}
        self._sent |= update
        self._transitions = _add(update, "transitions", observer.transitions, self._transitions)
        self._latency = _add(update, "latency", observer.latency, self._latency)
        if self._notices:
            update["notices"], self._notices = self._notices, []
        return update

    # Receiving

    async def _receive(self, ws: web.WebSocketResponse) -> None:
        async for message in ws:
            if message.type is not WSMsgType.TEXT or not self._handle(message.data):
                await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not understood")
                return
            await asyncio.sleep(MIN_REQUEST_INTERVAL)

    def _handle(self, text: str) -> bool:
        """Carry out a request; return whether it was understood."""
        try:
            match json.loads(text):
                case {"look": {"states": [*states], "text": str(wanted), "page": int(page)}}:
                    chosen = frozenset(map(str, states[:MAX_STATES]))
                    self._query = Query(chosen, wanted[:MAX_SEARCH_TEXT], max(page, 0))
                    self.changed.set()
                case {"do": str(action)}:
                    self._observer.ask(action)
                case {"cause": str(fault)}:
                    self._context.cause(fault)
                case _:
                    return False
        except (ValueError, KeyError, RecursionError):
            return False
        except RuntimeError as error:  # the client runs in another loop now
            self.notice(str(error))
        return True


def _add(update: dict[str, Any], name: str, stream: Stream[Any], sent: int) -> int:
    """Add the new items of a stream to the update; return how many items the stream had."""
    if stream.count != sent:
        missed, items = stream.since(sent)
        update[name] = {"afresh": missed or sent == 0, "items": items}
    return stream.count
