"""The suite itself: its chance repeats, its helpers wait as they say, no test leans on another."""

from __future__ import annotations

import ast
import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit import PATIENCE, States, Statuses, hold, until, until_equal
from reconnect_fsm import RetryPolicy
from reconnect_fsm.retry import SYSTEM
from reconnect_fsm.testing import EmbeddedServer

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SOURCES = sorted(
    path
    for folder in (TESTS, ROOT / "reconnect_fsm" / "testing")
    for path in folder.rglob("*.py")
    if "node_modules" not in path.parts
)
SHOWN_WITH = [path.relative_to(ROOT).as_posix() for path in SOURCES]

AT_IMPORT = RetryPolicy()  # as many files of tests make theirs

# ------------------------------------------------------------------------------------------------------------ no chance

UNSEEDED = {"random": {"Random", "SystemRandom"}, "uuid": {"uuid1", "uuid4"}, "os": {"urandom", "getrandom"}}
OWN_SEED = {"seed", "Random", "getstate", "setstate"}  # of the module random


def unseeded(tree: ast.AST) -> Iterator[str]:
    """Calls whose outcome no seed decides; a call of the module random's own functions leans on everyone's state."""
    names: dict[str, tuple[str, str]] = {}  # as it is called here -> the module, and what of it
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {each.asname or each.name: (node.module, each.name) for each in node.names}
    shadowed = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=what)) if name in modules:
                module = modules[name]
                if name in shadowed:  # a variable of this name: its own methods
                    continue
            case ast.Call(func=ast.Name(id=name)) if name in names:
                module, what = names[name]
            case _:
                continue
        bare = not node.args and not node.keywords
        if module == "secrets" or (
            module in UNSEEDED
            and (
                (what in UNSEEDED[module] and (what != "Random" or bare))
                or (module == "random" and what not in OWN_SEED)
            )
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=SHOWN_WITH)
def test_every_source_of_chance_is_seeded(path: Path) -> None:
    """No test draws what the next run would not draw; `random.random` and its like serve everybody, so not tests."""
    assert list(unseeded(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import random\nrandom.Random()", 1),
        ("import random\nrandom.Random(1)", 0),
        ("from random import Random as Dice\nDice()", 1),
        ("import random\nrandom.SystemRandom()", 1),
        ("import random\nrandom.choice([1])", 1),
        ("def f(random):\n random.choice([1])", 0),
        ("import random as chance\nchance.shuffle([])", 1),
        ("import os\nos.urandom(9)", 1),
        ("from os import urandom\nurandom(9)", 1),
        ("import secrets\nsecrets.randbits(64)", 1),
        ("import uuid\nuuid.uuid4()", 1),
        ("import uuid\nuuid.UUID(int=1)", 0),
    ],
)
def test_what_counts_as_unseeded(source: str, found: int) -> None:
    """The check above finds what it is for."""
    assert len(list(unseeded(ast.parse(source)))) == found


@pytest.mark.parametrize("policy", [RetryPolicy(base=60, cap=60), AT_IMPORT], ids=["made as it runs", "made at import"])
def test_d_jitter_a_policy_without_a_source_draws_the_same_in_each_run(
    request: pytest.FixtureRequest, policy: RetryPolicy
) -> None:
    """D-JITTER: in tests, and only there, the shared source is seeded with the test's name."""
    again = random.Random(request.node.nodeid)
    assert isinstance(policy.random, random.SystemRandom)
    assert [policy.random.uniform(0, 1) for _ in range(5)] == [again.uniform(0, 1) for _ in range(5)]
    assert [SYSTEM.randrange(100) for _ in range(5)] == [again.randrange(100) for _ in range(5)]


# ------------------------------------------------------------------------------------------------- nothing that passes

PASSING = {"connecting", "reconnecting", "retrying", "initializing", "reinitializing"}
PASSING |= {"joining", "rejoining", "resyncing", "join_delayed"}


