"""The status of a client in words: what `Connection.explain` says.

=====================  =============================================================================================
when                   it says (then come the last transitions, and the rooms by status)
=====================  =============================================================================================
not started yet        Not started. Start it with start() or connect(), or enter it with "async with".
connecting             Connecting for 0.8 s: started. An attempt is under way, and may take 9.2 s more.
connected              Connected for 3 min 12 s. The last ping took 24 ms there and back.
waiting                Not connected, and reconnecting for 12 s: could not connect: Connection refused. It has failed
                       3 times in a row. The next attempt, retry 3, is in 4.2 s, 6.1 s after the last one failed: the
                       backoff, 0.5 s that doubles up to 15 s, give or take 25%. retry_now() makes it now.
asked to wait          … The next attempt, retry 1, is in 28 s, 31 s after the last one failed: the server asked for no
                       sooner than 30 s. …
retrying               Not connected, and reconnecting for 16 s: … Retry 3 is under way, and may take 9.7 s more.
paused                 Not connected, and reconnecting for 2 min 5 s: offline. It waits to hear that there is a network
                       again, and tries at once then. retry_now() tries now.
disconnected           Stopped 4.0 s ago, for good: closed by this program. connect() or retry_now() starts it again.
refused                Stopped 4.0 s ago, for good: closed with code 4401. That says not to come back. …
error                  Stopped 4.0 s ago, in error: … Trying again will not help before that is put right. Then …
=====================  =============================================================================================

A subclass may add states. Of one it says what can be known: its name and ``doc``, the attempt or timer that its effects
began, where the timer leads, and the events of the subclass that lead on:

=====================  =============================================================================================
added: with a timer    Not connected, and reconnecting for 12 s, in the state updating: closed with code 4503. … The
                       next attempt, retry 1, is in 48 s: the state updating decides how long it waits. …
added: with nothing    Not connected, and reconnecting for 12 s, in the state held: … What is alive in held: nothing.
                       Events that lead on: released (to retrying), … retry_now() tries now.
=====================  =============================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter
from typing import Final, Protocol

from reconnect_fsm._steps import Step
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import CancelDial, Dial, Release
from reconnect_fsm.errors import is_fault
from reconnect_fsm.machine import Event
from reconnect_fsm.recorder.format import shortened
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import ClientStatus, RoomStatus, StopKind

__all__ = ["ExplainedRoom", "Explanation", "duration", "explanation"]

MAX_TRANSITIONS: Final = 5  # the last ones
MAX_REASONS: Final = 5  # of rooms
MAX_NAMES: Final = 3  # of rooms with the same reason
TINY: Final = 1e-6  # seconds, by which two sums of the same times may differ
MAX_REASON: Final = 240  # characters
CAUSED: Final = ("socket_opened", "dial_failed", "socket_closed", "pong_missed", "timer_fired")  # by what is alive
STATE_AND_REASON: Final = attrgetter("fsm.state", "fsm.reason")  # of a room


class ExplainedRoom(Protocol):
    """What is read of a room."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def fsm(self) -> RoomFSM:
        """Its machine."""
        ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """The status of a client in words; `str` is all of it, a paragraph a line."""

    summary: str
    """The status, since when, and why."""
    next: str
    """What comes next, when, and why then; may be empty."""
    remedy: str
    """What the program can do about it; may be empty."""
    history: str = ""
    """The last transitions."""
    rooms: tuple[str, ...] = ()
    """The rooms by status, and those that were refused."""

    @property
    def present(self) -> str:
        """The status and what comes next, without the history and the rooms."""
        return _lines(self.summary, f"{self.next} {self.remedy}".strip())

    def __str__(self) -> str:
        return _lines(self.present, self.history, *self.rooms)


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def explanation(
    fsm: ClientFSM,
    steps: Sequence[Step],
    rooms: Collection[ExplainedRoom],
    *,
    now: float,
    due: float | None,
    connect_timeout: float,
    latency: float | None,
) -> Explanation:
    """Explain the status. Times are in seconds of the loop; ``due`` is when the machine's timer fires."""
    own = [step for step in steps if not step[1]]
    if fsm.state == fsm.initial.name and all(old == new for _, _, _, _, _, old, new, *_ in own):
        begin = 'Start it with start() or connect(), or enter it with "async with".'
        return Explanation("Not started.", "", begin, rooms=tuple(_of(rooms)))
    since, is_whole = _since(fsm, own)
    lasts = ("" if is_whole else "more than ") + duration(now - since)
    left = None if due is None else max(due - now, 0.0)
    refused = [step for step in steps if step[1] and step[6] != step[5] and _is_refused(step)]
    return Explanation(
        _summary(fsm, lasts, latency),
        *_next(fsm, own, now, left, connect_timeout),
        _history(own, now),
        (*_of(rooms), *(_refusal(step, now) for step in refused[-MAX_TRANSITIONS:])),
    )


