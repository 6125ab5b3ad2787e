"""Exhaustive exploration of a machine, from its declaration alone; of a subclass of yours just as well.

Every (state, event) pair that can be reached is tried with every answer that its guards could give, so that no policy,
clock or network is needed to get anywhere::

    found = explore(MyFSM, watch=ClientWatch())
    assert not found.faults                                     # no hole, no exception, every invariant holds
    assert not found.unreachable() and not found.dead_rules()
    assert not found.traps(goal={"connected"})

Whatever is found comes with the shortest list of events that leads there. The invariants are a `Watch`: it follows what
is alive by the effects asked for. The same watches serve tests with real guards.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from golden import said
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
    NotifyStatus,
    Release,
    RequestJoin,
    SendLeave,
    StartKeepalive,
    StartTimer,
    StopKeepalive,
    StopTimer,
    Synchronise,
    TellRooms,
    Untrack,
)
from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.machine import FSM, Rule
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, FailureKind, RoomStatus

__all__ = [
    "FACTS",
    "AliveWatch",
    "ClientWatch",
    "Exploration",
    "Fault",
    "Moment",
    "RoomWatch",
    "Step",
    "Watch",
    "explore",
    "of_client",
    "of_room",
]

FACTS: Mapping[str, tuple[Any, ...]] = {
    "dial_failed": (AttemptFailure(FailureKind.NETWORK, "refused"),),
    "socket_closed": (CloseInfo(1006),),
    "pong_missed": (CloseInfo(1006),),
    "broke": ("a guard raised",),
    "connection_opened": ("connected",),
    "connection_lost": ("lost",),
    "client_stopped": ("closed",),
    "client_started": ("asked to connect",),
    "join_refused": (JoinRefused(1, "version unknown"),),
    "credentials_failed": ("the auth function raised", False),
    "put_out": (JoinRefused(1, "rejoin"), 100.0),
    "batch_lost": ("a batch never came whole", 100.0),
}
"""What each event of the two machines is told; the rest take nothing. Guards do not look at it while exploring."""


# ----------------------------------------------------------------------------------------------------------- invariants


@dataclass(frozen=True)
class Moment:
    """One fact and what came of it."""

    event: str
    old_state: str
    old_status: Any
    fsm: FSM[Any]
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
                yield f"{self.count(kind)} {kind.__name__}, not {int(times)}"


@dataclass(frozen=True)
class Watch:
    """What holds for every machine: listeners hear of each change of status once, after everything else."""

    def possible(self, event: str) -> bool:
        """Whether this fact can come about, given what is alive. What cannot is tried, but leads nowhere."""
        return True

    def after(self, moment: Moment) -> tuple[Self, list[str]]:
        """The watch afterwards, and what is wrong."""
        return self, list(self.complaints(moment))

    def complaints(self, moment: Moment) -> Iterator[str]:
        old, new = moment.old_status, moment.fsm.status
        heard = [(each.change.old, each.change.new) for each in moment.effects if isinstance(each, NotifyStatus)]
        if heard != ([] if new == old else [(old, new)]):
            changes = " and ".join(f"{old} → {new}" for old, new in heard)
            yield f"the status went from {old} to {new}, and listeners heard {changes or 'nothing'}"
        elif heard and not isinstance(moment.effects[-1], NotifyStatus):
            yield "something is done after the listeners have heard"


@dataclass(frozen=True)
class AliveWatch(Watch):
    """Follows what is alive, by the facts told and the effects asked for."""

    alive: frozenset[str] = frozenset()

    FACTS: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """The facts that only something alive can bring about, and what it becomes; ``""``: it ends by itself."""
    BEGINS: ClassVar[Mapping[type[Effect], tuple[str, Collection[str]]]] = {}
    """The effects that begin something, and what may be alive beside it."""
    ENDS: ClassVar[Mapping[type[Effect], str]] = {}
    """The effects that end something; to end what is not alive is harmless."""

    def possible(self, event: str) -> bool:
        return event not in self.FACTS or self.FACTS[event][0] in self.alive

    def after(self, moment: Moment) -> tuple[Self, list[str]]:
        alive, wrong = set(self.alive), []
        if moment.event in self.FACTS and self.possible(moment.event):
            what, becomes = self.FACTS[moment.event]
            alive = alive - {what} | {becomes} - {""}
        for effect in moment.effects:
            if type(effect) in self.BEGINS:
                what, beside = self.BEGINS[type(effect)]
                if not alive <= set(beside):
                    wrong.append(f"{said([effect])[0]} beside {_words(alive)}")
                alive.add(what)
            alive.discard(self.ENDS.get(type(effect), ""))
        then = replace(self, alive=frozenset(alive))
        return then, [*wrong, *then.complaints(moment)]


@dataclass(frozen=True)
class ClientWatch(AliveWatch):
    """One dial, one socket, or one wait at a time, none after a stop; all hear what they must (CONN, D-STOP)."""

    FACTS = {  # noqa: RUF012 - as declared above
        "socket_opened": ("dial", "socket"),
        "dial_failed": ("dial", ""),
        "socket_closed": ("socket", ""),
        "pong_missed": ("socket", "socket"),
        "timer_fell_due": ("timer", ""),
    }
    BEGINS = {  # noqa: RUF012
        Dial: ("dial", ()),
        StartTimer: ("timer", ["socket", "keepalive"]),
        StartKeepalive: ("keepalive", ["socket"]),
    }
    ENDS = {CancelDial: "dial", CloseSocket: "socket", StopTimer: "timer", StopKeepalive: "keepalive"}  # noqa: RUF012
    STOPPED = (ClientStatus.DISCONNECTED, ClientStatus.ERROR)

    def complaints(self, moment: Moment) -> Iterator[str]:
        yield from super().complaints(moment)
        status = moment.fsm.status
        if (status is ClientStatus.CONNECTED) != (self.alive - {"timer"} == {"socket", "keepalive"}):
            yield f"{moment.fsm.state} is {status} with {_words(self.alive)}"
        if status in self.STOPPED and self.alive:
            yield f"{moment.fsm.state} is stopped with {_words(self.alive)}"
        stopped = moment.entered and status in self.STOPPED
        opened = moment.entered and status is ClientStatus.CONNECTED
        started = moment.old_status in self.STOPPED and status not in self.STOPPED
        lost = moment.entered and moment.old_status is ClientStatus.CONNECTED
        yield from moment.miscounted({Release: stopped, FailWaiters: stopped, AnnounceConnected: opened})
        told = [each.event for each in moment.effects if isinstance(each, TellRooms)]
        due = {
            "client_stopped": stopped,
            "connection_opened": opened,
            "connection_lost": lost,
            "client_started": started,
        }
        if told != [event for event in due if due[event]][:1]:  # the one that says most
            yield f"rooms were told {told}"


@dataclass(frozen=True)
class RoomWatch(AliveWatch):
    """One request with a deadline, or one session, at a time; untracked once, at the end (D-TIMEOUT, D-LEAVE)."""

    tracked: bool = True

    FACTS = {"timer_fell_due": ("timer", "")}  # noqa: RUF012
    BEGINS = {RequestJoin: ("request", ()), Synchronise: ("session", ()), StartTimer: ("timer", ["request"])}  # noqa: RUF012
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
            yield f"{moment.fsm.state} is {status} with {_words(self.alive)}"
        if status in (RoomStatus.DISCONNECTED, RoomStatus.ERROR) and self.alive:
            yield f"{moment.fsm.state} has {_words(self.alive)}"
        if "request" in self.alive and "timer" not in self.alive:
            yield "a request has no deadline"
        over = moment.entered and moment.fsm.state in {each.name for each in RoomFSM.OVER}
        stopped = moment.entered and status is RoomStatus.DISCONNECTED
        yield from moment.miscounted({Untrack: over, FailWaiters: over or stopped, TellRooms: False})
        if moment.count(SendLeave) > over:
            yield "the server is told that we leave, and we do not"


def _words(alive: Collection[str]) -> str:
    return " and ".join(f"a {each}" for each in sorted(alive)) or "nothing"


# ---------------------------------------------------------------------------------------------------------- exploration


@dataclass(frozen=True)
class Step:
    """One event, and how the guards that it asks answered."""

    event: str
    answers: tuple[tuple[str, bool], ...] = ()

    def __str__(self) -> str:
        answers = ", ".join(name if answer else f"not {name}" for name, answer in self.answers)
        return self.event + (f" [{answers}]" if answers else "")


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, and the shortest list of events that leads there."""

    what: str
    path: tuple[Step, ...]

    @property
    def events(self) -> list[str]:
        """The path, without the answers of guards."""
        return [step.event for step in self.path]

    def __str__(self) -> str:
        return f"{self.what}, after {' → '.join(map(str, self.path)) or 'nothing at all'}"


