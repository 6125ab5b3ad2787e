"""The machine of a client: what it does about every event, in every state. The table below *is* the behaviour.

A client is in one of seven states, shown to the outside as five statuses. What lives in a state is started when it is
entered and stopped when it is left. So there is never a second socket, dial or timer, and none after a stop:

    connecting     one dial: the first one, or one that the program asked for
    connected      one socket, one ping timer; one more timer until it has lasted long enough to count as stable
    waiting        one retry timer
    retrying       one dial
    paused         nothing: the machine is offline
    disconnected   nothing: it was closed or refused, or it has not begun
    error          nothing: it cannot work as it is configured

The driver fires events, one at a time: a socket opened, a dial failed, a timer fired, the program asked for something.
Each event is a method below. Its body only stores what the event brings; its rows decide. Besides its state the machine
has plain data for the guards: the policy, whether this machine is online, how many attempts failed in a row, until when
the server asked to stay away, and the last reason and its cause. Events bring the time (``now``, in seconds of the
driver's clock).

Two things happen whatever the table says, when a transition is complete (`state_changed`, `status_changed`): each
change carries its cause as data (D-CAUSE), and an outage is reported once (D-HEARD).

To change a decision, subclass: override a guard, put a row first, add a state. See machine.py for how rows are written.
"""

from __future__ import annotations

from reconnect_fsm.effects import (
    AnnounceConnected,
    CancelDial,
    CloseSocket,
    Dial,
    Effect,
    FailWaiters,
    NotifyRooms,
    NotifyStatus,
    Release,
    ReportOutage,
    ReportRecovery,
    StartKeepalive,
    StartOutageTimer,
    StartTimer,
    StopKeepalive,
    StopOutageTimer,
    StopTimer,
)
from reconnect_fsm.errors import ClientStopped
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, any_but, event, ignore, row, state
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import (
    AttemptFailure,
    Cause,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    StatusChange,
    StopKind,
)

__all__ = ["ClientFSM"]

NORMAL, GOING_AWAY, INTERNAL_ERROR = 1000, 1001, 1011  # RFC 6455, 7.4.1
NO_FAILURE = AttemptFailure(FailureKind.NETWORK, "")
OFFLINE = AttemptFailure(FailureKind.NETWORK, "offline", fault=FaultKind.OFFLINE)

CERTIFICATES = (FaultKind.CERTIFICATE, FaultKind.PROXY)  # of the server, of a proxy: which are misconfigured
STOPPED_STATUSES = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
UNDER_WAY = (ClientStatus.CONNECTING, ClientStatus.RECONNECTING)


