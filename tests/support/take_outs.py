"""Fixes, each taken out again: what the program did before. The proofs are worth what they find of it.

`TAKE_OUTS` are found by the simulation. Some faults need what it does not have, such as TLS, threads, a resolver, a
process that ends, or loro's own clock; a test finds each of those, and `NAMED` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from reconnect_fsm._asyncio import event_queue as pump
from reconnect_fsm._asyncio import user_code
from reconnect_fsm._asyncio.connection_driver import PONG, ConnectionDriver
from reconnect_fsm._asyncio.dispatcher import Dispatcher, Subject
from reconnect_fsm._asyncio.event_queue import OURS, EventQueue
from reconnect_fsm._asyncio.transport import socket as transport
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.adaptors.loro import LoroAdaptor
from reconnect_fsm.machine import Event
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import CloseInfo, sanitized

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
    def handle(self: ConnectionDriver, socket: Any, heartbeat: Any, messages: Sequence[Any]) -> Iterator[None]:
        for place, data in enumerate(messages):
            if not socket:
                return
            if data == PONG and heartbeat.awaits_pong:
                self._on_pong(heartbeat)
            else:
                yield from self.received(data) or ()  # type: ignore[misc]
            if len(self.dispatcher._works) > 1:
                self.dispatcher.schedule(handle(self, socket, heartbeat, messages[place + 1 :]))
                return
            yield

    patch.setattr(ConnectionDriver, "_handle_messages", handle)


def a_close_overtakes(patch: pytest.MonkeyPatch) -> None:
    schedule_call = EventQueue.schedule_call

    def overtaking(self: EventQueue, job: Callable[..., None], *args: Any) -> None:
        if "_on_socket_closed" in (getattr(each, "__name__", "") for each in (job, *args)):
            self.post(job, *args)
        else:
            schedule_call(self, job, *args)

    patch.setattr(EventQueue, "schedule_call", overtaking)


def answers_to_joins_wait(patch: pytest.MonkeyPatch) -> None:
    fire = Dispatcher.fire

    def late(self: Dispatcher, subject: Subject, event: Event[...], *args: Any) -> None:
        if event.name == RoomFSM.join_accepted.name:
            self.schedule_call(fire, self, subject, event, *args)
        else:
            fire(self, subject, event, *args)

    patch.setattr(Dispatcher, "fire", late)


def calls_wait_behind_rooms(patch: pytest.MonkeyPatch) -> None:
    post = EventQueue.post

    def waiting(self: EventQueue, job: Callable[..., None], *args: Any) -> None:
        (self.schedule_call if self._works else post.__get__(self))(job, *args)

    patch.setattr(EventQueue, "post", waiting)


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
    patch.setattr(Redaction, "__call__", lambda self, words: sanitized(str(words or "")))


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

    patch.setattr(LoroAdaptor, "attach", attach)


def _unheard(patch: pytest.MonkeyPatch, unheard: Event[...]) -> None:
    fire = Dispatcher.fire

    def deaf(self: Dispatcher, subject: Subject, event: Event[...], *args: Any) -> None:
        if event.name != unheard.name:
            fire(self, subject, event, *args)

    patch.setattr(Dispatcher, "fire", deaf)


def refusals_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    _unheard(patch, RoomFSM.batch_refused)


def lost_updates_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    _unheard(patch, RoomFSM.updates_lost)


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
    "refused_update_then_silent_loss": TakeOut(
        "a refused batch is forgotten, and those after it count as synced",
        "D-RESYNC, D-ACK",
        refusals_are_forgotten,
        ("synced-is-true", "documents-converge"),
    ),
    "lost_update_leaves_document_dead": TakeOut(
        "an update that cannot be applied, or stays pending, is forgotten",
        "D-RESYNC",
        lost_updates_are_forgotten,
        ("documents-converge",),
    ),
}
"""By the program of the reports that met the fault, or by its name if none did."""
NAMED: Final[dict[str, str]] = {
    "last_key_deleted_offline": "adaptors/test_documents.py::test_d_ack_a_key_deleted_offline_is_deleted",
    "join_answer_extra_unreachable": "_asyncio/test_rooms.py::test_d_resync_by_hand_versions_are_compared_in_the_session",  # noqa: E501
    "first_message_called_dead": "_asyncio/transport/test_signs_of_life.py::test_live_2_the_first_message_is_in_flight_when_the_heart_beats",  # noqa: E501
    "rate_limit_answered_at_once": "_asyncio/test_rooms.py::test_d_joinerr_a_rate_limit_is_waited_for_and_the_session_goes_on",  # noqa: E501
    "join_error_0_at_rejoin": "_asyncio/test_rooms.py::test_d_joinerr_an_unspecified_refusal_loses_no_room_that_was_good",  # noqa: E501
    "update_above_16_mib_lost": "adaptors/test_documents.py::test_d_resync_a_single_operation_above_16_mib_arrives",
    "presence_expires_while_idle": "adaptors/test_documents.py::test_d_presence_renewed_entries_outlive_the_timeout",
    "presence_stays_after_close": "_asyncio/test_rooms.py::test_d_presence_is_taken_back_at_the_end",
    "too_big_1009_for_ever": "_asyncio/test_rooms.py::test_d_toobig_pieces_are_halved_until_they_are_taken",
    "tls_reasons_in_wrong_words": "_asyncio/transport/test_handshake.py::test_d_words_alerts_of_tls_speak_for_themselves",  # noqa: E501
    "session_settings_dropped": "_asyncio/transport/test_handshake.py::test_d_session_each_setting_works_as_in_ws_connect",  # noqa: E501
    "retry_after_ignored": "_asyncio/transport/test_socket.py::test_d_http_retry_after_counts_for_every_refusal",
    "waits_from_another_thread": "_asyncio/test_order.py::test_d_thread_calls_and_waits_from_another_thread_raise",
    "certificate_fails_for_a_while": "machines/test_client_fsm.py::test_d_http_a_certificate_that_did_verify_once_is_a_failed_attempt",  # noqa: E501
    "second_address_never_tried": "_asyncio/transport/test_resolver.py::test_net_addr_the_second_address_is_tried",
    "hanging_dns_takes_all_threads": "_asyncio/transport/test_resolver.py::test_net_dns_a_hanging_resolver_takes_no_thread_of_the_programs",  # noqa: E501
    "send_waits_for_others": "_asyncio/test_sending.py::test_d_send_returns_when_its_own_message_is_written",
    "junk_updates_burn_cpu": "_asyncio/transport/test_secrets.py::test_d_judged_words_that_are_not_shown_cost_nothing",
    "network_source_returns_none": "_asyncio/test_user_code.py::test_d_error_a_network_source_that_returns_no_function",
    "client_outlives_its_loop": "_asyncio/test_order.py::test_d_stop_a_client_that_outlived_its_loop_can_be_used_again",
    "connect_hangs_in_error": "_asyncio/test_connection.py::test_d_error_a_policy_or_guard_that_raises",
}
"""The other faults, and the test that fails with each."""
