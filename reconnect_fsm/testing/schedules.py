"""Schedules: one scenario many times, each time with another order of the ready callbacks.

A whole test::

    async def scenario() -> None:
        async with EmbeddedServer() as server, Client(server.url) as client:
            ...  # things that race
            assert what has to hold in every order

    def test_no_race_loses_anything() -> None:
        many_schedules(scenario, seeds=range(1000))

A failure names its seed, and ``many_schedules(scenario, seeds=[17])`` runs that schedule again. For a small scenario
`every_schedule` runs every order that differs from asyncio's own in a few places. Both make event loops: call them from
a plain function, not from an async test.

What may change places: a program may rely on what asyncio promises, and on nothing else. So the order in which these
became ready is kept, with others in between:

- plain ``call_soon`` callbacks, among themselves: "called in the order in which they are registered". The calls of a
  protocol are among them (``connection_made``, ``connection_lost``);
- the callbacks of one future, in the order in which they were added;
- what one transport has to read and write, so that ``data_received`` gets the bytes in order;
- a task that yields with ``sleep(0)``, or is about to begin, after the plain callbacks that were there before it.

All else is chance in a real program: which of several tasks runs first, how many turns of the loop it takes to wake
one, whether a timer runs before or after a frame of the same moment. So any of them may run first here, and may wait
while others run; while at most `ShuffledLoop.PATIENCE` others run, so that polling comes to an end. Time passes only
when nothing is ready, as on any virtual loop.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Final, TypeAlias

from reconnect_fsm.testing import leaks
from reconnect_fsm.testing.virtual_time import VirtualTimeLoop, check_call, in_memory_connections

__all__ = ["Choice", "Explored", "ShuffledLoop", "every_schedule", "many_schedules"]

Scenario: TypeAlias = Callable[[], Awaitable[object]]
Choice: TypeAlias = tuple[int, int]
"""Which was run, counted from 0 for the one that was ready first, and of how many."""
Choose: TypeAlias = Callable[[int], int]
_Departures: TypeAlias = tuple[tuple[int, int], ...]  # the number of the choice, and the index that was chosen there

_PLAIN: Final = "plain callbacks"
_NOT_REPEATABLE: Final = "the scenario took another course under the same choices: it is not repeatable"
_PASSES: Final = 20  # of the loop, for what is about to end
_RESTLESSNESS: Final = (0.1, 0.4, 1.0)  # how often the order is left: rarely, so that the rest is as usual, or always


class ShuffledLoop(VirtualTimeLoop):
    """A loop with virtual time that runs the ready callbacks in an order of its own, the same for the same seed.

    ``choose`` takes the place of the seed: it gets the number of callbacks that could run first, two or more, and
    returns the index of the one that does.
    """

    PATIENCE: ClassVar[int] = 100
    """How many others may run before a callback that is ready."""
    LIMIT: ClassVar[int] = 1_000_000
    """How many callbacks may run in all: a run without end fails instead of hanging."""

    def __init__(self, seed: int = 0, *, choose: Choose | None = None) -> None:
        super().__init__()
        self._ready: Any = _Ready(choose or _by_seed(seed), self.PATIENCE)
        self._at_rest: Callable[[], object] | None = None

    @property
    def choices(self) -> Sequence[Choice]:
        """What was chosen so far. Two runs of a repeatable scenario took the same course if these are equal."""
        return self._ready.choices  # type: ignore[no-any-return]

    @property
    def callbacks(self) -> int:
        """How many callbacks were run so far."""
        return self._ready.count  # type: ignore[no-any-return]

    def stop_shuffling(self) -> None:
        """From now on callbacks run in the order in which they became ready."""
        self._ready.shuffling = False

    def at_rest(self, check: Callable[[], object]) -> None:
        """Call the function each time when nothing is ready, to check invariants. What it raises ends the run."""
        self._at_rest = check

    def _run_once(self) -> None:
        if self._at_rest is not None and not self._ready:
            self._at_rest()
        if self.callbacks > self.LIMIT and self._ready.shuffling:  # else it is being ended
            raise RuntimeError(f"this run does not end: it has run {self.callbacks:,} callbacks (ShuffledLoop.LIMIT)")
        super()._run_once()

    def _add_callback(self, handle: Any) -> None:
        # What the selector found. It tells of a socket in each turn until it is read, and here that may take several.
        if not handle.cancelled() and handle not in self._ready:
            self._ready.append(handle, handle._callback.__self__)  # bound to a transport, or to the loop that listens


def many_schedules(scenario: Scenario, seeds: Iterable[int] = range(1000)) -> Explored:
    """Run ``scenario()`` once for each seed, each on a loop of its own.

    A schedule fails if the scenario raises, if it leaves a task, timer or transport behind, or if an exception was
    raised that no code could catch. Raises what the scenario raised, with a note of the seed, or AssertionError.
    """
    check_call("many_schedules", scenario)
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds are some numbers, such as range({seeds!r}), not {seeds!r}")
    runs = _Runs(scenario)
    with in_memory_connections():
        for seed in seeds:
            again = f"many_schedules({_name(scenario)}, seeds=[{seed}])"
            runs.run(ShuffledLoop(seed), f"seed {seed}; {again} runs it again")
    return runs.explored(complete=False)


def every_schedule(scenario: Scenario, *, departures: int = 2, at_most: int = 100_000) -> Explored:
    """Run ``scenario()`` in every order that leaves asyncio's own in no more than ``departures`` places.

    A departure is a step that runs another callback than the first ready one of those that may run. Most races need one
    or two. Schedules with few departures come first, so that the first failure is a simple one. Stops after ``at_most``
    schedules; ``complete`` is False then.

    Raises as `many_schedules` does, with a note that says which schedule, and RuntimeError for a scenario that takes
    another course under the same choices: one with real time, unseeded chance, or sets of objects in it.
    """
    check_call("every_schedule", scenario)
    runs = _Runs(scenario)
    pending: deque[_Departures] = deque([()])
    with in_memory_connections():
        while pending and runs.schedules < at_most:
            given = pending.popleft()
            loop = ShuffledLoop(choose=_as_given(given))
            runs.run(loop, f"departures {list(given)}")
            if given and len(loop.choices) <= given[-1][0]:
                raise RuntimeError(_NOT_REPEATABLE)
            if len(given) < departures:
                pending.extend(_continued(given, loop.choices))
    return runs.explored(complete=not pending)


@dataclass(frozen=True)
class Explored:
    """What was run."""

    schedules: int
    """How often the scenario ran."""
    distinct: int
    """In how many different orders."""
    callbacks: int
    """How many callbacks the loop ran in all of them."""
    complete: bool
    """Whether there were no others (`every_schedule`)."""


class _Runs:
    """Runs schedules, and keeps count."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._orders: set[int] = set()
        self._callbacks = 0
        self._unheard: list[str] = []
        self.schedules = 0

    def run(self, loop: ShuffledLoop, label: str) -> None:
        """Run one schedule; ``label`` says which, should it fail."""
        loop.set_exception_handler(lambda _, context: self._unheard.append(f"{context} under {label}"))
        try:
            loop.run_until_complete(self._checked(loop))
            self._check_unheard()
        except BaseException as error:
            error.add_note(f"schedule: {label}")
            _cancel_everything(loop)
            raise
        finally:
            loop.close()
        self.schedules += 1
        self._callbacks += loop.callbacks
        self._orders.add(hash(tuple(loop.choices)))

    def explored(self, *, complete: bool) -> Explored:
        """The count."""
        gc.collect()  # what was dropped in silence complains now
        self._check_unheard()
        return Explored(self.schedules, len(self._orders), self._callbacks, complete)

    async def _checked(self, loop: ShuffledLoop) -> None:
        await self._scenario()
        loop.stop_shuffling()
        for _ in range(_PASSES):
            left = leaks.in_loop()
            if not left:
                return
            await asyncio.sleep(0)
        raise AssertionError(leaks.describe(list(left.values())))

    def _check_unheard(self) -> None:
        if self._unheard:
            raise AssertionError("\n  ".join(["raised where nobody could hear it:", *self._unheard]))


