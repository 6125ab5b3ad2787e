"""Exhaustive checks of a machine, from its declaration alone: of ours, and of a subclass of yours just as well.

::

    def test_my_machine() -> None:
        check_machine(PatientFSM)

Every (event, state) pair that can be reached is tried with every answer that its guards could give, so that no policy,
clock or network is needed to get anywhere. Then the machine runs for a while with its real guards, a real policy and a
seeded source of chance. Each fault comes with the shortest list of events that leads to it.

What must hold is a `Watch`: it follows what is alive by the effects asked for. `check_machine` is made of `explore`,
which answers questions of your own::

    found = explore(PatientFSM, make=make_patient, watch=ClientWatch())
    assert {event for old, event, new in found.moves if new == "updating" != old} == {"socket_closed"}
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random, SystemRandom
from typing import Any, ClassVar, Final, Self, TypeAlias, cast

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import (
    AbandonRequest,
    AnnounceConnected,
    CancelDial,
    CloseSocket,
    Dial,
    Effect,
    EndSession,
    FailWaiters,
    NotifyRooms,
    NotifyStatus,
    Release,
    RequestJoin,
    SendLeave,
    StartKeepalive,
    StartOutageTimer,
    StartTimer,
    StopKeepalive,
    StopOutageTimer,
    StopTimer,
    Synchronise,
    Untrack,
)
from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.loro_protocol.messages import UpdateStatusCode
from reconnect_fsm.machine import FSM, NOT, Event, Rule
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import (
    AttemptFailure,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    RoomStatus,
    StatusChange,
)

__all__ = [
    "ARGUMENTS",
    "AliveWatch",
    "ClientWatch",
    "Exploration",
    "Fault",
    "Firing",
    "MachineFault",
    "Moment",
    "RoomWatch",
    "StatusWatch",
    "Watch",
    "check_machine",
    "explore",
    "of_client",
    "of_room",
    "run",
    "said",
]

Arguments: TypeAlias = tuple[Any, ...]
ArgumentsOf: TypeAlias = Mapping[str, "Arguments | list[Arguments]"]
"""The arguments of each event by its name, or a list of several such arguments."""

MAX_RUN: Final = 150  # machines that are run, for each policy: all that three or four events lead to, in a moment
MAX_LISTED: Final = 20  # faults that are spelt out

ARGUMENTS: Mapping[str, list[Arguments]] = {
    "connect_requested": [(), (True,)],
    "dial_failed": [
        (AttemptFailure(FailureKind.NETWORK, "refused"),),
        (AttemptFailure(FailureKind.ANSWER, "answered 401", 401),),
        (AttemptFailure(FailureKind.ANSWER, "answered 503", 503, 3.0),),
        (AttemptFailure(FailureKind.MISCONFIGURED, "no such scheme", fault=FaultKind.URL), 100.0),
        (AttemptFailure(FailureKind.MISCONFIGURED, "does not verify", fault=FaultKind.CERTIFICATE), 100.0),
    ],
    "socket_closed": [
        (CloseInfo(1006),),
        (CloseInfo(1008, "policy", 60.0),),
        (CloseInfo(1012, "restarting", 60.0),),
        (CloseInfo(1006, "too big", 60.0, fault=FaultKind.MESSAGE_TOO_BIG),),
    ],
    "retry_requested": [(), (True,)],
    "went_online": [(), (100.0,)],
    "pong_missed": [(CloseInfo(1006),)],
    "faulted": [("a guard raised",)],
    "connection_opened": [("connected",)],
    "connection_lost": [("lost",)],
    "client_stopped": [("closed",)],
    "client_started": [("asked to connect",)],
    "join_accepted": [("write", b"v"), ("read", b"v")],
    "join_refused": [
        (JoinRefused(1, "version unknown"), 100.0),
        (JoinRefused(2, "authentication failed"), 100.0),
        (JoinRefused(0, "storage is down"), 100.0),
        (JoinRefused(0x7F, "slowly", "rate_limited"), 100.0),
    ],
    "credentials_failed": [("the auth function raised", False), ("the auth function raised", True)],
    "evicted": [(JoinRefused(1, "rejoin"), 100.0), (JoinRefused(2, "evicted"), 101.0)],
    "batch_refused": [
        (UpdateStatusCode.RATE_LIMITED, "refused", 100.0),
        (UpdateStatusCode.INVALID_UPDATE, "refused", 100.0),
    ],
    "upload_refused": [(UpdateStatusCode.PERMISSION_DENIED,)],
    "edited_in_doubt": [(100.0,)],
    "updates_lost": [
        (UpdateStatusCode.OK, "one is missing", 100.0),
        (UpdateStatusCode.PAYLOAD_TOO_LARGE, "too large", 100.0),
    ],
    "acks_overdue": [(100.0,)],
}
"""The arguments of the two machines' events; the rest take none. `explore` fires each with the first ones."""

# ----------------------------------------------------------------------------------------------------------- invariants


