"""Mutation testing of the pure half: does a test fail for each small change of it?

    python tests/mutants.py                                    everything, then the page docs/mutants.md
    python tests/mutants.py retry.py keepalive.py              some modules, no page
    python tests/mutants.py --sample 40 --seed 7               a seeded sample of all, no page
    python tests/mutants.py --find "retry.py RetryPolicy.delay"  the mutants whose name contains that, and their changes

A mutant is the source of one module with one change. It is killed if a test of that module fails, if the module
cannot be imported any more (a machine's checks refuse its table), or if it takes too long. A mutant that survives
must be listed in mutants.toml, with the reason why no test can distinguish it from the original. A mutant that is
killed must not be listed.

Why a runner of our own: the machines' tables are data in class bodies, and mutmut changes only what is inside a
function; cosmic-ray knows no row to swap and no statement to remove, writes each mutant over the source, and starts a
process for each. So the ordinary changes here are mutmut's operators, taken as they are; those of tables, and a few
that it does not have, are below; and a mutant runs in a fork of a process that has imported everything else already.

Not changed, because they are words for people and decide nothing: docstrings, annotations, the texts of errors that are
raised, ``because=``, ``clause=`` and ``doc=``, ``__all__`` and imports.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import resource
import select
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import libcst as cst
import pytest
from hypothesis import HealthCheck, Phase, settings
from libcst import matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper
from mutmut.mutation.mutators import mutation_operators

from pure_half import ROOT, files

PACKAGE = ROOT / "reconnect_fsm"
KNOWN = Path(__file__).with_suffix(".toml")
PAGE = ROOT / "docs" / "mutants.md"

FILES = [path.relative_to("reconnect_fsm").as_posix() for path in files()]
"""The pure half, of which every module is mutated or stands in `NOT_MUTATED`."""

TESTS: dict[str, tuple[str, ...]] = {
    "status.py": ("status", "retry", "client_fsm"),
    "errors.py": ("errors",),
    "effects.py": ("effects", "client_fsm", "room_fsm"),
    "machine.py": ("machine", "declaring", "client_fsm", "room_fsm"),
    "_fast_transitions.py": ("machine", "fast_transitions"),
    "client_fsm.py": ("client_fsm",),
    "room_fsm.py": ("room_fsm",),
    "retry.py": ("retry", "client_fsm"),
    "keepalive.py": ("keepalive", "heartbeat_fsm"),
    "heartbeat_fsm.py": ("heartbeat_fsm",),
    "network.py": ("manual_network",),
    "loro_protocol/messages.py": ("encoding", "fragments"),
    "loro_protocol/encoding.py": ("encoding", "bodies", "fragments"),
    "loro_protocol/fragments.py": ("fragments",),
}
"""The tests of each module, the likeliest killer first; ``test_`` and ``.py`` are left out."""

NOT_MUTATED = {
    "_asyncio/join_limiter.py": "Its tests run clients against a server, which a mutant's fork does not import.",
    "_redaction.py": "It decides what is shown, and nothing else. Its index only makes the search fast: of 621 mutants "
    "107 survive, nearly all of them slower ways to the same words.",
    "loro_protocol/__init__.py": "It only names what the modules beside it define.",
}
"""The modules of the pure half that are not mutated, each with the reason."""

GOAL = 90.0  # per cent, of each module
WORKERS = 2
PATIENCE = 3  # how many times the processor time of the original a mutant may take, and some seconds more
MAX_SECONDS = 300  # of any clock, for a mutant that waits instead of spinning
MEMORY = 2 * 1024**3


# ------------------------------------------------------------------------------------------------------- what to change


@dataclass(frozen=True)
class Mutant:
    """One change of one module: ``text`` in the place of the bytes from ``start`` to ``stop``.

    Its name says where and what, but no line, so that it outlives changes elsewhere.
    """

    module: str
    where: str
    what: str
    kind: str
    start: int
    stop: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.module} {self.where}: {self.what}"

    def source(self) -> bytes:
        original = source_of(self.module)
        return original[: self.start] + self.text.encode() + original[self.stop :]


@cache
def source_of(module: str) -> bytes:
    """As it was when it was first read: the places of the changes are those of that text."""
    return (PACKAGE / module).read_bytes()


Change = tuple[cst.CSTNode, str]
"""A node, and the text to put in its place."""
TYPING = m.Name("TypeVar") | m.Name("ParamSpec") | m.Name("TypeAlias")
SKIPPED = (
    m.Annotation()
    | m.Import()
    | m.ImportFrom()
    | m.Assert()  # they narrow types
    | m.AnnAssign(annotation=m.Annotation(m.Name("TypeAlias")))
    | m.Assign(targets=[m.AssignTarget(m.Name("__all__"))])
    | m.Assign(value=m.Call(func=TYPING))
    | m.FunctionDef(decorators=[m.AtLeastN(n=1, matcher=m.Decorator(m.Name("overload")))])
    | m.Expr(m.SimpleString())  # docstrings, those of attributes too
)


def text_of(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def statements(node: cst.CSTNode) -> Iterator[Change]:
    """What mutmut does not have: a statement or a decorator is gone, a condition is settled, a loop never runs."""
    match node:
        case cst.Expr() | cst.AugAssign() | cst.Del():
            yield node, "pass"
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() | cst.Subscript())]):
            yield node, "pass"
        case cst.If(test=test) | cst.While(test=test) | cst.CompIf(test=test):
            yield from ((test, word) for word in ("True", "False"))
        case cst.For(iter=items):
            yield items, "()"
        case cst.Decorator():
            yield node, ""


def values(node: cst.CSTNode) -> Iterator[Change]:
    """What mutmut does not have: another result, one side only of an "and" or "or", an element less."""
    match node:
        case cst.Return(value=cst.BaseExpression() as value) if not m.matches(value, m.Name("None")):
            yield value, "None"
            yield value, f"not ({text_of(value)})"
        case cst.BooleanOperation(left=left, right=right):
            yield from ((node, text_of(side)) for side in (left, right))
        case cst.Tuple(elements=items) | cst.List(elements=items) | cst.Set(elements=items) | cst.Dict(elements=items):
            for each in items if len(items) > 1 or not isinstance(node, cst.Set) else ():  # {} is no set
                yield node, text_of(node.with_changes(elements=[other for other in items if other is not each]))


def mutmuts(node: cst.CSTNode) -> Iterator[Change]:
    """All of mutmut's, but for None in the place of False or True: that is False by another name."""
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            yield from ((node, text_of(each)) for each in operator(node) if flags(each) == flags(node))


