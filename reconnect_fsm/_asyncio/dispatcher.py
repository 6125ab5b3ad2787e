"""Fires events in machines, one at a time, and has the effects run: what the drivers of both machines share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, ParamSpec, Protocol, TypeVar

from reconnect_fsm._asyncio.event_queue import EventQueue
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.user_code import notify_user, report
from reconnect_fsm._steps import Step, StepSink, context_of
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import Effect
from reconnect_fsm.errors import fault_reason, is_fault
from reconnect_fsm.machine import Event
from reconnect_fsm.room_fsm import RoomFSM

__all__ = ["Dispatcher", "RunsEffects", "Subject", "runs"]

P = ParamSpec("P")
Method = TypeVar("Method", bound=Callable[..., None])

MAX_STEPS: Final = 400  # of the log
MAX_OLDER_STEPS: Final = 100  # of the client's own, older than those, which the steps of its rooms must not push out
NO_STEPS: Final[deque[Step]] = deque()  # never written to; an empty deque takes 600 bytes, and connections are many


class Subject(Protocol):
    """What a machine belongs to: a connection, or a room."""

    @property
    def name(self) -> str:
        """The room's id; "" for a connection."""
        ...

    @property
    def fsm(self) -> ClientFSM | RoomFSM:
        """The machine."""
        ...

    def run_effect(self, effect: Effect) -> None:
        """Run one effect that an event of the machine asked for. Fires no event itself: it may post one."""
        ...

    def event_done(self, event: str, old_state: str) -> None:
        """The event is complete, and its effects were run."""
        ...


class Dispatcher(EventQueue):
    """Fires events, each to its end, and keeps the last steps that the machines took."""

    __slots__ = ("_older", "_oldest", "_recent", "now", "observers", "sink")

    def __init__(self) -> None:
        super().__init__()
        self._recent: list[Step] = []  # the last of all machines: a ring, once there are so many
        self._oldest = 0  # where in the ring the oldest is
        self._older: deque[Step] = NO_STEPS  # of the client's own, those before
        self.now = 0.0
        """When the last event fired, in the loop's seconds."""
        self.sink: StepSink | None = None
        """The recorder, if there is one."""
        self.observers: Listeners[tuple[Step, Any]] = Listeners("an observer of steps")
        """Called with every step and its subject, before the effects are run."""

    @property
    def log(self) -> list[Step]:
        """The last `MAX_STEPS` steps, and before those the last `MAX_OLDER_STEPS` of the client's own."""
        return [*self._older, *self._recent[self._oldest :], *self._recent[: self._oldest]]

    def fire(self, subject: Subject, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire an event in the subject's machine and run the effects. The only place where either happens.

        A subclass of the machine may have rows of its own for the event, so that it is looked up by name there. If an
        effect raises, the machine's event `faulted` fires next (D-ERROR).
        """
        given: tuple[Any, ...] = event.arguments(*args, **kwargs) if kwargs else args  # by position, as recorded
        fsm, name = subject.fsm, event.name
        old = fsm.state
        context = None if subject.name and self.sink is None else context_of(fsm)
        try:
            effects = fsm.events[name].fire(fsm, *given)
        except BaseException as error:
            if not is_fault(error):
                raise
            report(f"{type(fsm).__name__}, on {name} in state {old},", error)
            effects = fsm.fault(error, report)
        if (loop := self.loop or _running_loop()) is not None:
            self.now = loop.time()
        step = (self.now, subject.name, fsm, name, given, old, fsm.state, fsm.reason, fsm.attempt, effects, context)
        self._remember(step)
        if self.sink is not None:
            notify_user("the recorder", self.sink.step, step)
        if self.observers:
            self.observers.notify((step, subject))
        for effect in effects:
            try:
                subject.run_effect(effect)
            except BaseException as error:
                if not is_fault(error):
                    raise
                what = f"running {type(effect).__name__}"  # not its repr, which may hold a secret of the user's
                report(what, error)
                self.post(self.fire, subject, fsm.events["faulted"], fault_reason(what, error))
        subject.event_done(name, old)

    def post_event(self, subject: Subject, event: Event[P], *args: P.args, **kwargs: P.kwargs) -> None:
        """Fire the event now, or as soon as the one under way is complete (law 1)."""
        self.post(self.fire, subject, event, *(event.arguments(*args, **kwargs) if kwargs else args))

    def _remember(self, step: Step) -> None:
        """Forget one for it: if many were let go at once, Python would search through the new ones for garbage."""
        recent, place = self._recent, self._oldest
        if len(recent) < MAX_STEPS:
            recent.append(step)
            return
        if not recent[place][1]:
            if self._older is NO_STEPS:
                self._older = deque(maxlen=MAX_OLDER_STEPS)
            self._older.append(recent[place])
        recent[place] = step
        self._oldest = (place + 1) % MAX_STEPS

    def end_recording(self) -> None:
        """A recording ends with the client, if not before."""
        if self.sink is not None:
            notify_user("the recorder", self.sink.closed)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The caller's loop: a room may be joined before the client is started."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def runs(effect: type[Effect]) -> Callable[[Method], Method]:
    """Declare that the method below runs this effect: its last argument is the effect."""

    def declare(method: Method) -> Method:
        method.__dict__["runs"] = effect
        return method

    return declare


class RunsEffects:
    """The base of what runs effects: it knows which of its methods runs which one, see `runs`."""

    __slots__ = ()

    runners: ClassVar[Mapping[type[Effect], str]] = {}
    """The name of the method that runs each effect; by name, so that a subclass may override it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        methods = {name: getattr(method, "__dict__", {}) for name, method in vars(cls).items()}
        cls.runners = {**cls.runners, **{about["runs"]: name for name, about in methods.items() if "runs" in about}}
