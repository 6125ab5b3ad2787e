"""The machine of a room: what it does about every event, in every state. The table below *is* the behaviour.

A room is joined with a JoinRequest: as soon as there is a connection, again after each reconnect, and again after a
backoff of its own when the server does not answer. There are two rows of states. The upper one is for a room that was
never joined, the lower one for a room that was, so that the public status can say `connecting` or `reconnecting`:

    no connection      a request in flight      waits, then asks again
    queued             joining                  join_delayed                 → joined
    stale              rejoining                rejoin_delayed               → joined
                       resyncing                resync_delayed               → joined

The third row is for a room that compares versions again while it is joined (D-RESYNC), because an update was refused or
lost. It sends another JoinRequest on the same connection. The session goes on meanwhile: the status is `joined`, and
the server's updates are applied. The answer begins with what the server lacks, as every answer does. The room sends at
most one such request per `rejoin_interval`. Not counted are those that the program asks for, and those after a rate
limit, for which the room has its backoff.

**Doubt.** Once the server has refused an update of ours, it cannot use the later ones, which depend on it, though each
may get an Ack that says OK. The room is then *in doubt*: local edits stay in the document and are not sent, until a
comparison of versions has uploaded all that the server lacks. The room is synced once all of that has its Ack. If the
server refuses the upload of a comparison for good, no other follows: `refused_status` says why, and `synced()` raises
it. The next local edit leads to another comparison, as the server may decide otherwise then.

A room begins in `disconnected`, and returns to it when the client stops. `left` and `error` are final: the room is no
longer tracked, and joining it again makes a new room.

The driver (`_asyncio/room_driver.py`) fires events, one at a time. Each event is a method below. Its body only stores
what the event brings; its rows decide. A room costs its slots and nothing else: no Machine, task or timer of its own.
"""

from __future__ import annotations

from functools import lru_cache

from reconnect_fsm.effects import (
    AbandonRequest,
    DiscardUnsent,
    Effect,
    EndSession,
    FailWaiters,
    NotifyError,
    NotifyStatus,
    RequestJoin,
    SendLeave,
    StartTimer,
    StopTimer,
    Synchronise,
    Untrack,
    VersionChoice,
)
from reconnect_fsm.errors import ClientStopped, JoinRefused, RoomLeft, UpdatesRefused
from reconnect_fsm.loro_protocol.messages import JoinErrorCode, Permission, RoomErrorCode, UpdateStatusCode
from reconnect_fsm.machine import FSM, OTHERWISE, STAY, event, ignore, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import Cause, RoomStatus, StatusChange, StopKind

__all__ = ["RoomFSM"]

# An enum's members by name take as long to look up as a call: ten thousand rooms do so five times.
CONNECTING, JOINED, RECONNECTING = RoomStatus.CONNECTING, RoomStatus.JOINED, RoomStatus.RECONNECTING
DISCONNECTED = RoomStatus.DISCONNECTED

NO_ERROR = RoomLeft("the room was left")
PERMANENT_REFUSALS = (
    UpdateStatusCode.PERMISSION_DENIED,
    UpdateStatusCode.INVALID_UPDATE,
    UpdateStatusCode.PAYLOAD_TOO_LARGE,
    UpdateStatusCode.APP_ERROR,
)
"""The server refuses the updates themselves. It says UNKNOWN of any fault of its own, and RATE_LIMITED for a while."""
NEXT_VERSION = {VersionChoice.CURRENT: VersionChoice.ALTERNATIVE, VersionChoice.ALTERNATIVE: VersionChoice.EMPTY}


