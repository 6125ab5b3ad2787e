"""How a state machine is declared here: states, events and rows, over one ``transitions.Machine`` per class.

A machine is a class whose body is its whole behaviour, in three parts::

    class Door(FSM[DoorStatus]):
        shut = state(DoorStatus.CLOSED, enter="ring")       # states; entering and leaving them has effects
        open = state(DoorStatus.OPEN)
        initial = shut

        def is_locked(self) -> bool: ...                    # guards read the machine's attributes
        def ring(self) -> None: self.emit(Ring())           # actions ask for effects, and do nothing else

        @event(                                             # events: the first row whose guards pass decides
            ignore(shut, because="locked", when=is_locked),
            row(shut, to=open),
            ignore(OTHERWISE, because="it is open already"),
        )
        def pushed(self, force: float) -> None:             # the body only stores what the event brings
            '''Someone pushed the door.'''
            self.force = force

``effects = door.pushed(3.0)`` fires the event: it stores the arguments, runs the row, and returns the effects that the
row, the state left and the state entered asked for. Nothing is executed here, and nothing here knows of time, sockets
or chance. So a machine can be printed, compared, replayed and explored.

The rules:

* Every (event, state) pair is decided: by a row, or by `ignore`, which says why. A pair that is left open, a row that
  can never fire because one above it always does, or a misspelt name is a `MachineDefinitionError` when the class is
  made.
* Guards and actions are written by reference or by name, and *looked up by name* when they run, so a subclass overrides
  one by defining it. A guard returns a bool at once; ``unless=`` takes guards that must say False.
* A subclass may put rows first (``closed = ClientFSM.closed.first(row(...))``) or beside an inherited row
  (``row(..., before=ClientFSM.is_offline)``), add events, and add states. ``state(status, like=other)`` gives a new
  state all the rows of ``other`` that it does not have itself.
* An inherited row that can no longer fire, because a new one stands above it, must be named by ``silences=``.
* ``ANY`` and ``OTHERWISE`` are expanded for each class anew, so they cover the states that a subclass adds.
* Actions never fire events. An event fired inside an event is an error.
* ``may(event)`` says whether an event would lead anywhere now. ``ClientFSM.machine`` is the ``transitions.Machine`` of
  the class, and ``ClientFSM.to_graph_machine()`` one of its ``GraphMachine``.

Why this shape: one Machine per class costs an instance only its own slots (some two hundred bytes); a Machine per
instance, or ``add_model``, costs kilobytes and grows with their number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

import transitions

from reconnect_fsm._fast_transitions import FastMachine, guard_text
from reconnect_fsm.effects import Effect
from reconnect_fsm.errors import MachineDefinitionError, fault_reason, is_fault
from reconnect_fsm.status import Cause

# transitions logs several lines a trigger at INFO, which would drown a user's log and cost more than the trigger
# itself. A level that the user has set stays.
if not (_logger := logging.getLogger("transitions")).level:
    _logger.setLevel(logging.WARNING)

__all__ = [
    "ANY",
    "FSM",
    "OTHERWISE",
    "STAY",
    "Event",
    "Row",
    "Rule",
    "State",
    "any_but",
    "event",
    "ignore",
    "row",
    "state",
]

StatusT = TypeVar("StatusT")
P = ParamSpec("P")

Named: TypeAlias = Callable[[Any], object] | str
"""A guard or an action: a method of the machine, by reference or by name."""


@dataclass(slots=True, eq=False)
class State:
    """One state of a machine, made with `state`. ``name`` is the attribute it is assigned to."""

    status: Any
    enter: tuple[str, ...]
    exit: tuple[str, ...]
    like: State | None
    doc: str
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __repr__(self) -> str:
        return f"<state {self.name}>"


def state(
    status: Any,
    *,
    enter: Named | Sequence[Named] = (),
    exit: Named | Sequence[Named] = (),
    like: State | None = None,
    doc: str = "",
) -> State:
    """Declare a state: its public ``status``, and the actions that run when it is entered and left.

    ``like`` names a state whose rows this one shares wherever it has none of its own; its actions are not shared.
    ``doc`` says what is alive in it.
    """
    if like is not None and not isinstance(like, State):
        raise MachineDefinitionError(f"like= takes a state, such as ClientFSM.waiting, not {like!r}")
    return State(status, _names(enter), _names(exit), like, doc)


@dataclass(frozen=True, slots=True)
class Group:
    """A set of states that is worked out for each class anew; see `ANY`, `OTHERWISE` and `any_but`."""

    label: str
    but: tuple[State, ...] = ()


ANY: Final = Group("any")
"""Every state of the machine."""
OTHERWISE: Final = Group("rest")
"""Every state for which no row above has decided yet: the "otherwise" of an event."""


def any_but(*states: State) -> Group:
    """Every state of the machine except these."""
    return Group("any but", states)


class _Stay:
    def __repr__(self) -> str:
        return "STAY"


STAY: Final = _Stay()
"""The target of a row that changes no state: nothing is left, nothing entered."""

Source: TypeAlias = State | str | Group | Sequence[State | str]


CO_COROUTINE, CO_ASYNC_GENERATOR = 0x80, 0x200  # as in `inspect`, which takes long to import
NOT: Final = "not "
"""What stands before the name of a guard that must say False, in `Row.when` and `Rule.when`."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One line of an event's table, made with `row` or `ignore`."""

    source: Source
    target: State | str | None
    when: tuple[str, ...]
    do: tuple[str, ...]
    clause: str
    because: str
    before: str = ""
    after: str = ""
    silences: tuple[str, ...] | Group = ()