def flags(node: cst.CSTNode) -> int:
    """How many booleans are given to names by an assignment or a call."""
    given = [node] if isinstance(node, cst.Assign) else node.args if isinstance(node, cst.Call) else []
    return sum(m.matches(each.value, m.Name("True") | m.Name("False")) for each in given if each.value is not None)


class Finder(cst.CSTVisitor):
    """Finds the mutants of one module."""

    METADATA_DEPENDENCIES = (ByteSpanPositionProvider,)

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module
        self.scope: list[str] = []
        self.machines: list[Machine] = []
        self.found: dict[tuple[int, int, str], Mutant] = {}
        self.names: Counter[str] = Counter()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, SKIPPED):
            return False
        if isinstance(node, cst.Raise):  # but not the text of the error
            self.add("ordinary", difference(text_of(node), "pass"), node, "pass")
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            self.scope.append(node.name.value)
        if isinstance(node, cst.ClassDef):
            self.machines.append(Machine.of(node))
        if isinstance(node, cst.Decorator) and m.matches(node, m.Decorator(m.Call(func=m.Name("event")))):
            self.table(node)
            return False
        if m.matches(node, m.Assign(value=m.Call(func=m.Name("state")))) and self.scope:
            self.state(cast(cst.Assign, node))
            return False
        for operators in (mutmuts, statements, values):
            for target, text in operators(node):
                self.add("ordinary", difference(text_of(target), text), target, text)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.ClassDef | cst.FunctionDef) and not m.matches(original_node, SKIPPED):
            self.scope.pop()
        if isinstance(original_node, cst.ClassDef):
            self.machines.pop()

    def add(self, kind: str, what: str, node: cst.CSTNode, text: str) -> None:
        span = self.get_metadata(ByteSpanPositionProvider, node)
        start, stop = span.start, span.start + span.length
        if (start, stop, text) in self.found:  # two operators may come to the same
            return
        where = ".".join(self.scope) or "(module)"
        self.names[f"{where}: {what}"] += 1
        number = self.names[f"{where}: {what}"]
        again = f" #{number}" if number > 1 else ""
        self.found[start, stop, text] = Mutant(self.module, where, what + again, kind, start, stop, text)

    # Tables: here a change is one of the whole decorator, or of the whole assignment of a state

    def table(self, decorator: cst.Decorator) -> None:
        machine, call = self.machines[-1], cst.ensure_type(decorator.decorator, cst.Call)
        rows = [cst.ensure_type(arg.value, cst.Call) for arg in call.args]

        def change(what: str, new: list[cst.Call], before: str = "") -> None:
            args = [cst.Arg(each) for each in new]
            text = text_of(decorator.with_changes(decorator=call.with_changes(args=args), leading_lines=[]))
            self.add("tables", what, decorator, before + text.strip())

        for n, each in enumerate(rows):
            if len(rows) > 1:
                change(f"row {n + 1} removed", [*rows[:n], *rows[n + 1 :]])
            if n + 1 < len(rows):
                change(f"row {n + 1} swapped with the next", [*rows[:n], rows[n + 1], each, *rows[n + 2 :]])
            for what, new in changed_row(each, machine):
                change(f"row {n + 1} {what}", [*rows[:n], new, *rows[n + 1 :]])
            if has(each, "when"):
                guard = text_of(argument(each, "when"))
                new = with_argument(each, "when", f"'_not_{guard}'")
                negated = f"def _not_{guard}(self): return not self.{guard}()\n    "
                change(f"row {n + 1} unless {guard}", [*rows[:n], new, *rows[n + 1 :]], negated)

    def state(self, node: cst.Assign) -> None:
        machine, call = self.machines[-1], cst.ensure_type(node.value, cst.Call)
        name = text_of(node.targets[0].target)
        status = text_of(call.args[0].value)
        for other in machine.statuses:
            if other != status:
                new = with_source(call, other)
                self.add("tables", f"{name} is {other}, not {status}", node, f"{name} = {text_of(new)}")
        for moment in ("enter", "exit"):
            if has(call, moment):
                self.add("tables", f"{name} without {moment}", node, f"{name} = {text_of(without(call, moment))}")


