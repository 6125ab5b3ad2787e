"""What the drivers of both machines have in common: facts are told one at a time, and the effects run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from reconnect_fsm._asyncio.event_queue import EventQueue
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.user_code import notify_user, raised, report
from reconnect_fsm._steps import Step, StepSink, context_of
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect
from reconnect_fsm.errors import is_fault
from reconnect_fsm.room_fsm import RoomFSM

__all__ = ["Dispatcher", "broken"]

T = TypeVar("T")

LOG: Final = 400  # of the last steps that are kept
OLDER: Final = 100  # and of the client's own before them, which what its rooms do must not push out


class Dispatcher(EventQueue):
    """Runs jobs one at a time, and tells machines facts; keeps the last steps that they took."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Step] = []
        """The last steps, `LOG` of them, and before those the last `OLDER` of the client's own that are older."""
        self._older = 0  # how many those are
        self.now = 0.0
        """When the last fact was told, in the loop's seconds."""
        self.sink: StepSink | None = None
        """Who records it, if somebody does."""
        self.observers: Listeners[tuple[Step, Any]] = Listeners("an observer of steps")
        """Are told of every step and whose it was (a connection or a room), before its effects are run."""

    def fire(
        self,
        whose: str,
        fsm: ClientFSM | RoomFSM,
        event: str,
        args: tuple[Any, ...],
        run: Mapping[type, Callable[[T, Any], None]],
        faulted: Callable[[T, str], None],
        subject: T,
    ) -> None:
        """Tell a machine a fact and run the effects. The only place where either happens.

        ``run[type(effect)](subject, effect)`` runs one. If it raises, ``faulted(subject, what)`` fires the next event.
        """
        old = fsm.state
        memory = None if whose and self.sink is None else context_of(fsm)
        try:
            effects = fsm.events[event].fire(fsm, *args)
        except BaseException as error:
            if not is_fault(error):
                raise
            report(f"{type(fsm).__name__}, on {event} in state {old},", error)
            effects = broken(fsm, error)
        if (loop := self._loop or _running_loop()) is not None:
            self.now = loop.time()
        step = (self.now, whose, fsm, event, args, old, fsm.state, fsm.reason, fsm.attempt, effects, memory)
        self.log.append(step)
        if len(self.log) > LOG + self._older:
            self._forget_one()
        if self.sink is not None:
            notify_user("the recorder", self.sink.step, step)
        if self.observers:
            self.observers.notify((step, subject))
        for effect in effects:
            try:
                run[type(effect)](subject, effect)
            except BaseException as error:
                if not is_fault(error):
                    raise
                report(f"running {type(effect).__name__}", error)  # its repr may tell a secret of the user's
                self.post(faulted, subject, raised(f"running {type(effect).__name__}", error))

    def _forget_one(self) -> None:
        """One for one: if many were let go at once, Python would search through the new ones for garbage."""
        if self.log[self._older][1]:
            del self.log[self._older]
        elif self._older < OLDER:
            self._older += 1
        else:
            del self.log[0]

    def end_recording(self) -> None:
        """A recording ends with the client, if not before."""
        if self.sink is not None:
            notify_user("the recorder", self.sink.closed)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The one of whoever asks: a room may be joined before the client is started."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def broken(fsm: ClientFSM | RoomFSM, error: BaseException) -> list[Effect]:
    """Something of the user's own raised (D-ERROR). If the way to `error` raises too, nobody is asked."""
    what = raised(f"the machine {type(fsm).__name__}", error)
    try:
        return fsm.faulted(what, True) if isinstance(fsm, ClientFSM) else fsm.faulted(what)
    except BaseException as again:
        if not is_fault(again):
            raise
        report(f"{type(fsm).__name__}, on its way to error,", again)
        return fsm.force_error(what)