Inherited: TypeAlias = Named | Sequence[Named] | Group
"""Inherited rows: by a guard or a clause of theirs, or `ANY`: all of them."""


def row(
    source: Source,
    *,
    to: State | str | _Stay,
    when: Named | Sequence[Named] = (),
    unless: Named | Sequence[Named] = (),
    do: Named | Sequence[Named] = (),
    clause: str = "",
    before: Named = "",
    after: Named = "",
    silences: Inherited = (),
) -> Row:
    """In any of ``source``, if the guards allow it: run ``do``, leave the state, enter ``to``.

    All guards in ``when`` must say True, all in ``unless`` False. ``do`` runs before the state is left. ``clause``
    names the clause of the specification that the row answers.

    In a subclass (see `Event.first`): ``before`` and ``after`` name the inherited row that this one is put before or
    after, by a guard or clause of it; by default it is put first. ``silences`` names the inherited rows that can no
    longer fire because of it, by a guard or clause of each, or is `ANY`.

    Raises MachineDefinitionError if both ``before`` and ``after`` are given.
    """
    target = None if isinstance(to, _Stay) else to
    return _make_row(source, target, when, unless, _names(do), clause, "", before, after, silences)


def ignore(
    source: Source,
    *,
    because: str,
    when: Named | Sequence[Named] = (),
    unless: Named | Sequence[Named] = (),
    clause: str = "",
    before: Named = "",
    after: Named = "",
    silences: Inherited = (),
) -> Row:
    """In any of ``source``, if the guards allow it, the event leads nowhere and has no effects, ``because`` ….

    The other arguments are those of `row`.
    """
    return _make_row(source, None, when, unless, (), clause, because, before, after, silences)


def _make_row(
    source: Source,
    target: State | str | None,
    when: Named | Sequence[Named],
    unless: Named | Sequence[Named],
    do: tuple[str, ...],
    clause: str,
    because: str,
    before: Named,
    after: Named,
    silences: Inherited,
) -> Row:
    if before and after:
        raise MachineDefinitionError("a row is put before= an inherited one or after= one, not both")
    guards = (*_names(when), *(NOT + name for name in _names(unless)))
    silenced = silences if isinstance(silences, Group) else _names(silences)
    return Row(source, target, guards, do, clause, because, _name(before), _name(after), silenced)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row as it stands for one source state of one class: what diagrams, matrices and checks read."""

    event: str
    source: str
    target: str | None
    when: tuple[str, ...]
    """The guards' names, with "not " before those that must say False."""
    do: tuple[str, ...]
    clause: str
    because: str
    declared_in: str

    @property
    def is_ignored(self) -> bool:
        """True if the event leads to no other state and no effects here, for the reason given in ``because``."""
        return bool(self.because)

    @property
    def guards(self) -> tuple[str, ...]:
        """The names of its guards, whatever each must say."""
        return tuple(name.removeprefix(NOT) for name in self.when)

    def passes(self, fsm: object) -> bool:
        """Whether all its guards allow it, asked of this machine now. Raises what they raise, as an event would."""

        def answer(guard: str) -> bool:
            answer: object = getattr(fsm, guard)()
            if not isinstance(answer, bool):
                raise MachineDefinitionError(guard_text(guard, answer))
            return answer

        return self.allows(answer)

    def allows(self, answer: Callable[[str], object]) -> bool:
        """Whether the guards allow it, given what each of them answers; none is asked after one that does not."""
        return all(answer(name.removeprefix(NOT)) is not name.startswith(NOT) for name in self.when)


