"""Names and addresses: looked up in threads of our own (NET-DNS), those that failed tried last (NET-ADDR)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["Address", "FailedAddresses", "Resolver"]

Address: TypeAlias = tuple[str, int]
MAX_LOOKUPS: Final = 16  # threads of one event loop
MAX_LOOKUPS_OF_A_NAME: Final = 2  # one that hangs may belong to a network that is gone; the next may be answered
MAX_FAILED: Final = 1024  # addresses


class FailedAddresses:
    """Those that failed in any way, and in which order; one that works again is as good as any."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self._failed: dict[Address, tuple[int, bool]] = {}  # when, and whether it accepted the TCP connection

    def failed(self, addresses: Iterable[Address], *, accepted: bool) -> None:
        """These have failed: with a TCP connection that led to nothing, or without."""
        for address in addresses:
            self._failed.pop(address, None)
            self._failed[address] = next(self._count), accepted
        while len(self._failed) > MAX_FAILED:
            del self._failed[next(iter(self._failed))]

    def work(self, addresses: Iterable[Address]) -> None:
        """These have led to a WebSocket."""
        for address in addresses:
            self._failed.pop(address, None)

    def in_order(self, found: list[ResolveResult]) -> list[ResolveResult]:
        """Those that have not failed first, then those whose failure is the oldest (NET-ADDR).

        One that accepts and fails is left out where there is another: happy eyeballs take the first that accepts,
        and that may well be the one that is ill.
        """
        fresh = [each for each in found if self._of(each) is None]
        old = sorted((each for each in found if self._of(each) is not None), key=self._of)
        first, others = (fresh, old) if fresh else (old[:1], old[1:])
        return [*first, *(each for each in others if not (self._of(each) or (0, False))[1])]

    def _of(self, result: ResolveResult) -> Any:
        return self._failed.get((result["host"], result["port"]))


class Resolver(AbstractResolver):
    """aiohttp's own, but its threads are none of the program's, and an address that failed comes last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failures = FailedAddresses()
        self._names: AbstractResolver
        if aiohttp.DefaultResolver is not aiohttp.ThreadedResolver:
            self._names = aiohttp.DefaultResolver()  # aiodns is installed: it needs no threads
        elif (
            isinstance(loop, asyncio.BaseEventLoop) and type(loop).getaddrinfo is not asyncio.BaseEventLoop.getaddrinfo
        ):
            self._names = aiohttp.ThreadedResolver(loop)  # the loop has a way of its own
        else:
            self._names = aiohttp.ThreadedResolver(cast(asyncio.AbstractEventLoop, _Threads(loop)))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name, in the order in which they are to be tried."""
        return self.failures.in_order(await self._names.resolve(host, port, family))

    async def close(self) -> None:
        """Lookups that hang are left to themselves; they hold up neither this nor the end of the program (NET-DNS)."""
        await self._names.close()


class _Threads:
    """What aiohttp's resolver asks of an event loop, done in daemon threads: one for each lookup that is under way.

    The loop's default executor is the program's: some lookups that hang would take all of its threads, and hold up the
    program's end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._free = asyncio.Semaphore(MAX_LOOKUPS)
        self._under_way: dict[object, list[asyncio.Future[Any]]] = {}  # of each question, the latest is the last

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        return await self._ask(lambda: socket.getaddrinfo(*args, **options), (args, *options.items()))

    async def getnameinfo(self, *args: Any) -> Any:
        return await self._ask(lambda: socket.getnameinfo(*args), args)

    async def _ask(self, question: Callable[[], Any], key: object) -> Any:
        """Of those who ask the same at the same time, all get the answer; each may be cancelled."""
        under_way = self._under_way.setdefault(key, [])
        if len(under_way) >= MAX_LOOKUPS_OF_A_NAME:
            return await asyncio.shield(under_way[-1])
        answer: asyncio.Future[Any] = self._loop.create_future()
        under_way.append(answer)
        try:
            await self._free.acquire()
        except BaseException:
            answer.set_exception(socket.gaierror(socket.EAI_AGAIN, "too many lookups are under way"))
            self._over(key, answer)
            raise

        def answered(_: asyncio.Future[Any]) -> None:
            self._free.release()
            self._over(key, answer)

        answer.add_done_callback(answered)
        threading.Thread(target=self._run, args=(question, answer), name="reconnect_fsm lookup", daemon=True).start()
        return await asyncio.shield(answer)

    def _over(self, key: object, answer: asyncio.Future[Any]) -> None:
        if answer.done() and not answer.cancelled():
            answer.exception()  # else asyncio warns of it: the caller may have been cancelled
        under_way = self._under_way.get(key, [])
        if answer in under_way:
            under_way.remove(answer)
        if not under_way:
            self._under_way.pop(key, None)

    def _run(self, question: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        result, error = None, None
        try:
            result = question()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(_settle, answer, result, error)


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
