"""``diagram``, ``matrix`` and ``diagrams``: machines as pictures and tables."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconnect_fsm.cli.common import DONE, FAILED, Commands, Failed, Unusable, add_command, load, use_utf8, warn

if TYPE_CHECKING:
    from reconnect_fsm.diagrams import Machine

__all__ = ["add"]

FORMATS: Final = ("dot", "mermaid", "svg", "cards", "matrix")
SUFFIXES: Final = {".dot": "dot", ".mmd": "mermaid", ".svg": "svg", ".md": "matrix"}
CLIENT: Final = "reconnect_fsm.client_fsm:ClientFSM"

DIAGRAM: Final = """\
Draw one machine. MODULE:CLASS names a subclass of ClientFSM, RoomFSM or FSM;
modules in the current directory are found.
"""
DIAGRAM_EPILOG: Final = """\
formats:
  dot      Graphviz' language
  mermaid  a picture that GitHub and others show inside Markdown
  svg      a picture; needs the package graphviz and Graphviz' program dot
  cards    a picture for narrow screens; needs nothing
  matrix   every event in every state, as Markdown tables
  all      all of them, in files; what cannot be drawn is left out with a note

examples:
  reconnect-fsm diagram my_app:MyClientFSM
      DOT, on standard output
  reconnect-fsm diagram my_app:MyClientFSM --format svg > my_client.svg
  reconnect-fsm diagram my_app:MyClientFSM --out pictures
      all formats, as an overview and with all details
"""

MATRIX: Final = """\
Every event in every state: where it leads, under which guards and with which
effects, or why it is refused. Markdown tables, the same as those of 'diagram
--format matrix'.
"""
MATRIX_EPILOG: Final = """\
examples:
  reconnect-fsm matrix
      that of a client, as this package declares it
  reconnect-fsm matrix reconnect_fsm.room_fsm:RoomFSM
      that of a room
  reconnect-fsm matrix my_app:MyClientFSM > my_client.md
      that of a machine of yours, in a file
"""

DIAGRAMS: Final = """\
Draw both machines of this package, in all formats. Without the package graphviz
or Graphviz' program dot no SVG is drawn but the cards, old ones stay as they
are, and a note on standard error says so. The exit code is 0 all the same:
everything else is written, and only that is compared when diagrams are checked
for being current.
"""
DIAGRAMS_EPILOG: Final = """\
example:
  reconnect-fsm diagrams diagrams
      as in the repository of this package
"""


def add(commands: Commands) -> None:
    diagram = add_command(
        commands, "diagram", _diagram, "draw one machine, also one of your own", DIAGRAM, DIAGRAM_EPILOG
    )
    diagram.add_argument("machine", metavar="MODULE:CLASS", help=f"such as {CLIENT}")
    diagram.add_argument("--out", default="-", metavar="DIR", help="where to write files (default: -, standard output)")
    diagram.add_argument(
        "--format", choices=[*FORMATS, "all"], help="default: dot on standard output, all into a directory"
    )

    matrix = add_command(
        commands, "matrix", _matrix, "what a machine does on every event in every state", MATRIX, MATRIX_EPILOG
    )
    matrix.add_argument("machine", metavar="MODULE:CLASS", nargs="?", default=CLIENT, help=f"default: {CLIENT}")

    diagrams = add_command(
        commands, "diagrams", _diagrams, "draw the two machines of this package", DIAGRAMS, DIAGRAMS_EPILOG
    )
    diagrams.add_argument("directory", metavar="DIR", help="where to write the files; it is made if need be")


def _diagram(arguments: argparse.Namespace) -> int:
    machine = load(arguments.machine)
    if arguments.out != "-":
        return _write(machine, Path(arguments.out), arguments.format or "all")
    return _print(machine, arguments.format or "dot")


def _matrix(arguments: argparse.Namespace) -> int:
    return _print(load(arguments.machine), "matrix")


def _diagrams(arguments: argparse.Namespace) -> int:
    from reconnect_fsm.diagrams import main_machines

    return max(_write(machine, Path(arguments.directory), "all") for machine in main_machines())


def _print(machine: Machine, what: str) -> int:
    from reconnect_fsm import diagrams

    drawers: dict[str, Callable[[Any], str]] = {
        "dot": diagrams.dot,
        "mermaid": diagrams.mermaid,
        "svg": diagrams.svg,
        "cards": diagrams.cards,
        "matrix": diagrams.matrix,
    }
    if what == "all":
        raise Unusable("--format all makes several files: say where, with --out DIR")
    try:
        drawn = drawers[what](machine)
    except diagrams.CannotDraw as error:
        raise Failed(str(error)) from error
    use_utf8()
    sys.stdout.write(drawn)
    return DONE


def _write(machine: Machine, directory: Path, what: str) -> int:
    """Write the files of a machine in one format, or in all that can be drawn, and print their names."""
    from reconnect_fsm.diagrams import CannotDraw, write

    code = DONE
    with tempfile.TemporaryDirectory() as scratch:
        try:
            write(machine, scratch, svg=what in ("svg", "all"))
        except CannotDraw as error:  # the other files are there
            warn(f"no SVG of {machine.__name__} was drawn: {error}")
            code = FAILED if what == "svg" else DONE
        wanted = [each for each in sorted(Path(scratch).iterdir()) if what in ("all", _format(each))]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            written = [shutil.copyfile(each, directory / each.name) for each in wanted]
        except OSError as error:
            raise Unusable(f"cannot write to {directory}: {error}") from error
    for each in written:
        print(each)
    return code


def _format(file: Path) -> str:
    """Which format a file is; the cards are SVGs too, but "svg" is what Graphviz draws."""
    return "cards" if file.stem.endswith("_cards") else SUFFIXES[file.suffix]
