"""Diagrams in files, the pictures that this package brings along, and machines by their address."""

from __future__ import annotations

import importlib
import re
from importlib.resources import files
from pathlib import Path

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.diagrams.as_cards import cards
from reconnect_fsm.diagrams.as_dot import CannotDraw, digest, dot, svg
from reconnect_fsm.diagrams.as_markdown import matrix
from reconnect_fsm.diagrams.as_mermaid import mermaid
from reconnect_fsm.diagrams.as_statuses import statuses_dot, statuses_svg
from reconnect_fsm.diagrams.ink import escaped
from reconnect_fsm.diagrams.plan import Machine
from reconnect_fsm.heartbeat_fsm import HeartbeatFSM
from reconnect_fsm.machine import FSM
from reconnect_fsm.room_fsm import RoomFSM

__all__ = ["load", "main_machines", "picture", "write"]


def main_machines() -> list[Machine]:
    """The machines whose pictures this project keeps in ``diagrams/``."""
    return [ClientFSM, RoomFSM, HeartbeatFSM]


def stem(cls: Machine) -> str:
    """What its files are called: ``ClientFSM`` gives client_fsm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def write(cls: Machine, directory: str | Path, *, svg: bool = True) -> list[Path]:
    """Write all of it to ``directory``, which is made if need be; return the files written.

    ``ClientFSM`` gives client_fsm.dot, client_fsm_full.dot, client_fsm_statuses.dot, client_fsm.mmd, client_fsm.md,
    client_fsm_cards.svg, client_fsm_full_cards.svg and, with ``svg``, client_fsm.svg, client_fsm_full.svg and
    client_fsm_statuses.svg. Raises CannotDraw as `svg` does, once the other files are written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    name = stem(cls)
    written: list[Path] = []

    def add(ending: str, text: str) -> None:
        written.append(directory / f"{name}{ending}")
        written[-1].write_text(text, encoding="utf-8", newline="\n")

    add(".dot", dot(cls))
    add("_full.dot", dot(cls, "full"))
    add("_statuses.dot", statuses_dot(cls))
    add(".mmd", mermaid(cls))
    add(".md", matrix(cls))
    add("_cards.svg", cards(cls))
    add("_full_cards.svg", cards(cls, "full"))
    if svg:
        add(".svg", as_dot_svg(cls))
        add("_full.svg", as_dot_svg(cls, "full"))
        add("_statuses.svg", statuses_svg(cls))
    return written


as_dot_svg = svg  # `write` has an argument of that name


def picture(cls: Machine, *, id_prefix: str = "") -> str:
    """The overview as an SVG to put into a page, whatever is installed: the best that there is, and never an error.

    A machine that looks like one of this package's has the picture that the package brings along. Any other is drawn
    by Graphviz if there is one, else as cards. In each, a state is found by ``[data-state="waiting"]``, and all that
    stands for a move by ``[data-moves~="socket_closed:connected:waiting"]``. ``id_prefix`` is put before every id, for
    pages with several pictures.
    """
    found = _shipped(cls)
    if found is None:
        try:
            found = svg(cls)
        except CannotDraw:
            found = cards(cls, columns=2)
    if id_prefix:
        found = re.sub(r'(?<= id=")', id_prefix, found)
        found = found.replace('aria-labelledby="title desc"', f'aria-labelledby="{id_prefix}title {id_prefix}desc"')
    return found


def _shipped(cls: Machine) -> str | None:
    """The picture that the package brings along, if it is one of this machine as it is now."""
    for stock in main_machines():
        if issubclass(cls, stock):
            file = files("reconnect_fsm.diagrams") / "pictures" / f"{stem(stock)}.svg"
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            if f' data-digest="{digest(cls)}"' in text:
                old, new = (f'<title id="title">{escaped(each.__name__)}</title>' for each in (stock, cls))
                return text.replace(old, new)
    return None


def load(address: str) -> Machine:
    """The machine that ``package.module:Class`` names.

    Raises ValueError, with a message for the command line, if there is no such module or class, or it is no machine.
    What the module itself raises when it is imported goes through.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", address):
        raise ValueError(f"{address!r} names no class: write it as in reconnect_fsm.client_fsm:ClientFSM")
    module_name, _, class_name = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # something that the module imports
        raise ValueError(f"there is no module {exc.name!r}; is it installed, or its directory on PYTHONPATH?") from None
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, FSM) and found.states:
        return found  # pyright: ignore[reportUnknownVariableType]
    problem = "has no" if found is None else "has no machine, but something else, under the name"
    machines = [name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, FSM)]
    known = [name for name in machines if getattr(module, name).states]
    raise ValueError(f"{module_name} {problem} {class_name!r}; its machines are: {', '.join(known) or 'none'}")