def _cancel_everything(loop: ShuffledLoop) -> None:
    """After a failure: let everything end, so that nothing complains later."""
    loop.stop_shuffling()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks and not loop.is_closed():
        loop.run_until_complete(asyncio.wait(tasks, timeout=60))


def _by_seed(seed: int) -> Choose:
    """Chooses at random, in another way for each seed: it departs rarely or often, to any callback or to the newest.

    A callback that is always overtaken by the newest waits until everything that follows from the others has happened.
    """
    random = Random(seed)
    restlessness, newest_first = random.choice(_RESTLESSNESS), random.random() < 0.25
    chance, below = random.random, random.randrange

    def choose(count: int) -> int:
        if restlessness < 1.0 and chance() >= restlessness:
            return 0
        return count - 1 if newest_first and chance() < 0.9 else below(count)

    return choose


def _as_given(departures: _Departures) -> Choose:
    """Depart at these places; else the one goes first that was ready first."""
    indexes = dict(departures)
    places = itertools.count()

    def choose(count: int) -> int:
        index = indexes.get(next(places), 0)
        if index >= count:
            raise RuntimeError(_NOT_REPEATABLE)
        return index

    return choose


def _continued(given: _Departures, choices: Sequence[Choice]) -> Iterator[_Departures]:
    """The schedules that go as this one did, and depart once more, later."""
    for place in range(given[-1][0] + 1 if given else 0, len(choices)):
        for index in range(1, choices[place][1]):
            yield (*given, (place, index))