@dataclass(frozen=True)
class Moment:
    """One event, and what came of it."""

    event: str
    old_state: str
    old_status: Any
    fsm: Any
    """The machine, afterwards."""
    entered: bool
    """Whether a state was left and one entered, be it the same."""
    effects: Sequence[Effect]

    def count(self, kind: type[Effect]) -> int:
        return sum(isinstance(each, kind) for each in self.effects)

    def miscounted(self, wanted: Mapping[type[Effect], bool]) -> Iterator[str]:
        """The effects that are not asked for just once where they are wanted, and nowhere else."""
        for kind, times in wanted.items():
            if self.count(kind) != times:
                yield f"{kind.__name__} is asked for {_times(self.count(kind))}, not {_times(times)}"


@dataclass(frozen=True)
class Watch:
    """What holds for every machine, which is nothing; subclass it for what holds for yours."""

    def possible(self, event: str) -> bool:
        """Whether this event can happen, given what is alive. One that cannot is tried, but leads nowhere."""
        return True

    def after(self, moment: Moment) -> tuple[Self, list[str]]:
        """The watch afterwards, and what is wrong."""
        return self, list(self.complaints(moment))

    def complaints(self, moment: Moment) -> Iterator[str]:
        """What is wrong, in words."""
        yield from ()


@dataclass(frozen=True)
class StatusWatch(Watch):
    """Listeners are notified of each change of status once, after everything else (OBS-1, D-LISTEN)."""

    def complaints(self, moment: Moment) -> Iterator[str]:
        old, new = moment.old_status, moment.fsm.status
        notified = [(each.change.old, each.change.new) for each in moment.effects if isinstance(each, NotifyStatus)]
        if notified != ([] if new == old else [(old, new)]):
            changes = " and ".join(f"{old} → {new}" for old, new in notified)
            yield f"the status went from {old} to {new}, and listeners are notified of {changes or 'nothing'}"
        elif notified and not isinstance(moment.effects[-1], NotifyStatus):
            yield "there is an effect after the listeners are notified"


@dataclass(frozen=True)
class AliveWatch(StatusWatch):
    """Follows what is alive, by the events fired and the effects asked for."""

    alive: frozenset[str] = frozenset()

    CAUSES: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """The events that only something alive can cause: what causes it, and what that becomes; ``""``: it ends."""
    BEGINS: ClassVar[Mapping[type[Effect], tuple[str, Collection[str]]]] = {}
    """The effects that begin something, and what may be alive beside it."""
    ENDS: ClassVar[Mapping[type[Effect], str]] = {}
    """The effects that end something; to end what is not alive is harmless."""

    def possible(self, event: str) -> bool:
        return event not in self.CAUSES or self.CAUSES[event][0] in self.alive

    def after(self, moment: Moment) -> tuple[Self, list[str]]:
        alive, wrong = set(self.alive), list[str]()
        if moment.event in self.CAUSES and self.possible(moment.event):
            what, becomes = self.CAUSES[moment.event]
            alive = alive - {what} | {becomes} - {""}
        for effect in moment.effects:
            if type(effect) in self.BEGINS:
                what, beside = self.BEGINS[type(effect)]
                if alive - set(beside):
                    wrong.append(f"{said([effect])[0]} is asked for while there is {_words(alive)}")
                alive.add(what)
            alive.discard(self.ENDS.get(type(effect), ""))
        then = replace(self, alive=frozenset(alive))
        return then, [*wrong, *then.complaints(moment)]


@dataclass(frozen=True)
class ClientWatch(AliveWatch):
    """One dial, one socket, or one wait at a time, none after a stop; all are notified that must be (CONN, D-STOP)."""

    CAUSES = {  # noqa: RUF012 - as declared above
        "socket_opened": ("dial", "socket"),
        "dial_failed": ("dial", ""),
        "socket_closed": ("socket", ""),
        "pong_missed": ("socket", "socket"),
        "timer_fired": ("timer", ""),
    }
    BEGINS = {  # noqa: RUF012
        Dial: ("dial", ()),
        StartTimer: ("timer", ["socket", "keepalive"]),
        StartKeepalive: ("keepalive", ["socket"]),
    }
    ENDS = {CancelDial: "dial", CloseSocket: "socket", StopTimer: "timer", StopKeepalive: "keepalive"}  # noqa: RUF012
    STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)
    UNDER_WAY = (ClientStatus.CONNECTING, ClientStatus.RECONNECTING)

    def complaints(self, moment: Moment) -> Iterator[str]:
        yield from super().complaints(moment)
        status = moment.fsm.status
        if (status is ClientStatus.CONNECTED) != (self.alive - {"timer"} == frozenset({"socket", "keepalive"})):
            yield f"the status of {moment.fsm.state} is {status}, and there is {_words(self.alive)}"
        if status in self.STOPPED and self.alive:
            yield f"the client has stopped in {moment.fsm.state}, and there is still {_words(self.alive)}"
        stopped = moment.entered and status in self.STOPPED
        opened = moment.entered and status is ClientStatus.CONNECTED
        started = moment.old_status in self.STOPPED and status not in self.STOPPED
        lost = moment.entered and moment.old_status is ClientStatus.CONNECTED
        yield from moment.miscounted({Release: stopped, AnnounceConnected: opened})
        if not (moment.event == "faulted" and not moment.entered and moment.count(FailWaiters) == 1):  # in error again
            yield from moment.miscounted({FailWaiters: stopped})
        was, is_ = moment.old_status in self.UNDER_WAY, status in self.UNDER_WAY
        yield from moment.miscounted({StartOutageTimer: is_ and not was, StopOutageTimer: was and not is_})
        notified = [each.event for each in moment.effects if isinstance(each, NotifyRooms)]
        due = {
            "client_stopped": stopped,
            "connection_opened": opened,
            "connection_lost": lost,
            "client_started": started,
        }
        one = [event for event in due if due[event]][:1]  # the one that says most
        if notified != one:
            yield f"rooms are notified of {' and '.join(notified) or 'nothing'}, not {''.join(one) or 'nothing'}"


