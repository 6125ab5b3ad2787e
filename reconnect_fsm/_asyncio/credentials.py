"""Asks url and auth functions of the user's, plain or async, for what a server is to be told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar, cast

from reconnect_fsm._asyncio.user_code import UserCodeFailed, await_user, call_user
from reconnect_fsm.errors import Unauthorized

__all__ = ["UserCodeFailed", "as_unauthorized", "ask", "names_of", "wait_for_answer"]

T = TypeVar("T")
Group: TypeAlias = BaseExceptionGroup[BaseException]


def ask(what: str, function: Callable[[], T]) -> T | Unauthorized:
    """Call it. `Unauthorized` is an answer, and so is returned; whatever else it raises is a fault: UserCodeFailed.

    ``what`` names the function in the log.
    """

    def call() -> T | Unauthorized:
        try:
            return function()
        except BaseException as error:
            return _as_answer(error)

    return call_user(what, call)


async def wait_for_answer(what: str, answer: Awaitable[T]) -> T | Unauthorized:
    """Wait for what an async function returned; as `ask`. The cancellation of the running task goes on."""

    async def wait() -> T | Unauthorized:
        try:
            return await answer
        except BaseException as error:
            return _as_answer(error)

    return await await_user(what, wait())


def _as_answer(error: BaseException) -> Unauthorized:
    unauthorized = as_unauthorized(error)
    if unauthorized is None:
        raise error
    return unauthorized


def as_unauthorized(error: BaseException) -> Unauthorized | None:
    """The `Unauthorized` that it means, if any: of several tasks of a TaskGroup, all must say so (D-WORDS).

    A new one: that which was raised keeps the frames on its way, with all their variables, alive.
    """
    leaves = _leaves(error)
    if all(isinstance(each, Unauthorized) for each in leaves):
        return Unauthorized(*leaves[0].args)
    return None


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast(Group, error)
    return [leaf for each in group.exceptions for leaf in _leaves(each)]


def names_of(error: BaseException) -> str:
    """The class of an exception; of a group also those of what it holds. Its own words may hold secrets."""
    name = type(error).__name__
    if not isinstance(error, BaseExceptionGroup):
        return name
    group = cast(Group, error)
    return f"{name} of {', '.join(dict.fromkeys(type(each).__name__ for each in _leaves(group)))}"
