"""What url and auth functions of the user's raise: reported (D-GUARD), and in words that name them (D-WORDS)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from reconnect_fsm import Unauthorized
from reconnect_fsm._asyncio.credentials import UserCodeFailed, ask, names_of, wait_for_answer


class Panic(BaseException):
    """As loro's, which are no Exception."""


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("of a TaskGroup", errors)


async def asked(raises: BaseException, is_async: bool) -> object:
    """What a function that raises this answers."""

    def plain() -> Any:
        raise raises

    async def coroutine() -> Any:
        raise raises

    return await wait_for_answer("the function", coroutine()) if is_async else ask("the function", plain)


@pytest.fixture
async def reported() -> list[dict[str, Any]]:
    """What the event loop's exception handler is told."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Unauthorized("logged out"),
        lambda: group(Unauthorized("logged out")),
        lambda: group(Unauthorized("logged out"), group(group(Unauthorized("expired")))),
    ],
)
async def test_d_words_unauthorized_is_an_answer(
    make: Callable[[], BaseException], is_async: bool, reported: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Alone, or nothing but such errors in a group, however deep: no fault, so nothing is reported."""
    answer = await asked(make(), is_async)
    assert isinstance(answer, Unauthorized)
    assert str(answer) == "logged out"
    assert answer.__traceback__ is None
    assert (reported, caplog.text) == ([], "")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: KeyError("key"), "KeyError"),
        (lambda: TimeoutError(), "TimeoutError"),
        (lambda: StopIteration(), "StopIteration"),
        (lambda: Panic("loro"), "Panic"),
        (lambda: asyncio.CancelledError(), "CancelledError"),  # of some helper's, for nobody cancels us
        (lambda: group(Unauthorized(), KeyError()), "ExceptionGroup of Unauthorized, KeyError"),
        (lambda: group(KeyError(), group(KeyError(), Panic())), "BaseExceptionGroup of KeyError, Panic"),
    ],
)
async def test_d_guard_whatever_else_it_raises_is_a_fault_that_is_reported(
    make: Callable[[], BaseException],
    names: str,
    is_async: bool,
    reported: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With its traceback in the log, and to the loop's exception handler."""
    if is_async and names == "StopIteration":
        names = "RuntimeError"  # what Python makes of it in a coroutine
    with pytest.raises(UserCodeFailed) as caught:
        await asked(make(), is_async)
    assert names_of(caught.value.error) == names
    assert [context["exception"] for context in reported] == [caught.value.error]
    assert "the function raised" in caplog.text
    assert "in coroutine" in caplog.text or "in plain" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_d_guard_what_means_to_end_the_program_goes_on(
    error: type[BaseException], reported: list[dict[str, Any]]
) -> None:
    """It is no fault."""
    with pytest.raises(error):
        await asked(error(), is_async=False)
    assert reported == []


async def test_the_cancellation_of_the_one_who_waits_goes_on(reported: list[dict[str, Any]]) -> None:
    """It is no fault of the function's."""
    task = asyncio.create_task(wait_for_answer("the function", asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert reported == []
