"""D-GUARD: whatever code of the user's raises is logged, reported to the loop, and changes nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import loro
import pytest

from doubles import Notebook
from kit import until
from reconnect_fsm import Client, ClientFSM, Keepalive, RetryPolicy, RoomFSM, Unauthorized
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.user_code import FaultCounter, UserCodeFailed, await_user, call_user, notify_user, report
from reconnect_fsm.telemetry import observe
from reconnect_fsm.testing import EmbeddedServer

QUICK = {"base": 0.02, "cap": 0.05, "random": random.Random(1)}


class Panic(BaseException):
    """As pyo3's: no Exception."""


def from_loro() -> None:
    loro.LoroDoc().import_(b"no update of loro's")


def from_pytest() -> None:
    pytest.fail("on purpose")


async def cancelled() -> None:
    raise asyncio.CancelledError


def raising(kind: type[BaseException]) -> Callable[[], None]:
    def fault() -> None:
        raise kind("on purpose")

    return fault


FAULTS = {
    "ValueError": raising(ValueError),
    "BaseException": raising(Panic),
    "loro": from_loro,
    "pytest.fail": from_pytest,
    "StopIteration": raising(StopIteration),
    "StopAsyncIteration": raising(StopAsyncIteration),
    "CancelledError": raising(asyncio.CancelledError),
}
faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))


@pytest.fixture
async def told() -> list[dict[str, Any]]:
    """What the loop's exception handler hears."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))
    return heard


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.ERROR, "reconnect_fsm"):
        yield caplog


def was_reported(told: list[dict[str, Any]], log: pytest.LogCaptureFixture) -> bool:
    """Whether the log has a traceback, and the loop's handler an exception."""
    return any(record.exc_info for record in log.records) and any(context.get("exception") for context in told)


def patient(**options: Any) -> dict[str, Any]:
    return {"retry": RetryPolicy(**QUICK), "keepalive": Keepalive(interval=0.05, timeout=30), **options}


# ----------------------------------------------------------------------------------------------------------- callbacks