class RoomFSM(FSM[RoomStatus]):
    """Every decision of a room (JOIN, REJOIN and their D-clauses). Pure: events in, effects out."""

    __slots__ = (
        "attempt",
        "compared_at",
        "delay",
        "extra",
        "in_doubt",
        "joins",
        "last_error",
        "now",
        "pending_reason",
        "permission",
        "policy",
        "rate_limits_in_a_row",
        "reason",
        "refused_status",
        "server_version",
        "unauthorized",
        "update_status",
        "version",
        "waits_for_limit",
    )

    join_timeout = 10.0
    """Seconds that the server has to answer a JoinRequest (D-TIMEOUT)."""
    rejoin_interval = 30.0
    """Seconds between two comparisons that the server suggests (D-ROOMERR) or lost updates need (D-RESYNC)."""
    rate_limit_codes = frozenset({"429", "rate_limit", "rate_limited", "ratelimited", "too_many_requests"})
    """The app codes of a JoinError that mean "too often" (D-JOINERR), in small letters, with ``_`` for ``-``."""

    # States

    disconnected = state(
        RoomStatus.DISCONNECTED,
        enter="fail_waiters",
        doc="nothing: not asked for yet, or the client is stopped",
    )
    queued = state(
        RoomStatus.CONNECTING,
        doc="nothing sent yet: there is no connection, or its turn has not come",
    )
    joining = state(
        RoomStatus.CONNECTING,
        enter="request_join",
        exit="abandon_request",
        doc="a JoinRequest is in flight, with a deadline",
    )
    join_delayed = state(
        RoomStatus.CONNECTING,
        enter="start_retry_timer",
        exit="stop_retry_timer",
        doc="it will be asked for again when a timer runs out",
    )
    joined = state(
        RoomStatus.JOINED,
        enter="begin_session",
        doc="updates flow both ways",
    )
    resyncing = state(
        RoomStatus.JOINED,
        enter="request_join",
        exit="abandon_request",
        doc="the session goes on; a JoinRequest is in flight to compare versions, with a deadline",
    )
    resync_delayed = state(
        RoomStatus.JOINED,
        enter="start_retry_timer",
        exit="stop_retry_timer",
        doc="the session goes on; versions will be compared when a timer runs out",
    )
    stale = state(
        RoomStatus.RECONNECTING,
        doc="it was joined; the connection is gone, or its turn has not come",
    )
    rejoining = state(
        RoomStatus.RECONNECTING,
        enter="request_join",
        exit="abandon_request",
        doc="a JoinRequest is in flight, with a deadline",
    )
    rejoin_delayed = state(
        RoomStatus.RECONNECTING,
        enter="start_retry_timer",
        exit="stop_retry_timer",
        doc="it will be asked for again when a timer runs out",
    )
    left = state(
        RoomStatus.DISCONNECTED,
        enter="untrack",
        doc="nothing: the room was left, for good",
    )
    error = state(
        RoomStatus.ERROR,
        enter="untrack",
        doc="nothing: refused or evicted, for good",
    )

    initial = disconnected

    REQUESTING = (joining, rejoining, resyncing)
    DELAYED = (join_delayed, rejoin_delayed, resync_delayed)
    NOT_IN_SESSION = (join_delayed, rejoin_delayed)
    FIRST_TIME = (joining, join_delayed)
    ONCE_JOINED = (rejoining, rejoin_delayed)
    RESYNC = (resyncing, resync_delayed)
    SESSION = (joined, resyncing, resync_delayed)
    ON_CONNECTION = (joining, join_delayed, joined, resyncing, resync_delayed, rejoining, rejoin_delayed)
    FINAL = (left, error)

    # What it remembers

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        super().__init__()
        self.policy = policy or RetryPolicy()
        """Only its delays matter here: a room asks again for as long as the client is connected."""
        self.attempt = 0
        """How many requests in a row have failed on this connection."""
        self.delay = 0.0
        """Seconds that the present wait lasts."""
        self.version = VersionChoice.CURRENT
        """Which version the next JoinRequest carries (D-VERSION)."""
        self.permission: Permission = "read"
        """What the server's last answer permits."""
        self.server_version = b""
        """The version that the server's last answer said it has; b"" if it did not say."""
        self.extra = b""
        """The application's own data in the server's last answer."""
        self.compared_at: float | None = None
        """When versions were last compared within a session, or will be compared next."""
        self.joins = 0
        """How often it was joined, or its versions were compared."""
        self.in_doubt = False
        """The server refused an update of ours, and has not taken all that it lacks since (D-RESYNC)."""
        self.refused_status: UpdateStatusCode | None = None
        """The status with which the server refused the last upload for good; None if it did not."""
        self.rate_limits_in_a_row = 0
        """How many rate limits in a row the server has set."""
        self.waits_for_limit = False
        """Whether the present wait is for a rate limit."""
        self.now = 0.0
        """When the last event came that brought the time."""
        self.last_error: Exception = NO_ERROR
        """The last refusal or end: what `join`, `synced` and `resync` raise if the room ends."""
        self.unauthorized = False
        """Whether the auth function raised `Unauthorized` the last time it failed."""
        self.update_status = UpdateStatusCode.OK
        """The status of the updates that were last refused or lost."""
        self.pending_reason = "not asked for yet"
        """What the last event said. It becomes the reason if the event leads to another state."""
        self.reason = self.pending_reason
        """Why it is in its present state, in words."""

    @property
    def keeps_edits_back(self) -> bool:
        """Whether local edits are not sent now: they depend on refused ones, and the next comparison uploads both."""
        return self.in_doubt and (self.refused_status is not None or self.state != self.joined.name)

    # Guards

    def may_try_another_version(self) -> bool:
        """The server does not know the version that we sent, and there is another one to try."""
        return self.is_refused_with(JoinErrorCode.VERSION_UNKNOWN) and self.version in NEXT_VERSION

    def is_unauthorized(self) -> bool:
        """The auth function raised `Unauthorized`."""
        return self.unauthorized

    def is_join_limited(self) -> bool:
        """The server asks for fewer join requests."""
        code = self.last_error.app_code if isinstance(self.last_error, JoinRefused) else None
        return code is not None and code.lower().replace("-", "_") in self.rate_limit_codes

    def is_unspecified(self) -> bool:
        """The server does not say why it refused the room: it may be a fault of its own."""
        return self.is_refused_with(JoinErrorCode.UNKNOWN)

    def was_joined_before(self) -> bool:
        """It was joined before the present session or comparison."""
        return self.joins > 1

    def is_rejoin_suggested(self) -> bool:
        """The server evicted the room, and suggests to join again."""
        return self.is_refused_with(RoomErrorCode.REJOIN_SUGGESTED)

    def is_rejoin_due(self) -> bool:
        """The server suggests to join again, and versions were not compared within the last `rejoin_interval`."""
        return self.is_interval_over() and self.is_rejoin_suggested()

    def is_interval_over(self) -> bool:
        """Versions were not compared within the last `rejoin_interval`, but for requests of the program."""
        return self.compared_at is None or self.now - self.compared_at >= self.rejoin_interval

    def is_refused_for_good(self) -> bool:
        """The server refused the upload of a comparison, and would refuse it again."""
        return self.in_doubt and self.update_status in PERMANENT_REFUSALS

    def is_upload_limited(self) -> bool:
        """The server takes no more updates for the moment."""
        return self.update_status is UpdateStatusCode.RATE_LIMITED

    def is_upload_limited_again(self) -> bool:
        """It said so before, and the present wait is for that."""
        return self.is_upload_limited() and self.waits_for_limit

    def is_waiting_for_limit(self) -> bool:
        """The present wait is for a rate limit."""
        return self.waits_for_limit

    def is_too_large(self) -> bool:
        """The server's update is larger than this client takes."""
        return self.update_status is UpdateStatusCode.PAYLOAD_TOO_LARGE

    def is_doubt_over(self) -> bool:
        """Versions were compared since the refusal, and nothing of the upload was refused."""
        return self.in_doubt and self.refused_status is None

    def may_be_answered_late(self) -> bool:
        """A request on this connection has had no answer, which may still come."""
        return self.attempt > 0

    # Actions: each asks for effects, or changes the data of the guards

    def request_join(self) -> None:
        self.waits_for_limit = False
        is_current = self.version is VersionChoice.CURRENT
        self.emit(_request(self.version, b"" if is_current else self.server_version))
        self.emit(_timer(self.join_timeout))

    def abandon_request(self) -> None:
        self.emit(StopTimer())
        self.emit(AbandonRequest())

    def start_retry_timer(self) -> None:
        self.emit(StartTimer(self.delay))

    def stop_retry_timer(self) -> None:
        self.emit(StopTimer())

    def begin_session(self) -> None:
        """Every answer compares versions: the server decides anew on what it refused."""
        self.forget_attempts()
        self.joins += 1
        self.refused_status = None
        self.emit(Synchronise(self.permission, self.server_version, self.extra))

    def end_session(self) -> None:
        """A session lasts as long as the status is `joined`."""
        self.emit(EndSession())

    def begin_doubt(self) -> None:
        """D-RESYNC: send no edits until versions are compared, which uploads what is unsent, too."""
        self.in_doubt = True
        self.discard_unsent()

    def end_doubt(self) -> None:
        self.in_doubt = False
        self.rate_limits_in_a_row = 0

    def note_final_refusal(self) -> None:
        """D-RESYNC: the server would refuse the same again, so `synced()` raises it."""
        self.in_doubt = True
        if self.refused_status is None:  # listeners are notified once, until versions are compared again
            self.emit(NotifyError(UpdatesRefused(self.update_status)))
        self.refused_status = self.update_status

    def wait_out_limit(self) -> None:
        """D-JOINERR: wait for a rate limit, longer each time, and at least until the next comparison is due anyway."""
        self.rate_limits_in_a_row += 1
        due = 0.0 if self.compared_at is None else min(self.compared_at - self.now, self.rejoin_interval)
        self.delay = max(self.policy.delay(self.rate_limits_in_a_row), due)
        self.waits_for_limit = True

    def discard_unsent(self) -> None:
        """D-ACK: the next join uploads what is unsent; it need not be sent twice."""
        self.emit(DiscardUnsent())

    def send_leave(self) -> None:
        self.emit(SendLeave())

    def untrack(self) -> None:
        """First untracked, then waiters and listeners are notified: they can join the room again (D-ROOMERR)."""
        self.emit(Untrack())
        self.emit(FailWaiters(self.last_error))
        if not isinstance(self.last_error, RoomLeft):
            self.emit(NotifyError(self.last_error))

    def fail_waiters(self) -> None:
        """D-STOP: the client was stopped, so that no operation waits any longer."""
        self.emit(FailWaiters(self.last_error))

    def back_off(self) -> None:
        """D-TIMEOUT: ask again later, and later each time."""
        self.attempt += 1
        self.delay = self.policy.delay(self.attempt)

    def wait_out_interval(self) -> None:
        """D-ROOMERR: compare versions once the interval since the last comparison is over. D-JOINERR: never at once."""
        since = 0.0
        if self.compared_at is not None and not self.is_interval_over():
            since = max(self.now - self.compared_at, 0.0)
        self.delay = self.rejoin_interval - since
        self.compared_at = self.now + self.delay

    def back_off_unanswered(self) -> None:
        """D-TIMEOUT: the server did not answer in time."""
        self.pending_reason = f"no answer to the request to join within {self.join_timeout:g} s"
        self.back_off()

    def note_comparison(self) -> None:
        """D-ROOMERR D-RESYNC: versions are compared now; the next interval begins."""
        self.compared_at = self.now

    def forget_attempts(self) -> None:
        """The next request is without a backoff, and carries the current version."""
        self.attempt = 0
        self.version = VersionChoice.CURRENT

    def try_next_version(self) -> None:
        self.version = NEXT_VERSION[self.version]

    # The table: of each event, the first row whose guards pass decides
    # fmt: off

    @event(
        row(disconnected, to=queued, clause="JOIN-1 JOIN-3"),
        ignore(FINAL, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it is tracked already", clause="D-DEDUPE"),
    )
    def join_requested(self) -> None:
        """The program asked for the room: `join()`."""
        self.pending_reason = "asked to join"

    @event(
        row(queued,       to=joining,   clause="JOIN-1 OK-4"),
        row(stale,        to=rejoining, clause="REJOIN-2"),
        row(disconnected, to=joining,   clause="D-STOP"),
        ignore(FINAL, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it has been asked for on this connection"),
    )
    def connection_opened(self, why: str) -> None:
        """The client is connected, and the join limiter admits the room."""
        self.pending_reason = why

    @event(
        row(FIRST_TIME,  to=queued, do=forget_attempts,                   clause="D-INTENT"),
        row(SESSION,     to=stale,  do=(discard_unsent, forget_attempts), clause="REJOIN-2 D-ACK"),
        row(ONCE_JOINED, to=stale,  do=forget_attempts,                   clause="REJOIN-2"),
        ignore(FINAL, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it knows that there is no connection"),
    )
    def connection_lost(self, why: str, cause: Cause | None = None) -> None:
        """The connection is gone; the client sees to a new one."""
        self.pending_reason, self.pending_cause = why, cause

    @event(
        ignore(FINAL, because="the room is no longer tracked"),
        ignore(disconnected, because="it knows that the client is stopped"),
        row(OTHERWISE, to=disconnected, do=forget_attempts, clause="D-STOP"),
    )
    def client_stopped(self, why: str, cause: Cause | None = None, stop: StopKind | None = None) -> None:
        """The client stopped: closed, refused for good, out of attempts, or in error."""
        self.pending_reason, self.pending_cause = why, cause
        self.last_error = ClientStopped(why, cause, stop)

    @event(
        row(disconnected, to=queued, clause="D-STOP"),
        ignore(FINAL, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it is waiting for a connection already"),
    )
    def client_started(self, why: str) -> None:
        """The client was started, or started again."""
        self.pending_reason = why

    @event(
        row(REQUESTING, to=joined,                            clause="OK-4"),
        ignore(resync_delayed, when=is_waiting_for_limit, because="it would upload too early", clause="D-JOINERR"),
        row(DELAYED,    to=joined, when=may_be_answered_late, clause="OK-4"),
        ignore(joined, because="it is joined already"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def join_accepted(self, permission: Permission, version: bytes, extra: bytes = b"") -> None:
        """The server answered with a JoinResponseOk: what it permits, its version, and the application's own data."""
        self.pending_reason = "joined"
        self.permission, self.server_version, self.extra = permission, version, extra

    @event(
        row(joining,   to=joining,   when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(rejoining, to=rejoining, when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(resyncing, to=resyncing, when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        ignore(DELAYED, unless=may_be_answered_late, because="it was not asked for since it was evicted"),
        row(DELAYED,   to=STAY,      when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(joining,   to=join_delayed,   when=is_join_limited, do=back_off,          clause="D-JOINERR"),
        row(rejoining, to=rejoin_delayed, when=is_join_limited, do=back_off,          clause="D-JOINERR"),
        row(resyncing, to=resync_delayed, when=is_join_limited, do=back_off,          clause="D-JOINERR"),
        row(joined,    to=resync_delayed, when=is_join_limited, do=wait_out_interval, clause="D-JOINERR"),
        ignore(DELAYED, when=is_join_limited, because="it waits already", clause="D-JOINERR"),
        row(rejoining, to=rejoin_delayed, when=is_unspecified,  do=back_off,          clause="D-JOINERR"),
        row(resyncing, to=resync_delayed, when=is_unspecified,  do=back_off,          clause="D-JOINERR"),
        row(joined,    to=resync_delayed, when=(is_unspecified, was_joined_before), do=wait_out_interval,
            clause="D-JOINERR"),
        ignore((rejoin_delayed, resync_delayed), when=is_unspecified, because="it waits already", clause="D-JOINERR"),
        row(REQUESTING, to=error,                                                          clause="REJOIN-3 OK-4"),
        row(DELAYED,    to=error,                                                          clause="REJOIN-3"),
        row(joined,     to=error,                                                          clause="D-ROOMERR"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def join_refused(self, refusal: JoinRefused, now: float = 0.0, version: bytes = b"") -> None:
        """The server answered with a JoinError, at time ``now`` in seconds; ``version`` is the server's, if it said."""
        self.server_version = version
        self.last_error = self.pending_cause = refusal
        self.pending_reason = str(refusal)
        self.now = now

    @event(
        row(REQUESTING, to=error,          when=is_unauthorized, clause="D-INTENT REJOIN-3"),
        row(joining,    to=join_delayed,   do=back_off,          clause="D-INTENT"),
        row(rejoining,  to=rejoin_delayed, do=back_off,          clause="D-INTENT"),
        row(resyncing,  to=resync_delayed, do=back_off,          clause="D-INTENT"),
        ignore(OTHERWISE, because="no request waits for credentials"),
    )
    def credentials_failed(self, what: str, unauthorized: bool) -> None:
        """The auth function raised."""
        self.pending_reason = what
        self.unauthorized = unauthorized
        self.last_error = self.pending_cause = JoinRefused(None, what)

    @event(
        row(joining,        to=join_delayed,   do=back_off_unanswered, clause="D-TIMEOUT"),
        row(rejoining,      to=rejoin_delayed, do=back_off_unanswered, clause="D-TIMEOUT"),
        row(resyncing,      to=resync_delayed, do=back_off_unanswered, clause="D-TIMEOUT"),
        row(join_delayed,   to=joining,                                clause="D-TIMEOUT"),
        row(rejoin_delayed, to=rejoining,                              clause="D-TIMEOUT D-ROOMERR"),
        row(resync_delayed, to=resyncing,                              clause="D-TIMEOUT D-RESYNC"),
        ignore(OTHERWISE, because="no timer is running"),
    )
    def timer_fired(self) -> None:
        """The server's time to answer, or the wait before the next request, is over."""
        self.pending_reason = self.reason

    @event(
        row(joined, to=resyncing,      when=is_rejoin_due,       do=(begin_doubt, note_comparison), clause="D-ROOMERR"),
        row(joined, to=resync_delayed, when=is_rejoin_suggested, do=(begin_doubt, wait_out_interval),
            clause="D-ROOMERR"),
        row(resync_delayed, to=STAY,   when=is_rejoin_suggested, do=begin_doubt,                    clause="D-ROOMERR"),
        ignore(REQUESTING + NOT_IN_SESSION, when=is_rejoin_suggested, because="it is being asked for already"),
        row(ON_CONNECTION, to=error,                                                                clause="D-ROOMERR"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def evicted(self, refusal: JoinRefused, now: float) -> None:
        """The server sent a RoomError, at time ``now`` in seconds."""
        self.last_error = self.pending_cause = refusal
        self.pending_reason = str(refusal)
        self.now = now

    @event(
        row(joined, to=resyncing, when=is_interval_over, do=(begin_doubt, note_comparison), clause="D-ACK D-RESYNC"),
        row(joined, to=resync_delayed, do=(begin_doubt, wait_out_interval),                 clause="D-ACK D-RESYNC"),
        row(RESYNC, to=STAY,           do=begin_doubt,                                      clause="D-ACK D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def acks_overdue(self, now: float) -> None:
        """At time ``now`` in seconds, more updates wait for an Ack than are kept. A comparison supersedes them."""
        self.pending_reason = "too many updates without an Ack"
        self.now = now

    @event(
        row((joined, resyncing), to=resync_delayed, when=is_upload_limited, do=(begin_doubt, wait_out_limit),
            clause="D-JOINERR"),
        ignore(resync_delayed, when=is_upload_limited_again, because="it waits for that already", clause="D-JOINERR"),
        row(resync_delayed, to=resync_delayed, when=is_upload_limited, do=(begin_doubt, wait_out_limit),
            clause="D-JOINERR"),
        row(RESYNC, to=STAY,                                   do=begin_doubt,                    clause="D-RESYNC"),
        row(joined, to=STAY,      when=is_refused_for_good,    do=note_final_refusal,             clause="D-RESYNC"),
        row(joined, to=resyncing, when=is_interval_over,       do=(begin_doubt, note_comparison), clause="D-RESYNC"),
        row(joined, to=resync_delayed,                        do=(begin_doubt, wait_out_interval), clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def batch_refused(self, status: UpdateStatusCode, why: str, now: float) -> None:
        """The server refused a batch of updates of ours, at time ``now`` in seconds."""
        self.update_status = status
        self.pending_reason = why
        self.now = now

    @event(
        row(SESSION, to=STAY, do=note_final_refusal, clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def upload_refused(self, status: UpdateStatusCode) -> None:
        """What the server lacks cannot be sent, now or later: we may only read, or it is too large."""
        self.update_status = status

    @event(
        row(joined, to=resyncing,      when=is_interval_over, do=note_comparison,   clause="D-RESYNC"),
        row(joined, to=resync_delayed,                        do=wait_out_interval, clause="D-RESYNC"),
        ignore(RESYNC, because="the next comparison of versions uploads it"),
        ignore(OTHERWISE, because="there is no session; the next one begins with it"),
    )
    def edited_in_doubt(self, now: float) -> None:
        """There is a local edit, at time ``now`` in seconds, on top of updates that were refused for good."""
        self.pending_reason = "an edit on top of updates that the server refused"
        self.now = now

    @event(
        row(joined, to=STAY, when=is_doubt_over, do=end_doubt, clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no doubt, or it goes on"),
    )
    def acks_complete(self) -> None:
        """All that was sent has its Ack, and nothing is left to be sent."""

    @event(
        row(joined, to=resyncing,      when=is_interval_over, do=note_comparison,   clause="D-RESYNC"),
        ignore(joined, when=is_too_large, because="it was too large just now, and will be again", clause="D-RESYNC"),
        row(joined, to=resync_delayed,                        do=wait_out_interval, clause="D-RESYNC"),
        ignore(RESYNC, because="versions are about to be compared"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def updates_lost(self, status: UpdateStatusCode, why: str, now: float) -> None:
        """An update of the server's could not be applied, never came whole, or depends on one that has not come.

        ``status`` is that of the Ack we sent, OK if we sent none; ``now`` the time in seconds. Later updates depend on
        it.
        """
        self.update_status = status
        self.pending_reason = why
        self.now = now

    @event(
        row((joined, resync_delayed), to=resyncing, clause="D-RESYNC"),
        ignore(resyncing, because="versions are being compared"),
        ignore(OTHERWISE, because="it is not joined: the join compares versions"),
    )
    def resync_requested(self) -> None:
        """The program asked for a comparison: `resync()`."""
        self.pending_reason = "asked to compare versions"

    @event(
        ignore(FINAL, because="the room is no longer tracked"),
        row(ON_CONNECTION, to=left, do=send_leave, clause="D-LEAVE"),
        row(OTHERWISE,     to=left,                clause="D-LEAVE"),
    )
    def leave_requested(self) -> None:
        """The program asked to leave: `leave()`."""
        self.pending_reason = "left by this program"
        self.last_error = RoomLeft("leave() was called on the room while this operation waited for it")

    @event(
        ignore(FINAL, because="the room is no longer tracked"),
        row(ON_CONNECTION, to=error, do=send_leave, clause="D-ERROR"),
        row(OTHERWISE,     to=error,                clause="D-ERROR"),
    )
    def faulted(self, what: str) -> None:
        """The adaptor, a guard, or other code of this program raised."""
        self.pending_reason = what
        self.last_error = self.pending_cause = JoinRefused(None, what)

    # fmt: on

    # Helpers

    def is_refused_with(self, code: int) -> bool:
        return isinstance(self.last_error, JoinRefused) and self.last_error.code == code

    def last_resort(self, reason: str, old: RoomStatus) -> list[Effect]:
        self.pending_reason = self.reason = reason
        self.last_error = self.pending_cause = JoinRefused(None, reason)
        change = StatusChange(old, self.status, reason, self.pending_cause)
        return [
            Untrack(),
            FailWaiters(self.last_error),
            NotifyError(self.last_error),
            *([NotifyStatus(change)] if self.status != old else []),
        ]

    def state_changed(self) -> None:
        self.reason = self.pending_reason

    def status_changed(self, old: RoomStatus, new: RoomStatus) -> None:
        if old is JOINED:
            self.end_session()
        stop = retry_in = None
        attempt = 0
        if new is CONNECTING or new is RECONNECTING:
            attempt = self.attempt
            retry_in = self.delay if self.state in WAITS else None
        if new is DISCONNECTED and isinstance(self.last_error, ClientStopped):
            stop = self.last_error.stop
        self.emit(_notify_status(old, new, self.pending_reason, self.pending_cause, stop, attempt, retry_in))


WAITS = (RoomFSM.join_delayed.name, RoomFSM.rejoin_delayed.name)


@lru_cache(maxsize=16)
def _request(version: VersionChoice, server_version: bytes) -> RequestJoin:
    """Shared: ten thousand rooms send the same."""
    return RequestJoin(version, server_version)


@lru_cache(maxsize=16)
def _timer(seconds: float) -> StartTimer:
    return StartTimer(seconds)


@lru_cache(maxsize=64)
def _notify_status(
    old: RoomStatus,
    new: RoomStatus,
    reason: str,
    cause: Cause | None,
    stop: StopKind | None,
    attempt: int,
    retry_in: float | None,
) -> NotifyStatus:
    """Shared: ten thousand rooms that are joined notify their listeners of the same."""
    return NotifyStatus(StatusChange(old, new, reason, cause, stop, attempt, retry_in))
