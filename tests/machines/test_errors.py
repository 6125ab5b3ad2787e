"""The errors: whose doing each one is, and what it says."""

from __future__ import annotations

import pytest

from reconnect_fsm import errors
from reconnect_fsm.errors import ClientStopped, JoinRefused, ReconnectError, UpdatesRefused, copy_error
from reconnect_fsm.loro_protocol import UpdateStatusCode
from reconnect_fsm.status import CloseInfo, StopKind


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_one_root(name: str) -> None:
    """So that one ``except`` catches whatever this package raises on purpose."""
    assert issubclass(getattr(errors, name), ReconnectError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [("InvalidURL", ValueError), ("ProtocolError", ValueError), ("MachineDefinitionError", TypeError)],
)
def test_wrong_values_are_value_errors_too(error: str, builtin: type[Exception]) -> None:
    """Whoever knows nothing of this package catches what it raises for wrong arguments and wrong bytes."""
    assert issubclass(getattr(errors, error), builtin)


def test_d_stop_a_stopped_client_says_why_and_what_to_do() -> None:
    """D-STOP: in words, and the reason alone for a program."""
    error = ClientStopped("closed by this program")
    assert str(error) == "the client stopped: closed by this program (connect() or retry_now() starts it again)"
    assert error.reason == "closed by this program"
    assert (error.cause, error.stop) == (None, None)


def test_d_cause_a_stopped_client_says_why_as_data() -> None:
    """D-CAUSE: a program compares kinds and codes, not words; each waiter's copy has them too."""
    cause = CloseInfo(4401, "expired")
    error = copy_error(ClientStopped("closed with code 4401: expired", cause, StopKind.REFUSED))
    assert (error.cause, error.stop) == (cause, StopKind.REFUSED)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (JoinRefused(2, "who are you?"), "the server refused the room: who are you? (JoinError 0x02)"),
        (JoinRefused(0x7F, "", "full"), "the server refused the room: no reason given (JoinError 0x7f, full)"),
        (JoinRefused(0x7F, "x", ""), "the server refused the room: x (JoinError 0x7f, )"),
        (JoinRefused(2, "out", evicted=True), "the server put us out of the room: out (RoomError 0x02)"),
        (JoinRefused(None, "no token"), "this program refused the room: no token"),
        (JoinRefused(None, "it raised", evicted=True), "this program put us out of the room: it raised"),
    ],
)
def test_rejoin_3_a_refusal_says_whose_it_is_and_why(error: JoinRefused, words: str) -> None:
    """REJOIN-3: the server's or our own, in its words if it gave any, with its codes."""
    assert str(error) == words


def test_rejoin_3_a_refusal_can_be_told_by_its_codes() -> None:
    """REJOIN-3: a program compares numbers, not words."""
    error = JoinRefused(0x7F, "no seat left", "full")
    assert (error.code, error.message, error.app_code) == (0x7F, "no seat left", "full")
    assert JoinRefused(0, "no").app_code is None


def test_d_resync_updates_that_are_refused_say_which_way_in_words_and_as_data() -> None:
    """D-RESYNC: whoever is synced has to know; each waiter's copy has it too."""
    error = copy_error(UpdatesRefused(UpdateStatusCode.PERMISSION_DENIED))
    assert str(error) == "the server lacks updates of this document and refuses them: PERMISSION_DENIED"
    assert error.status is UpdateStatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "error",
    [JoinRefused(0x7F, "no seat left", "full", evicted=True), ClientStopped("closed"), KeyError("mine", 7)],
)
def test_a_twin_is_the_same_and_another(error: Exception) -> None:
    """In type, words and attributes; what happens to it does not happen to the first."""
    again = copy_error(error)
    assert again is not error
    assert (type(again), again.args, str(again), vars(again)) == (type(error), error.args, str(error), vars(error))
    again.add_note("raised")
    with pytest.raises(type(error)):
        raise again
    assert error.__traceback__ is None
    assert not hasattr(error, "__notes__")
