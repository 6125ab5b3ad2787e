"""Fixes, each taken out again: what the program did before. The proofs are worth what they find of it.

`TAKE_OUTS` are found by the simulation. Some faults need what it does not have, such as TLS, threads, a resolver, a
process that ends, or loro's own clock; a test finds each of those, and `NAMED` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from reconnect_fsm import pump, transport, user_code
from reconnect_fsm.adaptors import loro as loro_adaptors
from reconnect_fsm.adaptors.loro import LoroAdaptor
from reconnect_fsm.connection import PONG, Connection
from reconnect_fsm.pump import OURS, Pump
from reconnect_fsm.redaction import Redaction
from reconnect_fsm.rooms import Rooms
from reconnect_fsm.status import CloseInfo, presentable

__all__ = ["NAMED", "TAKE_OUTS", "TakeOut"]


@dataclass(frozen=True)
class TakeOut:
    """A fix that is taken out."""

    fault: str
    """What goes wrong without it."""
    clause: str
    undo: Callable[[pytest.MonkeyPatch], None]
    finds: Sequence[str]
    """The invariants of the simulation of which one is found broken."""


def messages_are_put_back(patch: pytest.MonkeyPatch) -> None:
    def take(self: Connection, socket: Any, heartbeat: Any, messages: Sequence[Any]) -> Iterator[None]:
        for place, data in enumerate(messages):
            if socket is not self._socket:
                return
            if data == PONG and heartbeat.is_owed:
                self._ponged(heartbeat)
            else:
                yield from self._received(data) or ()  # type: ignore[misc]
            if len(self._pump._works) > 1:
                self._pump.schedule(take(self, socket, heartbeat, messages[place + 1 :]))
                return
            yield

    patch.setattr(Connection, "_take", take)


def a_close_overtakes(patch: pytest.MonkeyPatch) -> None:
    schedule_call = Pump.schedule_call

    def overtaking(self: Pump, job: Callable[..., None], *args: Any) -> None:
        if getattr(job, "__name__", "") == "_socket_closed":
            self.post(job, *args)
        else:
            schedule_call(self, job, *args)

    patch.setattr(Pump, "schedule_call", overtaking)


def answers_to_joins_wait(patch: pytest.MonkeyPatch) -> None:
    accepted = Rooms._accepted
    patch.setattr(Rooms, "_accepted", lambda self, *args: self._pump.schedule_call(accepted, self, *args))


def calls_wait_behind_rooms(patch: pytest.MonkeyPatch) -> None:
    post = Pump.post

    def waiting(self: Pump, job: Callable[..., None], *args: Any) -> None:
        (self.schedule_call if self._works else post.__get__(self))(job, *args)

    patch.setattr(Pump, "post", waiting)


def only_exceptions_are_caught(patch: pytest.MonkeyPatch) -> None:
    for module in (user_code, pump):
        patch.setattr(module, "is_fault", lambda error: isinstance(error, Exception))


def faults_are_told_nowhere(patch: pytest.MonkeyPatch) -> None:
    report = user_code.report

    def silent(what: str, error: BaseException, times: int = 1) -> None:
        if what == OURS:
            report(what, error, times)

    patch.setattr(user_code, "report", silent)


def the_kernel_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transport, "read_counters", lambda _: None)


def words_are_shown_as_they_came(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Redaction, "__call__", lambda self, words: presentable(str(words or "")))


def words_are_judged_as_they_are_shown(patch: pytest.MonkeyPatch) -> None:
    def close_info(code: int, reason: str = "", *args: Any, shown: str | None = None, **more: Any) -> CloseInfo:
        return CloseInfo(code, reason if shown is None else shown, *args, shown=shown, **more)

    patch.setattr(transport, "CloseInfo", close_info)


def imports_are_not_announced(patch: pytest.MonkeyPatch) -> None:
    def attach(self: LoroAdaptor, send: Callable[[bytes | None], None]) -> Callable[[], None]:
        def pass_on(update: bytes) -> bool:
            send(update)
            return True

        return self.doc.subscribe_local_update(pass_on).unsubscribe

    assert loro_adaptors
    patch.setattr(LoroAdaptor, "attach", attach)


TAKE_OUTS: Final[dict[str, TakeOut]] = {
    "messages_out_of_order": TakeOut(
        "messages are put back at the end of a queue that others share",
        "D-ORDER",
        messages_are_put_back,
        ("order-kept",),
    ),
    "messages_out_of_order, before a close": TakeOut(
        "a close is told before what came before it was heard",
        "D-ORDER",
        a_close_overtakes,
        ("nothing-dropped",),
    ),
    "update_overtakes_join_answer": TakeOut(
        "an answer to a join is handled after the updates that follow it",
        "D-ORDER",
        answers_to_joins_wait,
        ("order-kept", "documents-converge"),
    ),
    "calls wait": TakeOut(
        "the client's machine waits behind the work of its rooms",
        "D-NOW",
        calls_wait_behind_rooms,
        ("calls-act",),
    ),
    "loro_error_wedges_reader": TakeOut(
        "only Exceptions of a callback are caught",
        "D-GUARD, D-LISTEN",
        only_exceptions_are_caught,
        ("faults-are-told", "no-error-logged"),
    ),
    "url_function_faults_told_nowhere": TakeOut(
        "what code of the user's raises is told nowhere",
        "D-GUARD",
        faults_are_told_nowhere,
        ("faults-are-told",),
    ),
    "slow_download_called_dead": TakeOut(
        "the kernel is not asked what moves on a slow link",
        "LIVE-2",
        the_kernel_is_not_asked,
        ("no-false-death",),
    ),
    "secrets_in_close_reason": TakeOut(
        "the server's words are shown as they came",
        "D-JUDGED",
        words_are_shown_as_they_came,
        ("no-secret-shown",),
    ),
    "redaction_changes_what_is_fatal": TakeOut(
        "the server's words are judged as they are shown",
        "D-JUDGED, RETRY-3",
        words_are_judged_as_they_are_shown,
        ("fatal-is-final",),
    ),
    "import_not_sent": TakeOut(
        "what is imported into a joined document, or comes by another room, is not announced",
        "D-ANYWAY",
        imports_are_not_announced,
        ("documents-converge", "synced-is-true"),
    ),
}
"""By the program of the reports that met the fault, or by its name if none did."""
NAMED: Final[dict[str, str]] = {}