def _since(fsm: ClientFSM, own: Sequence[Step]) -> tuple[float, bool]:
    """Since when it has its status, and whether the steps reach back to where that began."""
    status = fsm.status
    for at, _, _, _, _, old, new, *_ in reversed(own):
        if fsm.states[new].status is status is not fsm.states[old].status:
            return at, True
    return own[0][0], False


def _summary(fsm: ClientFSM, lasts: str, latency: float | None) -> str:
    """The status, since when, and why."""
    why = _sentence(fsm.reason)
    where = f", in the state {fsm.state}" if _is_added(fsm) else ""
    match fsm.status:
        case ClientStatus.CONNECTED:
            ping = "" if latency is None else f" The last ping took {latency * 1000:.3g} ms there and back."
            return f"Connected for {lasts}{where}.{ping}"
        case ClientStatus.CONNECTING:
            return f"Connecting for {lasts}{where}: {why}"
        case ClientStatus.RECONNECTING:
            return f"Not connected, and reconnecting for {lasts}{where}: {why}"
        case ClientStatus.DISCONNECTED:
            return f"Stopped {lasts} ago, for good{where}: {why}"
        case ClientStatus.ERROR:
            return f"Stopped {lasts} ago, in error{where}: {why}"


def _next(
    fsm: ClientFSM, own: Sequence[Step], now: float, left: float | None, connect_timeout: float
) -> tuple[str, str]:
    """What comes next, when, and why then; and what the program can do about it."""
    if fsm.status is ClientStatus.DISCONNECTED:
        coming, remedy = _verdict(fsm), _remedy(fsm, "{} starts it again.")
    elif fsm.status is ClientStatus.ERROR:
        coming = "Trying again will not help before that is put right."
        remedy = _remedy(fsm, "Then {} starts it again.")
    else:
        coming, remedy = _going_on(fsm, own, now, left, connect_timeout)
    added = _added_state(fsm) if _is_added(fsm) else ""
    return f"{coming} {added}".strip(), remedy


def _going_on(
    fsm: ClientFSM, own: Sequence[Step], now: float, left: float | None, connect_timeout: float
) -> tuple[str, str]:
    """The same of a client that is not stopped."""
    failed = f"It has failed {_times(fsm.attempt)} in a row." if fsm.attempt else ""
    coming = remedy = ""
    began = _dialing_since(fsm, own, now)
    if began is not None:
        attempt = f"Retry {fsm.attempt}" if fsm.attempt else "An attempt"
        coming = f"{attempt} is under way, and may take {duration(connect_timeout - (now - began))} more."
    elif fsm.state == ClientFSM.connected.name:
        if failed and left is not None:
            coming = f"The connection counts as stable in {duration(left)}, and that is forgotten then."
    elif left is not None:
        coming, remedy = _timer(fsm, now, left)
    elif not fsm.online and _target(fsm, ClientFSM.went_online) is not None:
        coming = "It waits to hear that there is a network again, and tries at once then."
        remedy = _retry(fsm, "{} tries now.")
    else:
        remedy = _retry(fsm, "{} tries now.")
    return f"{failed} {coming}".strip(), remedy if fsm.status is not ClientStatus.CONNECTED else ""