@dataclass(frozen=True)
class RoomWatch(AliveWatch):
    """One request with a deadline, or one session, at a time; untracked once, at the end (D-TIMEOUT, D-LEAVE)."""

    tracked: bool = True

    CAUSES = {"timer_fired": ("timer", "")}  # noqa: RUF012
    BEGINS = {  # noqa: RUF012 - a comparison of versions is made, or waited for, in a session
        RequestJoin: ("request", ["session"]),
        Synchronise: ("session", ["session"]),
        StartTimer: ("timer", ["request", "session"]),
    }
    ENDS = {StopTimer: "timer", AbandonRequest: "request", EndSession: "session"}  # noqa: RUF012

    def after(self, moment: Moment) -> tuple[Self, list[str]]:
        then, wrong = super().after(moment)
        if not self.tracked and moment.effects:
            wrong.append("something is done about a room that is not tracked")
        return replace(then, tracked=self.tracked and not moment.count(Untrack)), wrong

    def complaints(self, moment: Moment) -> Iterator[str]:
        yield from super().complaints(moment)
        status = moment.fsm.status
        if (status is RoomStatus.JOINED) != ("session" in self.alive):
            yield f"the status of {moment.fsm.state} is {status}, and there is {_words(self.alive)}"
        if status in (RoomStatus.DISCONNECTED, RoomStatus.ERROR) and self.alive:
            yield f"the room has ended in {moment.fsm.state}, and there is still {_words(self.alive)}"
        if "request" in self.alive and "timer" not in self.alive:
            yield "a request is made without a deadline"
        over = moment.entered and moment.fsm.state in {each.name for each in RoomFSM.FINAL}
        stopped = moment.entered and status is RoomStatus.DISCONNECTED
        yield from moment.miscounted({Untrack: over, FailWaiters: over or stopped, NotifyRooms: False})
        if moment.count(SendLeave) > over:
            yield "SendLeave is asked for, and the room is not left"


# ---------------------------------------------------------------------------------------------------------- exploration


@dataclass(frozen=True)
class Firing:
    """One event, with its arguments, or how the guards that it asks answered."""

    event: str
    answers: tuple[tuple[str, bool], ...] = ()
    args: Arguments = ()

    def __str__(self) -> str:
        args = f"({', '.join(map(_shown, self.args))})" if self.args else ""
        answers = ", ".join(name if answer else f"not {name}" for name, answer in self.answers)
        return self.event + args + (f" [{answers}]" if answers else "")


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and the shortest list of events that leads there."""

    what: str
    path: tuple[Firing, ...] | None
    """None if it is wrong wherever one stands."""

    @property
    def events(self) -> list[str]:
        """The path, without the answers of guards."""
        return [step.event for step in self.path or ()]

    def __str__(self) -> str:
        return self.what if self.path is None else f"{self.what}, after {_way(self.path)}"


class MachineFault(AssertionError):
    """What `check_machine` found wrong with a machine; ``faults`` has each of them."""

    def __init__(self, cls: type[FSM[Any]], faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = [f"{cls.__qualname__} has {len(faults)} fault{'s' if len(faults) > 1 else ''}"]
        for number, fault in enumerate(faults[:MAX_LISTED], 1):
            lines.append(f"{number:3}. {fault.what}")
            if fault.path is not None:
                lines.append(f"     after {_way(fault.path)}")
        if len(faults) > MAX_LISTED:
            lines.append(f"     and {len(faults) - MAX_LISTED} more")
        super().__init__("\n".join(lines))


@dataclass
class Exploration:
    """What was found out about a machine."""

    cls: type[FSM[Any]]
    paths: dict[str, tuple[Firing, ...]] = field(default_factory=dict[str, tuple[Firing, ...]])
    """Every state that can be reached, and the shortest way there."""
    moves: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    """(state, event, state), for all events that can happen."""
    fired: set[Rule] = field(default_factory=set[Rule])
    """The rules that fire, if the guards say so."""
    possible: set[Rule] = field(default_factory=set[Rule])
    """Those of them that fire on events that can happen there."""
    faults: list[Fault] = field(default_factory=list[Fault])
    """Holes, exceptions and broken invariants; the same one is listed once, with its shortest path."""

    def unreachable(self) -> list[str]:
        """The states that no list of events leads to."""
        return [name for name in self.cls.states if name not in self.paths]

    def dead_rules(self) -> list[Rule]:
        """The rules that never fire, whatever the guards say."""
        return [rule for rule in self.cls.rules if rule not in self.fired]

    def traps(self, goal: Collection[str], final: Collection[str] = (), without: Collection[str] = ()) -> list[Fault]:
        """The states with no way to a goal. ``final`` ones may have none; events in ``without`` do not count as one."""
        safe = set(goal)
        while more := {old for old, event, new in self.moves if new in safe and event not in without} - safe:
            safe |= more
        known = [name for name in self.cls.events if name in without]
        but = f" without {' or '.join(known)}" if known else ""
        return [
            Fault(f"no way leads from {name} to {' or '.join(sorted(goal))}{but}", path)
            for name, path in self.paths.items()
            if name not in safe | set(final)
        ]

    def note(self, what: str, path: tuple[Firing, ...] | None) -> None:
        """Keep a fault, once: what is found first is found by the shortest path."""
        if what not in {fault.what for fault in self.faults}:
            self.faults.append(Fault(what, path))


Make: TypeAlias = Callable[[type[Any]], FSM[Any]]
Guard: TypeAlias = Callable[[Any], object]


def explore(
    cls: type[FSM[Any]],
    *,
    make: Make = lambda cls: cls(),
    arguments: ArgumentsOf = ARGUMENTS,
    watch: Watch | None = None,
    seed: int = 0,
) -> Exploration:
    """Explore a machine breadth first, so that what is found first is found by the shortest path.

    ``make`` makes an instance of the class it is given. ``arguments`` has those of each event that takes any and whose
    annotations do not say what they could be. Raises TypeError for an event whose arguments are not known.
    """
    explorer = _Explorer(cls, _every_arguments(cls, arguments))
    first = _Node(_repeatable(make(explorer.probing()), seed), watch or Watch(), ())
    queue, seen = deque([first]), {first.key}
    while queue:
        node = queue.popleft()
        explorer.found.paths.setdefault(node.fsm.state, node.path)
        for successor in explorer.successors(node):
            if successor.key not in seen:
                seen.add(successor.key)
                queue.append(successor)
    explorer.note_guards_that_always_raise()
    return explorer.found


def of_client(cls: type[ClientFSM] = ClientFSM) -> Exploration:
    """Explore a client's machine."""
    return explore(cls, make=_steady, watch=ClientWatch())


