"""Virtual time: real aiohttp clients and servers on a loop whose clock jumps and whose sockets are in memory.

A whole test::

    @pytest.mark.virtual_time
    async def test_it_waits_an_hour() -> None: ...

or one run after another, each on a loop of its own, such as the examples of a Hypothesis test::

    @given(...)
    def test_something(...) -> None:
        assert run(scenario) == ...

Time passes only when every task waits, and then at once. Waiting for what can never happen raises
``SleepForeverError``, and so does any single wait of 24 hours or more. But while something repeats for ever, such as
the pings of a client, such a wait never ends unless it has a timeout. There is no TLS and no resolver: use ``ws://``
and a numeric address, or ``localhost``, which is 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from unittest import mock

import async_solipsism
import pytest
from aiohttp import web
from yarl import URL

from reconnect_fsm.testing import leaks

__all__ = ["VirtualTimeLoop", "in_memory_connections", "run", "serving"]

T = TypeVar("T")

HOST = "127.0.0.1"


class VirtualTimeLoop(async_solipsism.EventLoop):  # type: ignore[misc]  # it is not typed
    """A loop with virtual time and sockets in memory."""

    _ssock = None  # this loop needs no socket to wake itself up

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Knows ``localhost``; raises ``socket.gaierror`` for other names."""
        if host != "localhost":
            raise socket.gaierror(socket.EAI_NONAME, f"virtual time knows no names such as {host!r}: use {HOST}")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (HOST, port))]

    def _run_once(self) -> None:
        try:
            super()._run_once()
        except async_solipsism.SleepForeverError as error:
            error.add_note("every task waits for something that never comes, or for 24 hours or more")
            raise


@contextmanager
def in_memory_connections() -> Iterator[None]:
    """Let aiohttp's connector find the servers of the running virtual loop instead of making sockets."""
    with mock.patch("aiohappyeyeballs.start_connection", _start_connection):
        yield


async def _start_connection(addr_infos: Any, **options: Any) -> Any:
    try:
        return await async_solipsism.aiohappyeyeballs_start_connection(addr_infos, **options)
    except ConnectionRefusedError as refused:  # the kernel's refusal has a number, and aiohttp prints its text
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed") from refused


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run ``main()`` on a virtual loop of its own, in debug mode; fail if it leaves anything behind.

    Call it where no loop is running. Returns what ``main()`` returns, and raises what it raises; RuntimeError where a
    loop is running, TypeError for what cannot be called.
    """
    check_call("run_in_virtual_time", main)

    async def checked() -> T:
        before = leaks.in_loop() | leaks.in_process()
        result = await main()
        if left := await leaks.left_over(before):
            pytest.fail(leaks.describe(left))
        return result

    with asyncio.Runner(debug=True, loop_factory=VirtualTimeLoop) as runner, in_memory_connections():
        return runner.run(checked())


def check_call(who: str, main: object = run) -> None:
    """Raise TypeError unless ``main`` can be called, and RuntimeError where a loop is running already."""
    if not callable(main):
        if inspect.iscoroutine(main):
            main.close()  # else it warns that it was never awaited
        raise TypeError(f"{who} takes the function itself, uncalled, as in {who}(scenario); not {main!r}")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{who} makes event loops of its own: call it from a plain function, not from an async one")


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], port: int = 0) -> AsyncIterator[URL]:
    """Serve every path with ``handler``, and give the ``ws://`` address. Works under virtual and under real time."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield URL.build(scheme="ws", host=HOST, port=runner.addresses[0][1], path="/")
    finally:
        await runner.cleanup()
