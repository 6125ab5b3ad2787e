# PYTHON_ARGCOMPLETE_OK
"""The command ``reconnect-fsm``: watch a client reconnect; draw, check and simulate its machines.

Each command is a module of this package, and imports what it needs when it runs. Only ``demo`` and the rooms of
``watch`` need loro; only SVG needs graphviz; ``watch`` works without rich. Exit codes: see `EXIT_CODES`. The reason
goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from reconnect_fsm.cli import check, demo, draw, inspect, replay, serve, simulate, watch
from reconnect_fsm.cli.common import INTERRUPTED, PIPE_CLOSED, PROGRAM, UNUSABLE, Failed, Unusable, warn

__all__ = ["EXIT_CODES", "main", "make_parser"]

COMMANDS: Final = (demo, watch, draw, check, replay, simulate, serve, inspect)

EXIT_CODES: Final = """\
exit codes:
  0    done; watch, serve and inspect also when ended with Ctrl-C
  1    something is wrong with what was looked at: a fault, a difference, a demo
       that failed; or something that is needed is not installed
  2    the command line cannot be used as it was given
  3    no connection: none in time, or the server refused it for good
  130  interrupted with Ctrl-C
  141  the reader of a pipe went away
"""

DESCRIPTION: Final = "A WebSocket client that stays connected: see it work, draw and check machines."
EPILOG: Final = f"""\
examples:
  reconnect-fsm demo
      watch a client live through six outages, in about 15 seconds
  reconnect-fsm watch wss://sync.example.org/ --room notes
      the connection to a server of yours, live
  reconnect-fsm matrix
      what a client does about every event in every state, as Markdown
  reconnect-fsm diagram my_app.machines:MyClientFSM --out pictures
      all tables and pictures of a machine of your own, in files
  reconnect-fsm check my_app.machines:MyClientFSM
      whether it has faults
  reconnect-fsm simulate --clients 10000 --outage 30
      the load that so many clients put on a server that comes back

{EXIT_CODES}
'reconnect-fsm COMMAND --help' says more. 'python -m reconnect_fsm' is the same
command. For completion in bash and zsh, install the package argcomplete and put
this into your shell's startup file: eval "$(register-python-argcomplete
reconnect-fsm)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of this process; return the exit code. Never raises SystemExit.

    See `EXIT_CODES`.
    """
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        with contextlib.suppress(ModuleNotFoundError):
            import argcomplete

            argcomplete.autocomplete(parser)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as ending:  # --help, --version, and wrong arguments, which argparse has reported
        return ending.code if isinstance(ending.code, int) else UNUSABLE
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # a closed pipe raises here, not when the interpreter ends
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # As documented for Python's signal module: the interpreter's own flush must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return PIPE_CLOSED
    except Failed as error:
        warn(str(error))
        return error.code
    except Unusable as error:
        warn(str(error))
        return UNUSABLE
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands and options. The parsed arguments have ``run``, which returns the exit code."""
    parser = argparse.ArgumentParser(
        PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for each in COMMANDS:
        each.add(commands)

    def no_command(_: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return UNUSABLE

    parser.set_defaults(run=no_command)
    return parser


def _version() -> str:
    try:
        return version("reconnect-fsm")
    except PackageNotFoundError:
        return "(not installed: no version is known)"
