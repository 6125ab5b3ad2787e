"""The inspector without a program: a client of any server, or of a demo server that misbehaves.

`run` and `run_demo` last until they are cancelled; `demo_inspector` is the latter for a program, or a test, of yours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm.inspector.server import Inspector
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.loro_protocol import CrdtType, RoomError, RoomErrorCode, UpdateStatusCode
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.testing.embedded_server import EmbeddedServer

__all__ = ["NullAdaptor", "demo_inspector", "run", "run_demo"]

Tell = Callable[[str], object]

# Short, so that changes are seen soon; the defaults suit real networks. All in seconds.
BASE, CAP, STABLE_AFTER = 0.5, 8.0, 3.0
KEEPALIVE: Final = Keepalive(interval=2.0, timeout=2.0)


class NullAdaptor:
    """An adaptor without a document: it joins a room to show the room's state, and drops every update."""

    def __init__(self, crdt_type: CrdtType = CrdtType.LORO) -> None:
        self.crdt_type = crdt_type

    def version(self) -> bytes:
        """It has nothing."""
        return b""

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Iterable[bytes]:
        return ()

    def covers(self, server_version: bytes) -> bool:
        return True

    def apply(self, updates: Sequence[bytes]) -> None:
        pass

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        return lambda: None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        pass


async def run(url: str, *, rooms: Iterable[str] = (), port: int = 0, tell: Tell = print, **options: Any) -> None:
    """Inspect a client of this server, made here, until cancelled. ``tell`` gets the address of the page.

    ``rooms`` are joined without a document; ``options`` are those of `Client`. Raises what `Client` and `Client.join`
    raise for invalid arguments, and OSError if the port is taken.
    """
    client = Client(url, **options)
    for room in rooms:
        client.join(room, NullAdaptor())
    async with Inspector(client, port=port) as inspector, client:
        tell(inspector.url)
        await asyncio.Event().wait()


async def run_demo(*, rooms: int = 40, port: int = 0, tell: Tell = print) -> None:
    """The same with a demo server, whose faults have buttons on the page."""
    async with demo_inspector(rooms=rooms, port=port) as inspector:
        tell(inspector.url)
        await asyncio.Event().wait()


@asynccontextmanager
async def demo_inspector(
    *,
    rooms: int = 40,
    port: int = 0,
    retry: RetryPolicy | None = None,
    keepalive: Keepalive = KEEPALIVE,
) -> AsyncGenerator[Inspector, None]:
    """A server in this process, a client of it that is in so many rooms, and an inspector with the server's faults."""
    async with EmbeddedServer() as server:
        client = Client(
            server.url,
            retry=retry or RetryPolicy(base=BASE, cap=CAP, stable_after=STABLE_AFTER),
            keepalive=keepalive,
            connect_timeout=3.0,
        )

        def join() -> None:
            """Join all rooms; those that are tracked already do not change."""
            for number in range(1, rooms + 1):
                client.join(f"room {number:,}", NullAdaptor(CrdtType.EPHEMERAL))

        join()
        async with client, Inspector(client, port=port, faults=_faults(server, client, join)) as inspector:
            yield inspector


def _faults(server: EmbeddedServer, client: Client, join: Callable[[], None]) -> dict[str, Callable[[], object]]:
    """The faults of the server, by the words on the button. Each may be pressed at any time."""

    async def stop() -> None:
        await server.stop(1012, "maintenance")

    async def start() -> None:
        with suppress(RuntimeError):  # it is started already
            await server.start()

    async def kick(code: int, reason: str) -> None:
        server.thaw()
        await server.close_all(code, reason)

    def ignore_joins(ignore: bool) -> None:
        server.ignore_joins = ignore

    async def evict() -> None:
        for room in client.rooms[:1]:
            out = RoomError(room.crdt_type, room.id, RoomErrorCode.EVICTED, "evicted by the demo")
            await server.send(room.id, room.crdt_type, out)

    return {
        "Stop the server": stop,
        "Start the server": start,
        "Reset all connections": server.reset_all,
        "Close with 1011 (a crash)": lambda: kick(1011, "a worker crashed"),
        "Close with 4401 (fatal)": lambda: kick(4401, "token expired"),
        "Fall silent (half-open)": server.freeze,
        "Speak again": server.thaw,
        "Answer dials with 503": lambda: server.refuse_upgrades(503),
        "Accept dials": lambda: server.refuse_upgrades(None),
        "Ignore joins": lambda: ignore_joins(True),
        "Answer joins": lambda: ignore_joins(False),
        "Evict the client from a room": evict,
        "Join all rooms again": join,
    }