def of_room(cls: type[RoomFSM] = RoomFSM) -> Exploration:
    """Explore a room's machine, likewise."""
    return explore(cls, make=_steady, watch=RoomWatch())


@dataclass(frozen=True)
class _Node:
    """A machine in some state, its watch, and the events that led there."""

    fsm: FSM[Any]
    watch: Watch
    path: tuple[Firing, ...]

    @property
    def key(self) -> tuple[str, Watch]:
        """What makes it another node: not the machine's data, which only guards read."""
        return self.fsm.state, self.watch


class _Explorer:
    """Tries everything that can be tried in one state."""

    def __init__(self, cls: type[FSM[Any]], arguments: Mapping[str, Sequence[Arguments]]) -> None:
        self.found = Exploration(cls)
        self.arguments = arguments
        self.passing: set[str] = set()
        self.raising: dict[str, tuple[str, tuple[Firing, ...]]] = {}

    def successors(self, node: _Node) -> Iterator[_Node]:
        """Fire every event, with every answer of its guards."""
        cls, state = self.found.cls, node.fsm.state
        for event in cls.events:
            rules = [rule for rule in cls.rules if (rule.event, rule.source) == (event, state)]
            for answers, chosen in _answers(rules, {}):
                path = (*node.path, Firing(event, tuple(answers.items())))
                if chosen is None:
                    self.found.note(f"{event} is not decided in {state}", path)
                    continue
                self.found.fired.add(chosen)
                try:
                    successor = self.fire(node, chosen, answers, path)
                except Exception as error:
                    self.found.note(f"{event} raises {_what(error)}, in {state}", path)
                    continue
                if node.watch.possible(event):
                    self.found.possible.add(chosen)
                    self.found.moves.add((state, event, successor.fsm.state))
                    yield successor

    def fire(self, node: _Node, rule: Rule, answers: Mapping[str, bool], path: tuple[Firing, ...]) -> _Node:
        """Fire the rule's event, twice, and compare the result with the rule and with the watch."""
        old, args = node.fsm, self.arguments[rule.event][0]
        then, effects = _fired(old, rule.event, args, answers=answers, path=path)
        again, same_effects = _fired(old, rule.event, args, answers=answers, path=path)
        if (then.state, said(effects)) != (again.state, said(same_effects)):
            self.found.note(f"{rule.event} does not do the same twice in {old.state}", path)
        target = rule.target or old.state
        if then.state != target:
            self.found.note(f"{rule.event} leads from {old.state} to {then.state}, not to {target}", path)
        moment = Moment(rule.event, old.state, old.status, then, rule.target is not None, effects)
        watch, wrong = node.watch.after(moment)
        for each in wrong:
            self.found.note(each, path)
        return _Node(then, watch, path)

    def probing(self) -> type[FSM[Any]]:
        """A subclass whose guards return the answers that are tried; the real guards run, too.

        A real guard may raise because the answers of others are made up, and the machine could never be as it is. One
        that raises each time is a fault.
        """

        def answer(fsm: Any, name: str, really: Guard) -> bool:
            if name not in fsm.answers:  # an action asks
                return bool(really(fsm))
            if name not in self.passing:
                try:
                    really(fsm)
                except Exception as error:
                    self.raising.setdefault(name, (_what(error), fsm.path))
                else:
                    self.passing.add(name)
            return bool(fsm.answers[name])

        return _with_guards(self.found.cls, answer)

    def note_guards_that_always_raise(self) -> None:
        """At the end: only then it is known that they never returned."""
        for name, (what, path) in self.raising.items():
            if name not in self.passing:
                self.found.note(f"the guard {name} raises {what}", path)