def changed_row(row: cst.Call, machine: Machine) -> Iterator[tuple[str, cst.Call]]:
    """A row for more states or fewer, with another guard or none, without its action; and what `leads_elsewhere`."""
    source = text_of(row.args[0].value)
    for other in machine.groups.get(source, () if source in ("OTHERWISE", "ANY") else ("OTHERWISE",)):
        yield f"in {other}, not {source}", with_source(row, other)
    for name in ("when", "unless", "do"):
        if has(row, name):
            yield f"without {name}={text_of(argument(row, name))}", without(row, name)
    if has(row, "when"):
        for other in machine.guards:
            if other != text_of(argument(row, "when")):
                yield f"when={other}, not {text_of(argument(row, 'when'))}", with_argument(row, "when", other)
    yield from leads_elsewhere(row, machine)


def leads_elsewhere(row: cst.Call, machine: Machine) -> Iterator[tuple[str, cst.Call]]:
    """A row with another target, a row that ignores, an ignored event that leads to a state."""
    if m.matches(row, m.Call(func=m.Name("ignore"))):
        bare = text_of(without(row, "because", "clause"))[len("ignore(") : -1]
        for target in machine.states[:2]:  # one of them at least is another state
            yield f"leads to {target}", cst.ensure_type(cst.parse_expression(f"row({bare}, to={target})"), cst.Call)
    else:
        to = text_of(argument(row, "to"))
        for target in (*machine.states, "STAY"):
            if target != to:
                yield f"leads to {target}, not {to}", with_argument(row, "to", target)
        bare = text_of(without(row, "to", "do"))[len("row(") : -1]
        yield "ignores", cst.ensure_type(cst.parse_expression(f"ignore({bare}, because='a mutant')"), cst.Call)


