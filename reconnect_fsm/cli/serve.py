"""``serve``: the in-process server, for trying things out; it can misbehave on request."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from reconnect_fsm.cli.common import (
    DONE,
    Commands,
    Unusable,
    add_command,
    port,
    run_until_interrupted,
    seconds,
    use_utf8,
    warn,
    whole,
)

if TYPE_CHECKING:
    from reconnect_fsm.loro_protocol import CrdtType, Permission
    from reconnect_fsm.testing.embedded_server import EmbeddedServer

__all__ = ["add"]

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
STEADY: Final = ("refuse", "drop", "ignore-joins", "hold-acks")
POLL_INTERVAL: Final = 0.1  # seconds between two looks at the connections
RECURRING: Final = ("close", "reset", "freeze", "restart")

SERVE: Final = """\
A server of the Loro syncing protocol on this machine, for trying things out. It
keeps its rooms in memory only, lets every client in, and prints who connects,
disconnects and joins. Ctrl-C ends it.
"""
EPILOG: Final = """\
ways to misbehave, from the beginning:
  refuse        every attempt is answered with HTTP 503, or --status
  drop          every WebSocket is opened and dropped at once
  ignore-joins  no request to join a room is ever answered
  hold-acks     no update is ever acknowledged
and those that happen --every so many seconds, in turn if there are several:
  close         all connections are closed with code 1012, or --code
  reset         all TCP connections are reset
  freeze        nothing is read, answered or sent for half of that time
  restart       the server is down for half of that time

examples:
  reconnect-fsm serve --port 8787
  reconnect-fsm serve --misbehave restart --misbehave reset --every 10
      and in another terminal, or with the JavaScript client
  reconnect-fsm watch ws://127.0.0.1:8787/ --room notes
  reconnect-fsm serve --misbehave close --code 4401
      4401 means "do not come back": clients of this package do not
"""


def add(commands: Commands) -> None:
    serve = add_command(commands, "serve", _serve, "a server to try things out with", SERVE, EPILOG)
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine only)")
    serve.add_argument("--port", type=port, default=0, metavar="N", help="default: 0, any that is free")
    serve.add_argument("--read-only", action="store_true", help="clients may join rooms, but change nothing in them")
    serve.add_argument(
        "--misbehave", action="append", default=[], choices=[*STEADY, *RECURRING], metavar="HOW", help="see below"
    )
    serve.add_argument("--every", type=seconds, default=10.0, metavar="SECONDS", help="default: 10")
    serve.add_argument(
        "--status",
        type=whole("HTTP status that ends an answer", 200, 599),
        default=503,
        metavar="N",
        help="the HTTP status of refuse (default: 503)",
    )
    serve.add_argument(
        "--code",
        type=whole("close code", 0, 65535),
        default=1012,
        metavar="N",
        help="the close code of close (default: 1012)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    use_utf8()
    try:
        return run_until_interrupted(_run(arguments))
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise Unusable(f"cannot listen on {arguments.host} port {arguments.port}: {error.strerror or error}") from error


async def _run(arguments: argparse.Namespace) -> int:
    from reconnect_fsm.testing.embedded_server import EmbeddedServer

    began = time.monotonic()
    attempts = connections = 0

    def show(what: str) -> None:
        print(f"{time.monotonic() - began:8.2f}  {what}", flush=True)

    def show_connections() -> None:
        nonlocal attempts, connections
        if (server.stats.attempts, server.connections) != (attempts, connections):
            came = server.stats.attempts - attempts
            attempts, connections = server.stats.attempts, server.connections
            tried = f"{came} attempt{'s' if came != 1 else ''} to connect; " if came else ""
            show(f"{tried}{connections} client{'s are' if connections != 1 else ' is'} connected")

    def authenticate(room_id: str, crdt: CrdtType, auth: bytes) -> Permission:
        show_connections()
        shown = f"{len(auth)} bytes of authentication" if auth else "no authentication"
        show(f"a client joins {_shown(room_id)} ({crdt}), with {shown}")
        return "read" if arguments.read_only else "write"

    server = EmbeddedServer(arguments.host, arguments.port, authenticate=authenticate)
    steady = set(arguments.misbehave)
    server.refuse_upgrades(arguments.status if "refuse" in steady else None)
    server.drop_on_accept = "drop" in steady
    server.ignore_joins = "ignore-joins" in steady
    server.hold_acks = "hold-acks" in steady
    async with server:
        if arguments.host not in LOOPBACK:
            warn("other machines may reach this server, and it lets every client in")
        print(f"listening on {server.url}", flush=True)
        print(f"try: reconnect-fsm watch {server.url} --room notes", flush=True)
        print("Ctrl-C ends it\n", flush=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_again_and_again(show_connections))
                recurring = [each for each in dict.fromkeys(arguments.misbehave) if each in RECURRING]
                if recurring:
                    tasks.create_task(_misbehave(server, recurring, arguments.every, arguments.code, show))
        except BaseExceptionGroup as group:  # such as BrokenPipeError
            raise group.exceptions[0] from None
    return DONE


async def _again_and_again(look: Callable[[], object]) -> None:
    while True:
        look()
        await asyncio.sleep(POLL_INTERVAL)


async def _misbehave(
    server: EmbeddedServer, ways: list[str], every: float, code: int, show: Callable[[str], object]
) -> None:
    async def close() -> None:
        show(f"closes all connections with code {code}")
        await server.close_all(code)

    async def reset() -> None:
        show("resets all connections")
        server.reset_all()

    async def freeze() -> None:
        show("freezes")
        server.freeze()
        await asyncio.sleep(every / 2)
        server.thaw()
        show("thaws")

    async def restart() -> None:
        show("stops")
        await server.stop()
        await asyncio.sleep(every / 2)
        try:
            await server.start()
        except OSError as error:  # another program took its port meanwhile
            show(f"cannot start again, and tries at its next turn: {error.strerror or error}")
        else:
            show("starts again")

    acts: dict[str, Callable[[], Awaitable[None]]] = {
        "close": close,
        "reset": reset,
        "freeze": freeze,
        "restart": restart,
    }
    for way in itertools.cycle(ways):
        await asyncio.sleep(every)
        await acts[way]()


def _shown(room_id: str) -> str:
    from reconnect_fsm.status import sanitized

    return sanitized(room_id)
