"""``inspect``: the page that shows a client at work, in a browser on this machine."""

from __future__ import annotations

import argparse
from typing import Final

from reconnect_fsm.cli.common import (
    DONE,
    Commands,
    Unusable,
    add_command,
    add_headers,
    count,
    port,
    run_until_interrupted,
)

__all__ = ["add"]

INSPECT: Final = """\
A page for your browser that shows a client at work: its machine with the
present state lit, its rooms, its transitions and their reasons, the latency
over time, and buttons to connect, retry, close and go offline. It is served on
this machine only, and its address holds a token: treat it as a password. Ctrl-C
ends it.
"""
EPILOG: Final = """\
examples:
  reconnect-fsm inspect --demo
      a server, a client and 40 rooms in this process, with buttons for faults
  reconnect-fsm inspect wss://sync.example.org/ --room notes
      a client of a server of yours; what is in its rooms is not kept
  reconnect-fsm inspect wss://example.org/feed --no-ping
      a server that does not answer the text 'ping'
"""


def add(commands: Commands) -> None:
    inspect = add_command(commands, "inspect", _inspect, "see a client at work, in a browser", INSPECT, EPILOG)
    inspect.add_argument("url", metavar="URL", nargs="?", help="of a WebSocket server")
    inspect.add_argument("--demo", action="store_true", help="with a server of its own, in this process")
    inspect.add_argument(
        "--room", action="append", default=[], dest="rooms", metavar="ID", help="a room to join; may be given often"
    )
    inspect.add_argument("--rooms", type=count, metavar="N", dest="demo_rooms", help="of the demo (default: 40)")
    add_headers(inspect)
    inspect.add_argument("--no-ping", action="store_true", help="for servers that do not answer the text 'ping'")
    inspect.add_argument("--port", type=port, default=0, metavar="N", help="of the page (default: 0, any that is free)")


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.demo == (arguments.url is not None):
        raise Unusable("say what to inspect: either the URL of a server, or --demo")
    if arguments.demo_rooms is not None and not arguments.demo:
        raise Unusable("--rooms is for --demo; to join rooms of a server, say --room ID")
    if arguments.demo and (arguments.rooms or arguments.headers or arguments.no_ping):
        raise Unusable("--room, --header and --no-ping are for the URL of a server; --demo has rooms of its own")
    from reconnect_fsm.inspector import run, run_demo
    from reconnect_fsm.keepalive import Keepalive

    if arguments.demo:
        running = run_demo(rooms=arguments.demo_rooms or 40, port=arguments.port, tell=_tell)
    else:
        running = run(
            arguments.url,
            rooms=tuple(arguments.rooms),
            port=arguments.port,
            tell=_tell,
            keepalive=Keepalive(enabled=not arguments.no_ping),
            headers=arguments.headers,
        )

    async def until_interrupted() -> int:
        await running
        return DONE

    try:
        return run_until_interrupted(until_interrupted())
    except (ValueError, TypeError) as error:  # of the URL and the rooms
        raise Unusable(str(error)) from error
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        raise Unusable(f"cannot serve the page on port {arguments.port}: {error.strerror or error}") from error


def _tell(address: object) -> None:
    print(f"open {address} in a browser on this machine; Ctrl-C ends", flush=True)
