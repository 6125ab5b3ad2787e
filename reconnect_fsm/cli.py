"""The command ``reconnect-fsm``: watch the client reconnect, and draw the machines that make it do so.

Exit codes: 0 done; 1 the demo saw something that it should not have, or something that is needed is not installed;
2 the command cannot be carried out as it was given (an unknown option, no such class, a directory that cannot be
written); 130 interrupted with Ctrl-C; 141 the reader of a pipe went away, as ``head`` does.

Each command imports what it needs when it runs: all but ``demo`` work without loro, and all but SVG without graphviz.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .diagrams import Machine

__all__ = ["main"]

PROGRAM: Final = "reconnect-fsm"
DONE, FAILED, UNUSABLE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
SUFFIXES: Final = {"dot": ".dot", "mermaid": ".mmd", "svg": ".svg", "cards": "_cards.svg", "matrix": ".md"}
NO_DEMO: Final = "the demo needs the package loro, which is not installed: pip install 'reconnect-fsm[loro]'"

DESCRIPTION: Final = "A WebSocket client that stays connected: see it at work, draw its machines."
EPILOG: Final = """\
examples:
  reconnect-fsm demo
      watch a client live through six outages, in about 15 seconds
  reconnect-fsm diagram reconnect_fsm.client_fsm:ClientFSM --format matrix
      what a client does about every event in every state, as Markdown
  reconnect-fsm diagram my_app.machines:MyClientFSM --out pictures
      all tables and pictures of a machine of your own, in files
  reconnect-fsm diagrams diagrams
      the two machines of this package, as in its repository

exit codes:
  0    done
  1    the demo failed, or something that is needed is not installed
  2    the command cannot be carried out as it was given
  130  interrupted with Ctrl-C
  141  the reader of a pipe went away

'reconnect-fsm COMMAND --help' tells more. 'python -m reconnect_fsm' is the same
command.
"""

DEMO: Final = """\
A server, two clients and the document that both edit, all in this process. The
server is stopped, reset, frozen and restarted, the network goes away and comes
back, and the clients see to it that no edit is lost. It ends by itself after
about 15 seconds, with exit code 0 if everything was as expected, else 1.
"""
DEMO_EPILOG: Final = """\
examples:
  reconnect-fsm demo              in colour, in a terminal without NO_COLOR
  reconnect-fsm demo --plain      without colours
  reconnect-fsm demo --seed 42    with other random waits between the attempts
  reconnect-fsm demo --log        and with what the library logs meanwhile
"""

DIAGRAM: Final = """\
Draw one machine. MODULE:CLASS names a subclass of ClientFSM, RoomFSM or FSM;
modules in the current directory are found.
"""
DIAGRAM_EPILOG: Final = """\
formats:
  dot      Graphviz' language
  mermaid  a picture that GitHub and others show inside Markdown
  svg      a picture; needs the package graphviz and Graphviz' program dot
  cards    a picture for narrow screens, a card for each state; needs nothing
  matrix   every event in every state, as Markdown tables
  all      all of them, in files; what cannot be drawn is left out with a note

examples:
  reconnect-fsm diagram my_app:MyClientFSM
      DOT, on standard output
  reconnect-fsm diagram my_app:MyClientFSM --format svg > my_client.svg
  reconnect-fsm diagram my_app:MyClientFSM --out pictures
      all formats, as an overview and with all details