class ClientFSM(FSM[ClientStatus]):
    """Every decision of a client (CONN, RETRY, LIVE, OFF, CTRL). Pure: events in, effects out."""

    __slots__ = (
        "attempt",
        "cause",
        "certificate_may_recover",
        "closing",
        "failure",
        "fault_in_event",
        "is_driven",
        "loss",
        "not_before",
        "now",
        "online",
        "outage_reported",
        "pending_reason",
        "pending_stop",
        "policy",
        "reason",
        "reset_asked",
        "retry_in",
        "skip_backoff",
        "stop_kind",
        "too_big_in_a_row",
        "woken_at",
    )

    failures_until_reported = 3
    """An outage is reported after this many failures in a row (D-HEARD), …"""
    seconds_until_reported = 10.0
    """… or after this many seconds without a connection."""

    # States

    disconnected = state(
        ClientStatus.DISCONNECTED,
        enter="stop",
        doc="nothing: it was closed or refused, or it has not begun",
    )
    connecting = state(
        ClientStatus.CONNECTING,
        enter="dial",
        exit="cancel_dial",
        doc="one dial: the first one, or one that the program asked for",
    )
    connected = state(
        ClientStatus.CONNECTED,
        enter="begin_session",
        exit="close_socket",
        doc="one socket, one ping timer; a timer until it counts as stable",
    )
    waiting = state(
        ClientStatus.RECONNECTING,
        enter="start_retry_timer",
        exit="stop_retry_timer",
        doc="one retry timer",
    )
    retrying = state(
        ClientStatus.RECONNECTING,
        enter="dial",
        exit="cancel_dial",
        doc="one dial",
    )
    paused = state(
        ClientStatus.RECONNECTING,
        doc="nothing: offline",
    )
    error = state(
        ClientStatus.ERROR,
        enter="stop",
        doc="nothing: it cannot work as it is configured",
    )

    initial = disconnected

    STOPPED = (disconnected, error)
    DIALING = (connecting, retrying)
    BETWEEN = (waiting, paused)

    # What it remembers

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        super().__init__()
        self.policy = policy or RetryPolicy()
        self.is_driven = False
        """Whether a client drives it: then the client alone fires its events, for it runs the effects."""
        self.online = True
        """What the network source last reported; until it reports, we assume the best."""
        self.attempt = 0
        """How many attempts or connections failed in a row: the number of the retry that is next or under way."""
        self.reason = "not started"
        """Why it is in its present state, in words."""
        self.pending_reason = self.reason
        """What the last event said. It becomes the reason if the event leads to another state; so does its cause."""
        self.retry_in: float | None = None
        """Seconds that the present wait lasts."""
        self.closing = (NORMAL, "")
        """What the close frame will say, should the socket be closed."""
        self.loss = CloseInfo(NORMAL)
        """How the last connection ended, as the server said it: it is judged, and not shown (D-JUDGED)."""
        self.failure = NO_FAILURE
        """How the last attempt failed."""
        self.reset_asked = False
        """Whether the caller of `connect()` or `retry_now()` wants the backoff to begin anew."""
        self.cause: Cause | None = None
        """Why it is in its present state, as data (D-CAUSE): the `pending_cause` of the event that led to it."""
        self.stop_kind: StopKind | None = None
        """Which kind of stop it is, while it is stopped."""
        self.pending_stop: StopKind | None = None
        """Which kind of stop the present row leads to, if it says so."""
        self.now = 0.0
        """When the last event came that brought the time."""
        self.not_before: float | None = None
        """Until when the server asked to stay away (D-HTTP)."""
        self.woken_at: float | None = None
        """When an attempt was last made, or is to be made, because the network is back (OFF-2)."""
        self.skip_backoff = False
        """Whether the next wait is only as long as it must be (OFF-2)."""
        self.certificate_may_recover = False
        """It was connected, or the network came back: a certificate that does not verify may verify later (D-HTTP)."""
        self.too_big_in_a_row = 0
        """How many connections in a row ended because the server sent too big a message (D-TOOBIG)."""
        self.outage_reported = False
        """Whether the log has this outage (D-HEARD)."""
        self.fault_in_event = False
        """Whether the last fault was in an event, not in an effect: the caller of the event may wait for the result."""

    # Guards

    def is_fatal_close(self) -> bool:
        """The server's close code or reason says: do not come back (by default 1008, 4400-4499, and three reasons)."""
        return self.policy.is_fatal_close(self.loss)

    def is_fatal_failure(self) -> bool:
        """The answer to the handshake (by default 401, 403), or the token provider, says: do not try again."""
        return self.policy.is_fatal_failure(self.failure)

    def is_misconfigured(self) -> bool:
        """It cannot work: an unusable URL, a certificate that does not verify and never did (D-HTTP)."""
        return self.failure.kind is FailureKind.MISCONFIGURED and not self.is_temporary()

    def is_too_big_again(self) -> bool:
        """The server sent a message that is too big for this client, twice in a row: it would send it for ever."""
        return self.too_big_in_a_row > 1

    def is_too_soon(self) -> bool:
        """The server asked to stay away for longer, or the last attempt of this kind is less than ``base`` ago."""
        return self.earliest_attempt() > self.now

    def is_outage_unreported(self) -> bool:
        """The log does not have this outage yet."""
        return not self.outage_reported

    def is_fault_in_event(self) -> bool:
        """The fault was in an event, not in an effect: the caller of the event may wait for the result."""
        return self.fault_in_event

    def is_retrying_off(self) -> bool:
        """The policy says not to retry at all."""
        return not self.policy.enabled

    def are_attempts_used_up(self) -> bool:
        """As many retries in a row have failed as the policy allows."""
        return self.policy.max_attempts is not None and self.attempt >= self.policy.max_attempts

    def is_offline(self) -> bool:
        """The network source reported that there is no network."""
        return not self.online

    def is_online(self) -> bool:
        """The network source reported that there is a network, or nothing yet."""
        return self.online

    def is_stable_at_once(self) -> bool:
        """The policy counts every connection as stable."""
        return self.policy.stable_after == 0

    def is_reset_asked(self) -> bool:
        """The caller wants the backoff to begin anew."""
        return self.reset_asked

    # Actions: each asks for effects, or changes the data of the guards

    def start(self) -> None:
        """The client begins, or begins again: with a clean slate."""
        self.attempt = 0
        self.not_before = self.woken_at = None
        self.too_big_in_a_row = 0
        self.notify_rooms("client_started")

    def stop(self) -> None:
        """The client ends: nothing is left running; rooms and waiting operations are notified."""
        by_default = StopKind.FAULT if self.state == ClientFSM.error.name else StopKind.CLOSED
        self.stop_kind, self.pending_stop = self.pending_stop or by_default, None
        self.emit(Release())
        self.notify_rooms("client_stopped")
        self.fail_waiters()

    def fail_waiters(self) -> None:
        """D-STOP: each operation that waits raises why, in words and as data."""
        self.emit(FailWaiters(ClientStopped(self.pending_reason, self.pending_cause, self.stop_kind)))

    def fault_again(self) -> None:
        """D-ERROR: it is in error for another reason now."""
        self.reason, self.cause, self.stop_kind = self.pending_reason, None, StopKind.FAULT
        self.fail_waiters()

    # D-CAUSE: a row that leads to a stop says which kind of stop it is. If it does not, this program decided it.

    def stop_closed(self) -> None:
        self.pending_stop = StopKind.CLOSED

    def stop_refused(self) -> None:
        self.pending_stop = StopKind.REFUSED

    def stop_misconfigured(self) -> None:
        self.pending_stop = StopKind.MISCONFIGURED

    def stop_retrying_off(self) -> None:
        self.pending_stop = StopKind.RETRYING_OFF

    def stop_used_up(self) -> None:
        self.pending_stop = StopKind.ATTEMPTS_USED_UP

    def stop_faulted(self) -> None:
        self.pending_stop = StopKind.FAULT

    def stop_too_big(self) -> None:
        """D-TOOBIG: say what can be done about it."""
        self.pending_stop = StopKind.MISCONFIGURED
        remedy = "make max_msg_size= larger (0: no limit), or have the server send less at once"
        self.pending_reason += f", twice in a row: {remedy}"

    def dial(self) -> None:
        self.emit(Dial())

    def cancel_dial(self) -> None:
        self.emit(CancelDial())

    def begin_session(self) -> None:
        self.emit(StartKeepalive())
        self.emit(StartTimer(self.policy.stable_after))
        self.notify_rooms("connection_opened")
        self.emit(AnnounceConnected())

    def close_socket(self) -> None:
        self.emit(StopKeepalive())
        self.emit(StopTimer())
        self.emit(CloseSocket(*self.closing))
        self.notify_rooms("connection_lost")

    def start_retry_timer(self) -> None:
        """RETRY-1, and never sooner than the server asked (D-HTTP)."""
        if self.skip_backoff:
            self.skip_backoff = False
            delay = max(self.earliest_attempt() - self.now, 0.0)
        else:
            delay = self.policy.delay(self.attempt)
        rest = 0.0 if self.not_before is None else max(self.not_before - self.now, 0.0)
        no_sooner = self.policy.no_sooner(rest)
        for name, wait in (("delay", delay), ("no_sooner", no_sooner)):
            if not 0 <= wait < float("inf"):
                raise ValueError(f"{type(self.policy).__name__}.{name} returned {wait!r}, which is no time to wait")
        self.retry_in = max(delay, no_sooner)
        self.emit(StartTimer(self.retry_in))

    def stop_retry_timer(self) -> None:
        self.retry_in = None
        self.emit(StopTimer())

    def count_attempt(self) -> None:
        self.attempt += 1

    def forget_attempts(self) -> None:
        self.attempt = 0

    def forget_attempts_if_asked(self) -> None:
        """CTRL-1: ``reset_backoff``."""
        if self.reset_asked:
            self.forget_attempts()

    def note_offline(self) -> None:
        self.online = False

    def note_online(self) -> None:
        self.online = True
        self.certificate_may_recover = True

    def wake_up(self) -> None:
        """OFF-2: an attempt now."""
        self.woken_at = self.now
        self.begin_on_online()

    def wake_up_later(self) -> None:
        """OFF-2 D-HTTP: an attempt as soon as may be."""
        if (due := self.damped_until()) > self.now:
            self.woken_at = due
        self.skip_backoff = True
        self.begin_on_online()

    def begin_on_online(self) -> None:
        """OFF-2: the backoff begins anew, unless the policy says otherwise."""
        self.note_online()
        if self.policy.reset_on_online:
            self.forget_attempts()

    def report_outage(self) -> None:
        """D-HEARD: why there is no connection, and what comes next."""
        self.outage_reported = True
        self.emit(ReportOutage(self.pending_reason, self.what_comes_next(), self.attempt))

    def end_outage(self) -> None:
        """D-STABLE D-HEARD: the connection has lasted; if the log has an outage, that is over."""
        self.forget_attempts()
        if self.outage_reported:
            self.outage_reported = False
            self.emit(ReportRecovery())

    # The table: of each event, the first row whose guards pass decides
    # fmt: off

    @event(
        row(STOPPED,   to=connecting,                      do=start,           clause="CTRL-1 RETRY-4 OK-3"),
        row(BETWEEN,   to=connecting, when=is_reset_asked, do=forget_attempts, clause="CTRL-1"),
        row(BETWEEN,   to=connecting,                                          clause="CTRL-1"),
        row(OTHERWISE, to=STAY,       when=is_reset_asked, do=forget_attempts, clause="CTRL-1"),
        ignore(OTHERWISE, because="connected already, or an attempt is under way", clause="D-FORCE"),
    )
    def connect_requested(self, reset_backoff: bool = False) -> None:
        """The program asked to be connected: `connect()`. That overrides every wait (OFF-2, D-HTTP)."""
        self.reset_asked = reset_backoff
        self.pending_reason = "asked to connect"

    @event(
        row(STOPPED,   to=connecting, do=start,                    clause="CTRL-1 RETRY-4 OK-3"),
        row(OTHERWISE, to=connecting, do=forget_attempts_if_asked, clause="CTRL-1 D-FORCE"),
    )
    def retry_requested(self, reset_backoff: bool = False) -> None:
        """The program asked for a new attempt now: `retry_now()`."""
        self.reset_asked = reset_backoff
        self.pending_reason = "asked for a fresh attempt"
        self.closing = (NORMAL, "reconnecting")

    @event(
        row(STOPPED, to=paused,     when=is_offline, do=start, clause="OFF-1"),
        row(STOPPED, to=connecting,                  do=start, clause="CONN-2"),
        ignore(OTHERWISE, because="it is started already"),
    )
    def start_requested(self) -> None:
        """The client is started: `start()`, or entering ``async with``."""
        self.pending_reason = "started"
        self.pending_cause = None if self.online else OFFLINE

    @event(
        ignore(disconnected, because="disconnected already"),
        row(OTHERWISE, to=disconnected, do=stop_closed, clause="CTRL-2"),
    )
    def close_requested(self) -> None:
        """The program asked to stop: `close()`."""
        self.pending_reason = "closed by this program"
        self.closing = (NORMAL, "")

    @event(
        row(DIALING, to=connected, when=is_stable_at_once, do=end_outage, clause="CONN-5 D-STABLE D-HEARD"),
        row(DIALING, to=connected,                                        clause="CONN-5"),
        ignore(OTHERWISE, because="no dial is under way: a socket that opens now is not wanted"),
    )
    def socket_opened(self) -> None:
        """The dial succeeded: the WebSocket is open."""
        self.pending_reason = "connected"
        self.failure = NO_FAILURE
        self.not_before = None
        self.certificate_may_recover = True

    @event(
        row(DIALING, to=error,        when=is_misconfigured,     do=stop_misconfigured, clause="D-ERROR D-HTTP"),
        row(DIALING, to=disconnected, when=is_fatal_failure,     do=stop_refused,       clause="RETRY-3 D-HTTP CONN-4"),
        row(DIALING, to=disconnected, when=is_retrying_off,      do=stop_retrying_off,  clause="RETRY-1"),
        row(DIALING, to=disconnected, when=are_attempts_used_up, do=stop_used_up,       clause="RETRY-2"),
        row(DIALING, to=paused,       when=is_offline,           do=count_attempt,      clause="OFF-1"),
        row(DIALING, to=waiting,                                 do=count_attempt,      clause="CONN-3 RETRY-1 D-HTTP"),
        ignore(OTHERWISE, because="no dial is under way"),
    )
    def dial_failed(self, failure: AttemptFailure, now: float | None = None) -> None:
        """The dial did not lead to an open WebSocket."""
        self.failure = self.pending_cause = failure
        self.pending_reason = str(failure)
        self.note_time(now)
        if failure.retry_after > 0:
            self.not_before = self.now + min(failure.retry_after, self.policy.max_retry_after)

    @event(
        row(connected, to=disconnected, when=is_fatal_close,       do=stop_refused,
            clause="RETRY-3 D-CODES CONN-4"),
        row(connected, to=error,        when=is_too_big_again,     do=stop_too_big,      clause="D-TOOBIG D-ERROR"),
        row(connected, to=disconnected, when=is_retrying_off,      do=stop_retrying_off, clause="RETRY-1"),
        row(connected, to=disconnected, when=are_attempts_used_up, do=stop_used_up,      clause="RETRY-2"),
        row(connected, to=paused,       when=is_offline,           do=count_attempt,     clause="OFF-1"),
        row(connected, to=waiting,                                 do=count_attempt,     clause="CONN-3"),
        ignore(OTHERWISE, because="there is no socket that could close"),
    )
    def socket_closed(self, info: CloseInfo) -> None:
        """The connection is gone: the server closed it, or the network dropped it."""
        self.loss = info
        self.pending_reason = str(info)
        self.pending_cause = info.redacted()
        self.closing = (NORMAL, "")
        self.too_big_in_a_row = self.too_big_in_a_row + 1 if info.fault is FaultKind.MESSAGE_TOO_BIG else 0

    @event(
        row(connected, to=disconnected, when=is_retrying_off,      do=stop_retrying_off, clause="RETRY-1"),
        row(connected, to=disconnected, when=are_attempts_used_up, do=stop_used_up,      clause="RETRY-2"),
        row(connected, to=paused,       when=is_offline,           do=count_attempt,     clause="OFF-1"),
        row(connected, to=waiting,                                 do=count_attempt,     clause="LIVE-2 CONN-3 OK-2"),
        ignore(OTHERWISE, because="there is no socket to be dead or alive"),
    )
    def pong_missed(self, info: CloseInfo) -> None:
        """A ping went unanswered: the connection is dead, or as good as dead."""
        self.too_big_in_a_row = 0
        self.pending_reason = str(info)
        self.pending_cause = info.redacted()
        self.closing = (GOING_AWAY, "ping_timeout: liveness check failed, no pong")

    @event(
        row(waiting,   to=retrying,                clause="RETRY-1"),
        row(connected, to=STAY,     do=end_outage, clause="D-STABLE D-HEARD"),
        ignore(OTHERWISE, because="no timer is running"),
    )
    def timer_fired(self) -> None:
        """The wait before the next attempt is over, or the time after which a connection counts as stable."""
        self.pending_reason, self.pending_cause = self.reason, self.cause

    @event(
        ignore(connected, because="there is a connection"),
        ignore(STOPPED, because="it is stopped: nothing is under way, and those who waited have their error"),
        row(OTHERWISE, to=STAY, when=is_outage_unreported, do=report_outage, clause="D-HEARD"),
        ignore(OTHERWISE, because="it was reported"),
    )
    def outage_lasted(self) -> None:
        """There has been no connection for `seconds_until_reported`."""
        self.pending_reason, self.pending_cause = self.reason, self.cause

    @event(
        ignore(ANY, when=is_offline, because="known already"),
        row(STOPPED,           to=STAY,         do=note_offline),
        row(any_but(*STOPPED), to=disconnected, when=is_retrying_off, do=(note_offline, stop_retrying_off),
            clause="RETRY-1"),
        row(OTHERWISE,           to=paused,       do=note_offline, clause="OFF-1 OK-1"),
    )
    def went_offline(self) -> None:
        """The network source reports that there is no network."""
        self.pending_reason = "offline"
        self.pending_cause = OFFLINE
        self.closing = (GOING_AWAY, "offline")

    @event(
        ignore(ANY, when=is_online, because="known already"),
        row(paused,     to=waiting,    when=is_too_soon, do=wake_up_later,   clause="OFF-2 D-HTTP"),
        row(paused,     to=retrying,                     do=wake_up,         clause="OFF-2 OK-1"),
        row(DIALING,    to=STAY,       when=is_too_soon, do=begin_on_online, clause="OFF-2 D-HTTP"),
        row(connecting, to=connecting,                   do=wake_up,         clause="OFF-2"),  # the dial under way may
        row(retrying,   to=retrying,                     do=wake_up,         clause="OFF-2"),  # hang on the old network
        row(OTHERWISE,    to=STAY,                         do=note_online),  # connected, stopped, or not offline
    )
    def went_online(self, now: float | None = None) -> None:
        """The network source reports that there is a network again, at time ``now`` in seconds."""
        self.pending_reason, self.pending_cause = "back online", self.cause
        self.note_time(now)
        if now is None:
            self.woken_at = None  # without a clock there is no flapping

    @event(
        row(error, to=STAY,  when=is_fault_in_event, do=fault_again, clause="D-ERROR D-STOP"),
        ignore(error, because="in error already; to say so again might raise again, for ever"),
        row(OTHERWISE,  to=error, do=stop_faulted, clause="D-ERROR"),
    )
    def faulted(self, what: str, in_event: bool = False) -> None:
        """A guard, a policy, or other code of this program raised: ``in_event``, or in an effect."""
        self.pending_reason = what
        self.fault_in_event = in_event
        self.closing = (INTERNAL_ERROR, "")

    # fmt: on

    # Helpers

    def note_time(self, now: float | None) -> None:
        if now is not None:
            self.now = now

    def earliest_attempt(self) -> float:
        """When the next attempt may be made because the network is back (OFF-2, D-HTTP)."""
        return max(self.damped_until(), float("-inf") if self.not_before is None else self.not_before)

    def damped_until(self) -> float:
        """OFF-2: not within ``base`` of the last such attempt, however the network flaps."""
        if self.woken_at is None:
            return float("-inf")
        return self.woken_at if self.woken_at > self.now else self.woken_at + self.policy.base

    def is_temporary(self) -> bool:
        """D-HTTP: a certificate that does not verify may verify later, as with captive portals and wrong clocks.

        So it is for a client that was connected before, in this run or an earlier one, or that was offline before.
        """
        return self.failure.fault in CERTIFICATES and self.certificate_may_recover

    def what_comes_next(self) -> str:
        """In words, for the log (D-HEARD)."""
        if self.status in STOPPED_STATUSES:
            return "it does not try again by itself; connect() or retry_now() starts it again"
        if self.retry_in is not None:
            number = f"retry {self.attempt}" if self.attempt else "the next attempt"
            return f"{number} comes after a wait of {self.retry_in:.1f} s"
        if "dial" in self.states[self.state].enter:
            return "an attempt is under way"
        return "it waits to hear that there is a network again" if not self.online else f"it is {self.state}"

    def notify_rooms(self, event: str) -> None:
        """A room hears one thing per transition, the last: being stopped says more than having lost the connection."""
        assert self._effects is not None
        self._effects[:] = [each for each in self._effects if not isinstance(each, NotifyRooms)]
        stop = self.stop_kind if event == "client_stopped" else None
        self.emit(NotifyRooms(event, self.pending_reason, self.pending_cause, stop))

    def fire_faulted(self, reason: str) -> list[Effect]:
        return self.events["faulted"].fire(self, reason, True)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]

    def last_resort(self, reason: str, old: ClientStatus) -> list[Effect]:
        self.pending_reason = self.reason = reason
        self.cause, self.stop_kind = None, StopKind.FAULT
        change = StatusChange(old, self.status, reason, None, StopKind.FAULT)
        return [
            Release(),
            NotifyRooms("client_stopped", reason, None, StopKind.FAULT),
            FailWaiters(ClientStopped(reason, None, StopKind.FAULT)),
            *([NotifyStatus(change)] if self.status != old else []),
        ]

    def state_changed(self) -> None:
        self.reason, self.cause = self.pending_reason, self.pending_cause
        if self.status not in STOPPED_STATUSES:
            self.stop_kind = self.pending_stop = None
        failures = self.attempt if self.status is ClientStatus.RECONNECTING else 0
        if self.stop_kind not in (None, StopKind.CLOSED, StopKind.FAULT):
            failures = self.attempt + 1  # the last one was not counted
        if failures >= self.failures_until_reported and self.is_outage_unreported():
            self.report_outage()

    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None:
        under_way = new in UNDER_WAY
        if under_way and old not in UNDER_WAY:
            self.emit(StartOutageTimer(self.seconds_until_reported))
        elif not under_way and old in UNDER_WAY:
            self.emit(StopOutageTimer())
        if self.stop_kind is StopKind.CLOSED:
            self.outage_reported = False
        attempt = self.attempt if under_way else 0
        change = StatusChange(old, new, self.pending_reason, self.pending_cause, self.stop_kind, attempt, self.retry_in)
        self.emit(NotifyStatus(change))