@dataclass(frozen=True)
class Machine:
    """What a class declares that its rows and states are made of: each by the text it is written with."""

    states: tuple[str, ...]
    statuses: tuple[str, ...]
    guards: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    """What the names of several states stand for: ``STOPPED = (disconnected, error)``."""

    @classmethod
    def of(cls, node: cst.ClassDef) -> Machine:
        assigned = {
            text_of(each.targets[0].target): each.value for each in found(node, cst.Assign) if len(each.targets) == 1
        }
        states = {
            name: text_of(value.args[0].value)
            for name, value in assigned.items()
            if isinstance(value, cst.Call) and m.matches(value.func, m.Name("state"))
        }
        guards = [text_of(argument(row, "when")) for row in found(node, cst.Call) if has(row, "when")]
        groups = {
            name: tuple(text_of(each.value) for each in value.elements)
            for name, value in assigned.items()
            if isinstance(value, cst.Tuple) and all(text_of(each.value) in states for each in value.elements)
        }
        return cls(tuple(states), tuple(dict.fromkeys(states.values())), tuple(dict.fromkeys(guards)), groups)


NodeT = TypeVar("NodeT", bound=cst.CSTNode)


def found(node: cst.CSTNode, kind: type[NodeT]) -> list[NodeT]:
    """Everything of that kind in a node, in the order of the text."""
    return [
        each for each in m.findall(node, m.MatchIfTrue(lambda each: isinstance(each, kind))) if isinstance(each, kind)
    ]


def difference(old: str, new: str) -> str:
    """What becomes what, in one line; of long texts only where they differ, and what stands around it."""
    old, new = (" ".join(text.split()) or "nothing" for text in (old, new))
    if max(len(old), len(new)) > 100:
        same = alike(old, new)
        start, stop = max(same - 30, 0), max(alike(old[same:][::-1], new[same:][::-1]) - 20, 0)
        ends = ("…" if start else "", "…" if stop else "")
        old, new = (text[start : len(text) - stop].join(ends) for text in (old, new))
    return f"`{old}` → `{new}`"


def alike(one: str, other: str) -> int:
    """How many characters two texts have in common before they differ."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def has(call: cst.Call, name: str) -> bool:
    return any(arg.keyword is not None and arg.keyword.value == name for arg in call.args)


def argument(call: cst.Call, name: str) -> cst.BaseExpression:
    (found,) = [arg.value for arg in call.args if arg.keyword is not None and arg.keyword.value == name]
    return found


def with_argument(call: cst.Call, name: str, text: str) -> cst.Call:
    args = [
        arg.with_changes(value=cst.parse_expression(text)) if arg.keyword and arg.keyword.value == name else arg
        for arg in call.args
    ]
    return call.with_changes(args=args)


def with_source(call: cst.Call, text: str) -> cst.Call:
    first, *others = call.args
    return call.with_changes(args=[first.with_changes(value=cst.parse_expression(text)), *others])


def without(call: cst.Call, *names: str) -> cst.Call:
    args = [arg for arg in call.args if arg.keyword is None or arg.keyword.value not in names]
    return call.with_changes(args=[arg.with_changes(comma=cst.MaybeSentinel.DEFAULT) for arg in args])


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of one module, in the order of its text."""
    finder = Finder(module)
    MetadataWrapper(cst.parse_module(source_of(module)), unsafe_skip_copy=True).visit(finder)
    return list(finder.found.values())


