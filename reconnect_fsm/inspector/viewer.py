"""One page that is open: told what changed since it was told last, and heard when somebody presses a button.

There is no queue. What a slow viewer misses comes in one piece, or as a fresh start if it is no longer kept; so nothing
grows with one that does not read, and after `SLOWEST` seconds it is put out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, Final, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from reconnect_fsm.inspector.census import Census, Query
from reconnect_fsm.inspector.observer import Observer, Stream, last_step

__all__ = ["Desk", "Viewer"]

logger = logging.getLogger("reconnect_fsm")

PER_SECOND: Final = 20  # times it is told something, at most
GLANCE: Final = 0.25  # seconds between two looks at the rooms and the clock
HEARD_EVERY: Final = 0.02  # seconds between two questions of its own, at least
SHARE: Final = 0.05  # of the event loop's time that counting rooms takes at most, for all viewers together
SLOWEST: Final = 10.0  # seconds that it may take to read what it is told
CLOSE_TIMEOUT: Final = 1.0  # seconds
LONGEST_MESSAGE: Final = 4096  # bytes, of its own
LONGEST_TEXT: Final = 200  # characters that rooms are searched for
MOST_STATES: Final = 50


class Desk(Protocol):
    """What all viewers share."""

    @property
    def viewers(self) -> int: ...
    def faults(self) -> list[tuple[str, bool]]: ...
    def cause(self, name: str) -> None: ...


class Viewer:
    """A WebSocket to a page. ``changed`` is set whenever there may be news for it."""

    def __init__(self, desk: Desk, observer: Observer, census: Census | None) -> None:
        self.changed = asyncio.Event()
        self._desk = desk
        self._observer = observer
        self._census = census
        self._leave = asyncio.Event()
        self._notices: list[str] = []
        self._query = Query()
        self._told: dict[str, Any] = {}
        self._transitions = self._latency = 0  # how many of them it was told
        self._counted: tuple[object, Query] | None = None  # the last fact when the rooms were counted, and what for
        self._cost = 0.0  # seconds of the loop that counting them took

    def notice(self, words: str) -> None:
        """Something it should be told once."""
        self._notices = [*self._notices, words][-10:]
        self.changed.set()

    def leave(self) -> None:
        """End it, soon."""
        self._leave.set()

    async def serve(self, request: web.BaseRequest) -> web.WebSocketResponse:
        """Serve it until it has gone, or is told to leave."""
        ws = web.WebSocketResponse(timeout=CLOSE_TIMEOUT, compress=False, max_msg_size=LONGEST_MESSAGE)
        await ws.prepare(request)
        work: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._tell(ws), name="inspector viewer: tell"),
            asyncio.create_task(self._hear(ws), name="inspector viewer: hear"),
            asyncio.create_task(self._leave.wait(), name="inspector viewer: leave"),
        }
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in work:
                task.cancel()
            for result in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(result, TimeoutError):  # it does not read: nor would it read a close frame
                    if request.transport is not None:
                        request.transport.abort()
                elif isinstance(result, Exception) and not isinstance(result, ConnectionError):
                    logger.error("serving a viewer of the inspector failed", exc_info=result)
        await ws.close(code=WSCloseCode.GOING_AWAY)
        return ws

    # Telling

    async def _tell(self, ws: web.WebSocketResponse) -> None:
        while not ws.closed:
            self.changed.clear()
            news = await self._news()
            if news:
                async with asyncio.timeout(SLOWEST):
                    await ws.send_str(json.dumps(news, separators=(",", ":")))
            await asyncio.sleep(max(1 / PER_SECOND, self._cost * self._desk.viewers / SHARE))
            with suppress(TimeoutError):
                async with asyncio.timeout(GLANCE):
                    await self.changed.wait()

    async def _news(self) -> dict[str, Any]:
        """What it was not told yet."""
        observer = self._observer
        values: dict[str, Any] = {
            "client": observer.present(),
            "explanation": observer.explanation(),
            "actions": observer.actions(),
            "faults": self._desk.faults(),
        }
        self._cost = 0.0
        if self._census is not None:
            fact, query = last_step(observer.client), self._query
            if self._counted is None or self._counted[0] is not fact or self._counted[1] != query:
                self._counted = fact, query  # before: what happens while they are counted is news
                values["rooms"], self._cost = await self._census.take(query)
        news = {name: value for name, value in values.items() if name not in self._told or self._told[name] != value}
        self._told |= news
        self._transitions = _add(news, "transitions", observer.transitions, self._transitions)
        self._latency = _add(news, "latency", observer.latency, self._latency)
        if self._notices:
            news["notices"], self._notices = self._notices, []
        return news

    # Hearing

    async def _hear(self, ws: web.WebSocketResponse) -> None:
        async for message in ws:
            if message.type is not WSMsgType.TEXT or not self._heard(message.data):
                await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not understood")
                return
            await asyncio.sleep(HEARD_EVERY)

    def _heard(self, text: str) -> bool:
        """Do what it asks for; whether it could be understood."""
        try:
            match json.loads(text):
                case {"look": {"states": [*states], "text": str(wanted), "page": int(page)}}:
                    chosen = frozenset(map(str, states[:MOST_STATES]))
                    self._query = Query(chosen, wanted[:LONGEST_TEXT], max(page, 0))
                    self.changed.set()
                case {"do": str(action)}:
                    self._observer.ask(action)
                case {"cause": str(fault)}:
                    self._desk.cause(fault)
                case _:
                    return False
        except (ValueError, KeyError, RecursionError):
            return False
        except RuntimeError as error:  # the client runs in another loop by now
            self.notice(str(error))
        return True


def _add(news: dict[str, Any], name: str, stream: Stream[Any], told: int) -> int:
    """Add what is new in a stream to the news; returns how much of it was told then."""
    if stream.count != told:
        missed, items = stream.since(told)
        news[name] = {"afresh": missed or told == 0, "items": items}
    return stream.count
