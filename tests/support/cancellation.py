"""Cancel an operation at every point where it can be: the means, whatever the operation.

A `Caller` runs it in a task on a `SteppedLoop`, and cancels it at the beginning of one turn of the loop. All turns
together cover each suspension (`Suspending` counts them, so that a test can prove it) and the moments between: also the
one in which the result is there already and the task has not been woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from reconnect_fsm.testing.virtual_time import VirtualTimeLoop

__all__ = ["WAYS", "Caller", "SteppedLoop", "Suspending"]


class SteppedLoop(VirtualTimeLoop):
    """A virtual loop that tells before each of its turns."""

    def __init__(self) -> None:
        super().__init__()
        self.before_turn: Callable[[], None] | None = None

    def _run_once(self) -> None:
        if self.before_turn is not None:
            self.before_turn()
        super()._run_once()


class Suspending:
    """Counts how often what it awaits is suspended."""

    def __init__(self, awaitable: Awaitable[object]) -> None:
        self._awaitable = awaitable
        self.count = 0

    def __await__(self) -> Generator[Any, Any, object]:
        steps: Any = self._awaitable.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.count += 1
            error = None
            try:
                yield waited_for
            except BaseException as thrown:
                error = thrown


class SiblingFailed(Exception):
    """What ends the task group."""


WAYS: Final = ("cancel", "cancel twice", "timeout", "task group")


class Caller:
    """Runs ``make()`` once, and cancels it before turn ``at``, counted from 0, if it lasts that long.

    ``strike`` is called in that very moment: what happens to the world just then.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[object]],
        *,
        way: str = "cancel",
        at: int | None = None,
        strike: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._way, self._at, self._strike = make, way, at, strike
        self.turns = 0
        """How many turns of the loop began while it ran."""
        self.suspensions = 0
        """How often it was suspended."""
        self.struck_at: int | None = None
        """In which suspension it was cancelled, counted from 1; 0: before it began; None: not at all."""
        self.outcome = "cancelled"
        """What became of it: "returned", "cancelled", "waits" (for longer than it was given), or the error's name."""
        self._counter: Suspending | None = None
        self._stop: Callable[[], object]

    async def run(self, seconds: float) -> None:
        """Run it for so many seconds at most. Raises AssertionError if it does not end as a cancelled task should."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SteppedLoop)
        way = {"timeout": self._under_timeout, "task group": self._in_group}.get(self._way, self._work)
        task = self._task = asyncio.create_task(way(), name="caller")
        self._stop = task.cancel
        loop.before_turn = self._before_turn
        try:
            await asyncio.wait([task], timeout=seconds)
            if self.struck_at is not None:
                await asyncio.wait([task], timeout=seconds)  # struck in the very last turn
                assert task.done(), f"it does not end though it was cancelled: {task}"
        finally:
            loop.before_turn = None
        if self._counter is not None:
            self.suspensions = self._counter.count
        waits = not task.done()
        if waits:
            task.cancel()
            await asyncio.wait([task])
        if waits or (self.struck_at is not None and self._way in ("cancel", "cancel twice")):
            assert task.cancelled(), f"the cancellation was swallowed: {task}"
            assert self.outcome == "cancelled", f"the cancellation came out as {self.outcome}"
        elif self._counter is not None:  # else it was cancelled before anything began
            task.result()
        if waits:
            self.outcome = "waits"

    def _before_turn(self) -> None:
        if self._task.done():
            return
        if self.turns == self._at:
            self.struck_at = self._counter.count if self._counter else 0
            self._strike()
            self._stop()
        elif self.struck_at is not None and self._way == "cancel twice":
            self._task.cancel()
        self.turns += 1

    async def _work(self) -> None:
        self._counter = Suspending(self._make())
        try:
            await self._counter
            self.outcome = "returned"
        except Exception as error:
            self.outcome = type(error).__name__

    async def _under_timeout(self) -> None:
        loop, task = asyncio.get_running_loop(), self._task
        try:
            async with asyncio.timeout(None) as scope:
                self._stop = lambda: scope.reschedule(loop.time())
                await self._work()
        except TimeoutError:
            assert scope.expired()
        assert scope.expired() == (self.outcome == "cancelled"), f"timeout expired: {scope.expired()}; {self.outcome}"
        assert task.cancelling() == 0, "the timeout did not take its cancellation back"
        await asyncio.sleep(0)  # raises if it did not

    async def _in_group(self) -> None:
        fail = asyncio.get_running_loop().create_future()

        def settle(verdict: bool) -> None:
            if not fail.done():
                fail.set_result(verdict)

        async def sibling() -> None:
            if await fail:
                raise SiblingFailed

        self._stop = lambda: settle(True)
        failed = False
        try:
            async with asyncio.TaskGroup() as group:
                child = group.create_task(self._work())
                child.add_done_callback(lambda _: settle(False))
                group.create_task(sibling())
        except* SiblingFailed:
            failed = True
        assert child.cancelled() == (self.outcome == "cancelled"), f"{child}, but {self.outcome}"
        assert failed or not child.cancelled(), "cancelled, and nobody had asked for it"