# ------------------------------------------------------------------------------------------------------- one in a fork


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a mutant where its module is asked for."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source
        self.loaded: list[ModuleType] = []

    def get_code(self, fullname: str) -> Any:
        return compile(self._source, self.get_filename(fullname), "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        self.loaded.append(module)
        super().exec_module(module)


class Importer:
    """Finds one module: the mutant."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


def module_name(module: str) -> str:
    return f"reconnect_fsm.{module.removesuffix('.py').replace('/', '.')}"


def warm_up() -> None:
    """Import everything that a mutant cannot change, once for all."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support"), str(ROOT)]
    settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    importlib.import_module("transitions.extensions")
    for module in TESTS:
        importlib.import_module(module_name(module))
    for name in [name for name in sys.modules if name.partition(".")[0] == "reconnect_fsm"]:
        del sys.modules[name]
    # A bare package: what it offers at its top is the other half, which would be imported for each mutant.
    sys.modules["reconnect_fsm"] = package = ModuleType("reconnect_fsm")
    package.__path__ = [str(PACKAGE)]
    gc.collect()
    gc.freeze()


def run_tests(names: Sequence[str]) -> int:
    """Run the tests of these files up to the first failure; the result is pytest's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    options = "--assert=plain --noconftest -x -q --no-header --tb=no -p no:cacheprovider -p no:faulthandler -W error"
    arguments = [*options.split(), "-c", os.devnull, "--rootdir", str(ROOT), "-m", "not proof"]
    arguments += ["-o", "markers=" + "\n".join(project["markers"])]
    return int(pytest.main([*arguments, *(str(ROOT / place_of(name)) for name in names)]))


def table_of(module: ModuleType) -> str:
    """The tables of a module: for each event and state, the rows in their order. Empty if there is no machine."""
    table: list[Any] = []
    machines: list[Any] = [each for each in vars(module).values() if hasattr(each, "rules") and each.rules]
    for machine in machines:
        table += [(each.name, each.status, each.enter, each.exit) for each in machine.states.values()]
        table += [machine.initial.name]
        # A stable sort: the rules of one state and event keep their order, which matters; other orders do not.
        table += sorted(
            ((each.event, each.source, each.target, each.when, each.do, each.is_ignored) for each in machine.rules),
            key=lambda rule: rule[:2],
        )
    return repr(table) if table else ""


def judge(module: str, source: bytes, kind: str, table: str) -> tuple[str, str]:
    """In a process of its own: whether that source is killed, and its table."""
    try:
        compile(source, module, "exec")
    except SyntaxError as error:
        return "error", f"it is no Python: {error}"
    name = module_name(module)
    loader = Loader(name, str(PACKAGE / module), source)
    sys.meta_path.insert(0, cast(Any, Importer(loader)))
    try:
        mutant = importlib.import_module(name)
        here = table_of(mutant)
    except Exception:
        return "killed", ""
    if kind == "tables" and here == table:
        return "same", ""
    code = run_tests(TESTS[module])
    if sys.modules[name] is not mutant or mutant not in loader.loaded:
        return "error", f"the tests did not run with this {name}"
    verdict = {
        pytest.ExitCode.OK: "survived",
        pytest.ExitCode.TESTS_FAILED: "killed",
        pytest.ExitCode.INTERRUPTED: "killed",
    }
    return verdict.get(pytest.ExitCode(code), "error"), here if kind == "original" else f"pytest ended with {code}"


@dataclass
class Running:
    """A fork that is at work."""

    pid: int
    pipe: int
    began: float


@dataclass(frozen=True)
class Original:
    """What a module does without any change: the table of its machines, and the seconds that its tests take."""

    table: str = ""
    seconds: float = MAX_SECONDS


def start(module: str, source: bytes, kind: str, original: Original) -> Running:
    """Have that source judged in a fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Running(pid, reading, time.monotonic())
    try:
        os.close(reading)
        os.setpgid(0, 0)
        gc.disable()
        resource.setrlimit(resource.RLIMIT_CPU, (limit := 2 + int(PATIENCE * original.seconds), limit))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        answer = judge(module, source, kind, original.table)
        with open(writing, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
    except BaseException as error:  # MemoryError, SystemExit: whatever it is, the mutant did it
        with contextlib.suppress(BaseException), open(writing, "w", encoding="utf-8", closefd=False) as pipe:
            json.dump(["killed", type(error).__name__], pipe)
    finally:
        os._exit(0)


def finish(running: Running) -> tuple[str, str]:
    """The verdict of a fork that has ended or has had its time."""
    with open(running.pipe, encoding="utf-8") as pipe:
        if time.monotonic() - running.began >= MAX_SECONDS:
            os.killpg(running.pid, signal.SIGKILL)
        said = pipe.read()
    os.waitpid(running.pid, 0)
    return tuple(json.loads(said)) if said else ("killed", "hung")  # no word: ended by a limit


def judge_all(mutants: Sequence[Mutant], workers: int, note: Callable[[Mutant, str, str], None]) -> None:
    """Judge them all, ``workers`` at a time."""
    originals = {module: original(module) for module in dict.fromkeys(each.module for each in mutants)}
    waiting = iter(mutants)
    at_work: dict[int, tuple[Mutant, Running]] = {}
    while True:
        while len(at_work) < workers and (each := next(waiting, None)):
            running = start(each.module, each.source(), each.kind, originals[each.module])
            at_work[running.pipe] = each, running
        if not at_work:
            return
        ready, _, _ = select.select(list(at_work), [], [], 1.0)
        late = [pipe for pipe, (_, r) in at_work.items() if time.monotonic() - r.began >= MAX_SECONDS]
        for pipe in {*ready, *late}:
            mutant, running = at_work.pop(pipe)
            note(mutant, *finish(running))


def original(module: str) -> Original:
    """The module as it is, whose tests must pass."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    verdict, said = finish(start(module, source_of(module), "original", Original()))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if verdict != "survived":
        sys.exit(f"the tests of {module} fail without any change: {verdict} {said}; run {tests_of(module)}")
    return Original(said, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def tests_of(module: str) -> str:
    return "pytest " + " ".join(place_of(name) for name in TESTS[module])


@cache
def place_of(name: str) -> str:
    """Where the file of tests of that name is, from the root."""
    (path,) = (ROOT / "tests").rglob(f"test_{name}.py")
    return path.relative_to(ROOT).as_posix()


# ----------------------------------------------------------------------------------------------------------- the report


@cache
def known() -> dict[str, str]:
    """The survivors that are known, each with the reason why no test can kill it."""
    groups = tomllib.loads(KNOWN.read_text("utf-8")).get("equivalent", [])
    return {name: group["reason"] for group in groups for name in group["mutants"]}


@dataclass
class Tally:
    """How mutants fared."""

    killed: int = 0
    survived: int = 0
    same: int = 0

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        several = list(tallies)
        return cls(*(sum(getattr(each, field.name) for each in several) for field in fields(cls)))

    @property
    def mutants(self) -> int:
        """Those that make a difference, or might."""
        return self.killed + self.survived

    @property
    def score(self) -> float:
        """Per cent killed; no survivor is left out, equivalent or not."""
        return 100 * self.killed / max(self.mutants, 1)


def page(report: Report) -> str:
    """The page, as Markdown."""
    lines = [HEAD]
    for module, kinds in report.tallies.items():
        lines.append(_line(module, kinds))
    everything = {
        kind: Tally.total(kinds.get(kind, Tally()) for kinds in report.tallies.values())
        for kind in ("tables", "ordinary")
    }
    lines += [_line("**all**", everything), SAME.format(Tally.total(everything.values()).same)]
    by_reason: dict[str, list[Mutant]] = {}
    for each in report.survivors:
        by_reason.setdefault(report.reasons.get(each.name, "**No reason is known: write a test.**"), []).append(each)
    for reason, mutants in by_reason.items():
        lines.append(f"- {' '.join(reason.split())}")
        lines += [f"  - `{each.module}` `{each.where}`: {each.what}" for each in mutants]
    return "\n".join([*lines, ""])


def _line(name: str, kinds: Mapping[str, Tally]) -> str:
    one, tables = Tally.total(kinds.values()), kinds.get("tables", Tally())
    return (
        f"| {name} | {one.mutants:,} | {tables.mutants:,} | {one.killed:,} | {one.survived} | {one.score:.1f} % "
        f"| {Tally.total(each for kind, each in kinds.items() if kind != 'tables').score:.1f} % |"
    )


HEAD = """# Mutants

Generated by `make mutants`: every small change that it can make is made to the pure half, one at a
time, and a test has to fail. How, and what is not changed: `tests/mutants.py`. The survivors are all listed, with the
reason why no test can distinguish them from the original (`tests/mutants.toml`); they count as not killed.

| module | mutants | of tables | killed | survived | score | score without tables |
|---|---:|---:|---:|---:|---:|---:|"""

SAME = """
{:,} more changes of tables leave every state with the same rows in the same order (two rows that have no state in
common change places, say); they change nothing and are not counted.

## Survivors
"""


class Report:
    """Takes down each verdict, and what is wrong with it."""

    def __init__(self) -> None:
        self.reasons = known()
        self.tallies: dict[str, dict[str, Tally]] = {}
        self.survivors: list[Mutant] = []
        self.faults = 0
        self.noted = 0

    def fault(self, what: str) -> None:
        self.faults += 1
        print(what, flush=True)

    def note(self, mutant: Mutant, verdict: str, said: str) -> None:
        if verdict == "error":
            sys.exit(f"{mutant.name}: {said}")
        tally = self.tallies.setdefault(mutant.module, {}).setdefault(mutant.kind, Tally())
        setattr(tally, verdict, getattr(tally, verdict) + 1)
        self.noted += 1
        if self.noted % 500 == 0:
            print(f"{self.noted:,} done", flush=True)
        if verdict == "survived":
            self.survivors.append(mutant)
        if verdict == "survived" and mutant.name not in self.reasons:
            self.fault(f"survived: {mutant.name}")
        elif verdict != "survived" and mutant.name in self.reasons:
            self.fault(f"listed as a survivor, but {verdict}: {mutant.name}")

    def scores(self, goal: float) -> None:
        """Print them; report those below the goal."""
        for module, kinds in self.tallies.items():
            one = Tally.total(kinds.values())
            print(f"{module}: {one.score:.1f} % ({one.killed} killed, {one.survived} survived, {one.same} the same)")
            if one.score < goal:
                self.fault(f"{module}: {one.score:.1f} % is less than {goal} %")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutation testing; see the text at the top of this file.")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"some of: {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--find", metavar="TEXT", help="only those whose name contains TEXT; shows their changes")
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    return options


def sample(mutants: list[Mutant], size: int, source: random.Random) -> list[Mutant]:
    """So many of them; a tenth are survivors that are known, of which there would hardly be one otherwise."""
    listed = [each for each in mutants if each.name in known()]
    chosen = source.sample(listed, min(size // 10, len(listed)))
    return chosen + source.sample([each for each in mutants if each not in listed], size - len(chosen))


def stamps() -> dict[Path, float]:
    """When each file that a verdict depends on was written."""
    return {path: path.stat().st_mtime for tree in (PACKAGE, KNOWN.parent) for path in sorted(tree.rglob("*.py"))}


def main() -> int:
    """Run it; 0 if the survivors are those that are known, and every score is good enough."""
    options = arguments()
    began = time.monotonic()
    warm_up()
    mutants = [each for module in options.modules or TESTS for each in mutants_of(module)]
    if options.find:
        mutants = [each for each in mutants if options.find in each.name]
    if options.sample:
        mutants = sample(mutants, options.sample, random.Random(options.seed))
    report, files = Report(), stamps()

    def show(mutant: Mutant, verdict: str, said: str) -> None:
        print(f"{verdict} {said}: {mutant.name}", mutant.text, sep="\n    ")
        report.note(mutant, verdict, said)

    judge_all(mutants, options.workers, show if options.find else report.note)
    if stamps() != files:
        report.fault("files of the package or of the tests changed while it ran: run it again")
    report.scores(0.0 if options.sample or options.find else GOAL)
    counts = asdict(Tally.total(each for kinds in report.tallies.values() for each in kinds.values()))
    print(f"{len(mutants)} mutants in {time.monotonic() - began:.0f} s:", json.dumps(counts))
    if not (options.modules or options.sample or options.find):
        order = {each.name: n for n, each in enumerate(mutants)}
        for name in report.reasons.keys() - order.keys():
            report.fault(f"listed as a survivor, but there is no such mutant: {name}")
        report.survivors.sort(key=lambda each: order[each.name])
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(report), encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