def _with_guards(cls: type[FSM[Any]], answer: Callable[[Any, str, Guard], bool]) -> type[FSM[Any]]:
    """A subclass whose guards, which are looked up by name, are ``answer(fsm, name, the real one)``."""

    def guard(name: str) -> Guard:
        really: Guard = getattr(cls, name)
        return lambda fsm: answer(fsm, name, really)

    guards = {name for rule in cls.rules for name in rule.guards}
    return type(cls.__name__, (cls,), {name: guard(name) for name in sorted(guards)})


def _answers(rules: Sequence[Rule], given: Mapping[str, bool]) -> Iterator[tuple[dict[str, bool], Rule | None]]:
    """Every way in which the guards that are asked could answer, in the order of asking, and the rule that passes."""
    for rule in rules:
        for number, name in enumerate(rule.guards):
            if name not in given:
                yield from _answers(rules, {**given, name: False})
                yield from _answers(rules, {**given, name: True})
                return
            if given[name] is rule.when[number].startswith(NOT):
                break
        else:
            yield dict(given), rule
            return
    yield dict(given), None


def _fired(fsm: FSM[Any], event: str, args: Arguments, **attributes: Any) -> tuple[FSM[Any], Sequence[Effect]]:
    """A copy of the machine in which an event has fired, and the effects."""
    again: Any = _copied(fsm)
    for name, value in attributes.items():
        setattr(again, name, value)
    effects: Sequence[Effect] = getattr(again, event)(*args)
    return again, effects


def _repeatable(fsm: Any, seed: int) -> FSM[Any]:
    """The machine with a seeded source of chance, where its policy has the system's."""
    if isinstance(policy := getattr(fsm, "policy", None), RetryPolicy) and isinstance(policy.random, SystemRandom):
        fsm.policy = _with(policy, random=Random(seed))
    return cast("FSM[Any]", fsm)


def _copied(fsm: Any) -> Any:
    """A copy with a source of chance of its own, so that the same events in two copies have the same effects."""
    again = copy.copy(fsm)
    if isinstance(policy := getattr(fsm, "policy", None), RetryPolicy):
        again.policy = _with(policy, random=copy.copy(policy.random))
    return again


def _with(policy: RetryPolicy, **fields: object) -> RetryPolicy:
    """The policy with other values; it is frozen, and a subclass of the user's may have another ``__init__``."""
    again = copy.copy(policy)
    for name, value in fields.items():
        object.__setattr__(again, name, value)
    return again


# -------------------------------------------------------------------------------------------------------------- running


def run(
    cls: type[FSM[Any]],
    *,
    make: Make = lambda cls: cls(),
    arguments: ArgumentsOf = ARGUMENTS,
    watch: Watch | None = None,
    seed: int = 0,
    limit: int = MAX_RUN,
) -> list[Fault]:
    """Run a machine with its real guards: fire all events that can happen, breadth first, in up to ``limit`` machines.

    Finds what is wrong with guards, and with the machine's data, neither of which `explore` relies on.
    """
    found, every = Exploration(cls), _every_arguments(cls, arguments)
    first = _Node(_repeatable(make(_with_guards(cls, _noted)), seed), watch or Watch(), ())
    queue, seen = deque([first]), {_data(first)}
    while queue:
        for successor in _successors(queue.popleft(), every, found):
            if len(seen) < limit and (data := _data(successor)) not in seen:
                seen.add(data)
                queue.append(successor)
    return found.faults


def _noted(fsm: Any, name: str, really: Guard) -> bool:
    fsm.asked = name
    answer = bool(really(fsm))
    fsm.asked = None
    fsm.answers.setdefault(name, answer)
    return answer


def _successors(node: _Node, every: Mapping[str, Sequence[Arguments]], found: Exploration) -> Iterator[_Node]:
    old = node.fsm
    possible = [(event, args) for event, each in every.items() if node.watch.possible(event) for args in each]
    for event, args in possible:
        path = (*node.path, Firing(event, args=args))
        answers: dict[str, bool] = {}
        fsm = _copied(old)
        fsm.answers, fsm.asked = answers, None
        try:
            effects = getattr(fsm, event)(*args)
        except Exception as error:
            who = f"{event} raises {_what(error)}, in {old.state}"
            found.note(who if fsm.asked is None else f"the guard {fsm.asked} raises {_what(error)}", path)
            continue
        rules = (rule for rule in found.cls.rules if (rule.event, rule.source) == (event, old.state))
        chosen = next((rule for rule in rules if rule.allows(answers.get)), None)
        entered = fsm.state != old.state if chosen is None else chosen.target is not None
        moment = Moment(event, old.state, old.status, fsm, entered, effects)
        watch, wrong = node.watch.after(moment)
        for each in wrong:
            found.note(each, path)
        yield _Node(fsm, watch, path)


