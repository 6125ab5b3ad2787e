"""All that a run of the simulation is a function of."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import Any, Final

from loro import LoroDoc

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.testing.embedded_server import EmbeddedServer
from reconnect_fsm.testing.simulation.nemesis import plan

__all__ = ["PLUGGABLE", "Setting"]

PLUGGABLE: Final[dict[str, Any]] = {
    "client": Client,
    "fsm": ClientFSM,
    "room_fsm": RoomFSM,
    "adaptor": LoroAdaptor,
    "server": EmbeddedServer,
}
"""What of yours can take part, and what is used otherwise."""


@dataclass(frozen=True)
class Setting:
    """All that a run is a function of."""

    seed: int
    hours: float
    clients: int
    client: Callable[..., Client]
    fsm: type[ClientFSM]
    room_fsm: type[RoomFSM]
    adaptor: Callable[[LoroDoc], Adaptor]
    server: type[EmbeddedServer]
    episode: int | None = None
    only: Collection[int] | None = None

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients is how many there are, one or more, not {self.clients!r}")
        if not self.hours >= 0:
            raise ValueError(f"hours is a number of hours, not {self.hours!r}")
        for name, base in PLUGGABLE.items():
            given = getattr(self, name)
            is_wrong = isinstance(given, type) and not issubclass(given, base)
            if not callable(given) or (is_wrong and name != "adaptor"):  # an adaptor need not derive from ours
                raise TypeError(f"{name} is {base.__name__}, or one of your own, not {given!r}")
        if self.only is not None:
            every = {step.index for step in plan(Random(f"{self.seed}: storm {self.episode or 0}"))}
            if unknown := sorted({*self.only} - every):
                raise ValueError(
                    f"only: no such steps in storm {self.episode or 0}: {unknown}; there are 0 to {max(every)}"
                )

    @property
    def command(self) -> str:
        """Replays it; with a comment, if a class cannot be found by its name."""
        lost = ""
        parts = ["python", "-m", "reconnect_fsm.testing.simulation", "--seed", str(self.seed)]
        parts += ["--hours", f"{self.hours:g}", "--clients", str(self.clients)]
        for name, default in PLUGGABLE.items():
            given = getattr(self, name)
            if given is not default:
                place = f"{given.__module__}:{getattr(given, '__qualname__', type(given).__qualname__)}"
                parts += [f"--{name.replace('_', '-')}", place]
                if not _is_found(place, given):
                    lost = f"  # first put {name} at the top of a module of its own: it cannot be found where it is"
        if self.episode is not None:
            parts += ["--episode", str(self.episode)]
        if self.only is not None:
            parts += ["--only", ",".join(map(str, sorted(self.only)))]
        return shlex.join(parts) + lost


def _is_found(place: str, thing: object) -> bool:
    """Whether another process finds it there."""
    module, _, name = place.partition(":")
    try:
        return module != "__main__" and attrgetter(name)(sys.modules[module]) is thing
    except (AttributeError, KeyError):
        return False