def is_virtual(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a file, or a test, runs in virtual time, where whoever looks often enough misses nothing."""
    if isinstance(node, ast.Module):
        marks = [ast.unparse(each) for each in node.body if isinstance(each, ast.Assign)]
        return any(mark.startswith("pytestmark") and "virtual_time" in mark for mark in marks)
    return any("virtual" in ast.unparse(each) for each in node.decorator_list)


def polled_for(tree: ast.Module) -> Iterator[str]:
    """Statuses and states that may last a millisecond, looked for every few of them."""
    if is_virtual(tree):
        return
    for test in ast.walk(tree):
        if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) or is_virtual(test):
            continue
        for call in ast.walk(test):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("until", "until_equal"):
                for compared in (each for each in ast.walk(call) if isinstance(each, ast.Compare)):
                    left, right = ast.unparse(compared.left), ast.unparse(compared.comparators[0])
                    if (
                        left.rpartition(".")[2] in ("status", "state")
                        and right.rpartition(".")[2].strip("'").lower() in PASSING
                    ):
                        yield f"line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("path", SOURCES, ids=SHOWN_WITH)
def test_what_passes_is_not_polled_for(path: Path) -> None:
    """In real time it is listened for, by `Statuses`, `States`, or a listener of the test's own."""
    assert list(polled_for(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("async def test():\n await until(lambda: room.status is RoomStatus.RECONNECTING)", 1),
        ("async def test():\n await kit.until(lambda: a.state == 'retrying' and b)", 1),
        ("async def test():\n await until(lambda: room.status is RoomStatus.JOINED)", 0),
        ("@pytest.mark.virtual_time\nasync def test():\n await until(lambda: a.state == 'retrying')", 0),
        ("pytestmark = pytest.mark.virtual_time\nasync def test():\n await until(lambda: a.state == 'retrying')", 0),
    ],
)
def test_what_counts_as_polled_for(source: str, found: int) -> None:
    """The check above finds what it is for."""
    assert len(list(polled_for(ast.parse(source)))) == found


# ------------------------------------------------------------------------------------------------ each file by itself


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_test_module_imports_another() -> None:
    """What several of them need stands in tests/support."""
    assert "test_suite" in imported(ast.parse("def f():\n from test_suite import TESTS"))
    modules = {path.stem for path in SOURCES if path.stem.startswith("test_")}
    found = {
        name: sorted(modules & set(imported(ast.parse(path.read_text()))))
        for path, name in zip(SOURCES, SHOWN_WITH, strict=True)
    }
    assert {name: others for name, others in found.items() if others} == {}


# -------------------------------------------------------------------------------------------------------------- the kit


class Changing:
    """What has a status and a state, and says when they change."""

    def __init__(self) -> None:
        self.status = SimpleNamespace(value="joined")
        self.state = "joined"
        self.callbacks: list[Callable[[SimpleNamespace], None]] = []

    def on_status(self, callback: Callable[[SimpleNamespace], None]) -> None:
        self.callbacks.append(callback)

    on_transition = on_status

    def become(self, name: str) -> None:
        self.status, self.state = SimpleNamespace(value=name), name
        for callback in self.callbacks:
            callback(SimpleNamespace(new=self.status if callback.__qualname__.startswith("Statuses") else name))


@pytest.mark.parametrize("kind", [Statuses, States])
async def test_what_passed_in_a_moment_was_heard(kind: type[Statuses] | type[States]) -> None:
    """Which a look every few milliseconds would miss; the order counts, and what was there before does not."""
    changing = Changing()
    seen = kind(changing)
    changing.become("reconnecting")
    changing.become("joined")
    await seen.all_of("reconnecting", "joined")
    assert seen == ["joined", "reconnecting", "joined"]
    waiting = asyncio.create_task(seen.all_of("joined", "reconnecting"))
    await asyncio.sleep(0)
    assert not waiting.done()
    changing.become("reconnecting")
    await waiting
    with pytest.raises(AssertionError, match=r"\('error',\) did not come within 0.01 s; heard \['joined', "):
        await seen.all_of("error", within=0.01)
    with pytest.raises(AssertionError, match="did not come"):
        await kind(changing).all_of("reconnecting", within=0.01)


async def test_until_waits_and_says_for_what_it_waited_in_vain() -> None:
    """It looks again and again, and fails with the condition's own words."""
    looks = iter([0, 0, 1])
    await until(lambda: next(looks))
    with pytest.raises(AssertionError, match=r"did not hold within 0.01 s: .*never"):
        await until(lambda: "never" == "ever", within=0.01)


async def test_until_equal_shows_the_last_value() -> None:
    """The error says what was expected and what was there."""
    values = iter([1, 2, 3])
    await until_equal(lambda: next(values), 2)
    assert next(values) == 3
    with pytest.raises(AssertionError, match=r"expected 5, still 4 after 0 s"):
        await until_equal(lambda: 4, 5, within=0.0)


@pytest.mark.virtual_time
async def test_until_waits_longer_where_time_costs_nothing() -> None:
    """A retry in virtual time may come after more seconds than any real test should take."""
    then = asyncio.get_running_loop().time() + 2 * PATIENCE
    await until(lambda: asyncio.get_running_loop().time() >= then)


async def test_a_port_is_held_until_a_server_listens_on_it() -> None:
    """Nobody is let in, nobody else is given it, and the server that it is for may have it."""
    with hold() as held:
        port = held.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        with hold() as other:
            assert other.getsockname()[1] != port
        async with EmbeddedServer(port=port) as server:
            assert server.port == port
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()


def test_patience_ends_before_pytest_does(pytestconfig: pytest.Config) -> None:
    """So that a wait in vain says what it waited for, not where every thread is."""
    assert float(pytestconfig.getini("timeout")) >= 2 * PATIENCE


# ---------------------------------------------------------------------------------------------------- random order


FILE = "import pytest\n@pytest.mark.parametrize('number', range(20))\ndef test(number): pass\n"


def test_shuffled_the_order_is_another_and_the_same_again(pytester: pytest.Pytester) -> None:
    """`--shuffle=SEED`: all the tests, in an order that the seed alone decides, and that is said."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(test_one=FILE, test_two=FILE)

    def order(*options: str) -> list[str]:
        run = pytester.runpytest_inprocess("-p", "shuffle", "-p", "no:xdist", "--collect-only", "-q", *options)
        return [line for line in run.outlines if "::" in line]

    usual, one, two = order(), order("--shuffle=1"), order("--shuffle=2")
    assert len(usual) == 40
    assert sorted(usual) == sorted(one) == sorted(two)
    assert one == order("--shuffle=1")
    assert one != usual != two != one
    assert "in random order: --shuffle=1" in str(pytester.runpytest_inprocess("-p", "shuffle", "--shuffle=1").stdout)
