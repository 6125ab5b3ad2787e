"""The machine of a room: what it does about every fact, in every state. The table below *is* the behaviour.

How it works. A room is asked for with a JoinRequest as soon as there is a connection, again after each reconnect, and
again with a backoff of its own when the server does not answer. Two rows of states mirror each other: the upper one is
for a room that was never joined, the lower one for a room that was, so that the outside can tell them apart:

    no connection      being asked for      waits, then asks again
    queued             joining              join_delayed                 → joined
    stale              rejoining            rejoin_delayed               → joined
                       resyncing            resync_delayed               → joined

The third row is for a room that compares versions again while it is joined (D-RESYNC): an update was refused, by the
server or by us, or one is missing. It asks with another JoinRequest on the same connection. The session goes on: the
room is `joined` for all who look at it, what the others write is applied, and the answer begins with what the server
lacks, as every answer does. At most one such request is made per `rejoin_interval`, but for those of the user, and a
rate limit, which is waited for with the backoff of the room.

**Doubt.** Once the server has refused an update of ours, the later ones, which depend on it, are of no use to the
others, though each may get an Ack that says OK. The room is then *in doubt*: the driver keeps local edits back (they
are in the document) until a comparison has uploaded all that the server lacks, and is synced only when all of that has
its Ack. If what a comparison uploads is refused for good, that is the end of it: `refused` says why, and `synced()`
raises it. The next local edit leads to another comparison, as the server may have changed its mind.

`disconnected` is where a room begins, and where it is kept while the client is stopped. `left` and `error` are final:
the room is no longer tracked, and joining it again makes a new room.

The driver (rooms.py) tells it facts, one at a time. Each fact is a method below; its body only remembers what the fact
tells, its rows decide. A room costs its slots and nothing else: no Machine, task or timer of its own.
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

NOT_REFUSED = RoomLeft("the room was left")
FOR_GOOD = (
    UpdateStatusCode.PERMISSION_DENIED,
    UpdateStatusCode.INVALID_UPDATE,
    UpdateStatusCode.PAYLOAD_TOO_LARGE,
    UpdateStatusCode.APP_ERROR,
)
"""Refusals that speak of the updates, not of the moment; servers say UNKNOWN of any fault of their own."""
NEXT_VERSION = {VersionChoice.CURRENT: VersionChoice.ALTERNATIVE, VersionChoice.ALTERNATIVE: VersionChoice.EMPTY}


class RoomFSM(FSM[RoomStatus]):
    """Every decision of a room (JOIN, REJOIN and their D-clauses). Pure: facts in, effects out."""

    __slots__ = (
        "attempt",
        "batch_status",
        "delay",
        "extra",
        "in_doubt",
        "joins",
        "now",
        "pending_reason",
        "permission",
        "policy",
        "reason",
        "refusal",
        "refused",
        "server_version",
        "setbacks",
        "suggested_at",
        "unauthorized",
        "version",
        "waits_for_limit",
    )

    join_timeout = 10.0
    """Seconds that the server has to answer a JoinRequest (D-TIMEOUT)."""
    rejoin_interval = 30.0
    """Seconds between two comparisons that the server suggests (D-ROOMERR), or that lost updates need (D-RESYNC)."""
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
        enter="ask",
        exit="stop_asking",
        doc="a JoinRequest is in flight, with a deadline",
    )
    join_delayed = state(
        RoomStatus.CONNECTING,
        enter="wait",
        exit="stop_timer",
        doc="it will be asked for again when a timer runs out",
    )
    joined = state(
        RoomStatus.JOINED,
        enter="begin_session",
        doc="updates flow both ways",
    )
    resyncing = state(
        RoomStatus.JOINED,
        enter="ask",
        exit="stop_asking",
        doc="the session goes on; a JoinRequest is in flight to compare versions, with a deadline",
    )
    resync_delayed = state(
        RoomStatus.JOINED,
        enter="wait",
        exit="stop_timer",
        doc="the session goes on; versions will be compared when a timer runs out",
    )
    stale = state(
        RoomStatus.RECONNECTING,
        doc="it was joined; the connection is gone, or its turn has not come",
    )
    rejoining = state(
        RoomStatus.RECONNECTING,
        enter="ask",
        exit="stop_asking",
        doc="a JoinRequest is in flight, with a deadline",
    )
    rejoin_delayed = state(
        RoomStatus.RECONNECTING,
        enter="wait",
        exit="stop_timer",
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

    ASKING = (joining, rejoining, resyncing)
    DELAYED = (join_delayed, rejoin_delayed, resync_delayed)
    NOT_IN_SESSION = (join_delayed, rejoin_delayed)
    FIRST_TIME = (joining, join_delayed)
    ONCE_JOINED = (rejoining, rejoin_delayed)
    RESYNC = (resyncing, resync_delayed)
    SESSION = (joined, resyncing, resync_delayed)
    ONLINE = (joining, join_delayed, joined, resyncing, resync_delayed, rejoining, rejoin_delayed)
    OVER = (left, error)

    # What it remembers

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        super().__init__()
        self.policy = policy or RetryPolicy()
        """Only its delays matter here: a room asks again for as long as the client is connected."""
        self.attempt = 0
        """How often in a row it was asked for in vain on this connection."""
        self.delay = 0.0
        """Seconds that the present wait lasts."""
        self.version = VersionChoice.CURRENT
        """Which version the next JoinRequest carries."""
        self.permission: Permission = "read"
        """What the server's last answer lets us do."""
        self.server_version = b""
        """What the server said last that it has; b"" if it did not say."""
        self.extra = b""
        """What the server's last answer carried besides: the application's own."""
        self.suggested_at: float | None = None
        """When versions were last compared within a session, or will be once the interval is over."""
        self.joins = 0
        """How often the server let us in."""
        self.in_doubt = False
        """An update of ours was refused, and what the server lacks has not all been taken since (D-RESYNC)."""
        self.refused: UpdateStatusCode | None = None
        """What the last comparison uploaded was refused for good, with this status; None if it was not."""
        self.setbacks = 0
        """How many rate limits there were in a row."""
        self.waits_for_limit = False
        """Whether the present wait is for a rate limit."""
        self.now = 0.0
        self.refusal: Exception = NOT_REFUSED
        """What those who wait for this room are told when it ends."""
        self.unauthorized = False
        self.batch_status = UpdateStatusCode.OK
        self.pending_reason = "not asked for yet"
        self.reason = self.pending_reason
        """Why it is in its present state, in words."""

    @property
    def keeps_edits_back(self) -> bool:
        """Local edits are not sent now: they depend on what was refused, and the next comparison brings them."""
        return self.in_doubt and (self.refused is not None or self.state != self.joined.name)

    # Guards

    def may_try_another_version(self) -> bool:
        """The server does not know the version that we sent, and there is one left that was not tried."""
        return self.is_refused_with(JoinErrorCode.VERSION_UNKNOWN) and self.version in NEXT_VERSION

    def is_unauthorized(self) -> bool:
        """The auth callable raised `Unauthorized`."""
        return self.unauthorized

    def is_limited(self) -> bool:
        """The server asks us to join less often."""
        code = self.refusal.app_code if isinstance(self.refusal, JoinRefused) else None
        return code is not None and code.lower().replace("-", "_") in self.rate_limit_codes

    def is_unspecified(self) -> bool:
        """The server does not say why: any fault of its own may be meant."""
        return self.is_refused_with(JoinErrorCode.UNKNOWN)

    def was_good(self) -> bool:
        """It was joined before the present session or comparison."""
        return self.joins > 1

    def is_rejoin_suggested(self) -> bool:
        """The server put us out, but suggests to come back."""
        return self.is_refused_with(RoomErrorCode.REJOIN_SUGGESTED)

    def is_rejoin_due(self) -> bool:
        """The server suggests to come back, and no such suggestion was followed within the last `rejoin_interval`."""
        return self.is_interval_over() and self.is_rejoin_suggested()

    def is_interval_over(self) -> bool:
        """Versions were not compared for such a reason within the last `rejoin_interval`."""
        return self.suggested_at is None or self.now - self.suggested_at >= self.rejoin_interval

    def is_refused_for_good(self) -> bool:
        """What a comparison has uploaded was refused, and not for the moment only."""
        return self.in_doubt and self.batch_status in FOR_GOOD

    def is_rate_limited(self) -> bool:
        """The server takes no more updates for the moment."""
        return self.batch_status is UpdateStatusCode.RATE_LIMITED

    def is_rate_limited_again(self) -> bool:
        """So it said before, and that is what the present wait is for."""
        return self.is_rate_limited() and self.waits_for_limit

    def is_waiting_for_limit(self) -> bool:
        """The present wait is for a rate limit."""
        return self.waits_for_limit

    def is_too_large(self) -> bool:
        """The update is larger than we take."""
        return self.batch_status is UpdateStatusCode.PAYLOAD_TOO_LARGE

    def is_doubt_over(self) -> bool:
        """A comparison was made since the refusal, and nothing of what it uploaded was refused."""
        return self.in_doubt and self.refused is None

    def was_asked(self) -> bool:
        """A request was made in vain, so that its answer may still come."""
        return self.attempt > 0

    def is_unasked(self) -> bool:
        """Nothing was asked on this connection that could be answered."""
        return not self.was_asked()

    # Actions: each asks for effects, or changes the data of the guards

    def ask(self) -> None:
        self.waits_for_limit = False
        is_current = self.version is VersionChoice.CURRENT
        self.emit(_request(self.version, b"" if is_current else self.server_version))
        self.emit(_timer(self.join_timeout))

    def stop_asking(self) -> None:
        self.emit(StopTimer())
        self.emit(AbandonRequest())

    def wait(self) -> None:
        self.emit(StartTimer(self.delay))

    def stop_timer(self) -> None:
        self.emit(StopTimer())

    def begin_session(self) -> None:
        """Every answer compares versions: what was refused before is judged anew."""
        self.begin_anew()
        self.joins += 1
        self.refused = None
        self.emit(Synchronise(self.permission, self.server_version, self.extra))

    def end_session(self) -> None:
        """It lasts for as long as the status is `joined`, in whichever states."""
        self.emit(EndSession())

    def doubt(self) -> None:
        """D-RESYNC: later edits are of no use until versions are compared, which brings what is not written yet."""
        self.in_doubt = True
        self.discard_unsent()

    def end_doubt(self) -> None:
        self.in_doubt = False
        self.setbacks = 0

    def refuse_for_good(self) -> None:
        """D-RESYNC: the same would be refused again, so `synced()` raises it."""
        self.in_doubt = True
        if self.refused is None:  # listeners hear of it once, until versions are compared again
            self.emit(NotifyError(UpdatesRefused(self.batch_status)))
        self.refused = self.batch_status

    def wait_out_limit(self) -> None:
        """D-JOINERR: a rate limit is waited for, longer each time, and no shorter than what was waited for already."""
        self.setbacks += 1
        due = 0.0 if self.suggested_at is None else min(self.suggested_at - self.now, self.rejoin_interval)
        self.delay = max(self.policy.delay(self.setbacks), due)
        self.waits_for_limit = True

    def discard_unsent(self) -> None:
        """D-ACK: what is not written yet comes with the next join, and need not come twice."""
        self.emit(DiscardUnsent())

    def send_leave(self) -> None:
        self.emit(SendLeave())

    def untrack(self) -> None:
        """Untracked first, then the waiters and listeners hear of it: whoever hears can join again (D-ROOMERR)."""
        self.emit(Untrack())
        self.emit(FailWaiters(self.refusal))
        if not isinstance(self.refusal, RoomLeft):
            self.emit(NotifyError(self.refusal))

    def fail_waiters(self) -> None:
        """D-STOP: the client was stopped, and nobody is left waiting."""
        self.emit(FailWaiters(self.refusal))

    def back_off(self) -> None:
        """D-TIMEOUT: ask again later, and later each time."""
        self.attempt += 1
        self.delay = self.policy.delay(self.attempt)

    def keep_the_interval(self) -> None:
        """D-ROOMERR: compare versions once the interval since the last comparison is over. D-JOINERR: never at once."""
        since = 0.0
        if self.suggested_at is not None and not self.is_interval_over():
            since = max(self.now - self.suggested_at, 0.0)
        self.delay = self.rejoin_interval - since
        self.suggested_at = self.now + self.delay

    def miss_answer(self) -> None:
        """D-TIMEOUT: the server had its time."""
        self.pending_reason = f"no answer to the request to join within {self.join_timeout:g} s"
        self.back_off()

    def follow_suggestion(self) -> None:
        self.suggested_at = self.now

    def begin_anew(self) -> None:
        self.attempt = 0
        self.version = VersionChoice.CURRENT

    def try_next_version(self) -> None:
        self.version = NEXT_VERSION[self.version]

    # The table: for each fact, the first row whose guards pass
    # fmt: off

    @event(
        row(disconnected, to=queued, clause="JOIN-1 JOIN-3"),
        ignore(OVER, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it is tracked already", clause="D-DEDUPE"),
    )
    def join_requested(self) -> None:
        """Somebody asked for the room: `join()`."""
        self.pending_reason = "asked to join"

    @event(
        row(queued,       to=joining,   clause="JOIN-1 OK-4"),
        row(stale,        to=rejoining, clause="REJOIN-2"),
        row(disconnected, to=joining,   clause="D-STOP"),
        ignore(OVER, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it has been asked for on this connection"),
    )
    def connection_opened(self, why: str) -> None:
        """The client is connected, and it is the room's turn to be asked for."""
        self.pending_reason = why

    @event(
        row(FIRST_TIME,  to=queued, do=begin_anew,              clause="D-INTENT"),
        row(SESSION,     to=stale,  do=(discard_unsent, begin_anew), clause="REJOIN-2 D-ACK"),
        row(ONCE_JOINED, to=stale,  do=begin_anew,              clause="REJOIN-2"),
        ignore(OVER, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it knows that there is no connection"),
    )
    def connection_lost(self, why: str, cause: Cause | None = None) -> None:
        """The connection is gone; the client sees to a new one."""
        self.pending_reason, self.pending_cause = why, cause

    @event(
        ignore(OVER, because="the room is no longer tracked"),
        ignore(disconnected, because="it knows that the client is stopped"),
        row(OTHERWISE, to=disconnected, do=begin_anew, clause="D-STOP"),
    )
    def client_stopped(self, why: str, cause: Cause | None = None, stop: StopKind | None = None) -> None:
        """The client stopped: closed, refused for good, out of attempts, or in error."""
        self.pending_reason, self.pending_cause = why, cause
        self.refusal = ClientStopped(why, cause, stop)

    @event(
        row(disconnected, to=queued, clause="D-STOP"),
        ignore(OVER, because="the room is no longer tracked"),
        ignore(OTHERWISE, because="it is waiting for a connection already"),
    )
    def client_started(self, why: str) -> None:
        """The client was started, or started again."""
        self.pending_reason = why

    @event(
        row(ASKING,  to=joined,                 clause="OK-4"),
        ignore(resync_delayed, when=is_waiting_for_limit, because="it would upload too early", clause="D-JOINERR"),
        row(DELAYED, to=joined, when=was_asked, clause="OK-4"),
        ignore(joined, because="it is joined already"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def join_accepted(self, permission: Permission, version: bytes, extra: bytes = b"") -> None:
        """The server answered with a JoinResponseOk: what it lets us do, what it has, and the application's own."""
        self.pending_reason = "joined"
        self.permission, self.server_version, self.extra = permission, version, extra

    @event(
        row(joining,   to=joining,   when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(rejoining, to=rejoining, when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(resyncing, to=resyncing, when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        ignore(DELAYED, when=is_unasked, because="nothing was asked since it was put out"),
        row(DELAYED,   to=STAY,      when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(joining,   to=join_delayed,   when=is_limited,     do=back_off, clause="D-JOINERR"),
        row(rejoining, to=rejoin_delayed, when=is_limited,     do=back_off, clause="D-JOINERR"),
        row(resyncing, to=resync_delayed, when=is_limited,     do=back_off, clause="D-JOINERR"),
        row(joined,    to=resync_delayed, when=is_limited,     do=keep_the_interval, clause="D-JOINERR"),
        ignore(DELAYED, when=is_limited, because="it waits already", clause="D-JOINERR"),
        row(rejoining, to=rejoin_delayed, when=is_unspecified, do=back_off, clause="D-JOINERR"),
        row(resyncing, to=resync_delayed, when=is_unspecified, do=back_off, clause="D-JOINERR"),
        row(joined,    to=resync_delayed, when=(is_unspecified, was_good), do=keep_the_interval, clause="D-JOINERR"),
        ignore((rejoin_delayed, resync_delayed), when=is_unspecified, because="it waits already", clause="D-JOINERR"),
        row(ASKING,    to=error,                                                        clause="REJOIN-3 OK-4"),
        row(DELAYED,   to=error,                                                        clause="REJOIN-3"),
        row(joined,    to=error,                                                        clause="D-ROOMERR"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def join_refused(self, refusal: JoinRefused, now: float = 0.0, version: bytes = b"") -> None:
        """The server answered with a JoinError, at time ``now`` in seconds; ``version`` is what it said it has."""
        self.server_version = version
        self.refusal = self.pending_cause = refusal
        self.pending_reason = str(refusal)
        self.now = now

    @event(
        row(ASKING,    to=error,          when=is_unauthorized,              clause="D-INTENT REJOIN-3"),
        row(joining,   to=join_delayed,                         do=back_off, clause="D-INTENT"),
        row(rejoining, to=rejoin_delayed,                       do=back_off, clause="D-INTENT"),
        row(resyncing, to=resync_delayed,                       do=back_off, clause="D-INTENT"),
        ignore(OTHERWISE, because="nobody waits for credentials"),
    )
    def credentials_failed(self, what: str, unauthorized: bool) -> None:
        """The auth callable raised."""
        self.pending_reason = what
        self.unauthorized = unauthorized
        self.refusal = self.pending_cause = JoinRefused(None, what)

    @event(
        row(joining,        to=join_delayed,   do=miss_answer, clause="D-TIMEOUT"),  # no answer
        row(rejoining,      to=rejoin_delayed, do=miss_answer, clause="D-TIMEOUT"),  # no answer
        row(resyncing,      to=resync_delayed, do=miss_answer, clause="D-TIMEOUT"),  # no answer
        row(join_delayed,   to=joining,                        clause="D-TIMEOUT"),
        row(rejoin_delayed, to=rejoining,                      clause="D-TIMEOUT D-ROOMERR"),
        row(resync_delayed, to=resyncing,                      clause="D-TIMEOUT D-RESYNC"),
        ignore(OTHERWISE, because="no timer is running"),
    )
    def timer_fired(self) -> None:
        """The server's time to answer, or the wait before asking again, is over."""
        self.pending_reason = self.reason

    @event(
        row(joined, to=resyncing,      when=is_rejoin_due, do=(doubt, follow_suggestion), clause="D-ROOMERR"),
        row(joined, to=resync_delayed, when=is_rejoin_suggested, do=(doubt, keep_the_interval), clause="D-ROOMERR"),
        row(resync_delayed, to=STAY,   when=is_rejoin_suggested, do=doubt, clause="D-ROOMERR"),
        ignore(ASKING + NOT_IN_SESSION, when=is_rejoin_suggested, because="it is being asked for already"),
        row(ONLINE, to=error,                                                          clause="D-ROOMERR"),
        ignore(OTHERWISE, because="it was not asked for on this connection"),
    )
    def evicted(self, refusal: JoinRefused, now: float) -> None:
        """The server sent a RoomError, at time ``now`` in seconds."""
        self.refusal = self.pending_cause = refusal
        self.pending_reason = str(refusal)
        self.now = now

    @event(
        row(joined, to=resyncing,      when=is_interval_over, do=(doubt, follow_suggestion), clause="D-ACK D-RESYNC"),
        row(joined, to=resync_delayed,                        do=(doubt, keep_the_interval), clause="D-ACK D-RESYNC"),
        row(RESYNC, to=STAY,                                  do=doubt,                    clause="D-ACK D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def acks_overdue(self, now: float) -> None:
        """At time ``now`` in seconds, more updates wait for an Ack than we keep; a comparison supersedes them."""
        self.pending_reason = "too many updates without an Ack"
        self.now = now

    @event(
        row(joined,         to=resync_delayed, when=is_rate_limited, do=(doubt, wait_out_limit), clause="D-JOINERR"),
        row(resyncing,      to=resync_delayed, when=is_rate_limited, do=(doubt, wait_out_limit), clause="D-JOINERR"),
        ignore(resync_delayed, when=is_rate_limited_again, because="it waits for that already", clause="D-JOINERR"),
        row(resync_delayed, to=resync_delayed, when=is_rate_limited, do=(doubt, wait_out_limit), clause="D-JOINERR"),
        row(RESYNC,         to=STAY,                                 do=doubt,                 clause="D-RESYNC"),
        row(joined, to=STAY,           when=is_refused_for_good, do=refuse_for_good, clause="D-RESYNC"),
        row(joined, to=resyncing,      when=is_interval_over,        do=(doubt, follow_suggestion), clause="D-RESYNC"),
        row(joined, to=resync_delayed,                               do=(doubt, keep_the_interval), clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def batch_refused(self, status: UpdateStatusCode, why: str, now: float) -> None:
        """The server refused a batch of updates of ours, at time ``now`` in seconds."""
        self.batch_status = status
        self.pending_reason = why
        self.now = now

    @event(
        row(SESSION, to=STAY, do=refuse_for_good, clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def upload_refused(self, status: UpdateStatusCode) -> None:
        """What the server lacks cannot be sent at all: we may only read, or it is too large; to ask again is no use."""
        self.batch_status = status

    @event(
        row(joined, to=resyncing,      when=is_interval_over, do=follow_suggestion, clause="D-RESYNC"),
        row(joined, to=resync_delayed,                        do=keep_the_interval, clause="D-RESYNC"),
        ignore(RESYNC, because="versions are about to be compared, which brings it"),
        ignore(OTHERWISE, because="there is no session; the next one begins with it"),
    )
    def edited_in_doubt(self, now: float) -> None:
        """There is a local edit, at time ``now`` in seconds, on top of what was refused for good."""
        self.pending_reason = "an edit on top of updates that the server refused"
        self.now = now

    @event(
        row(joined, to=STAY, when=is_doubt_over, do=end_doubt, clause="D-RESYNC"),
        ignore(OTHERWISE, because="there is no doubt, or it goes on"),
    )
    def acks_complete(self) -> None:
        """All that was sent has its Ack, and nothing is left to be sent."""

    @event(
        row(joined, to=resyncing,      when=is_interval_over, do=follow_suggestion, clause="D-RESYNC"),
        ignore(joined, when=is_too_large, because="it was too large just now, and will be again", clause="D-RESYNC"),
        row(joined, to=resync_delayed,                        do=keep_the_interval, clause="D-RESYNC"),
        ignore(RESYNC, because="versions are about to be compared"),
        ignore(OTHERWISE, because="there is no session"),
    )
    def updates_lost(self, status: UpdateStatusCode, why: str, now: float) -> None:
        """An update of the server's could not be applied, never came whole, or waits for one that has not come.

        ``status`` is what the server was told, OK if nothing; ``now`` the time in seconds. Later ones depend on it.
        """
        self.batch_status = status
        self.pending_reason = why
        self.now = now

    @event(
        row((joined, resync_delayed), to=resyncing, clause="D-RESYNC"),
        ignore(resyncing, because="versions are being compared"),
        ignore(OTHERWISE, because="it is not joined: the join compares versions"),
    )
    def resync_requested(self) -> None:
        """Somebody asked for a comparison: `resync()`."""
        self.pending_reason = "asked to compare versions"

    @event(
        ignore(OVER, because="the room is no longer tracked"),
        row(ONLINE, to=left, do=send_leave, clause="D-LEAVE"),
        row(OTHERWISE, to=left,               clause="D-LEAVE"),
    )
    def leave_requested(self) -> None:
        """Somebody asked to leave: `leave()`."""
        self.pending_reason = "left by this program"
        self.refusal = RoomLeft("leave() was called on the room while this operation waited for it")

    @event(
        ignore(OVER, because="the room is no longer tracked"),
        row(ONLINE, to=error, do=send_leave, clause="D-ERROR"),
        row(OTHERWISE, to=error,               clause="D-ERROR"),
    )
    def faulted(self, what: str) -> None:
        """The adaptor, a guard, or something else of this program's own raised."""
        self.pending_reason = what
        self.refusal = self.pending_cause = JoinRefused(None, what)

    # fmt: on

    # Helpers

    def is_refused_with(self, code: int) -> bool:
        return isinstance(self.refusal, JoinRefused) and self.refusal.code == code

    def last_resort(self, reason: str, old: RoomStatus) -> list[Effect]:
        self.pending_reason = self.reason = reason
        self.refusal = self.pending_cause = JoinRefused(None, reason)
        change = StatusChange(old, self.status, reason, self.pending_cause)
        return [
            Untrack(),
            FailWaiters(self.refusal),
            NotifyError(self.refusal),
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
        if new is DISCONNECTED and isinstance(self.refusal, ClientStopped):
            stop = self.refusal.stop
        self.emit(_news(old, new, self.pending_reason, self.pending_cause, stop, attempt, retry_in))


WAITS = (RoomFSM.join_delayed.name, RoomFSM.rejoin_delayed.name)


@lru_cache(maxsize=16)
def _request(version: VersionChoice, server_version: bytes) -> RequestJoin:
    """Ten thousand rooms ask alike."""
    return RequestJoin(version, server_version)


@lru_cache(maxsize=16)
def _timer(seconds: float) -> StartTimer:
    return StartTimer(seconds)


@lru_cache(maxsize=64)
def _news(
    old: RoomStatus,
    new: RoomStatus,
    reason: str,
    cause: Cause | None,
    stop: StopKind | None,
    attempt: int,
    retry_in: float | None,
) -> NotifyStatus:
    """Ten thousand rooms that are joined have the same to tell."""
    return NotifyStatus(StatusChange(old, new, reason, cause, stop, attempt, retry_in))
