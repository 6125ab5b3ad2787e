"""The machine of a room: what it does about every fact, in every state. The table below *is* the behaviour.

How it works. A room is asked for with a JoinRequest as soon as there is a connection, again after each reconnect, and
again with a backoff of its own when the server does not answer. Two rows of states mirror each other: the upper one is
for a room that was never joined, the lower one for a room that was, so that the outside can tell them apart:

    no connection      being asked for      waits, then asks again
    queued             joining              join_delayed                 → joined
    stale              rejoining            rejoin_delayed               → joined

`disconnected` is where a room begins, and where it is kept while the client is stopped. `left` and `error` are final:
the room is no longer tracked, and joining it again makes a new room.

The driver (rooms.py) tells it facts, one at a time. Each fact is a method below; its body only remembers what the fact
tells, its rows decide. A room costs its slots and nothing else: no Machine, task or timer of its own.
"""

from __future__ import annotations

from functools import lru_cache

from .effects import (
    AbandonRequest,
    Effect,
    EndSession,
    FailWaiters,
    NotifyStatus,
    RequestJoin,
    SendLeave,
    StartTimer,
    StopTimer,
    Synchronise,
    TakeBack,
    Untrack,
    VersionChoice,
)
from .errors import ClientStopped, JoinRefused, RoomLeft
from .loro_protocol.messages import JoinErrorCode, RoomErrorCode, UpdateStatusCode
from .machine import FSM, REST, STAY, event, refuse, row, state
from .retry import RetryPolicy
from .status import RoomStatus, StatusChange

__all__ = ["RoomFSM"]

NOT_REFUSED = RoomLeft("the room was left")
NEXT_VERSION = {VersionChoice.CURRENT: VersionChoice.ALTERNATIVE, VersionChoice.ALTERNATIVE: VersionChoice.EMPTY}


