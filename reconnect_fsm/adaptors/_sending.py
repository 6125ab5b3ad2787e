"""What the adaptors of loro's documents and stores share: passing updates on, and callbacks that keep nothing alive."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from reconnect_fsm.errors import is_fault
from reconnect_fsm.loro_protocol.messages import UpdateStatusCode

__all__ = ["OnRefused", "Send", "SendingAdaptor", "call_back"]

logger = logging.getLogger("reconnect_fsm")

A = TypeVar("A")
T = TypeVar("T")

OnRefused: TypeAlias = Callable[[Sequence[bytes], UpdateStatusCode], object]
Send: TypeAlias = Callable[[bytes | None], None]


class SendingAdaptor:
    """Passes local updates to the rooms that it is attached to."""

    _sends: tuple[Send, ...] = ()  # one, unless the same adaptor is in several rooms

    def __init__(self, on_refused: OnRefused | None) -> None:
        self._on_refused = on_refused
        self._refusals = 0

    def alternative_version(self, server_version: bytes) -> bytes | None:
        """There is only one format of version."""
        return None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        """Call ``on_refused``. Without one, log it; of many, as in a room that may only be read, ever fewer."""
        if self._on_refused is not None:
            self._on_refused(updates, status)
            return
        self._refusals += 1
        if self._refusals <= 10 or self._refusals.bit_count() == 1:
            logger.warning(
                "the server refused %d update(s) of %d bytes: %s; pass on_refused= to the adaptor to decide what "
                "becomes of them%s",
                len(updates),
                sum(map(len, updates)),
                status.name,
                "" if self._refusals == 1 else f" ({self._refusals} times so far)",
            )

    def _add_send(self, send: Send) -> Callable[[], None]:
        self._sends = (*self._sends, send)

        def detach() -> None:
            if any(other is send for other in self._sends):
                self._sends = tuple(other for other in self._sends if other is not send)
                if not self._sends:
                    self._last_detached()

        return detach

    def _last_detached(self) -> None:
        """Called when no room is attached any more."""

    def _send_to_all(self, update: bytes | None) -> None:
        for send in self._sends:
            try:
                send(update)
            except BaseException as error:
                if not is_fault(error):
                    raise
                logger.exception(
                    "a local update could not be sent; it stays in the document, and the next join sends it"
                )


def call_back(us: weakref.ref[A], method: Callable[[A, T], None], argument: T) -> bool:
    """Call a method of the adaptor, if it is still alive: what loro's subscriptions call.

    loro holds its callbacks, and the garbage collector does not know loro's objects: a callback that held the adaptor,
    which holds the document, would keep both for ever. loro ends a subscription whose callback does not return True,
    and panics in the middle of its work if a callback raises.
    """
    adaptor = us()
    if adaptor is not None:
        try:
            method(adaptor, argument)
        except BaseException as error:
            if not is_fault(error):
                raise
            logger.exception("an adaptor failed in a callback of loro")
    return True