@dataclass
class Exploration:
    """What was found out about a machine."""

    cls: type[FSM[Any]]
    paths: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    """Every state that can be reached, and the shortest way there."""
    moves: set[tuple[str, str, str]] = field(default_factory=set)
    """(state, event, state), for all facts that can come about."""
    fired: set[Rule] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
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
        return [
            Fault(f"no way leads from {name} to {' or '.join(sorted(goal))}", path)
            for name, path in self.paths.items()
            if name not in safe | set(final)
        ]


def explore(
    cls: type[FSM[Any]],
    *,
    make: Callable[[type[Any]], FSM[Any]] = lambda cls: cls(),
    facts: Mapping[str, tuple[Any, ...]] = FACTS,
    watch: Watch | None = None,
) -> Exploration:
    """Explore a machine breadth first, so that what is found first is found by the shortest path.

    ``make`` makes an instance of the class it is given, ``facts`` holds the arguments of each event that takes any.
    """
    explorer = _Explorer(cls, facts)
    first = _Node(make(_probing(cls)), watch or Watch(), ())
    queue, seen = deque([first]), {first.key}
    while queue:
        node = queue.popleft()
        explorer.found.paths.setdefault(node.fsm.state, node.path)
        for successor in explorer.successors(node):
            if successor.key not in seen:
                seen.add(successor.key)
                queue.append(successor)
    return explorer.found


