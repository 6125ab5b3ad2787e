"""``demo``: a client lives through real outages, in the terminal."""

from __future__ import annotations

import argparse
from typing import Final

from reconnect_fsm.cli.common import Commands, add_command, needing

__all__ = ["add"]

DEMO: Final = """\
A server, two clients and the document that both edit, all in this process. The
server is stopped, reset, frozen and restarted, the network goes away and comes
back, and the clients see to it that no edit is lost. It ends by itself after
about 15 seconds, with exit code 0 if everything was as expected, else 1.
"""
EPILOG: Final = """\
examples:
  reconnect-fsm demo              in colour, in a terminal without NO_COLOR
  reconnect-fsm demo --plain      without colours
  reconnect-fsm demo --seed 42    with other random waits between the attempts
  reconnect-fsm demo --log        and with what the library logs meanwhile
"""


def add(commands: Commands) -> None:
    demo = add_command(commands, "demo", _demo, "see a client reconnect, in the terminal", DEMO, EPILOG)
    demo.add_argument("--plain", action="store_true", help="no colours, also in a terminal")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="of the random waits (default: 1)")
    demo.add_argument("--log", action="store_true", help="show what the library logs, too")


def _demo(arguments: argparse.Namespace) -> int:
    with needing("loro", "loro"):
        from reconnect_fsm.cli import demonstration as demo
    return demo.run(plain=arguments.plain, seed=arguments.seed, log=arguments.log)