def _data(node: _Node) -> tuple[str, ...]:
    """What makes it another machine: its data, too, but for words."""
    slots = (name for base in type(node.fsm).__mro__ for name in getattr(base, "__slots__", ()))
    names = sorted({*slots, *vars(node.fsm)} - {"answers", "asked", "pending_reason", "policy", "reason"})
    return (repr(node.watch), *(f"{name}={getattr(node.fsm, name, None)!r}" for name in names))


# ------------------------------------------------------------------------------------------------------- the front door


@dataclass(frozen=True)
class _Terms:
    """What is asked of a kind of machine."""

    watch: Watch
    arguments: ArgumentsOf = field(default_factory=dict[str, "Arguments | list[Arguments]"])
    goal: Collection[str] = ()
    over: Collection[str] = ()
    """The final states: no event leads out of them."""
    resting: Collection[str] = ()
    """Those, and the states that only the program leaves."""
    by_hand: Collection[str] = ()
    """The events of the program, and those that do not count as a way on."""
    makers: Sequence[Make] = (lambda cls: cls(),)
    """How to make a machine: the first to explore it, and each to run it."""


def _terms(cls: type[FSM[Any]]) -> _Terms:
    def states_with(*statuses: object) -> list[str]:
        return [name for name, each in cls.states.items() if each.status in statuses]

    if issubclass(cls, ClientFSM):
        return _Terms(
            ClientWatch(),
            ARGUMENTS,
            goal=states_with(ClientStatus.CONNECTED),
            resting=states_with(*ClientWatch.STOPPED),
            by_hand=("start_requested", "connect_requested", "retry_requested", "went_offline"),
            makers=(_steady, _soon_at_its_end, _once_only),
        )
    if issubclass(cls, RoomFSM):
        over = [*states_with(RoomStatus.ERROR), RoomFSM.left.name]
        return _Terms(
            RoomWatch(),
            ARGUMENTS,
            goal=states_with(RoomStatus.JOINED),
            over=over,
            resting=over,
            by_hand=("connection_lost", "client_stopped"),
            makers=(_steady,),
        )
    base: type[FSM[Any]] = FSM
    notifies = cls.status_changed is not base.status_changed
    return _Terms(StatusWatch() if notifies else Watch())


def _steady(cls: type[Any]) -> FSM[Any]:
    """With no jitter, so that times are round numbers."""
    fsm: FSM[Any] = cls(RetryPolicy(jitter=0))
    return fsm


def _soon_at_its_end(cls: type[Any]) -> FSM[Any]:
    fsm: FSM[Any] = cls(RetryPolicy(jitter=0, max_attempts=1, stable_after=0, reset_on_online=False))
    return fsm


def _once_only(cls: type[Any]) -> FSM[Any]:
    fsm: FSM[Any] = cls(RetryPolicy(jitter=0, enabled=False))
    return fsm


def drawn_policy(seed: int) -> RetryPolicy:
    """A policy of which every number is drawn; the same one for the same seed."""
    source = Random(seed)
    base = source.uniform(0.01, 2.0)
    return RetryPolicy(
        base=base,
        cap=base * source.uniform(1.0, 100.0),
        jitter=source.uniform(0.0, 0.99),
        max_attempts=source.choice([None, 0, 1, 2, 3]),
        stable_after=source.choice([0.0, source.uniform(0.0, 10.0)]),
        reset_on_online=source.random() < 0.5,
        max_retry_after=source.choice([0.0, source.uniform(0.0, 300.0)]),
        random=source,
    )


