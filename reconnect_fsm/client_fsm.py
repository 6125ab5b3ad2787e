"""The machine of a client: what it does about every fact, in every state. The table below *is* the behaviour.

How it works. A client is in one of seven states, shown to the outside as five statuses. What lives in a state is
started when it is entered and stopped when it is left, so there is never a second socket, dial or timer, and none
after a stop:

    connecting     one dial: the first one, or one asked for by hand
    connected      one socket, one ping timer; one more timer until it has lasted long enough to count as stable
    waiting        one retry timer
    retrying       one dial
    paused         nothing: the machine is offline
    disconnected   nothing: somebody decided that it ends, or it has not begun
    error          nothing: it cannot work as it is configured

The driver (connection.py) tells it facts, one at a time: a socket opened, a dial failed, a timer ran out, somebody
asked for something. Each fact is a method below; its body only remembers what the fact tells, its rows decide. What
the machine remembers besides its state is plain data for the guards: the policy, whether the environment is online,
how many attempts failed in a row, and the last reason.

To change a decision, subclass: override a guard, put a row first, add a state. See machine.py for how rows are written.
"""

from __future__ import annotations

from .effects import (
    AnnounceConnected,
    CancelDial,
    CloseSocket,
    Dial,
    Effect,
    FailWaiters,
    NotifyStatus,
    Release,
    StartKeepalive,
    StartTimer,
    StopKeepalive,
    StopTimer,
    TellRooms,
)
from .errors import ClientStopped
from .machine import ANY, FSM, REST, STAY, any_but, event, refuse, row, state
from .retry import RetryPolicy
from .status import AttemptFailure, ClientStatus, CloseInfo, FailureKind, StatusChange

__all__ = ["ClientFSM"]

NORMAL, GOING_AWAY, INTERNAL_ERROR = 1000, 1001, 1011  # RFC 6455, 7.4.1
NO_FAILURE = AttemptFailure(FailureKind.NETWORK, "")