@faults
@pytest.mark.parametrize(
    "kind", ["on_status", "on_transition", "on_latency", "on_message", "room.on_status", "observe"]
)
async def test_d_guard_a_callback_that_raises_changes_nothing(
    kind: str, fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: it hears of everything, and so does the one after it; the client is connected and its room joined."""
    first: list[Any] = []
    second: list[Any] = []

    def callback(news: Any, *_: Any) -> None:
        first.append(news)
        fault()

    async with EmbeddedServer() as server:
        client = Client(server.url, **patient())
        room = client.join("a", Notebook())
        for each in (callback, lambda news, *_: second.append(news)):
            if kind == "room.on_status":
                room.on_status(each)
            elif kind == "observe":
                observe(client, each)
            else:
                getattr(client, kind)(each)
        async with client, asyncio.timeout(30):
            await room
            client.retry_now()
            await room
            if kind == "on_message":
                connection_driver_of(client).on_message.notify("one")
                connection_driver_of(client).on_message.notify("two")
            await until(lambda: len(first) >= 2 and first == second)
            assert await client.ping() > 0
            assert (client.status, room.status) == ("connected", "joined")
    assert was_reported(told, log)


# ----------------------------------------------------------------------------------------------- functions, and sources


def once(fault: Callable[[], None], then: Any) -> Callable[[], Any]:
    """Raises the first time it is called."""
    calls: list[int] = []

    def function() -> Any:
        calls.append(1)
        if len(calls) == 1:
            fault()
        return then

    return function


def once_awaited(fault: Callable[[], None], then: Any) -> Callable[[], Awaitable[Any]]:
    plain = once(fault, then)

    async def function() -> Any:
        await asyncio.sleep(0)
        return plain()

    return function


@faults
@pytest.mark.parametrize("make", [once, once_awaited], ids=["plain", "async"])
@pytest.mark.parametrize("what", ["url", "auth"])
async def test_d_guard_a_function_that_raises_is_asked_again(
    what: str, make: Any, fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-GUARD, D-INTENT: a failed attempt, with a reason that says whose fault it is."""
    reasons: list[str] = []
    async with EmbeddedServer() as server:
        client = Client(make(fault, server.url) if what == "url" else server.url, **patient())
        room = client.join("a", Notebook(), auth=make(fault, b"token") if what == "auth" else b"")
        client.on_transition(lambda change: reasons.append(change.reason))
        async with client, asyncio.timeout(30):
            while room.status != "joined":
                reasons.append(room.reason)
                await asyncio.sleep(0.001)
    assert any("function" in reason for reason in reasons), set(reasons)
    assert was_reported(told, log)


@pytest.mark.parametrize("nested", [1, 2])
async def test_d_words_a_group_of_unauthorized_is_one(nested: int) -> None:
    """D-WORDS: raised inside a TaskGroup, it means what it means alone."""
    error: Exception = Unauthorized("no")
    for _ in range(nested):
        error = ExceptionGroup("of a TaskGroup", [error])

    def url() -> str:
        raise error

    client = Client(url, **patient())
    client.start()
    await until(lambda: client.status == "disconnected")
    await client.close()


@pytest.mark.parametrize("turns", range(6))
async def test_d_guard_a_url_function_that_is_no_longer_wanted_is_ended(turns: int) -> None:
    """D-GUARD: the attempt ends before its first step, or in any turn after it; nothing warns, nothing is left."""

    async def url() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "ws://127.0.0.1:9"

    client = Client(url, **patient())
    client.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    client.retry_now()
    await client.close()
    del client
    gc.collect()  # a coroutine that was never awaited warns now, and that is an error
    assert len(asyncio.all_tasks()) == 1


class Source:
    """A network source that raises when it is subscribed to, or left."""

    def __init__(self, subscribe: Callable[[], None], leave: Callable[[], None]) -> None:
        self._subscribe, self._leave = subscribe, leave

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        report(True)
        self._subscribe()
        return self._leave


@faults
async def test_d_guard_a_network_source_that_raises(
    fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-GUARD, D-ERROR: on being subscribed to: `error`; on being left: nothing more than a report."""
    async with EmbeddedServer() as server, asyncio.timeout(30):
        client = Client(server.url, network=Source(fault, lambda: None), **patient())
        client.start()
        assert client.status == "error"
        assert "network source" in client.reason
        await client.close()
        assert was_reported(told, log)
        told.clear()
        log.clear()
        client = Client(server.url, network=Source(lambda: None, fault), **patient())
        await client.connect()
        await client.close()
        assert client.status == "disconnected"
        assert was_reported(told, log)


@pytest.mark.parametrize("result", [None, 5, "no function"])
async def test_d_error_a_network_source_that_returns_no_function(result: Any, told: list[Any]) -> None:
    """D-ERROR: the reason says what is missing; it is asked once; `close()` returns."""
    asked: list[int] = []

    class Slip:
        def subscribe(self, report: Callable[[bool], None]) -> Any:
            asked.append(1)
            report(True)
            return result

    async with asyncio.timeout(30):
        client = Client("ws://127.0.0.1:9", network=Slip(), **patient())
        client.start()
        assert client.status == "error"
        assert "must return a function that ends the subscription" in client.reason
        await client.close()
    assert len(asked) == 1


# ------------------------------------------------------------------------------------------------ machines and policies


@faults
@pytest.mark.parametrize("where", ["guard", "action", "policy", "entering error"])
async def test_d_guard_a_machine_that_raises_is_in_error(  # noqa: C901
    where: str, fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-ERROR, D-GUARD: whoever waits is told, each time; without the fault it connects."""
    broken = True

    def maybe() -> None:
        if broken:
            fault()

    class Mine(ClientFSM):
        def is_reset_asked(self) -> bool:
            if where in ("guard", "entering error"):
                maybe()
            return super().is_reset_asked()

        def start(self) -> None:
            if where == "action":
                maybe()
            super().start()

        def stop(self) -> None:
            if where == "entering error":
                maybe()
            super().stop()

        def dial(self) -> None:
            if where in ("policy", "guard", "entering error"):
                maybe()
            super().dial()

    async with EmbeddedServer() as server, asyncio.timeout(30):
        client = Client(server.url, fsm=Mine, **patient())
        for call in (client.connect, client.connect, client.retry_now):
            with pytest.raises(Exception, match="stopped"):
                await call()
            assert client.status == "error"
        broken = False
        await client.connect()
        assert client.status == "connected"
        await client.close()
    assert was_reported(told, log)


@faults
@pytest.mark.parametrize("where", ["guard", "action"])
async def test_d_guard_a_rooms_machine_that_raises_is_in_error(
    where: str, fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-ERROR, D-GUARD: that room alone; the others are joined."""

    class Mine(RoomFSM):
        broken = True

        def request_join(self) -> None:
            if where == "action" and Mine.broken:
                Mine.broken = False
                fault()
            super().request_join()

        def begin_session(self) -> None:
            if where == "guard" and Mine.broken:
                Mine.broken = False
                fault()
            super().begin_session()

    async with EmbeddedServer() as server, Client(server.url, room_fsm=Mine, **patient()) as client:
        bad, good = client.join("bad", Notebook()), client.join("good", Notebook())
        async with asyncio.timeout(30):
            await good
            with pytest.raises(Exception, match="raised"):
                await bad
        assert (bad.status, good.status, client.status) == ("error", "joined", "connected")
    assert was_reported(told, log)


# ------------------------------------------------------------------------------------------------------------- the unit


@faults
async def test_d_guard_one_place_calls_it(
    fault: Callable[[], None], told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: plain or awaited, for its result or not; the cause is told."""

    async def awaited() -> None:
        fault()

    with pytest.raises(UserCodeFailed, match="it raised"):
        call_user("it", fault)
    with pytest.raises(UserCodeFailed, match="it raised"):
        await asyncio.create_task(await_user("it", awaited()))
    notify_user("it", fault)
    assert len(told) == 3
    assert [bool(record.exc_info) for record in log.records] == [True] * 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_d_guard_what_ends_the_program_goes_on(kind: type[BaseException], log: pytest.LogCaptureFixture) -> None:
    """D-GUARD: nobody catches it."""
    fault = raising(kind)
    for call in (call_user, notify_user):
        with pytest.raises(kind):
            call("it", fault)

    async def awaited() -> None:
        fault()

    coroutine = await_user("it", awaited())
    with pytest.raises(kind):
        coroutine.send(None)
    assert not log.records


async def test_d_guard_a_tasks_own_cancellation_goes_on() -> None:
    """D-GUARD: cancelled from outside, it is cancelled."""
    task = asyncio.create_task(await_user("it", asyncio.sleep(30)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_d_guard_one_that_raises_at_each_message_does_not_flood_the_log(
    told: list[Any], log: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: the log hears of it ever less often, and how often it was; a handler of the program's of all."""
    counter = FaultCounter()
    for _ in range(1000):
        notify_user("it", FAULTS["loro"], counter=counter)
    assert len(told) == 1000
    assert len(log.records) == 10 + 6
    assert log.messages[-1].endswith("(512 times so far)")


def test_d_guard_without_a_loop_it_is_logged(log: pytest.LogCaptureFixture) -> None:
    """D-GUARD: there is no handler to tell."""
    report("it", ValueError("no"))
    assert log.messages == ["it raised ValueError"]