def _dialing_since(fsm: ClientFSM, own: Sequence[Step], now: float) -> float | None:
    """When the attempt that is under way began; None if there is none."""
    for at, _, _, event, _, _, _, _, _, effects, _ in reversed(own):
        for kind in map(type, reversed(effects)):
            if kind is Dial:
                return at
            if kind in (CancelDial, Release):
                return None
        if event in ("socket_opened", "dial_failed"):
            return None
    return now if fsm.states[fsm.state] in fsm.DIALING else None  # the log no longer has its beginning


def _timer(fsm: ClientFSM, now: float, left: float) -> tuple[str, str]:
    """What its timer leads to, when, and why then; and what the program can do about it."""
    target = _target(fsm, ClientFSM.timer_fired)
    if target is None or "dial" not in fsm.states[target].enter:
        leads = "" if target is None else f", and leads to {target}"
        return f"Its timer fires in {duration(left)}{leads}.", _retry(fsm, "{} tries now.")
    bound = "" if fsm.policy.max_attempts is None else f" of at most {fsm.policy.max_attempts}"
    number = f", retry {fsm.attempt}{bound}," if fsm.attempt else ""
    is_backoff = "start_retry_timer" in fsm.states[fsm.state].enter
    if is_backoff and type(fsm).start_retry_timer is ClientFSM.start_retry_timer and fsm.retry_in is not None:
        begin = f"it entered {fsm.state}" if _is_added(fsm) else "the network came back"
        since = "the last one failed" if fsm.attempt else begin
        why = f", {duration(fsm.retry_in)} after {since}: {_why_then(fsm, now + left - fsm.retry_in)}"
    else:
        who = f"the state {fsm.state}" if _is_added(fsm) else type(fsm).__name__
        why = f": {who} decides how long it waits"
    return f"The next attempt{number} is in {duration(left)}{why}.", _retry(fsm, "{} makes it now.")


def _is_added(fsm: ClientFSM) -> bool:
    """Whether a subclass added its present state."""
    return fsm.state not in ClientFSM.states


def _added_state(fsm: ClientFSM) -> str:
    """What is known of a state that a subclass added: what is alive in it, and which events lead on."""
    ours = {each.__name__ for each in ClientFSM.__mro__}
    targets: dict[str, list[str]] = {}
    for rule in fsm.rules:
        leads_on = rule.source == fsm.state and rule.target not in (None, fsm.state)
        if leads_on and rule.declared_in not in ours and rule.event not in CAUSED:
            targets.setdefault(rule.event, []).append(str(rule.target))
    leads = [f"{event} (to {' or '.join(dict.fromkeys(each))})" for event, each in targets.items()]
    doc = fsm.states[fsm.state].doc
    alive = f"What is alive in {fsm.state}: {_sentence(doc)}" if doc else ""
    return " ".join(part for part in (alive, f"Events that lead on: {', '.join(leads)}." if leads else "") if part)


def _target(fsm: ClientFSM, event: Event[...]) -> str | None:
    """The state to which the event would lead now; None if to none, or if a guard of a subclass raises."""
    rules = (rule for rule in fsm.rules if rule.event == event.name and rule.source == fsm.state)
    try:
        found = next((rule for rule in rules if rule.passes(fsm)), None)
    except BaseException as error:  # the user's code: see is_fault
        if not is_fault(error):
            raise
        return None
    return None if found is None else found.target


def _remedy(fsm: ClientFSM, text: str) -> str:
    """The calls that lead on from a stop."""
    calls = {"connect()": ClientFSM.connect_requested, "retry_now()": ClientFSM.retry_requested}
    leading = [call for call, event in calls.items() if _target(fsm, event) is not None]
    return text.format(" or ".join(leading)) if leading else ""


def _retry(fsm: ClientFSM, text: str) -> str:
    return text.format("retry_now()") if _target(fsm, ClientFSM.retry_requested) is not None else ""


def _verdict(fsm: ClientFSM) -> str:
    """Why it does not try again, if the program did not stop it."""
    match fsm.stop_kind:
        case StopKind.RETRYING_OFF:
            return "The policy says not to retry."
        case StopKind.ATTEMPTS_USED_UP:
            return f"It has failed {_times(fsm.attempt + 1)} in a row, and max_attempts is {fsm.policy.max_attempts}."
        case StopKind.REFUSED:
            return "That says not to come back."
        case _:
            return ""


