"""What the drivers of both machines have in common: facts are told one at a time, and the effects run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from .client_fsm import ClientFSM
from .effects import Effect
from .pump import Pump, raised
from .room_fsm import RoomFSM

__all__ = ["Driver", "Step"]

T = TypeVar("T")
logger = logging.getLogger("reconnect_fsm")

LOG: Final = 400  # steps kept, or a few more

Step: TypeAlias = tuple[float, str, str, tuple[Any, ...], str, str, str, list[Effect]]
"""When, in the loop's seconds; whose machine (a room's id, or ""); event, arguments; state before and after; the reason
for it; and the effects."""


class Driver(Pump):
    """Runs jobs one at a time, and tells machines facts; keeps the last steps that they took."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Step] = []
        """The last steps, `LOG` at least."""
        self.now = 0.0
        """When the last fact was told, in the loop's seconds."""

    def fire(
        self,
        whose: str,
        fsm: ClientFSM | RoomFSM,
        event: str,
        args: tuple[Any, ...],
        run: Mapping[type, Callable[[T, Any], None]],
        broke: Callable[[T, str], None],
        subject: T,
    ) -> None:
        """Tell a machine a fact and run the effects. The only place where either happens.

        ``run[type(effect)](subject, effect)`` runs one. A fault of it is the next fact: ``broke(subject, what)`` is to
        tell it.
        """
        old = fsm.state
        try:
            effects = fsm.events[event].fire(fsm, *args)
        except (Exception, asyncio.CancelledError) as error:
            logger.exception("%s raised on %s in state %s", type(fsm).__name__, event, old)
            effects = _broke(fsm, raised(f"the machine {type(fsm).__name__}", error))
        if self._loop is not None:
            self.now = self._loop.time()
        self.log.append((self.now, whose, event, args, old, fsm.state, fsm.reason, effects))
        if len(self.log) > 2 * LOG:
            del self.log[:LOG]
        for effect in effects:
            try:
                run[type(effect)](subject, effect)
            except (Exception, asyncio.CancelledError) as error:
                logger.exception("running %r raised", effect)
                self.post(broke, subject, raised(f"running {type(effect).__name__}", error))


def _broke(fsm: ClientFSM | RoomFSM, what: str) -> list[Effect]:
    """Something of the user's own raised (D-ERROR). If the way to `error` raises too, nobody is asked."""
    try:
        return fsm.broke(what)
    except Exception:
        logger.exception("%s raised again on its way to error", type(fsm).__name__)
        return fsm.give_up(what)
