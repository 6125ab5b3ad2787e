"""Tools that test this library, for programs that use it. ``docs/testing.md`` shows how.

================  ======================================================================================================
`check_machine`   tries a subclass of a machine exhaustively, from its declaration alone (`machines`)
`EmbeddedServer`  a Loro server in this process, which misbehaves on request (`reconnect_fsm.testing.embedded_server`)
`ScriptedServer`  the same server, which misbehaves by a script (`server`)
`ChaosProxy`      a TCP proxy that spoils the network before any real server (`proxy`)
`simulate`        runs clients against a seeded nemesis, for simulated hours (`simulation`)
`many_schedules`  runs one scenario with many orders of the ready callbacks; `every_schedule`: with all of them
`virtual_time`    a loop whose clock jumps, and whose sockets are in memory
`leaks`           finds what a test leaves behind
`pytest_plugin`   the fixture ``no_leaks`` and the marker ``virtual_time``
================  ======================================================================================================

The names are imported when they are first used: the first four and `leaks` need only the library itself. The others
need ``pip install 'reconnect-fsm[testing]'``; `simulate` needs ``reconnect-fsm[loro]``, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reconnect_fsm.testing import leaks, virtual_time
    from reconnect_fsm.testing.embedded_server import EmbeddedServer
    from reconnect_fsm.testing.machines import (
        AliveWatch,
        ClientWatch,
        Fault,
        MachineFault,
        Moment,
        RoomWatch,
        StatusWatch,
        Watch,
        check_machine,
    )
    from reconnect_fsm.testing.proxy import ChaosProxy, Counts, Direction
    from reconnect_fsm.testing.schedules import Explored, ShuffledLoop, every_schedule, many_schedules
    from reconnect_fsm.testing.server import (
        Answer,
        Bytes,
        Close,
        Entry,
        HangUp,
        JoinFails,
        LatePong,
        Misbehaviour,
        NoJoinAnswer,
        NoPong,
        Played,
        RawAnswer,
        Reset,
        RoomFails,
        ScriptedServer,
        Send,
        SlowAcks,
        Stall,
        StopListening,
        Well,
    )
    from reconnect_fsm.testing.simulation import Report, Violation, simulate
    from reconnect_fsm.testing.virtual_time import run as run_in_virtual_time

__all__ = [
    "AliveWatch",
    "Answer",
    "Bytes",
    "ChaosProxy",
    "ClientWatch",
    "Close",
    "Counts",
    "Direction",
    "EmbeddedServer",
    "Entry",
    "Explored",
    "Fault",
    "HangUp",
    "JoinFails",
    "LatePong",
    "MachineFault",
    "Misbehaviour",
    "Moment",
    "NoJoinAnswer",
    "NoPong",
    "Played",
    "RawAnswer",
    "Report",
    "Reset",
    "RoomFails",
    "RoomWatch",
    "ScriptedServer",
    "Send",
    "ShuffledLoop",
    "SlowAcks",
    "Stall",
    "StatusWatch",
    "StopListening",
    "Violation",
    "Watch",
    "Well",
    "check_machine",
    "every_schedule",
    "leaks",
    "many_schedules",
    "run_in_virtual_time",
    "simulate",
    "virtual_time",
]

_NAMES: Final = {
    "embedded_server": "EmbeddedServer",
    "machines": "AliveWatch ClientWatch Fault MachineFault Moment RoomWatch StatusWatch Watch check_machine",
    "proxy": "ChaosProxy Counts Direction",
    "schedules": "Explored ShuffledLoop every_schedule many_schedules",
    "server": (
        "Answer Bytes Close Entry HangUp JoinFails LatePong Misbehaviour NoJoinAnswer NoPong Played RawAnswer Reset "
        "RoomFails ScriptedServer Send SlowAcks Stall StopListening Well"
    ),
    "simulation": "Report Violation simulate",
}
_HOME: Final = {name: module for module, names in _NAMES.items() for name in names.split()}
_EXTRAS: Final = {
    "async_solipsism": "testing",
    "pytest": "testing",
    "pytest_asyncio": "testing",
    "loro": "testing,loro",
}


def __getattr__(name: str) -> object:
    if name == "run_in_virtual_time":
        module, attribute = "virtual_time", "run"
    elif name in _HOME:
        module, attribute = _HOME[name], name
    elif name in __all__:
        module, attribute = name, ""
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs(name, extra="testing,loro" if module == "simulation" else None):
        found = importlib.import_module(f".{module}", __name__)
    value: object = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@contextmanager
def needs(what: str, extra: str | None = None) -> Generator[None, None, None]:
    """Say which extra to install if an import in this block finds no module."""
    try:
        yield
    except ModuleNotFoundError as missing:
        known = _EXTRAS.get((missing.name or "").partition(".")[0])
        if known is None:
            raise
        raise ModuleNotFoundError(
            f"{what} needs the package {missing.name}: pip install 'reconnect-fsm[{extra or known}]'", name=missing.name
        ) from missing