class Layer:
    """Rows of an event that stand together and were declared together, in the class ``declared_in``."""

    __slots__ = ("declared_in", "rows")

    def __init__(self, rows: tuple[Row, ...], declared_in: str = "") -> None:
        self.rows = rows
        self.declared_in = declared_in


class Event(Generic[P]):
    """An event of a machine, made with `event`. Called on an instance, it fires and returns the effects asked for."""

    def __init__(self, record: Callable[Concatenate[Any, P], None], layers: tuple[Layer, ...]) -> None:
        self.record = record
        """The method that stores what the event brings."""
        self.layers = layers
        """The rows, each group with the class that declared it; the uppermost group first."""
        self.name = record.__name__
        self.__doc__ = record.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        for layer in self.layers:
            layer.declared_in = layer.declared_in or owner.__name__

    def first(self, *rows: Row) -> Event[P]:
        """The same event with ``rows`` put before all others; assign it to the same name in a subclass.

        They decide before everything below them, fatal closes and the attempt limit of `ClientFSM` included. A row that
        says ``before=`` or ``after=`` is put there instead. Raises MachineDefinitionError if there is no such row.
        """
        layers = list(self.layers)
        top = [each for each in _rows(rows) if not (each.before or each.after)]
        # Each comes right before or right after the inherited row, so that the last one after it is put there first.
        for each in [*(each for each in rows if each.before), *(each for each in reversed(rows) if each.after)]:
            _insert(layers, each, self)
        return Event(self.record, (*([Layer(tuple(top))] if top else []), *layers))

    def insert(self, *rows: Row, before: Named = "", after: Named = "") -> Event[P]:
        """The same event with ``rows`` put, in their order, before or after an inherited row.

        It is named by a guard or a clause of it, as in `row`. Raises MachineDefinitionError if there is no such row,
        or if not exactly one of ``before`` and ``after`` is given.
        """
        if bool(before) == bool(after):
            raise MachineDefinitionError(f"event {self.name}: insert() takes either before= or after=")
        return self.first(*(replace(each, before=_name(before), after=_name(after)) for each in _rows(rows)))

    def extends(self, other: Event[Any]) -> bool:
        """Whether it has all the rows of the other one, and maybe more."""
        own = {id(each) for layer in self.layers for each in layer.rows}
        return own.issuperset(id(each) for layer in other.layers for each in layer.rows)

    @overload
    def __get__(self, fsm: None, owner: type) -> Event[P]: ...
    @overload
    def __get__(self, fsm: FSM[Any], owner: type) -> Callable[P, list[Effect]]: ...
    def __get__(self, fsm: FSM[Any] | None, owner: type) -> Event[P] | Callable[P, list[Effect]]:
        if fsm is None:
            return self
        return partial(self._refuse if getattr(fsm, "is_driven", False) else self.fire, fsm)

    def _refuse(self, fsm: FSM[Any], /, *_: P.args, **__: P.kwargs) -> list[Effect]:
        event = f"{type(fsm).__name__}.{self.name}"
        raise RuntimeError(
            f"client.machine is for reading: nothing would run the effects of {self.name}. Fire an event of your own "
            f"with client.tell({event}, ...); the client fires the others itself"
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what the event brings."""
        code = self.record.__code__
        return code.co_varnames[1 : code.co_argcount]

    def arguments(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        """What the event is fired with, by position. Raises TypeError if they are not what it takes."""
        import inspect  # imported late: few programs need it

        bound = inspect.signature(self.record).bind(None, *args, **kwargs)
        if bound.kwargs:
            raise TypeError(f"{self.name}: an event takes its arguments by position, {', '.join(bound.kwargs)} too")
        return bound.args[1:]

    def fire(self, fsm: FSM[Any], /, *args: P.args, **kwargs: P.kwargs) -> list[Effect]:
        """Fire in ``fsm``; return the effects, in the order in which they are to be run.

        Raises whatever a guard or an action raises: the effects are lost then, and the state is the old one unless
        an ``enter`` action raised. Raises RuntimeError if fired from inside an event of the same machine.
        """
        if fsm._effects is not None:
            raise RuntimeError(f"{self.name} was fired inside an event of the same machine: actions only emit effects")
        effects: list[Effect] = []
        fsm._effects = effects
        fsm.emit = effects.append
        fsm.pending_cause = None  # the cause of the event before is not the cause of this one
        try:
            self.record(fsm, *args, **kwargs)
            fsm.machine.events[self.name].trigger(fsm)
        finally:
            fsm._effects = None
            fsm.emit = _no_event
        return effects


def event(*rows: Row) -> Callable[[Callable[Concatenate[Any, P], None]], Event[P]]:
    """Declare an event by its rows. The method below it stores its arguments, and has the signature of the event."""

    def decorate(record: Callable[Concatenate[Any, P], None]) -> Event[P]:
        if any(each.before or each.after or each.silences for each in _rows(rows)):
            raise MachineDefinitionError(
                f"event {record.__name__}: before=, after= and silences= name inherited rows, and a new event has none"
            )
        return Event(record, (Layer(rows),))

    return decorate


class FSM(Generic[StatusT]):
    """The base of all machines; see the module's text for how one is declared."""

    __slots__ = ("_announced", "_effects", "emit", "pending_cause", "state")

    initial: ClassVar[State]
    """The state that a new instance is in; its ``enter`` actions do not run."""
    states: ClassVar[dict[str, State]] = {}
    """All states by name, in the order of declaration."""
    events: ClassVar[dict[str, Event[Any]]] = {}
    """All events by name, in the order of declaration."""
    rules: ClassVar[tuple[Rule, ...]] = ()
    """The whole behaviour, one rule per row and source state, in the order in which they are tried."""
    machine: ClassVar[transitions.Machine]
    """The one Machine of this class."""
    _statuses: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.state: str = self.initial.name
        """The name of the present state."""
        self._announced = (
            self.state
        )  # the state that was announced last; not the present one after an action that raised
        self._effects: list[Effect] | None = None
        self.emit: Callable[[Effect], None] = _no_event
        """Ask for an effect. For actions only."""
        self.pending_cause: Cause | None = None
        """The cause that the present event brings (D-CAUSE); None where nothing ended. Each event begins with None."""

    @property
    def status(self) -> StatusT:
        """The public status of the present state."""
        status: StatusT = self._statuses[self.state]
        return status

    def may(self, event: Event[...] | str) -> bool:
        """Whether the event, given by reference or name, would lead anywhere in the present state; nothing changes.

        Its guards are asked with what the machine knows now, not with what the event would bring. Raises ValueError if
        the machine has no such event.
        """
        name = event if isinstance(event, str) else event.name
        if name not in self.events:
            raise ValueError(f"{type(self).__name__} has no event {name!r}{_did_you_mean(name, self.events)}")
        rules = (each for each in self.rules if each.event == name and each.source == self.state)
        found = next((each for each in rules if each.passes(self)), None)
        return found is not None and not found.is_ignored

    @classmethod
    def to_graph_machine(cls, **options: Any) -> Any:
        """A ``GraphMachine`` of ``transitions`` with the same states and rows, for drawing.

        For instance: ``ClientFSM.to_graph_machine().get_graph().draw("client.svg", prog="dot")``.

        ``options`` are passed on to it, such as ``graph_engine="mermaid"``, which needs no package.
        Raises ModuleNotFoundError if the package graphviz is missing: ``pip install 'reconnect-fsm[diagrams]'``.
        """
        from transitions.extensions import GraphMachine  # only who draws needs it

        options = {"graph_engine": "graphviz", "show_conditions": True, "auto_transitions": False, **options}
        if options["graph_engine"] == "graphviz":
            try:
                import_module("graphviz")
            except ModuleNotFoundError as missing:
                text = "drawing needs the package graphviz: pip install 'reconnect-fsm[diagrams]'"
                raise ModuleNotFoundError(text, name=missing.name) from missing
        rows: list[dict[str, Any]] = [{**each, "before": []} for each in _Declaration(cls).transitions()]
        states = [each.name for each in cls.states.values()]
        return GraphMachine(states=states, transitions=rows, initial=cls.initial.name, title=cls.__name__, **options)

    def state_changed(self) -> None:
        """Runs in every transition to another state, once it is there."""

    def status_changed(self, old: StatusT, new: StatusT) -> None:
        """Runs last in every transition that changes the public status; override it to notify listeners."""

    @property
    def announced_status(self) -> StatusT:
        """The status that was announced last."""
        status: StatusT = self._statuses[self._announced]
        return status

    def fault(self, error: BaseException, report: Callable[[str, BaseException], object]) -> list[Effect]:
        """The effects after an event of this machine raised ``error`` (D-ERROR): those of its event `faulted`.

        If that raises too, as a subclass's action may, the error is given to ``report``, and the machine is put into
        its state `error` without asking a guard or action: `last_resort` has the effects.
        """
        name = type(self).__name__
        reason = fault_reason(f"the machine {name}", error)
        try:
            return self.fire_faulted(reason)
        except BaseException as again:
            if not is_fault(again):
                raise
            report(f"{name}, on its way to error,", again)
        old = self.announced_status
        self.jump_to(self.states["error"])
        return self.last_resort(reason, old)

    def fire_faulted(self, reason: str) -> list[Effect]:
        """Fire the event `faulted`, for the reason that another event raised."""
        return self.events["faulted"].fire(self, reason)

    def last_resort(self, reason: str, old: StatusT) -> list[Effect]:
        """What has to be done for a machine that was put into `error`; ``old`` is its status before."""
        return []

    def jump_to(self, target: State) -> None:
        """Be in that state, without asking a guard or an action."""
        self.state = self._announced = target.name

    def _announce(self) -> None:
        old, new = self._announced, self.state
        if new != old:
            self.state_changed()
            if self._statuses[new] != self._statuses[old]:
                self.status_changed(self._statuses[old], self._statuses[new])
            self._announced = new

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `initial = some_state` gives no second state of that name
        cls.states = {name: each for name, each in _inherited(cls, State).items() if each.name == name}
        cls._statuses = {name: each.status for name, each in cls.states.items()}
        cls.events = _inherited(cls, Event)
        if cls.states or cls.events:
            _Declaration(cls).build()


def _no_event(_: Effect) -> None:
    raise RuntimeError("emit() is for actions: no event is being handled")


def _names(items: Named | Sequence[Named]) -> tuple[str, ...]:
    """Guards and actions by name, so that a subclass can override them."""
    if not isinstance(items, str) and isinstance(items, Sequence):
        return tuple(map(_name, items))  # pyright: ignore[reportUnknownArgumentType]
    return (_name(items),)


def _name(item: object) -> str:
    return item if isinstance(item, str) else str(getattr(item, "__name__", repr(item)))


def _insert(layers: list[Layer], new: Row, event: Event[...]) -> None:
    """Put a row beside the inherited one that it names: the layer of that row is cut in two."""
    wanted = new.before or new.after
    inherited = [each for layer in event.layers for each in layer.rows]
    named = [each for each in inherited if _is_named(each, wanted)]
    if not named:
        known = {name for each in inherited for name in (*each.when, *each.clause.split())}
        raise MachineDefinitionError(
            f"event {event.name}: no inherited row has the guard or clause {wanted!r}"
            f"{_did_you_mean(wanted, sorted(known))}"
        )
    neighbour = named[0] if new.before else named[-1]
    number = next(number for number, layer in enumerate(layers) if neighbour in layer.rows)
    rows, declared_in = layers[number].rows, layers[number].declared_in
    index = rows.index(neighbour) + (0 if new.before else 1)
    parts = [Layer(rows[:index], declared_in), Layer((new,)), Layer(rows[index:], declared_in)]
    layers[number : number + 1] = [layer for layer in parts if layer.rows]


def _is_named(each: Row | Rule, wanted: str) -> bool:
    return wanted in each.when or wanted in each.clause.split()


def _rows(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    for each in rows:
        if not isinstance(each, Row):
            raise MachineDefinitionError(f"an event is made of row(...) and ignore(...), not of {each!r}")
    return rows


def _inherited(cls: type, kind: type) -> dict[str, Any]:
    """All attributes of a kind, base classes first, each under the name it was first declared with."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update({name: value for name, value in vars(base).items() if isinstance(value, kind)})
    return found


class _LazyMachine:
    """The Machine of a class, made when it is first needed: many programs that import it never do."""

    def __init__(self, make: Callable[[], FastMachine]) -> None:
        self._make = make

    def __get__(self, fsm: FSM[Any] | None, owner: type[FSM[Any]]) -> FastMachine:
        owner.machine = machine = self._make()
        return machine


class _Declaration:
    """Checks what a class declares and builds its Machine."""

    def __init__(self, cls: type[FSM[Any]]) -> None:
        self.cls = cls

    def build(self) -> None:
        cls = self.cls
        if not isinstance(getattr(cls, "initial", None), State) or cls.initial.name not in cls.states:
            raise self.error("say in which state it begins: initial = <one of its states>")
        for name, declared in [*cls.states.items(), *cls.events.items()]:
            if getattr(cls, name) is not declared:
                kind = type(declared).__name__.lower()
                raise self.error(f"{name!r} is the name of an inherited {kind}: give what you define another name")
        for each in cls.states.values():
            self.check_methods(each.enter, f"state {each.name}, enter")
            self.check_methods(each.exit, f"state {each.name}, exit")
            if each.like is not None:
                self.state_named(each.like, f"state {each.name}, like")
            if type(each.status) is not type(cls.initial.status):
                kind = type(cls.initial.status).__name__
                raise self.error(f"state {each.name}: its status must be a {kind}, not {each.status!r}")
        rules = [rule for name, declared in cls.events.items() for rule in self.rules_of(name, declared)]
        cls.rules = tuple(rules)
        self.check_new_states()
        self.check_callbacks()
        self.check_overrides()
        cls.machine = cast(FastMachine, _LazyMachine(self.machine))

    def machine(self) -> FastMachine:
        cls = self.cls
        return FastMachine(
            model=None,
            states=[
                transitions.State(each.name, on_enter=list(each.enter), on_exit=list(each.exit))
                for each in cls.states.values()
            ],
            transitions=self.transitions(),
            initial=cls.initial.name,
            auto_transitions=False,
            after_state_change="_announce",
            name=cls.__name__,
        )

    def transitions(self) -> list[dict[str, Any]]:
        """The rules as `transitions` takes them."""
        return [
            {
                "trigger": rule.event,
                "source": rule.source,
                "dest": rule.target,
                "conditions": [name for name in rule.when if not name.startswith(NOT)],
                "unless": [name.removeprefix(NOT) for name in rule.when if name.startswith(NOT)],
                "before": list(rule.do),
            }
            for rule in self.cls.rules
        ]

    def check_new_states(self) -> None:
        """A state that a subclass adds has rows; else the OTHERWISE of all events would quietly make a trap of it."""
        inherited = {name for base in self.cls.__mro__[1:] for name in getattr(base, "states", {})}
        added = [each for each in self.cls.states.values() if inherited and each.name not in inherited]
        with_rows = {
            rule.source for rule in self.cls.rules if rule.declared_in == self.cls.__name__ and not rule.is_ignored
        }
        for each in added:
            if each.like is None and each.name not in with_rows:
                raise self.error(
                    f"state {each.name} has no rows of its own, so that most events would be refused in it: "
                    "give it rows, or say like=<a state whose rows it shares>"
                )

    def check_callbacks(self) -> None:
        """Methods that `transitions` would call by their names are not called here, and that would go unnoticed."""
        used = self.used_methods()
        for name in vars(self.cls):
            if name in MACHINE_CALLBACKS and name not in used and callable(getattr(self.cls, name)):
                raise self.error(f"{name}() would never be called: override state_changed() or status_changed()")
            kind = next((each for each in CALLBACKS if name.startswith(each)), "")
            of = name.removeprefix(kind)
            known = {"on_": {of}, "to_": self.cls.states}.get(kind[:3], self.cls.events)
            if kind and of in known and name not in used and callable(getattr(self.cls, name)):
                raise self.error(f"{name}() would never be called: {CALLBACKS[kind].format(of)}")

    def used_methods(self) -> set[str]:
        """The names of all guards and actions."""
        used = {name for each in self.cls.states.values() for name in each.enter + each.exit}
        return used | {name for rule in self.cls.rules for name in rule.guards + rule.do}

    def check_overrides(self) -> None:
        """A method that no row names, with almost the name of a guard or an action, is a misspelt override."""
        if not any(getattr(base, "rules", ()) for base in self.cls.__bases__):
            return  # it has nothing to override
        used = self.used_methods()
        for name, value in vars(self.cls).items():
            unused = callable(value) and not name.startswith("_") and name not in used
            close = _close_matches(name, used, cutoff=0.9) if unused else []
            if close and not self.is_inherited(name):
                raise self.error(
                    f"no row or state names the method {name!r}; did you mean to override {close[0]!r}? "
                    "(If not, begin its name with an underscore.)"
                )

    def is_inherited(self, name: str) -> bool:
        return any(hasattr(base, name) for base in self.cls.__bases__)

    def rules_of(self, name: str, declared: Event[Any]) -> list[Rule]:
        """The rules of one event, in order; every pair decided, no row dead."""
        if declared.name != name:
            raise self.error(f"event {declared.name} was assigned to {name!r}: keep its name, or declare a new event")
        rules: list[Rule] = []
        decided: set[str] = set()
        overrides = _Overrides(self.cls, name)
        in_layers_above: dict[str, list[set[str]]] = {source: [] for source in self.cls.states}
        for layer in declared.layers:
            # New rows may silence inherited ones in the layers below; a new row that cannot be reached is a slip.
            above: dict[str, list[set[str]]] = {source: [] for source in self.cls.states}
            for number, each in enumerate(layer.rows, 1):
                where = f"event {name}, row {number}"
                self.check_guards(each.when, f"{where}, when")
                self.check_methods(each.do, f"{where}, do")
                target = None if each.target is None else self.state_named(each.target, f"{where}, to")
                settled = {source for source, guards in above.items() if set() in guards}
                sources = self.sources(each.source, where, settled)
                higher = in_layers_above if overrides.is_new(each) else {}
                dead = [
                    source
                    for source in sources
                    if any(guards <= set(each.when) for guards in above[source] + higher.get(source, []))
                ]
                if len(dead) == len(sources) or (dead and not isinstance(each.source, Group)):
                    raise self.error(
                        f"{where} can never be reached in {', '.join(dead) or 'any state'}: a row above it passes "
                        "whenever it would. Put it above that row, or take it out"
                    )
                live = [source for source in sources if source not in dead]
                for source in live + self.alike(live, settled | decided):
                    above[source].append(set(each.when))
                    rule = Rule(name, source, target, each.when, each.do, each.clause, each.because, layer.declared_in)
                    if not overrides.silence(each, rule) and source not in decided:
                        rules.append(rule)
            decided |= {source for source, guards in above.items() if set() in guards}
            for source, guards in above.items():
                in_layers_above[source] += guards
        if faults := overrides.faults():
            raise self.error(faults[0])
        if open_pairs := [source for source in self.cls.states if source not in decided]:
            raise self.error(
                f"event {name} is not decided in {', '.join(open_pairs)}: end with an unguarded row, or with "
                'ignore(OTHERWISE, because="..."); a new state can borrow rows: state(..., like=<another state>)'
            )
        return rules

    def sources(self, source: Source, where: str, decided: set[str]) -> list[str]:
        if isinstance(source, Group):
            but = {self.state_named(each, where) for each in source.but}
            if source is OTHERWISE:
                but = decided
            return [name for name in self.cls.states if name not in but]
        if isinstance(source, State | str):
            source = (source,)
        return [self.state_named(each, where) for each in source]

    def alike(self, sources: Sequence[str], decided: set[str]) -> list[str]:
        """The states declared ``like`` one of these, or like one that is, which have no row of their own here."""
        found = list(sources)
        for name in found:  # grows as it goes: a state may be like one that is like another
            for each in self.cls.states.values():
                if each.like is not None and each.like.name == name and each.name not in {*found, *decided}:
                    found.append(each.name)
        return found[len(sources) :]

    def state_named(self, wanted: State | str, where: str) -> str:
        name = wanted.name if isinstance(wanted, State) else wanted
        if name not in self.cls.states:
            raise self.error(f"{where}: there is no state {name!r}{_did_you_mean(name, self.cls.states)}")
        return name

    def check_guards(self, names: Iterable[str], where: str) -> None:
        plain = [name.removeprefix(NOT) for name in names]
        self.check_methods(plain, where)
        for name in plain:
            returns = getattr(getattr(self.cls, name), "__annotations__", {}).get("return", "bool")
            if returns not in (bool, "bool"):
                raise self.error(
                    f"{where}: the guard {name!r} must return a bool, but says that it returns {returns!r}"
                )

    def check_methods(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if not callable(getattr(self.cls, name, None)):
                known = [each for each in dir(self.cls) if callable(getattr(self.cls, each, None)) and each[0] != "_"]
                hint = _did_you_mean(name, known)
                if name == "<lambda>":
                    hint = "; guards and actions are looked up by name, so define a method for it"
                raise self.error(f"{where}: there is no method {name!r}{hint}")
            if _is_async(getattr(self.cls, name)):
                raise self.error(
                    f"{where}: {name!r} is async, and guards and actions are plain functions: await elsewhere, and "
                    "fire an event with the result"
                )

    def error(self, text: str) -> MachineDefinitionError:
        return MachineDefinitionError(f"{self.cls.__qualname__}: {text}")


CALLBACKS: Final = {
    "on_enter_": "declare the state with {0} = state(..., enter=<a method>)",
    "on_exit_": "declare the state with {0} = state(..., exit=<a method>)",
    "before_": "name it in the rows of the event {0}: row(..., do=<a method>)",
    "after_": "name it in the rows of the event {0}, or in the state they lead to: state(..., enter=<a method>)",
    "prepare_": "what the event {0} brings is stored by the body of its method",
    "may_": "ask may(<the event {0}>)",
    "to_": "declare an event with a row that leads to {0}",
}
"""The methods that ``transitions`` knows by their names, and what stands for each here."""
MACHINE_CALLBACKS: Final = (
    "prepare_event",
    "before_state_change",
    "after_state_change",
    "finalize_event",
    "on_exception",
    "on_final",
)
"""The callbacks of a whole Machine in ``transitions``."""


class _Overrides:
    """Which inherited rows of one event can no longer fire because of the rows that a class adds."""

    def __init__(self, cls: type[FSM[Any]], event: str) -> None:
        self.event = event
        bases: list[type[FSM[Any]]] = [base for base in cls.__bases__ if event in getattr(base, "events", {})]
        self.inherited = {id(each) for base in bases for layer in base.events[event].layers for each in layer.rows}
        self.fired = {_key(rule) for base in bases for rule in base.rules if rule.event == event}
        self.new: dict[str, list[Row]] = {}  # by source state, those that were met so far
        self.used: set[tuple[int, str]] = set()  # what a row's `silences=` names, once it was found
        self.unnamed: list[str] = []

    def is_new(self, each: Row) -> bool:
        return id(each) not in self.inherited

    def silence(self, each: Row, rule: Rule) -> bool:
        """Take note of the next rule; True if it is an inherited one that a new one silences."""
        if not self.fired:
            return False
        if self.is_new(each):
            self.new.setdefault(rule.source, []).append(each)
            return False
        above = [new for new in self.new.get(rule.source, ()) if set(new.when) <= set(rule.when)]
        if not above:
            return False
        if _key(rule) in self.fired and not rule.is_ignored and not any(self.names(new, rule) for new in above):
            self.unnamed.append(_described(rule))
        return True

    def names(self, new: Row, rule: Rule) -> bool:
        if isinstance(new.silences, Group):
            return True
        found = [name for name in new.silences if _is_named(rule, name)]
        self.used |= {(id(new), name) for name in found}
        return bool(found)

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        news = {id(each): each for rows in self.new.values() for each in rows}
        idle = [
            f"event {self.event}: silences={name!r} names no inherited row that the new row silences"
            for each in news.values()
            for name in (() if isinstance(each.silences, Group) else each.silences)
            if (id(each), name) not in self.used
        ]
        silenced = [
            f"event {self.event}: an inherited row can no longer fire: {row}. Give the new row a guard, put it after "
            "that row (after=), or say that it is meant: silences=<a guard or clause of that row>, or silences=ANY"
            for row in dict.fromkeys(self.unnamed)
        ]
        return silenced + idle


def _key(rule: Rule) -> tuple[object, ...]:
    return rule.source, rule.target, rule.when, rule.do, rule.clause, rule.because


def _described(rule: Rule) -> str:
    guards = f" when {' and '.join(rule.when)}" if rule.when else ""
    clause = f" ({rule.clause})" if rule.clause else ""
    return f"{rule.source} → {rule.target or 'STAY'}{guards}{clause}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = _close_matches(name, known, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_async(method: object) -> bool:
    flags: int = getattr(getattr(method, "__code__", None), "co_flags", 0)
    return bool(flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))


def _close_matches(name: str, known: Iterable[str], cutoff: float) -> list[str]:
    import difflib  # only those who err need it

    return difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