class ClientFSM(FSM[ClientStatus]):
    """Every decision of a client (CONN, RETRY, LIVE, OFF, CTRL). Pure: facts in, effects out."""

    __slots__ = (
        "attempt",
        "failure",
        "farewell",
        "loss",
        "news",
        "online",
        "policy",
        "reason",
        "reset_asked",
        "retry_in",
    )

    # States

    disconnected = state(
        ClientStatus.DISCONNECTED,
        enter="stop",
        doc="nothing; someone decided that it ends, or it has not begun",
    )
    connecting = state(
        ClientStatus.CONNECTING,
        enter="dial",
        exit="cancel_dial",
        doc="one dial: the first one, or one asked for by hand",
    )
    connected = state(
        ClientStatus.CONNECTED,
        enter="open_for_business",
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
        doc="nothing; it cannot work as it is configured",
    )

    initial = disconnected

    STOPPED = (disconnected, error)
    DIALING = (connecting, retrying)
    BETWEEN = (waiting, paused)

    # What it remembers

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        super().__init__()
        self.policy = policy or RetryPolicy()
        self.online = True
        """What the environment last reported; until it reports, we assume the best."""
        self.attempt = 0
        """How many attempts or connections failed in a row: the number of the retry that is next or under way."""
        self.reason = "not started"
        """Why it is in its present state, in words."""
        self.news = self.reason
        """What it was told last; it becomes the reason if it leads to another state."""
        self.retry_in: float | None = None
        """Seconds that the present wait lasts."""
        self.farewell = (NORMAL, "")
        """What the close frame will say, should the socket be closed."""
        self.loss = CloseInfo(NORMAL)
        self.failure = NO_FAILURE
        self.reset_asked = False

    # Guards

    def is_fatal_close(self) -> bool:
        """The server's close code or reason says: do not come back (by default 1008, 4400-4499, and three reasons)."""
        return self.policy.is_fatal_close(self.loss)

    def is_fatal_failure(self) -> bool:
        """The answer to the handshake (by default 401, 403), or the token provider, says: do not try again."""
        return self.policy.is_fatal_failure(self.failure)

    def is_misconfigured(self) -> bool:
        """It cannot work: an unusable URL, a certificate that does not verify."""
        return self.failure.kind is FailureKind.MISCONFIGURED

    def is_retrying_off(self) -> bool:
        """The policy says not to retry at all."""
        return not self.policy.enabled

    def are_attempts_used_up(self) -> bool:
        """As many retries in a row have failed as the policy allows."""
        return self.policy.max_attempts is not None and self.attempt >= self.policy.max_attempts

    def is_offline(self) -> bool:
        """The environment reported that there is no network."""
        return not self.online

    def is_online(self) -> bool:
        """The environment reported that there is a network, or nothing yet."""
        return self.online

    def is_stable_at_once(self) -> bool:
        """The policy counts every connection as stable."""
        return self.policy.stable_after == 0

    def is_reset_asked(self) -> bool:
        """Whoever asked to connect wants the backoff to begin anew."""
        return self.reset_asked

    def resets_on_online(self) -> bool:
        """The policy says that the backoff begins anew when the network is back."""
        return self.policy.reset_on_online

    # Actions: each asks for effects, or changes what is remembered

    def start(self) -> None:
        """The client begins, or begins again: with a clean slate."""
        self.attempt = 0
        self.tell_rooms("client_started")

    def stop(self) -> None:
        """The client ends: nothing is left running, rooms and waiting operations hear of it."""
        self.emit(Release())
        self.tell_rooms("client_stopped")
        self.emit(FailWaiters(ClientStopped(self.news)))

    def dial(self) -> None:
        self.emit(Dial())

    def cancel_dial(self) -> None:
        self.emit(CancelDial())

    def open_for_business(self) -> None:
        self.emit(StartKeepalive())
        self.emit(StartTimer(self.policy.stable_after))
        self.tell_rooms("connection_opened")
        self.emit(AnnounceConnected())

    def close_socket(self) -> None:
        self.emit(StopKeepalive())
        self.emit(StopTimer())
        self.emit(CloseSocket(*self.farewell))
        self.tell_rooms("connection_lost")

    def start_retry_timer(self) -> None:
        """RETRY-1, and never sooner than the server asked (D-HTTP)."""
        delay, no_sooner = self.policy.delay(self.attempt), self.policy.no_sooner(self.failure.retry_after)
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

    def note_offline(self) -> None:
        self.online = False

    def note_online(self) -> None:
        self.online = True

    # The table: for each fact, the first row whose guards pass
    # fmt: off

    @event(
        row(STOPPED, to=connecting,                      do=start,           clause="CTRL-1 RETRY-4 OK-3"),
        row(BETWEEN, to=connecting, when=is_reset_asked, do=forget_attempts, clause="CTRL-1"),
        row(BETWEEN, to=connecting,                                          clause="CTRL-1"),
        row(REST,    to=STAY,       when=is_reset_asked, do=forget_attempts, clause="CTRL-1"),
        refuse(REST, because="connected already, or an attempt is under way", clause="D-FORCE"),
    )
    def connect_requested(self, reset_backoff: bool = False) -> None:
        """Somebody asked to be connected: `connect()`."""
        self.reset_asked = reset_backoff
        self.news = "asked to connect"

    @event(
        row(STOPPED, to=connecting, do=start, clause="CTRL-1 RETRY-4 OK-3"),
        row(REST,    to=connecting,           clause="CTRL-1 D-FORCE"),
    )
    def retry_requested(self) -> None:
        """Somebody asked for a fresh attempt now: `retry_now()`."""
        self.news = "asked for a fresh attempt"
        self.farewell = (NORMAL, "reconnecting")

    @event(
        row(STOPPED, to=paused,     when=is_offline, do=start, clause="OFF-1"),
        row(STOPPED, to=connecting,                  do=start, clause="CONN-2"),
        refuse(REST, because="it is started already"),
    )
    def start_requested(self) -> None:
        """The client is started: `start()`, or entering ``async with``."""
        self.news = "started"

    @event(
        refuse(disconnected, because="disconnected already"),
        row(REST, to=disconnected, clause="CTRL-2"),
    )
    def close_requested(self) -> None:
        """Somebody asked to stop: `close()`."""
        self.news = "closed by this program"
        self.farewell = (NORMAL, "")

    @event(
        row(DIALING, to=connected, when=is_stable_at_once, do=forget_attempts, clause="CONN-5 D-STABLE"),
        row(DIALING, to=connected,                                             clause="CONN-5"),
        refuse(REST, because="no dial is under way: a socket that opens now is nobody's"),
    )
    def socket_opened(self) -> None:
        """The dial succeeded: the WebSocket is open."""
        self.news = "connected"
        self.failure = NO_FAILURE

    @event(
        row(DIALING, to=error,        when=is_misconfigured,                       clause="D-ERROR"),
        row(DIALING, to=disconnected, when=is_fatal_failure,                       clause="RETRY-3 D-HTTP CONN-4"),
        row(DIALING, to=disconnected, when=is_retrying_off,                        clause="RETRY-1"),
        row(DIALING, to=disconnected, when=are_attempts_used_up,                   clause="RETRY-2"),
        row(DIALING, to=paused,       when=is_offline,           do=count_attempt, clause="OFF-1"),
        row(DIALING, to=waiting,                                 do=count_attempt, clause="CONN-3 RETRY-1"),
        refuse(REST, because="no dial is under way"),
    )
    def dial_failed(self, failure: AttemptFailure) -> None:
        """The dial did not lead to an open WebSocket."""
        self.failure = failure
        self.news = str(failure)

    @event(
        row(connected, to=disconnected, when=is_fatal_close,                         clause="RETRY-3 D-CODES CONN-4"),
        row(connected, to=disconnected, when=is_retrying_off,                        clause="RETRY-1"),
        row(connected, to=disconnected, when=are_attempts_used_up,                   clause="RETRY-2"),
        row(connected, to=paused,       when=is_offline,           do=count_attempt, clause="OFF-1"),
        row(connected, to=waiting,                                 do=count_attempt, clause="CONN-3"),
        refuse(REST, because="there is no socket that could close"),
    )
    def socket_closed(self, info: CloseInfo) -> None:
        """The connection is gone: the server closed it, or the network dropped it."""
        self.loss = info
        self.news = str(info)
        self.farewell = (NORMAL, "")

    @event(
        row(connected, to=disconnected, when=is_retrying_off,                        clause="RETRY-1"),
        row(connected, to=disconnected, when=are_attempts_used_up,                   clause="RETRY-2"),
        row(connected, to=paused,       when=is_offline,           do=count_attempt, clause="OFF-1"),
        row(connected, to=waiting,                                 do=count_attempt, clause="LIVE-2 CONN-3 OK-2"),
        refuse(REST, because="there is no socket to be dead or alive"),
    )
    def pong_missed(self, info: CloseInfo) -> None:
        """A ping went unanswered: the connection is dead, or as good as dead."""
        self.news = str(info)
        self.farewell = (GOING_AWAY, "ping_timeout: liveness check failed, no pong")

    @event(
        row(waiting,   to=retrying,                     clause="RETRY-1"),
        row(connected, to=STAY,     do=forget_attempts, clause="D-STABLE"),
        refuse(REST, because="no timer is running"),
    )
    def timer_fell_due(self) -> None:
        """The wait before the next attempt is over, or the time after which a connection counts as stable."""
        self.news = self.reason

    @event(
        refuse(ANY, when=is_offline, because="known already"),
        row(STOPPED,           to=STAY,                               do=note_offline),
        row(any_but(*STOPPED), to=disconnected, when=is_retrying_off, do=note_offline, clause="RETRY-1"),
        row(REST,              to=paused,                             do=note_offline, clause="OFF-1 OK-1"),
    )
    def went_offline(self) -> None:
        """The environment reports that there is no network."""
        self.news = "offline"
        self.farewell = (GOING_AWAY, "offline")

    @event(
        refuse(ANY, when=is_online, because="known already"),
        row(paused, to=retrying, when=resets_on_online, do=(note_online, forget_attempts), clause="OFF-2 OK-1"),
        row(paused, to=retrying,                        do=note_online,                    clause="OFF-2 OK-1"),
        row(REST,   to=STAY,                            do=note_online),
    )
    def went_online(self) -> None:
        """The environment reports that there is a network again."""
        self.news = "back online"

    @event(
        refuse(error, because="in error already"),
        row(REST, to=error, clause="D-ERROR"),
    )
    def broke(self, what: str) -> None:
        """A guard, a policy, or something else of this program's own raised."""
        self.news = what
        self.farewell = (INTERNAL_ERROR, "")

    # fmt: on

    # Helpers

    def tell_rooms(self, fact: str) -> None:
        """A room hears one thing per transition, the last: being stopped says more than having lost the connection."""
        assert self._effects is not None
        self._effects[:] = [each for each in self._effects if not isinstance(each, TellRooms)]
        self.emit(TellRooms(fact, self.news))

    def give_up(self, what: str) -> list[Effect]:
        """The driver's last resort when `broke` raised too: to `error`, without an action that might raise again."""
        old, self.news = self.told_status, what
        self.reason = what
        self.jump_to(self.error)
        news = [] if self.status == old else [NotifyStatus(StatusChange(old, self.status, what))]
        return [Release(), TellRooms("client_stopped", what), FailWaiters(ClientStopped(what)), *news]

    def state_changed(self) -> None:
        self.reason = self.news

    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None:
        under_way = new in (ClientStatus.CONNECTING, ClientStatus.RECONNECTING)
        attempt = self.attempt if under_way else 0
        self.emit(NotifyStatus(StatusChange(old, new, self.news, attempt=attempt, retry_in=self.retry_in)))