def check_machine(
    cls: type[FSM[Any]],
    *,
    make: Make | None = None,
    arguments: ArgumentsOf | None = None,
    watch: Watch | None = None,
    goal: Collection[str] | None = None,
    final: Collection[str] = (),
    policy: RetryPolicy | None = None,
    seed: int = 0,
) -> Exploration:
    """Fail if there is anything wrong with a machine: a subclass of `ClientFSM` or `RoomFSM`, or any other `FSM`.

    Found are actions and guards that raise; states that nothing leads to; rows that never fire; events that are ignored
    in every state; states without a way to a goal, or with none but by the program's own calls; and broken invariants:
    one dial, socket or timer at a time and none after a stop, listeners notified of each change of status once, and so
    on (`ClientWatch`, `RoomWatch`). A client must obey the policy's limit of attempts (RETRY-2), and try nothing while
    offline that the program did not ask for (OFF-1). For this, every close code and HTTP status is tried to which its
    guards answer differently.

    It needs the class alone. Optional are:

    - ``make(cls)`` makes an instance. By default it is called with a `RetryPolicy`; with nothing if it is not one of
      our two.
    - ``arguments`` of events: ``{"token_expired": (60.0,)}``, or a list of several such tuples. Where they are not
      given, they are made up by their annotations.
    - ``watch``: what must hold. Subclass `ClientWatch`, `RoomWatch` or `Watch` to ask for more, or for less.
    - ``goal``: the names of states to which there must be a way from everywhere. By default those with the status
      ``connected`` or ``joined``; of a machine that is not one of our two, none.
    - ``final``: the names of states out of which no event has to lead, beside ``left`` and ``error`` of a room.
    - ``policy``: one more policy to run it with. It may draw its waits: from its own seeded ``random``, or else from
      one that is seeded with ``seed``.
    - ``seed``: one of our two machines also runs with a policy whose numbers are drawn from it.

    Returns what was found out, for questions of your own. Raises `MachineFault`, an AssertionError, with all the
    faults, each with the shortest list of events that leads to it; TypeError for an event whose arguments are not
    known; ValueError for a state or event that there is not.
    """
    if not (isinstance(cls, type) and issubclass(cls, FSM)):
        raise TypeError(f"check_machine takes the class of a machine, a subclass of FSM, not {cls!r}")
    terms = _terms(cls)
    _check_names(cls, "goal", goal or (), cls.states)
    _check_names(cls, "final", final, cls.states)
    _check_names(cls, "arguments", arguments or (), cls.events)
    arguments, watch = {**terms.arguments, **(arguments or {})}, watch or terms.watch
    makers = list(terms.makers if make is None else (make,))
    if make is None and issubclass(cls, ClientFSM | RoomFSM):
        makers.append(lambda cls: cls(drawn_policy(seed)))
    if policy is not None:
        makers.append(lambda cls: cls(policy))
    found = explore(cls, make=makers[0], arguments=arguments, watch=watch, seed=seed)
    for name in found.unreachable():
        found.note(f"nothing leads to the state {name}", None)
    _note_useless_rows(found)
    _note_traps(found, terms, terms.goal if goal is None else goal, final)
    for each in makers:
        for fault in run(cls, make=each, arguments=arguments, watch=watch, seed=seed):
            found.note(fault.what, fault.path)
    if issubclass(cls, ClientFSM) and make is None:
        _note_disobedience(found, arguments, _with(policy or RetryPolicy(jitter=0), enabled=True, random=Random(seed)))
    if found.faults:
        raise MachineFault(cls, found.faults)
    return found


LIMITS: Final = (0, 1)  # of attempts


def _note_disobedience(found: Exploration, arguments: ArgumentsOf, policy: RetryPolicy) -> None:
    """RETRY-2, OFF-1: a row of the user's own may forget what the rows below it see to."""
    cls = cast(type[ClientFSM], found.cls)
    failures = _failures(cls, arguments)
    for limit in LIMITS:
        started = _Run(cls(_with(policy, max_attempts=limit))).fire("start_requested")
        _note_attempts_beyond(found, failures, started, limit)
    offline = _Run(cls(_with(policy, max_attempts=None))).fire("went_offline").fire("start_requested")
    for failed in offline.fire("connect_requested").failed(failures):
        for each in (failed, failed.fire("timer_fired")):
            if each.goes_on and each.asks_for(Dial, StartTimer):
                found.note(f"{each.fsm.state}: it goes on trying while offline (OFF-1)", each.path)


def _note_attempts_beyond(found: Exploration, failures: Failures, dialing: _Run, left: int) -> None:
    """After each failure it may try again as often as is left."""
    for failed in dialing.failed(failures):
        if failed.goes_on and not left:
            found.note(f"{failed.fsm.state}: it goes on with no attempt left (RETRY-2)", failed.path)
        elif failed.goes_on and (again := failed.fire("timer_fired")).asks_for(Dial):
            _note_attempts_beyond(found, failures, again, left - 1)


Failures: TypeAlias = Mapping[str, Sequence[Arguments]]


@dataclass(frozen=True)
class _Run:
    """A machine with its real guards, and the events that fired in it."""

    fsm: Any
    path: tuple[Firing, ...] = ()
    effects: Sequence[Effect] = ()

    def fire(self, event: str, *args: Any) -> _Run:
        fsm = copy.copy(self.fsm)
        try:
            effects = getattr(fsm, event)(*args)
        except Exception:  # `run` finds those
            effects = ()
        return _Run(fsm, (*self.path, Firing(event, args=args)), effects)

    @property
    def goes_on(self) -> bool:
        return self.fsm.status is ClientStatus.RECONNECTING

    def asks_for(self, *kinds: type[Effect]) -> bool:
        return any(isinstance(each, kinds) for each in self.effects)

    def failed(self, failures: Failures) -> Iterator[_Run]:
        """A dial is under way: it fails, or its connection is lost, in every way."""
        for event, ways in failures.items():
            begun = self if event == "dial_failed" else self.fire("socket_opened")
            yield from (begun.fire(event, *args) for args in ways)