def _why_then(fsm: ClientFSM, began: float) -> str:
    policy, wait = fsm.policy, fsm.retry_in or 0.0
    asked = min(fsm.failure.retry_after, policy.max_retry_after)
    rest = 0.0 if fsm.not_before is None else fsm.not_before - began
    if rest > TINY and wait >= rest - TINY:
        return f"the server asked for no sooner than {duration(asked or rest)}"
    if not fsm.attempt and fsm.woken_at is not None and fsm.woken_at > began:
        return "it comes and goes, so that not every time leads to an attempt"
    if type(policy).delay is not RetryPolicy.delay:
        return f"the backoff of {type(policy).__name__}"
    spread = f", give or take {policy.jitter:.0%}" if policy.jitter else ""
    return f"the backoff, {duration(policy.base)} that doubles up to {duration(policy.cap)}{spread}"


def _history(own: Sequence[Step], now: float) -> str:
    """The last transitions."""
    changes = [
        f"{duration(now - at)} ago {old} → {new}: {_sentence(reason)}"
        for at, _, _, _, _, old, new, reason, *_ in own
        if old != new
    ]
    return "" if not changes else "What happened last: " + " ".join(reversed(changes[-MAX_TRANSITIONS:]))


def _of(rooms: Collection[ExplainedRoom]) -> Iterable[str]:
    """The rooms by status, and the reasons of those that are not joined."""
    if not rooms:
        return
    # Python sees each state and reason once, not each room: there may be 100,000, and the event loop waits.
    alike: Counter[tuple[str, str]] = Counter(map(STATE_AND_REASON, rooms))
    status_of = {name: state.status.value for name, state in next(iter(rooms)).fsm.states.items()}
    counts: Counter[str] = Counter()
    others: Counter[tuple[str, str]] = Counter()
    for (state, reason), number in alike.items():
        counts[status_of[state]] += number
        if status_of[state] != RoomStatus.JOINED:
            others[status_of[state], reason] += number
    yield f"Rooms: {', '.join(f'{counts[status]:,} {status}' for status in RoomStatus if counts[status])}."
    names: dict[tuple[str, str], list[str]] = {each: [] for each, _ in others.most_common(MAX_REASONS)}
    if names:
        groups = {(state, reason): (status_of[state], reason) for state, reason in alike}
        _name_some(rooms, {each: names[group] for each, group in groups.items() if group in names})
    for (status, reason), some in names.items():
        more = others[status, reason] - len(some)
        yield f"{', '.join(map(repr, some))}{f' and {more:,} more' if more else ''}: {status}, {_sentence(reason)}"
    if len(others) > MAX_REASONS:
        yield f"And {len(others) - MAX_REASONS:,} more reasons."


def _name_some(rooms: Iterable[ExplainedRoom], names: Mapping[tuple[str, str], list[str]]) -> None:
    """Add the ids of the first rooms in each state and for each reason."""
    short = dict(names)
    for room in compress(rooms, map(short.__contains__, map(STATE_AND_REASON, rooms))):
        each = STATE_AND_REASON(room)
        if len(short[each]) < MAX_NAMES:
            short[each].append(room.name)
        else:
            del short[each]  # `compress` skips the rest of them
            if not short:
                return


def _refusal(step: Step, now: float) -> str:
    return f"Room {step[1]!r} was refused or put out {duration(now - step[0])} ago: {_sentence(step[7])}"


def _is_refused(step: Step) -> bool:
    return step[2].states[step[6]].status is RoomStatus.ERROR


def _sentence(reason: str) -> str:
    text = shortened(reason, MAX_REASON)
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _times(number: int) -> str:
    return "once" if number == 1 else "twice" if number == 2 else f"{number:,} times"


def duration(seconds: float) -> str:
    """A time in words: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    for size, small, name, smaller in ((60, 1, "min", "s"), (3600, 60, "h", "min"), (86400, 3600, "d", "h")):
        whole, rest = divmod(round(seconds / small), size // small)
        if size == 86400 or whole < (60 if size == 60 else 24):
            return f"{whole:,} {name}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("the last one fits all")