class RoomFSM(FSM[RoomStatus]):
    """Every decision of a room (JOIN, REJOIN and their D-clauses). Pure: facts in, effects out."""

    __slots__ = (
        "attempt",
        "batch_status",
        "delay",
        "news",
        "now",
        "policy",
        "reason",
        "refusal",
        "suggested_at",
        "unauthorized",
        "version",
    )

    join_timeout = 10.0
    """Seconds that the server has to answer a JoinRequest (D-TIMEOUT)."""
    rejoin_interval = 30.0
    """Seconds between two rejoins that the server suggests (D-ROOMERR), or that lost updates ask for (D-ACK)."""

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
        exit="end_session",
        doc="updates flow both ways",
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

    ASKING = (joining, rejoining)
    DELAYED = (join_delayed, rejoin_delayed)
    FIRST_TIME = (joining, join_delayed)
    ONCE_JOINED = (rejoining, rejoin_delayed)
    ONLINE = (joining, join_delayed, joined, rejoining, rejoin_delayed)
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
        self.suggested_at: float | None = None
        """When the server's suggestion to rejoin was last followed."""
        self.now = 0.0
        self.refusal: Exception = NOT_REFUSED
        """What those who wait for this room are told when it ends."""
        self.unauthorized = False
        self.batch_status = UpdateStatusCode.OK
        self.news = "not asked for yet"
        self.reason = self.news
        """Why it is in its present state, in words."""

    # Guards

    def may_try_another_version(self) -> bool:
        """The server does not know the version that we sent, and there is one left that was not tried."""
        return self.is_refused_with(JoinErrorCode.VERSION_UNKNOWN) and self.version in NEXT_VERSION

    def is_unauthorized(self) -> bool:
        """The auth callable raised `Unauthorized`."""
        return self.unauthorized

    def is_rejoin_suggested(self) -> bool:
        """The server put us out, but suggests to come back."""
        return self.is_refused_with(RoomErrorCode.REJOIN_SUGGESTED)

    def is_rejoin_due(self) -> bool:
        """The server suggests to come back, and no such suggestion was followed within the last `rejoin_interval`."""
        return self.is_interval_over() and self.is_rejoin_suggested()

    def is_interval_over(self) -> bool:
        """No rejoin of this kind was made within the last `rejoin_interval`."""
        return self.suggested_at is None or self.now - self.suggested_at >= self.rejoin_interval

    def is_refused_for_good(self) -> bool:
        """The refusal speaks of the batch, not of the moment, as too little time or too many at once do."""
        return self.batch_status not in (UpdateStatusCode.FRAGMENT_TIMEOUT, UpdateStatusCode.RATE_LIMITED)

    def was_asked(self) -> bool:
        """A request was made in vain, so that its answer may still come."""
        return self.attempt > 0

    def is_unasked(self) -> bool:
        """Nothing was asked on this connection that could be answered."""
        return not self.was_asked()

    # Actions: each asks for effects, or changes what is remembered

    def ask(self) -> None:
        self.emit(RequestJoin(self.version))
        self.emit(StartTimer(self.join_timeout))

    def stop_asking(self) -> None:
        self.emit(StopTimer())
        self.emit(AbandonRequest())

    def wait(self) -> None:
        self.emit(StartTimer(self.delay))

    def stop_timer(self) -> None:
        self.emit(StopTimer())

    def begin_session(self) -> None:
        self.begin_anew()
        self.emit(Synchronise())

    def end_session(self) -> None:
        self.emit(EndSession())

    def take_back(self) -> None:
        """D-ACK: what is not written yet comes with the next join, and need not come twice."""
        self.emit(TakeBack())

    def say_goodbye(self) -> None:
        self.emit(SendLeave())

    def untrack(self) -> None:
        """Untracked first, then the waiters and listeners hear of it: whoever hears can join again (D-ROOMERR)."""
        self.emit(Untrack())
        self.emit(FailWaiters(self.refusal))

    def fail_waiters(self) -> None:
        """D-STOP: the client was stopped, and nobody is left waiting."""
        self.emit(FailWaiters(ClientStopped(self.news)))

    def back_off(self) -> None:
        """D-TIMEOUT: ask again later, and later each time."""
        self.attempt += 1
        self.delay = self.policy.delay(self.attempt)

    def keep_the_interval(self) -> None:
        """D-ROOMERR: the suggestion is followed once the interval since the last one is over."""
        since = 0.0 if self.suggested_at is None else max(self.now - self.suggested_at, 0.0)
        self.delay = max(self.rejoin_interval - since, 0.0)
        self.suggested_at = self.now + self.delay

    def miss_answer(self) -> None:
        """D-TIMEOUT: the server had its time."""
        self.news = f"no answer to the request to join within {self.join_timeout:g} s"
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
        refuse(OVER, because="the room is no longer tracked"),
        refuse(REST, because="it is tracked already", clause="D-DEDUPE"),
    )
    def join_requested(self) -> None:
        """Somebody asked for the room: `join()`."""
        self.news = "asked to join"

    @event(
        row(queued,       to=joining,   clause="JOIN-1 OK-4"),
        row(stale,        to=rejoining, clause="REJOIN-2"),
        row(disconnected, to=joining,   clause="D-STOP"),
        refuse(OVER, because="the room is no longer tracked"),
        refuse(REST, because="it has been asked for on this connection"),
    )
    def connection_opened(self, why: str) -> None:
        """The client is connected, and it is the room's turn to be asked for."""
        self.news = why

    @event(
        row(FIRST_TIME,  to=queued, do=begin_anew,              clause="D-INTENT"),
        row(joined,      to=stale,  do=(take_back, begin_anew), clause="REJOIN-2 D-ACK"),
        row(ONCE_JOINED, to=stale,  do=begin_anew,              clause="REJOIN-2"),
        refuse(OVER, because="the room is no longer tracked"),
        refuse(REST, because="it knows that there is no connection"),
    )
    def connection_lost(self, why: str) -> None:
        """The connection is gone; the client sees to a new one."""
        self.news = why

    @event(
        refuse(OVER, because="the room is no longer tracked"),
        refuse(disconnected, because="it knows that the client is stopped"),
        row(REST, to=disconnected, do=begin_anew, clause="D-STOP"),
    )
    def client_stopped(self, why: str) -> None:
        """The client stopped: closed, refused for good, out of attempts, or in error."""
        self.news = why

    @event(
        row(disconnected, to=queued, clause="D-STOP"),
        refuse(OVER, because="the room is no longer tracked"),
        refuse(REST, because="it is waiting for a connection already"),
    )
    def client_started(self, why: str) -> None:
        """The client was started, or started again."""
        self.news = why

    @event(
        row(ASKING,  to=joined,                 clause="OK-4"),
        row(DELAYED, to=joined, when=was_asked, clause="OK-4"),
        refuse(joined, because="it is joined already"),
        refuse(REST, because="it was not asked for on this connection"),
    )
    def join_accepted(self) -> None:
        """The server answered with a JoinResponseOk."""
        self.news = "joined"

    @event(
        row(joining,   to=joining,   when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(rejoining, to=rejoining, when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        refuse(DELAYED, when=is_unasked, because="nothing was asked since it was put out"),
        row(DELAYED,   to=STAY,      when=may_try_another_version, do=try_next_version, clause="D-VERSION"),
        row(ASKING,    to=error,                                                        clause="REJOIN-3 OK-4"),
        row(DELAYED,   to=error,                                                        clause="REJOIN-3"),
        row(joined,    to=error,                                                        clause="D-ROOMERR"),
        refuse(REST, because="it was not asked for on this connection"),
    )
    def join_refused(self, refusal: JoinRefused) -> None:
        """The server answered with a JoinError."""
        self.refusal = refusal
        self.news = str(refusal)

    @event(
        row(ASKING,    to=error,          when=is_unauthorized,              clause="D-INTENT REJOIN-3"),
        row(joining,   to=join_delayed,                         do=back_off, clause="D-INTENT"),
        row(rejoining, to=rejoin_delayed,                       do=back_off, clause="D-INTENT"),
        refuse(REST, because="nobody waits for credentials"),
    )
    def credentials_failed(self, what: str, unauthorized: bool) -> None:
        """The auth callable raised."""
        self.news = what
        self.unauthorized = unauthorized
        self.refusal = JoinRefused(None, what)

    @event(
        row(joining,        to=join_delayed,   do=miss_answer, clause="D-TIMEOUT"),  # no answer
        row(rejoining,      to=rejoin_delayed, do=miss_answer, clause="D-TIMEOUT"),  # no answer
        row(join_delayed,   to=joining,                        clause="D-TIMEOUT"),
        row(rejoin_delayed, to=rejoining,                      clause="D-TIMEOUT D-ROOMERR"),
        refuse(REST, because="no timer is running"),
    )
    def timer_fell_due(self) -> None:
        """The server's time to answer, or the wait before asking again, is over."""
        self.news = self.reason

    @event(
        row(joined, to=rejoining,      when=is_rejoin_due,       do=(take_back, follow_suggestion), clause="D-ROOMERR"),
        row(joined, to=rejoin_delayed, when=is_rejoin_suggested, do=(take_back, keep_the_interval), clause="D-ROOMERR"),
        refuse(ASKING + DELAYED, when=is_rejoin_suggested, because="it is being asked for already"),
        row(ONLINE, to=error,                                                          clause="D-ROOMERR"),
        refuse(REST, because="it was not asked for on this connection"),
    )
    def put_out(self, refusal: JoinRefused, now: float) -> None:
        """The server sent a RoomError, at time ``now`` in seconds."""
        self.refusal = refusal
        self.news = str(refusal)
        self.now = now

    @event(
        row(joined, to=rejoining,      when=is_interval_over, do=(take_back, follow_suggestion), clause="D-ACK"),
        row(joined, to=rejoin_delayed,                        do=(take_back, keep_the_interval), clause="D-ACK"),
        refuse(REST, because="there is no session"),
    )
    def acks_overdue(self, now: float) -> None:
        """At time ``now`` in seconds, more updates wait for an Ack than we keep; a rejoin supersedes them."""
        self.news = "too many updates without an Ack"
        self.now = now

    @event(
        refuse(joined, when=is_refused_for_good, because="the same would be refused again", clause="D-ACK"),
        row(joined, to=rejoining,      when=is_interval_over, do=(take_back, follow_suggestion), clause="D-ACK"),
        row(joined, to=rejoin_delayed,                        do=(take_back, keep_the_interval), clause="D-ACK"),
        refuse(REST, because="there is no session"),
    )
    def batch_refused(self, status: UpdateStatusCode, why: str, now: float) -> None:
        """A batch was refused, theirs by us or ours by the server, at time ``now`` in seconds.

        What comes next depends on it, so if it may be taken later it has to come again; a rejoin brings it.
        """
        self.batch_status = status
        self.news = why
        self.now = now

    @event(
        refuse(OVER, because="the room is no longer tracked"),
        row(ONLINE, to=left, do=say_goodbye, clause="D-LEAVE"),
        row(REST,   to=left,                 clause="D-LEAVE"),
    )
    def leave_requested(self) -> None:
        """Somebody asked to leave: `leave()`."""
        self.news = "left by this program"
        self.refusal = RoomLeft("leave() was called on the room while this operation waited for it")

    @event(
        refuse(OVER, because="the room is no longer tracked"),
        row(ONLINE, to=error, do=say_goodbye, clause="D-ERROR"),
        row(REST,   to=error,                 clause="D-ERROR"),
    )
    def broke(self, what: str) -> None:
        """The adaptor, a guard, or something else of this program's own raised."""
        self.news = what
        self.refusal = JoinRefused(None, what)

    # fmt: on

    # Helpers

    def is_refused_with(self, code: int) -> bool:
        return isinstance(self.refusal, JoinRefused) and self.refusal.code == code

    def give_up(self, what: str) -> list[Effect]:
        """The driver's last resort when `broke` raised too: to `error`, without an action that might raise again."""
        old, self.news, self.refusal = self.told_status, what, JoinRefused(None, what)
        self.reason = what
        self.jump_to(self.error)
        news = [] if self.status == old else [NotifyStatus(StatusChange(old, self.status, what))]
        return [Untrack(), FailWaiters(self.refusal), *news]

    def state_changed(self) -> None:
        self.reason = self.news

    def status_changed(self, old: RoomStatus, new: RoomStatus) -> None:
        under_way = new in (RoomStatus.CONNECTING, RoomStatus.RECONNECTING)
        waits = self.state in (self.join_delayed.name, self.rejoin_delayed.name)
        attempt, retry_in = self.attempt if under_way else 0, self.delay if waits else None
        self.emit(_news(old, new, self.news, attempt, retry_in))


@lru_cache(maxsize=64)
def _news(old: RoomStatus, new: RoomStatus, reason: str, attempt: int, retry_in: float | None) -> NotifyStatus:
    """Ten thousand rooms that are joined have the same to tell."""
    return NotifyStatus(StatusChange(old, new, reason, attempt=attempt, retry_in=retry_in))