def _failures(cls: type[ClientFSM], arguments: ArgumentsOf) -> Failures:
    """How an attempt or a connection can fail: one example of each that leads the machine to another state."""
    known = _every_arguments(cls, arguments)
    every: dict[str, list[Arguments]] = {
        "dial_failed": [(AttemptFailure(FailureKind.ANSWER, f"answered {code}", code),) for code in range(300, 600)],
        "socket_closed": [(CloseInfo(code),) for code in (*range(1000, 1016), *range(3000, 5000))],
        "pong_missed": [],
    }
    dialing = _Run(cls(RetryPolicy(jitter=0))).fire("start_requested")
    found: dict[str, list[Arguments]] = {}
    for event, more in every.items():
        begun = dialing if event == "dial_failed" else dialing.fire("socket_opened")
        found[event] = list({begun.fire(event, *args).fsm.state: args for args in [*more, *known[event]]}.values())
    return found


def _note_useless_rows(found: Exploration) -> None:
    rules = [rule for rule in found.cls.rules if rule.source in found.paths]
    for rule in rules:
        row = f"the row of {rule.event} from {rule.source}{_when(rule)} never fires: "
        if rule in found.possible or rule.is_ignored:
            continue
        if rule not in found.fired:
            found.note(f"{row}the rows above it pass whenever it would", found.paths[rule.source])
        else:
            found.note(f"{row}nothing is alive there that could bring it about", found.paths[rule.source])
    for name in found.cls.events:
        if all(rule.is_ignored for rule in rules if rule.event == name):
            found.note(f"{name} is ignored in every state", None)


def _note_traps(found: Exploration, terms: _Terms, goal: Collection[str], final: Collection[str]) -> None:
    if not goal:
        return
    traps = found.traps(goal, {*terms.over, *final})
    trapped = {trap.path for trap in traps}
    for trap in [*traps, *found.traps(goal, {*terms.resting, *final}, terms.by_hand)]:
        if trap in traps or trap.path not in trapped:  # once is enough
            found.note(trap.what, trap.path)


def _check_names(cls: type[FSM[Any]], what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{what}: {cls.__qualname__} has no {', '.join(unknown)}; there are {', '.join(known)}")


# ----------------------------------------------------------------------------------------------------------- arguments

_SAMPLES: Final[Mapping[object, object]] = {
    bool: True,
    int: 1,
    float: 1.0,
    str: "something happened",
    bytes: b"something",
    Exception: RuntimeError("something raised"),
    CloseInfo: CloseInfo(1006),
    AttemptFailure: AttemptFailure(FailureKind.NETWORK, "refused"),
    JoinRefused: JoinRefused(1, "version unknown"),
    type(None): None,
}


def _every_arguments(cls: type[FSM[Any]], arguments: ArgumentsOf) -> dict[str, Sequence[Arguments]]:
    """All arguments with which each event of a machine is fired."""
    every: dict[str, Sequence[Arguments]] = {}
    for name, event in cls.events.items():
        given = arguments.get(name)
        every[name] = given if isinstance(given, list) else [_made_up(event) if given is None else given]
    return every


def _made_up(event: Event[Any]) -> Arguments:
    """Arguments for an event, by their annotations; those with a default are left out."""
    _, *parameters = inspect.signature(event.record).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    if not needed:
        return ()
    try:
        annotations = typing.get_type_hints(event.record)
    except NameError:  # a name that only type checkers see
        annotations = {}
    return tuple(_sample(event.name, each.name, annotations.get(each.name)) for each in needed)


def _sample(event: str, parameter: str, annotation: Any) -> object:
    if annotation in _SAMPLES:
        return _SAMPLES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation))
    for choice in typing.get_args(annotation) if annotation is not None else ():
        if choice in _SAMPLES:
            return _SAMPLES[choice]
    raise TypeError(
        f"its annotation does not say what {parameter!r} of the event {event!r} could be: "
        f"say arguments={{{event!r}: (<the arguments>,)}}"
    )


# ---------------------------------------------------------------------------------------------------------------- words


def said(values: Iterable[object]) -> list[str]:
    """Effects or arguments in words, an error by its class and message, so that lists of them can be compared."""
    return [_shown(each) for each in values]


def _shown(value: object) -> str:
    match value:
        case StatusChange():
            news: StatusChange[Any] = value  # pyright: ignore[reportUnknownVariableType]
            attempt = f", attempt {news.attempt}" if news.attempt else ""
            wait = "" if news.retry_in is None else f", in {news.retry_in:g} s"
            return f"{news.old} → {news.new}, {news.reason!r}{attempt}{wait}"
        case Enum():
            return value.name
        case float():
            return f"{value:g}"
        case Exception():
            return f"{type(value).__name__}({str(value)!r})"
        case _:
            pass
    if dataclasses.is_dataclass(value):
        fields = [(each, getattr(value, each.name)) for each in dataclasses.fields(value)]
        shown = [
            _shown(given) if each.default is dataclasses.MISSING else f"{each.name}={_shown(given)}"
            for each, given in fields
            if given != each.default
        ]
        return f"{type(value).__name__}({', '.join(shown)})"
    return f"{type(value).__name__}()" if type(value).__repr__ is object.__repr__ else repr(value)


def _way(path: Sequence[Firing]) -> str:
    return " → ".join(map(str, path)) or "nothing at all"


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _when(rule: Rule) -> str:
    return f" when {' and '.join(rule.when)}" if rule.when else ""


def _words(alive: Collection[str]) -> str:
    return " and ".join(f"a {each}" for each in sorted(alive)) or "nothing alive"


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
