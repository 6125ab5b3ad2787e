"""Deterministic simulation: real clients, real aiohttp, real documents, in virtual time, against a seeded nemesis.

::

    report = simulate(seed=7, hours=10, fsm=MyFSM, room_fsm=MyRoomFSM)

runs ten simulated hours in some seconds, and raises `Violation` if one of the `INVARIANTS` is broken. From a shell::

    python -m reconnect_fsm.testing.simulation --seed 7 --hours 10 --fsm my_package.machines:MyFSM

A run is a sequence of episodes. Each begins with a storm, in which faults and users' calls come at random. Then the
network becomes good, and everything must settle within a bound. Then there is a long calm, in which nothing may happen
by itself. Everything is a function of the seed: every event goes into a trace, whose digest is the same on every
machine, in every process, and on every version of Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TextIO

from reconnect_fsm.testing import needs, virtual_time

with needs("the simulation", extra="testing,loro"):
    from loro import LoroDoc

    from reconnect_fsm._asyncio.client import Client
    from reconnect_fsm.adaptors import LoroAdaptor
    from reconnect_fsm.adaptors.base import Adaptor
    from reconnect_fsm.client_fsm import ClientFSM
    from reconnect_fsm.room_fsm import RoomFSM
    from reconnect_fsm.testing.embedded_server import EmbeddedServer
    from reconnect_fsm.testing.simulation.checks import INVARIANTS
    from reconnect_fsm.testing.simulation.command import main
    from reconnect_fsm.testing.simulation.report import Report, Violation
    from reconnect_fsm.testing.simulation.setting import Setting
    from reconnect_fsm.testing.simulation.users import User
    from reconnect_fsm.testing.simulation.world import World

__all__ = ["INVARIANTS", "Report", "User", "Violation", "World", "main", "simulate"]


def simulate(
    seed: int = 0,
    hours: float = 1.0,
    *,
    clients: int = 2,
    client: Callable[..., Client] = Client,
    fsm: type[ClientFSM] = ClientFSM,
    room_fsm: type[RoomFSM] = RoomFSM,
    adaptor: Callable[[LoroDoc], Adaptor] = LoroAdaptor,
    server: type[EmbeddedServer] = EmbeddedServer,
    episode: int | None = None,
    only: Collection[int] | None = None,
    trace: TextIO | None = None,
) -> Report:
    """Simulate so many hours, on an event loop of its own (so not from an async test); return what happened.

    Parameters:
        seed: everything that happens is a function of it and of the other arguments.
        hours: of virtual time, at least: the last episode is run to its end.
        clients: how many there are, each with a network link of its own.
        client: makes a client from an address and the options of `Client`; it may change them, or use a class of yours.
        fsm: the class of the clients' machines.
        room_fsm: the class of the rooms' machines.
        adaptor: makes the adaptor of a document.
        server: the class of the server.
        episode: run the storm with this number alone, from a fresh start.
        only: of that storm, run only the steps with these numbers.
        trace: where to write every event.

    Raises `Violation` at the first invariant that is broken, RuntimeError where a loop is running already, TypeError or
    ValueError for arguments that cannot be.
    """
    virtual_time.check_call("simulate")
    setting = Setting(seed, hours, clients, client, fsm, room_fsm, adaptor, server, episode, only)
    return World(setting, trace).run()
