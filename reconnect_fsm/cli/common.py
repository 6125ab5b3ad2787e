"""What the commands share: exit codes, warnings, the types of arguments, and machines by their address."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from reconnect_fsm.client_fsm import ClientFSM
    from reconnect_fsm.diagrams import Machine
    from reconnect_fsm.room_fsm import RoomFSM

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "NOT_CONNECTED",
    "PIPE_CLOSED",
    "PROGRAM",
    "UNUSABLE",
    "Commands",
    "Failed",
    "Unusable",
    "add_command",
    "add_headers",
    "count",
    "header",
    "load",
    "load_fsm",
    "loading",
    "needing",
    "port",
    "positive",
    "run_until_interrupted",
    "seconds",
    "use_utf8",
    "warn",
    "whole",
]

PROGRAM: Final = "reconnect-fsm"
DONE, FAILED, UNUSABLE, NOT_CONNECTED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141

T = TypeVar("T")
MachineT = TypeVar("MachineT", bound="ClientFSM | RoomFSM")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Unusable(Exception):
    """The command line cannot be used as it was given; the message says why."""


class Failed(Exception):
    """The command ran, and the result is bad; ``code`` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def warn(message: str) -> None:
    """Print a message on standard error."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Add a command; ``run`` is given its arguments and returns the exit code."""
    added = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added


def use_utf8() -> None:
    """Print as UTF-8, whatever the locale says: that is what DOT, Mermaid, Markdown, SVG and JSON are."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # sys.stdout may have been replaced by another object
    if reconfigure is not None:
        reconfigure(encoding="utf-8", newline="\n")


def run_until_interrupted(main: Coroutine[Any, Any, int]) -> int:
    """Run it. Ctrl-C and, where it exists, SIGTERM cancel it; that is its ordinary end, so the exit code is 0."""

    async def run() -> int:
        task = asyncio.current_task()
        assert task is not None
        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; another thread than the main one
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return DONE


@contextmanager
def needing(extra: str, *packages: str) -> Generator[None, None, None]:
    """Say what to install if one of these packages, imported in here, is missing."""
    try:
        yield
    except ModuleNotFoundError as missing:
        package, _, _ = (missing.name or "").partition(".")
        if package not in packages:
            raise
        raise Failed(
            f"this needs the package {package}, which is not installed: pip install 'reconnect-fsm[{extra}]'"
        ) from missing


# Types of arguments. argparse shows their errors as they are, so they never contain the value of a header.


def positive(what: str) -> Callable[[str], float]:
    """A positive number, which is ``what``."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0 < float(text) < float("inf"):
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: give a positive one, such as 2.5")

    return parse


def whole(what: str, minimum: int, maximum: int) -> Callable[[str], int]:
    """A whole number from ``minimum`` to ``maximum``, which is ``what``."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if minimum <= int(text) <= maximum:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: give a whole number from {minimum} to {maximum}")

    return parse


seconds: Final = positive("number of seconds")
count: Final = whole("number of things", 1, 10_000_000)
port: Final = whole("port", 0, 65535)


def header(text: str) -> list[tuple[str, str]]:
    """``Name: value``, or the lines of such a file with ``@FILE``."""
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"the file of headers cannot be read: {_why(error)}") from None
        return [pair for line in lines if line.strip() for pair in header(line.lstrip("@"))]
    name, colon, value = (part.strip() for part in text.partition(":"))
    is_name = name.isascii() and all(each.isalnum() or each in "!#$%&'*+-.^_`|~" for each in name)
    if not (name and colon and is_name and value.isprintable()):
        raise argparse.ArgumentTypeError("a header is written 'Name: value', in one line (its value is not shown here)")
    return [(name, value)]


def add_headers(parser: argparse.ArgumentParser) -> None:
    """``--header``: ``headers`` is then a list of names and values."""
    parser.add_argument(
        *("-H", "--header"),
        action="extend",
        default=[],
        type=header,
        dest="headers",
        metavar="HEADER",
        help="'Name: value', or @FILE with one in each line; never shown",
    )


def _why(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"


# Machines by their address


def load(address: str) -> Machine:
    """The machine that ``module:Class`` names. Raises Unusable if it cannot be loaded, and says where the error is."""
    from reconnect_fsm.diagrams import load as load_machine

    return loading(address, load_machine)


def load_fsm(address: str, base: type[MachineT]) -> type[MachineT]:
    """The same, which must be a subclass of ``base``."""
    found = load(address)
    if not issubclass(found, base):
        raise Unusable(f"{address} is no subclass of {base.__name__}, which is what is needed here")
    return found


def loading(address: str, load_it: Callable[[str], T]) -> T:
    """What ``load_it`` returns for the address. Raises Unusable for any error of the user's module."""
    if not {"", os.getcwd()} & set(sys.path):  # python -m puts it there; the installed command does not
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return load_it(address)
    except Unusable:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
        if isinstance(error, ValueError) and not frames:
            raise Unusable(str(error)) from error
        # An error in the user's module, such as a MachineDefinitionError. A SyntaxError names its place itself.
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise Unusable(f"importing {address} raised {type(error).__name__}: {error}{where}") from error


def _is_users(filename: str) -> bool:
    """Whether a line of a traceback belongs to neither this package nor the import system."""
    return Path(__file__).parents[1] not in Path(filename).parents and not filename.startswith("<frozen")