def _name(scenario: Scenario) -> str:
    return getattr(scenario, "__name__", repr(scenario))


class _Ready:
    """Takes the place of the loop's queue of ready callbacks: the part of a deque that asyncio uses."""

    def __init__(self, choose: Choose, patience: int) -> None:
        self._choose = choose
        self._patience = patience
        self._waiting: list[tuple[asyncio.Handle, object, int]] = []  # each with its source, and since when
        self.choices: list[Choice] = []
        self.count = 0
        self.shuffling = True

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, handle: asyncio.Handle) -> bool:
        return any(each is handle for each, _, _ in self._waiting)

    def append(self, handle: asyncio.Handle, source: object = None) -> None:
        self._waiting.append((handle, source or _source(handle), self.count))

    def clear(self) -> None:
        self._waiting.clear()

    def popleft(self) -> asyncio.Handle:
        waiting = self._waiting
        handle, _, _ = waiting.pop(self._next() if len(waiting) > 1 else 0)
        self.count += not handle.cancelled()
        return handle

    def _next(self) -> int:
        free: list[int] = []
        sources: list[object] = []  # of those that come before
        for place, (handle, source, _) in enumerate(self._waiting):
            if handle.cancelled():  # it will not run: nothing to choose
                return place
            if source is None:  # a step of a task
                if _PLAIN not in sources:
                    free.append(place)
            elif source not in sources:
                free.append(place)
                sources.append(source)
        if len(free) == 1 or not self.shuffling or self.count - self._waiting[0][2] >= self._patience:
            return 0
        index = self._choose(len(free))
        self.choices.append((index, len(free)))
        return free[index]


def _source(handle: Any) -> object:
    """Callbacks of the same source run in the order in which they came. None: a task's step, alone of its kind."""
    if isinstance(handle, asyncio.TimerHandle):
        return handle
    args = handle._args
    if not args and isinstance(getattr(handle._callback, "__self__", None), asyncio.Task):
        return None
    if len(args) == 1 and asyncio.isfuture(args[0]) and args[0].done():
        return args[0]
    return _PLAIN