"""

DIAGRAMS: Final = """\
Draw both machines of this package, in all formats. Without the package graphviz
or Graphviz' program dot no SVG is drawn, old ones stay as they are, and a note
on standard error says so. The exit code is 0 all the same: everything else is
written, and only that is compared when diagrams are checked for being current.
"""


class _Unusable(Exception):
    """The command cannot be carried out as it was given; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the command line, that of this process if none is given; return the exit code. Never raises SystemExit.

    The module's docstring tells the exit codes.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as ending:  # --help, --version and wrong arguments, which argparse has told about
        return ending.code if isinstance(ending.code, int) else UNUSABLE
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # a closed pipe is noticed here, and not when the interpreter ends
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # As the documentation of Python's signal module has it: the interpreter's own flush must not fail again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return PIPE_CLOSED
    except _Unusable as error:
        _complain(str(error))
        return UNUSABLE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "see a client reconnect, in the terminal", DEMO, DEMO_EPILOG)
    demo.add_argument("--plain", action="store_true", help="no colours, also in a terminal")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="of the random waits (default: 1)")
    demo.add_argument("--log", action="store_true", help="show what the library logs, too")

    diagram = command("diagram", _diagram, "draw one machine, also one of your own", DIAGRAM, DIAGRAM_EPILOG)
    diagram.add_argument("machine", metavar="MODULE:CLASS", help="such as reconnect_fsm.client_fsm:ClientFSM")
    diagram.add_argument("--out", default="-", metavar="DIR", help="where to write files (default: -, standard output)")
    diagram.add_argument(
        "--format", choices=[*SUFFIXES, "all"], help="default: dot on standard output, all into a directory"
    )

    diagrams = command("diagrams", _diagrams, "draw the two machines of this package", DIAGRAMS)
    diagrams.add_argument("directory", metavar="DIR", help="where to write the files; it is made if need be")

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


def _complain(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


# Commands ---------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from . import demo
    except ModuleNotFoundError as error:
        if error.name != "loro":
            raise
        _complain(NO_DEMO)
        return FAILED
    return demo.run(plain=arguments.plain, seed=arguments.seed, log=arguments.log)


def _diagram(arguments: argparse.Namespace) -> int:
    machine = _load(arguments.machine)
    if arguments.out != "-":
        return _write(machine, Path(arguments.out), arguments.format or "all")
    return _print(machine, arguments.format or "dot")


def _diagrams(arguments: argparse.Namespace) -> int:
    from .diagrams import main_machines

    return max(_write(machine, Path(arguments.directory), "all") for machine in main_machines())


def _load(address: str) -> Machine:
    from .diagrams import load

    if not {"", os.getcwd()} & set(sys.path):  # python -m puts it there; the installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        return load(address)
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
        if isinstance(error, ValueError) and not frames:
            raise _Unusable(str(error)) from error
        # Of the module's own, such as a MachineDefinitionError. A SyntaxError tells the place by itself.
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise _Unusable(f"importing {address} raised {type(error).__name__}: {error}{where}") from error


def _is_users(filename: str) -> bool:
    """Whether a line of a traceback is neither ours nor the import system's."""
    return Path(__file__).parent not in Path(filename).parents and not filename.startswith("<frozen")


def _print(machine: Machine, what: str) -> int:
    from . import diagrams

    drawers: dict[str, Callable[[Any], str]] = {
        "dot": diagrams.dot,
        "mermaid": diagrams.mermaid,
        "svg": diagrams.svg,
        "cards": diagrams.cards,
        "matrix": diagrams.matrix,
    }
    if what == "all":
        raise _Unusable("--format all makes several files: say where, with --out DIR")
    try:
        drawn = drawers[what](machine)
    except diagrams.CannotDraw as error:
        _complain(str(error))
        return FAILED
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # of a file; somebody may have put something else there
    if reconfigure is not None:
        reconfigure(encoding="utf-8", newline="\n")  # whatever the locale says: that is what these formats are
    sys.stdout.write(drawn)
    return DONE


def _format(file: Path) -> str:
    """The one whose suffix says most."""
    return max((each for each in SUFFIXES if file.name.endswith(SUFFIXES[each])), key=lambda each: len(SUFFIXES[each]))


def _write(machine: Machine, directory: Path, what: str) -> int:
    """Write the files of a machine in one format, or in all that can be drawn, and print their names."""
    from .diagrams import CannotDraw, write

    code = DONE
    with tempfile.TemporaryDirectory() as scratch:
        try:
            write(machine, scratch, svg=what in ("svg", "all"))
        except CannotDraw as error:  # the other files are there
            _complain(f"no SVG of {machine.__name__} was drawn: {error}")
            code = FAILED if what == "svg" else DONE
        wanted = [each for each in sorted(Path(scratch).iterdir()) if what in ("all", _format(each))]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            written = [shutil.copyfile(each, directory / each.name) for each in wanted]
        except OSError as error:
            raise _Unusable(f"cannot write to {directory}: {error}") from error
    for each in written:
        print(each)
    return code
