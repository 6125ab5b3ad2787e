"""``watch``: the connection to a server, live in a terminal, as lines, or as JSON lines."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconnect_fsm.cli.common import (
    DONE,
    NOT_CONNECTED,
    Commands,
    Failed,
    Unusable,
    add_command,
    add_headers,
    count,
    load_fsm,
    needing,
    run_until_interrupted,
    seconds,
    warn,
)
from reconnect_fsm.status import ClientStatus, RoomStatus

if TYPE_CHECKING:
    from reconnect_fsm._asyncio.client import Client
    from reconnect_fsm.cli.views import View
    from reconnect_fsm.cli.watched import WatchedClient

__all__ = ["add"]

CRDTS: Final = ("loro", "ephemeral")
ONCE_TIMEOUT: Final = 30.0  # seconds
PING_TIMEOUT: Final = 5.0  # of the first ping
POLL_INTERVAL: Final = 0.25  # seconds between two reads of the documents and, in a live view, two pictures

WATCH: Final = """\
Connect to a WebSocket server, stay connected, and show the status and its
reason, attempts and when the next one is, latency, rooms, and the last changes.
In a terminal it is a live view (with the package rich; a line for each change
without it), into a pipe or a file JSON lines. It ends with Ctrl-C, or
when the client stops because the server refused it for good.

Any WebSocket server will do, with --no-ping if it does not answer the text
message 'ping' with 'pong'. Rooms are those of the Loro syncing protocol; they
are joined with an empty document (pip install 'reconnect-fsm[loro]').
"""
EPILOG: Final = """\
JSON lines have these fields, and no secrets:
  time, at, kind   UTC, seconds since the start, and one of
  start            url (without its query), rooms
  transition       event, old, new, status, reason, attempt, retry_in
  status           old, new, reason, attempt, retry_in
  latency          seconds
  room             room, crdt, old, new, reason, permission
  document         room, crdt, value (the beginning of it, as JSON), operations
                   (of an ephemeral store: how many keys it has)
  log              level, message
  end              status, reason, connects, failures, losses, exit_code

examples:
  reconnect-fsm watch wss://sync.example.org/ --room notes --room here:ephemeral
  reconnect-fsm watch wss://example.org/feed --no-ping -H @headers.txt
      the file holds lines such as 'Authorization: Bearer ...', which others who
      use this machine could see on a command line
  reconnect-fsm watch ws://127.0.0.1:8787/ --once
      for scripts: exit code 0 as soon as it is connected and was answered
  reconnect-fsm watch ws://127.0.0.1:8787/ --for 600 > fared.jsonl
      what happens within ten minutes, for a program to read

exit codes:
  0    with --once, it is connected and its rooms are joined; with --for, it was
       so in the end; or ended with Ctrl-C
  3    it is not: not in time, or the server refused it for good