def of_client(cls: type[ClientFSM] = ClientFSM) -> Exploration:
    """Explore a client's machine. With no jitter, so that the same facts have the same effects."""
    return explore(cls, make=lambda probing: probing(RetryPolicy(jitter=0)), watch=ClientWatch())


def of_room(cls: type[RoomFSM] = RoomFSM) -> Exploration:
    """Explore a room's machine, likewise."""
    return explore(cls, make=lambda probing: probing(RetryPolicy(jitter=0)), watch=RoomWatch())


@dataclass(frozen=True)
class _Node:
    """A machine somewhere, what its watch has seen, and how it got there."""

    fsm: FSM[Any]
    watch: Watch
    path: tuple[Step, ...]

    @property
    def key(self) -> tuple[str, Watch]:
        """What makes it another node: not what the machine remembers, for that only guards can tell."""
        return self.fsm.state, self.watch


class _Explorer:
    """Tries everything that can be tried in one place."""

    def __init__(self, cls: type[FSM[Any]], facts: Mapping[str, tuple[Any, ...]]) -> None:
        self.found = Exploration(cls)
        self.facts = facts

    def successors(self, node: _Node) -> Iterator[_Node]:
        """Tell every event, with every answer of its guards."""
        cls, state = self.found.cls, node.fsm.state
        for event in cls.events:
            rules = [rule for rule in cls.rules if (rule.event, rule.source) == (event, state)]
            for answers in _valuations(rules):
                asked = tuple((name, answers[name]) for name in _asked(rules, answers))
                path = (*node.path, Step(event, asked))
                chosen = next((rule for rule in rules if all(answers[name] for name in rule.when)), None)
                if chosen is None:
                    self.note(f"{event} is not decided in {state}", path)
                    continue
                self.found.fired.add(chosen)
                try:
                    successor = self.tell(node, chosen, answers, path)
                except Exception as error:
                    self.note(f"{event} raises {type(error).__name__} in {state}: {error}", path)
                    continue
                if node.watch.possible(event):
                    self.found.moves.add((state, event, successor.fsm.state))
                    yield successor

    def tell(self, node: _Node, rule: Rule, answers: Mapping[str, bool], path: tuple[Step, ...]) -> _Node:
        """Tell the rule's event, twice, and compare what comes of it with the rule and with the watch."""
        old, args = node.fsm, self.facts.get(rule.event, ())
        then, effects = _tell(old, rule.event, args, answers)
        again, same_effects = _tell(old, rule.event, args, answers)
        if (then.state, said(effects)) != (again.state, said(same_effects)):
            self.note(f"{rule.event} does not do the same twice in {old.state}", path)
        target = rule.target or old.state
        if then.state != target:
            self.note(f"{rule.event} leads from {old.state} to {then.state}, not to {target}", path)
        moment = Moment(rule.event, old.state, old.status, then, rule.target is not None, effects)
        watch, wrong = node.watch.after(moment)
        for each in wrong:
            self.note(each, path)
        return _Node(then, watch, path)

    def note(self, what: str, path: tuple[Step, ...]) -> None:
        """Remember a fault, once: what is found first is found by the shortest path."""
        if what not in {fault.what for fault in self.found.faults}:
            self.found.faults.append(Fault(what, path))


def _probing(cls: type[FSM[Any]]) -> type[FSM[Any]]:
    """A subclass whose guards answer as they are told: they are looked up by name."""

    def answering(name: str) -> Callable[[Any], bool]:
        return lambda fsm: bool(fsm.answers[name])

    guards = {name for rule in cls.rules for name in rule.when}
    return type(f"Probing{cls.__name__}", (cls,), {name: answering(name) for name in guards})


def _valuations(rules: Iterable[Rule]) -> Iterator[dict[str, bool]]:
    """Every answer that the guards of these rules could give."""
    guards = list(dict.fromkeys(name for rule in rules for name in rule.when))
    for answers in itertools.product((False, True), repeat=len(guards)):
        yield dict(zip(guards, answers, strict=True))


def _asked(rules: Iterable[Rule], answers: Mapping[str, bool]) -> list[str]:
    """The guards whose answers matter: those of the rules up to the one that passes."""
    asked: dict[str, None] = {}
    for rule in rules:
        for name in rule.when:
            asked[name] = None
            if not answers[name]:
                break
        else:
            break
    return list(asked)


def _tell(
    fsm: FSM[Any], event: str, args: tuple[Any, ...], answers: Mapping[str, bool]
) -> tuple[FSM[Any], Sequence[Effect]]:
    """A copy of the machine that was told a fact, and the effects."""
    told: Any = copy.copy(fsm)
    told.answers = answers
    effects: Sequence[Effect] = getattr(told, event)(*args)
    return told, effects