"""


def add(commands: Commands) -> None:
    watch = add_command(commands, "watch", _watch, "show the connection to a server, live", WATCH, EPILOG)
    watch.add_argument("url", metavar="URL", help="ws:// or wss://; its query is never shown")
    watch.add_argument(
        "--room",
        action="append",
        default=[],
        type=_room,
        dest="rooms",
        metavar="ID[:CRDT]",
        help="a room to join; CRDT is loro (default) or ephemeral; may be given several times",
    )
    watch.add_argument(
        "--auth", type=_auth, default=b"", metavar="TEXT", help="for the rooms; @FILE reads it from there"
    )
    add_headers(watch)
    watch.add_argument("--protocol", action="append", default=[], metavar="NAME", help="a WebSocket subprotocol")
    watch.add_argument("--insecure", action="store_true", help="do not verify the certificate of the server")
    watch.add_argument("--once", action="store_true", help="end as soon as all is well, or after 30 s (or --for)")
    watch.add_argument("--for", type=seconds, dest="lasting", metavar="SECONDS", help="end after so long")
    watch.add_argument(
        "--format", choices=("live", "lines", "json"), help="default: live in a terminal, json into a pipe or a file"
    )
    watch.add_argument("--record", type=Path, metavar="FILE", help="a flight record of it, for 'replay'")
    watch.add_argument("--no-ping", action="store_true", help="for servers that do not answer the text 'ping'")
    watch.add_argument(
        "--ping-interval", type=seconds, default=5.0, metavar="SECONDS", help="between two pings (default: 5)"
    )
    watch.add_argument(
        "--ping-timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="without an answer the connection is taken for dead (default: 10)",
    )
    watch.add_argument("--attempts", type=count, metavar="N", help="give up after so many in a row (default: never)")
    watch.add_argument("--fsm", metavar="MODULE:CLASS", help="a subclass of ClientFSM, instead of it")


def _room(text: str) -> tuple[str, str]:
    room_id, colon, crdt = text.rpartition(":")
    if not (colon and crdt in CRDTS):  # ids may have colons of their own
        room_id, crdt = text, "loro"
    if not 0 < len(room_id.encode()) <= 128:
        raise argparse.ArgumentTypeError("a room's id has 1 to 128 bytes")
    return room_id, crdt


def _auth(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"the file cannot be read: {error.strerror}") from None


def _watch(arguments: argparse.Namespace) -> int:
    from reconnect_fsm.cli.watched import WatchedClient
    from reconnect_fsm.errors import InvalidURL

    if arguments.rooms:
        with needing("loro", "loro"):
            importlib.import_module("loro")  # before the client connects
    try:
        watched, client = WatchedClient(arguments.url, pings=not arguments.no_ping), _client(arguments)
    except InvalidURL as error:
        raise Unusable(str(error)) from error
    return run_until_interrupted(_run(client, watched, _view(arguments.format), arguments))


def _client(arguments: argparse.Namespace) -> Client:
    from reconnect_fsm._asyncio.client import Client
    from reconnect_fsm.client_fsm import ClientFSM
    from reconnect_fsm.keepalive import Keepalive
    from reconnect_fsm.retry import RetryPolicy

    options: dict[str, Any] = {"headers": arguments.headers}
    if arguments.insecure:
        options["ssl"] = False
    if arguments.protocol:
        options["protocols"] = arguments.protocol
    return Client(
        arguments.url,
        retry=RetryPolicy(max_attempts=arguments.attempts),
        keepalive=Keepalive(arguments.ping_interval, arguments.ping_timeout, enabled=not arguments.no_ping),
        fsm=ClientFSM if arguments.fsm is None else load_fsm(arguments.fsm, ClientFSM),
        **options,
    )


def _view(wanted: str | None) -> View:
    from reconnect_fsm.cli.views import Lines, as_json, as_line

    if wanted == "json" or (wanted is None and not sys.stdout.isatty()):
        return Lines(sys.stdout, as_json)
    if wanted != "lines" and os.environ.get("TERM") != "dumb":
        try:
            with needing("cli", "rich"):
                from reconnect_fsm.cli.live import Live

                return Live()
        except Failed as error:
            if wanted == "live":
                raise
            warn(f"{error}; until then, a line for each change")
    return Lines(sys.stdout, as_line)


async def _run(client: Client, watched: WatchedClient, view: View, arguments: argparse.Namespace) -> int:
    limit = arguments.lasting or (ONCE_TIMEOUT if arguments.once else float("inf"))
    wrong = ""
    with _recording(client, arguments.record), view, watched.capturing_log():
        watched.follow(client, arguments.rooms, arguments.auth)
        async with client, _pinging(client, enabled=watched.pings) as pinged:
            try:
                if not await _until_settled(watched, view, pinged, limit, once=arguments.once):
                    wrong = _what_is_wrong(watched, pinged.done())
            finally:  # also of Ctrl-C, which is no failure
                watched.end(NOT_CONNECTED if wrong else DONE)
                view.show(watched)
    if wrong:
        raise Failed(wrong, NOT_CONNECTED)
    return DONE


async def _until_settled(
    watched: WatchedClient, view: View, pinged: asyncio.Future[None], limit: float, *, once: bool
) -> bool:
    """Show updates until the command has to end; return whether all is well then."""
    while True:
        await watched.wait(POLL_INTERVAL)
        watched.refresh()
        view.show(watched)
        is_well = watched.is_well and (pinged.done() or not once)
        if watched.has_stopped or watched.now >= limit or (once and (is_well or watched.refused)):
            return is_well


@asynccontextmanager
async def _pinging(client: Client, *, enabled: bool) -> AsyncGenerator[asyncio.Future[None], None]:
    """Measure the latency at once: the keepalive's first ping comes after its interval. Yields a future of the ping."""
    pinged: asyncio.Future[None] = asyncio.ensure_future(_ping(client) if enabled else _nothing())
    try:
        yield pinged
    finally:
        pinged.cancel()
        await asyncio.wait({pinged})


async def _ping(client: Client) -> None:
    from reconnect_fsm.errors import ReconnectError

    while True:
        await client.wait_connected()
        try:
            await client.ping(timeout=PING_TIMEOUT)
        except (ReconnectError, TimeoutError):
            await asyncio.sleep(POLL_INTERVAL)  # the connection is lost again, or the keepalive will end it
        else:
            return


async def _nothing() -> None:
    pass


def _recording(client: Client, file: Path | None) -> AbstractContextManager[object]:
    if file is None:
        return nullcontext()
    try:
        return client.record(file)
    except OSError as error:
        raise Unusable(f"cannot write {file}: {error.strerror or error}") from error


def _what_is_wrong(watched: WatchedClient, was_answered: bool) -> str:
    if watched.refused:
        room = watched.refused[0]
        return f"the room {room.id} is not joined: {room.reason}"
    if watched.is_well and not was_answered:
        return f"connected to {watched.url}, but it does not answer the text 'ping'; if it is not to, say --no-ping"
    after = f"{watched.now:.0f} s"
    if watched.status is ClientStatus.CONNECTED:
        waiting = [each.room.id for each in watched.rooms if each.room.status is not RoomStatus.JOINED]
        return f"connected to {watched.url}, but the room {waiting[0]} is not joined after {after}: no answer"
    what = "the client stopped" if watched.has_stopped else f"{watched.status.value} after {after}"
    hint = f" ({watched.hint})" if watched.hint else ""
    return f"{watched.url}: {what}: {watched.reason}{hint}"
