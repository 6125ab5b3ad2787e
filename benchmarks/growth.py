"""How cost grows: with the rooms of a client, the clients of a process, the size of a document.

    python benchmarks/growth.py                        # all curves: about ten minutes; rewrites docs/growth.md
    python benchmarks/growth.py --curves rooms         # one of: rooms, clients, upload, download
    python benchmarks/growth.py --quick                # small sizes, for correctness
    python benchmarks/growth.py --pacing               # how many joins at once: rejoins over slow links, three servers

Each point is measured in a process of its own, against a server in another. Times are the processor's, of the thread of
the event loop, so that other programs do not show; the clock is printed beside them. What loro does within one call
holds the interpreter's lock, and cannot be divided: its time is subtracted from ours and shown separately.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any, Final

from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode
from reconnect_fsm.testing import ChaosProxy, EmbeddedServer

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
BUILD: Final = ROOT / "build"
TIMEOUT: Final = 240.0  # seconds for one point
MAX_BLOCKED: Final = 0.020  # seconds for which we may block the loop
MAX_EXPONENT: Final = 1.25  # that counts as linear: caches and garbage collection cost something, too
BEAT: Final = 0.001
KIB, MIB = 1024, 1024 * 1024

Figures = dict[str, float]


# ----------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Column:
    """One figure of the points of a curve."""

    name: str
    title: str
    unit: str
    """``s``, ``B``, ``share``, or ``n``."""
    grows: bool = True
    """Whether it is to grow no worse than linearly; else it is only shown."""
    blocks: bool = False
    """Whether it is how long the loop was blocked, which has a limit instead."""


@dataclass(frozen=True)
class Curve:
    """How some figures grow with one number."""

    name: str
    title: str
    number: str
    sizes: Sequence[int]
    quick: Sequence[int]
    columns: Sequence[Column]
    in_bytes: bool = False
    runs: int = 3


CURVES: Final = (
    Curve(
        "rooms", "Rooms on one client", "rooms",
        (1, 10, 100, 1_000, 10_000, 100_000), (1, 200),
        (
            Column("join", "join all", "s"),
            Column("rejoin", "rejoin all", "s"),
            Column("leave", "close with all", "s"),
            Column("memory", "memory of all", "B"),
            Column("each", "memory a room", "B", grows=False),
            Column("join_blocked", "blocked, joining", "s", blocks=True),
            Column("rejoin_blocked", "blocked, rejoining", "s", blocks=True),
            Column("leave_blocked", "blocked, closing", "s", blocks=True),
            Column("garbage", "a full garbage collection", "s", grows=False),
        ),
    ),
    Curve(
        "clients", "Idle clients in one process", "clients",
        (1, 10, 100, 1_000, 5_000), (1, 30),
        (
            Column("connect", "connect all", "s"),
            Column("close", "close all", "s"),
            Column("idle", "share of a core while idle", "share"),
            Column("memory", "memory of all", "B"),
            Column("each", "memory a client", "B", grows=False),
            Column("connect_blocked", "blocked, connecting", "s", blocks=True),
            Column("idle_blocked", "blocked, idle", "s", blocks=True),
            Column("close_blocked", "blocked, closing", "s", blocks=True),
            Column("garbage", "a full garbage collection", "s", grows=False),
        ),
        runs=1,  # they are idle for long
    ),
    *(
        Curve(
            name, title, "size of the document",
            (KIB, 10 * KIB, 100 * KIB, MIB, 10 * MIB, 50 * MIB), (KIB, 600 * KIB),
            (
                Column("ours", "our work", "s"),
                Column("loro", "loro's work", "s"),
                Column("wall", "by the clock", "s", grows=False),
                Column("peak", "memory at the peak", "B"),
                Column("blocked", "blocked by us", "s", blocks=True),
                Column("longest_call", "longest call of loro's", "s", grows=False),
            ),
            in_bytes=True,
        )
        for name, title in (("upload", "A document to the server"), ("download", "A document from the server"))
    ),
)  # fmt: skip


class Heartbeat:
    """Beats every millisecond, and knows how long the loop was blocked: what its thread worked between two beats.

    Collections of garbage are left out: how long they take depends on all that a program holds. A beat is late for what
    others do with the machine, too; that is reported as ``late``.
    """

    def __init__(self) -> None:
        self.elsewhere = 0.0
        """Seconds of the thread that are not ours; each caller of loro adds to it."""
        self.blocked = self.late = 0.0
        self._collecting = self._collected = 0.0

    @contextlib.asynccontextmanager
    async def phase(self, figures: Figures, name: str) -> AsyncIterator[None]:
        """Measure what is done within: the thread's work, how long it took, and what blocked."""
        gc.callbacks.append(self._on_garbage)
        task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        self.blocked = self.late = 0.0
        worked, began, elsewhere = time.thread_time(), time.perf_counter(), self.elsewhere
        try:
            yield
            figures[name] = time.thread_time() - worked - (self.elsewhere - elsewhere)
            figures[f"{name}_wall"] = time.perf_counter() - began
            await asyncio.sleep(2 * BEAT)  # for the last beat to come
            figures[f"{name}_blocked"], figures[f"{name}_late"] = self.blocked, self.late
        finally:
            gc.callbacks.remove(self._on_garbage)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            began, worked, not_ours = time.perf_counter(), time.thread_time(), self.elsewhere + self._collected
            await asyncio.sleep(BEAT)
            self.late = max(self.late, time.perf_counter() - began - BEAT)
            not_ours = self.elsewhere + self._collected - not_ours
            self.blocked = max(self.blocked, time.thread_time() - worked - not_ours)

    def _on_garbage(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting


class Calls:
    """Counts what the adaptors of all rooms are asked: the version when a room joins, what is missing once joined."""

    def __init__(self) -> None:
        self.asked = self.joined = self.in_flight = self.most_in_flight = 0
        self.seconds = 0.0
        """From the first that was asked for to the last that was joined."""
        self._began = 0.0
        self._wanted, self._first, self._all = 0, asyncio.Event(), asyncio.Event()

    def want(self, rooms: int) -> None:
        """Begin anew."""
        self.asked = self.joined = self.in_flight = self.most_in_flight = 0
        self._wanted, self._first, self._all = rooms, asyncio.Event(), asyncio.Event()

    def ask(self) -> None:
        if self.asked == 0:
            self._began = time.perf_counter()
            self._first.set()
        self.asked += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def join(self) -> None:
        self.joined += 1
        self.in_flight -= 1
        if self.joined == self._wanted:
            self.seconds = time.perf_counter() - self._began
            self._all.set()

    async def first_asked(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self._first.wait()

    async def all_joined(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self._all.wait()


class Nothing:
    """The smallest adaptor: a document with nothing in it."""

    __slots__ = ("_calls",)
    crdt_type = CrdtType.LORO

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        return do_nothing

    def version(self) -> bytes:
        self._calls.ask()
        return b""

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        self._calls.join()
        return ()

    def covers(self, server_version: bytes) -> bool:
        return True

    def apply(self, updates: Sequence[bytes]) -> None: ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None: ...


def do_nothing() -> None: ...


def memory(field: str = "VmRSS") -> int:
    """Bytes that this process holds; ``VmHWM`` is the most that it held since it was last forgotten."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not report {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def settled_memory() -> int:
    gc.collect()
    return memory()


def full_collection() -> float:
    """Seconds of the thread that a full collection of garbage takes."""
    worked = time.thread_time()
    gc.collect()
    return time.thread_time() - worked


def a_client(url: str, **options: Any) -> Client:
    """One that reconnects at once, so that what is measured is the work and not the wait."""
    return Client(url, retry=RetryPolicy(base=0.02, cap=0.02), keepalive=Keepalive(enabled=False), **options)


# --------------------------------------------------------------------------------------------------------------- points


async def rooms(count: int) -> Figures:
    """So many rooms on a client: joined, joined again after the server reset the connection, and closed."""
    figures: Figures = {}
    async with server("stub") as (url, command):
        heart = Heartbeat()
        client, calls = a_client(url), Calls()
        calls.want(count)
        async with client:
            await client.wait_connected()
            had = settled_memory()
            async with heart.phase(figures, "join"):
                for number in range(count):
                    client.join(f"room {number}", Nothing(calls))
                    if number % 100 == 99:  # a hundred calls in a row are the user's; more would be his blocking, too
                        await asyncio.sleep(0)
                await calls.all_joined()
            figures["memory"] = settled_memory() - had
            figures["each"] = figures["memory"] / count
            figures["garbage"] = full_collection()
            calls.want(count)
            async with heart.phase(figures, "rejoin"):
                await command("restart")
                await calls.all_joined()
            async with heart.phase(figures, "leave"):
                await client.close()
    return figures


GROUP: Final = 20  # clients started or closed at once; with more, the benchmark itself would block the loop


async def clients(count: int, idle: float) -> Figures:
    """So many clients with default settings: connected, left alone for so many seconds, and closed."""
    figures: Figures = {}
    raise_the_limit_of_files()
    async with server("stub") as (url, _):
        heart = Heartbeat()
        had = settled_memory()
        everyone = [Client(url) for _ in range(count)]
        async with heart.phase(figures, "connect"):
            for some in groups(everyone, GROUP):
                for each in some:
                    each.start()
                await asyncio.gather(*(each.wait_connected() for each in some))
        figures["memory"] = settled_memory() - had
        figures["each"] = figures["memory"] / count
        figures["garbage"] = full_collection()
        async with heart.phase(figures, "idle"):
            await asyncio.sleep(idle)
        worked = time.thread_time()  # once more, without the work of the heartbeat
        await asyncio.sleep(idle)
        figures["idle"] = max(time.thread_time() - worked, 1e-6) / idle
        async with heart.phase(figures, "close"):
            for some in groups(everyone, GROUP):
                await asyncio.gather(*(each.close() for each in some))
    return figures


async def upload(size: int) -> Figures:
    """A document of that size is joined to a server that has nothing."""
    async with server("embedded") as (url, _):
        heart = Heartbeat()
        return await transfer(url, heart, document(size))


async def download(size: int) -> Figures:
    """A server that has a document of that size is joined with an empty one."""
    from loro import LoroDoc

    async with server("embedded") as (url, _):
        heart = Heartbeat()
        await transfer(url, heart, document(size))
        doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
        figures = await transfer(url, heart, doc)
        assert doc.len_ops == operations(size)
        return figures


async def transfer(url: str, heart: Heartbeat, doc: Any) -> Figures:
    """Join the room, and wait until both sides are the same."""
    figures: Figures = {}
    adaptor = timed_adaptor(doc, heart)
    async with a_client(url) as client:
        await client.wait_connected()
        had = settled_memory()
        forget_peak()
        elsewhere = heart.elsewhere
        async with heart.phase(figures, "ours"):
            room = await client.join("document", adaptor)
            async with asyncio.timeout(TIMEOUT):
                await room.synced()
        figures["loro"] = heart.elsewhere - elsewhere
        figures["wall"], figures["blocked"] = figures.pop("ours_wall"), figures.pop("ours_blocked")
        figures["peak"] = memory("VmHWM") - had
        figures["longest_call"] = adaptor.longest
    return figures


PER_OPERATION: Final = 1024


def operations(size: int) -> int:
    return max(1, size // PER_OPERATION)


def document(size: int) -> Any:
    """About so many bytes, that cannot be compressed, in operations of a kibibyte."""
    from loro import LoroDoc

    doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
    entries = doc.get_map("entries")
    for number in range(operations(size)):
        entries.insert(str(number), os.urandom(PER_OPERATION))
    doc.commit()
    return doc


def timed_adaptor(doc: Any, heart: Heartbeat) -> Any:
    """A LoroAdaptor that reports the time spent in loro to the heartbeat."""
    from reconnect_fsm.adaptors import LoroAdaptor

    class Timed(LoroAdaptor):
        longest = 0.0

        def version(self) -> bytes:
            version: bytes = self._timed(super().version)
            return version

        def missing_from(self, server_version: bytes) -> Any:
            missing = self._timed(super().missing_from, server_version)
            return missing if isinstance(missing, Sequence) else self._one_by_one(iter(missing))

        def covers(self, server_version: bytes) -> bool:
            covers: bool = self._timed(super().covers, server_version)
            return covers

        def apply(self, updates: Sequence[bytes]) -> None:
            self._timed(super().apply, updates)

        def _one_by_one(self, updates: Iterator[bytes]) -> Iterator[bytes]:
            while (update := self._timed(next, updates, None)) is not None:
                yield update

        def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args)
            finally:
                took = time.thread_time() - began
                self.longest = max(self.longest, took)
                heart.elsewhere += took

    return Timed(doc)


def groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def raise_the_limit_of_files() -> None:
    """As far as it goes; children have it too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --------------------------------------------------------------------------------------------------------------- pacing


SERVERS: Final = ("stub", "embedded", "npm")
ROUND_TRIPS: Final = (0.0, 0.02, 0.1)
WINDOWS: Final = (64, 256, 512, 1024, 4096, None)
PINGS: Final = 0.01  # seconds between two


async def pacing(count: int, which: str, round_trip: float, window: int | None) -> Figures:
    """So many rooms are joined again after a reset, so many at once, while pings go on."""
    figures: Figures = {}
    async with contextlib.AsyncExitStack() as stack:
        url, _ = await stack.enter_async_context(server(which))
        url, reset = await stack.enter_async_context(server("proxy", url, str(round_trip / 2)))
        calls, heart = Calls(), Heartbeat()
        calls.want(count)
        client = await stack.enter_async_context(a_client(url, **at_once(window)))
        for number in range(count):
            client.join(f"room {number}", Nothing(calls))
        await calls.all_joined()
        calls.want(count)
        async with heart.phase(figures, "rejoin"):
            await reset("reset")
            await calls.first_asked()
            figures["ping"] = await worst_ping(client, calls)
        figures["seconds"], figures["most_in_flight"] = calls.seconds, calls.most_in_flight
    return figures


def at_once(window: int | None) -> dict[str, Any]:
    """The parameter of Client that bounds the joins under way, if there is one by now."""
    return {"max_concurrent_joins": window} if "max_concurrent_joins" in signature(Client).parameters else {}


async def worst_ping(client: Client, calls: Calls) -> float:
    """Ping until all rooms are joined."""
    worst, joined = 0.0, asyncio.create_task(calls.all_joined())
    while True:
        began = time.perf_counter()
        await client.ping(timeout=TIMEOUT)
        worst = max(worst, time.perf_counter() - began)
        if joined.done():
            await joined
            return worst
        await asyncio.wait([joined], timeout=PINGS)


def measure_pacing(quick: bool) -> list[dict[str, Any]]:
    """All combinations; a line of the table is printed as soon as it is measured."""
    count = 300 if quick else 10_000
    head = ("server", "round trip", "at once", "all joined", "worst ping", "most in flight", "blocked")
    print(" ".join(f"{each:>14}" for each in head))
    results = []
    for which in ("stub", "embedded") if quick else SERVERS:
        for round_trip in (0.0, 0.02) if quick else ROUND_TRIPS:
            for window in (64, None) if quick else WINDOWS:
                figures = run_point("pacing", count, which, round_trip, window or 0)
                results.append({"server": which, "round_trip": round_trip, "at_once": window, **figures})
                cells = (
                    which,
                    f"{round_trip * 1e3:.0f} ms",
                    str(window or "all"),
                    shown(figures["seconds"], "s"),
                    shown(figures["ping"], "s"),
                    f"{figures['most_in_flight']:.0f}",
                    shown(figures["rejoin_blocked"], "s"),
                )
                print(" ".join(f"{each:>14}" for each in cells), flush=True)
    return results


# -------------------------------------------------------------------------------------------------------------- servers


Command = Callable[[str], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(which: str, *args: str) -> AsyncIterator[tuple[str, Command]]:
    """A server in a process of its own: its address, and a function that has a command obeyed."""
    if which == "npm":
        async with npm_server() as pair:
            yield pair
        return
    command = [str(HERE / "stub_server.py")] if which == "stub" else [__file__, "--serve", which, *args]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    async def obey(line: str) -> None:
        stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(TIMEOUT):
            await stdout.readline()

    try:
        async with asyncio.timeout(TIMEOUT):
            said = (await stdout.readline()).decode().split()
        yield said[0] if said[0].startswith("ws:") else f"ws://127.0.0.1:{said[0]}/", obey
    finally:
        stdin.close()
        async with asyncio.timeout(TIMEOUT):
            await process.wait()


@contextlib.asynccontextmanager
async def npm_server() -> AsyncIterator[tuple[str, Command]]:
    """The reference server, on Node."""
    sys.path.append(str(ROOT / "tests" / "support"))
    from node_peers import NodeServer

    async with NodeServer() as node:

        async def obey(_: str) -> None:
            await node.terminate()

        yield node.url, obey


async def serve(which: str, args: Sequence[str]) -> None:
    """Be the server: say the address, obey, and end when stdin closes."""
    async with contextlib.AsyncExitStack() as stack:
        one: EmbeddedServer | ChaosProxy
        if which == "embedded":
            one = await stack.enter_async_context(EmbeddedServer())
            reset: Callable[[], object] = one.reset_all
        else:
            one = await stack.enter_async_context(ChaosProxy(args[0]))
            one.delay(float(args[1]))
            reset = one.reset
        print(one.url, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            reset()
            print("{}", flush=True)


# --------------------------------------------------------------------------------------------------------------- curves


def run_point(name: str, *args: object) -> Figures:
    """Measure one point in a process of its own. Raises CalledProcessError if it fails, having said why on stderr."""
    command = [sys.executable, __file__, "--point", name, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=2 * TIMEOUT, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


async def point(name: str, args: Sequence[str]) -> Figures:
    """What `run_point` asked for."""
    asyncio.get_running_loop().set_debug(False)
    match name:
        case "rooms":
            return await rooms(int(args[0]))
        case "clients":
            return await clients(int(args[0]), float(args[1]))
        case "upload":
            return await upload(int(args[0]))
        case "download":
            return await download(int(args[0]))
        case "pacing":
            return await pacing(int(args[0]), args[1], float(args[2]), int(args[3]) or None)
        case _:
            raise ValueError(f"no such point: {name}")


def one_run(curve: Curve, size: int, quick: bool) -> Figures:
    """Measure a point once; where it need not be exact, within this process."""
    args = [str(size), *([str(0.5 if quick else 20)] if curve.name == "clients" else ())]
    return asyncio.run(point(curve.name, args)) if quick else run_point(curve.name, *args)


def together(curve: Curve, runs: Sequence[Figures]) -> Figures:
    """The medians; of what blocked, the best: whatever disturbs makes it longer, and nothing makes it shorter."""
    best = [column.name for column in curve.columns if column.blocks]
    return {name: (min if name in best else median)(run[name] for run in runs) for name in runs[0]}


def measure(curve: Curve, quick: bool) -> list[Figures]:
    """All points of a curve; those that fail are left out, and said."""
    points = []
    for size in curve.quick if quick else curve.sizes:
        print(f"{curve.name} {size} …", end=" ", flush=True, file=sys.stderr)
        try:
            runs = [one_run(curve, size, quick) for _ in range(1 if quick else curve.runs)]
        except subprocess.SubprocessError as error:
            print(f"failed: {error}", file=sys.stderr)
        else:
            points.append({"size": size, **together(curve, runs)})
            print("done", file=sys.stderr)
    return points


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """How a figure grows: the slope through the points, both axes logarithmic; 1 is linear. nan for fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(logs) < 2:
        return math.nan
    mid_x, mid_y = (sum(each) / len(logs) for each in zip(*logs, strict=True))
    across = sum((x - mid_x) ** 2 for x, _ in logs)
    return sum((x - mid_x) * (y - mid_y) for x, y in logs) / across if across else math.nan


def larger_half(points: Sequence[Figures], name: str) -> list[tuple[float, float]]:
    """The large points, which show the trend: small ones are all overhead."""
    return [(each["size"], each[name]) for each in points[len(points) // 2 :]]


def verdict(column: Column, points: Sequence[Figures]) -> str:
    """What there is to say of a column."""
    if column.blocks:
        longest = max(each[column.name] for each in points)
        return f"{'within' if longest <= MAX_BLOCKED else 'OVER'} {shown(MAX_BLOCKED, 's')}"
    if not column.grows:
        return ""
    slope = exponent(larger_half(points, column.name))
    return f"n^{slope:.2f}{'' if slope <= MAX_EXPONENT else ', WORSE THAN LINEAR'}"


# ---------------------------------------------------------------------------------------------------------------- pages


def shown(value: float, unit: str) -> str:
    """With three digits, and the unit that suits."""
    if unit == "share":
        return f"{value * 100:.2g} %"
    steps = {
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "B": ((MIB, "MiB"), (KIB, "KiB"), (1, "B")),
        "n": ((1, ""),),
    }[unit]
    factor, name = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{value / factor:.3g} {name}".strip()


def named(curve: Curve, size: float) -> str:
    return shown(size, "B") if curve.in_bytes else f"{size:,}"


def table(curve: Curve, points: Sequence[Figures]) -> list[list[str]]:
    """A line a size, and the verdicts."""
    head = [curve.number, *(column.title for column in curve.columns)]
    lines = [
        [named(curve, each["size"])] + [shown(each[column.name], column.unit) for column in curve.columns]
        for each in points
    ]
    return [head, *lines, ["", *(verdict(column, points) for column in curve.columns)]]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *lines = rows
    return "\n".join("| " + " | ".join(each) + " |" for each in (head, ["---:"] * len(head), *lines))


STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #8b949e; stroke-opacity: .25 } .linear { stroke: #8b949e; stroke-dasharray: 4 4 }
  .limit { stroke: #c4432b; stroke-dasharray: 2 3 } .curve { fill: none; stroke-width: 2 }
  .c0 { stroke: #2f7d4f; fill: #2f7d4f } .c1 { stroke: #2f6db3; fill: #2f6db3 } .c2 { stroke: #b0661e; fill: #b0661e }
  .c3 { stroke: #8250df; fill: #8250df } .c4 { stroke: #b4327a; fill: #b4327a } .curve { fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .limit { stroke: #e5694f }
    .c0 { stroke: #46a76c; fill: #46a76c } .c1 { stroke: #589fe6; fill: #589fe6 } .c2 { stroke: #d9903d; fill: #d9903d }
    .c3 { stroke: #ab7df8; fill: #ab7df8 } .c4 { stroke: #db61a2; fill: #db61a2 } .curve { fill: none }
  }
"""
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 230, 58, 44, 110


def picture(curve: Curve, points: Sequence[Figures]) -> str:
    """An SVG, light or dark as the reader has it: both axes logarithmic, dashed what would be linear."""
    panels = [
        ("time", [each for each in curve.columns if each.unit == "s" and each.grows and not each.blocks]),
        ("memory", [each for each in curve.columns if each.unit == "B" and each.grows]),
        ("loop blocked", [each for each in curve.columns if each.blocks]),
    ]
    parts = [panel(curve, points, *each, LEFT + number * (WIDTH + GAP)) for number, each in enumerate(panels)]
    across = len(panels) * (WIDTH + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {TOP + HEIGHT + 70}" role="img">\n'
        f"<title>{escape(curve.title)}: how time, memory and the longest pause grow</title><style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def panel(curve: Curve, points: Sequence[Figures], title: str, columns: Sequence[Column], left: float) -> str:
    """One pair of axes."""
    blocks = any(column.blocks for column in columns)
    values = [each[column.name] for each in points for column in columns if each[column.name] > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(*values, MAX_BLOCKED if blocks else 0)))
    first, last = math.log10(points[0]["size"]), math.log10(points[-1]["size"])

    def x(size: float) -> float:
        return left + WIDTH * (math.log10(size) - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - math.log10(value)) / ((high - low) or 1)

    parts = [f'<text x="{left}" y="{TOP - 16}">{escape(title)}</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="small" x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">'
            f"{of_ten(power, columns[0].unit)}</text>"
        )
    for each in points:
        label = named(curve, each["size"])
        parts.append(
            f'<text class="small" x="{x(each["size"]):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{label}</text>'
        )
    if blocks:
        parts.append(
            f'<line class="limit" x1="{left}" x2="{left + WIDTH}" y1="{y(MAX_BLOCKED):.1f}" y2="{y(MAX_BLOCKED):.1f}"/>'
        )
    else:
        top = max(column_last(points, column) for column in columns if column.grows or len(columns) == 1)
        start = max(points[0]["size"], points[-1]["size"] * 10.0**low / top)
        parts.append(
            f'<line class="linear" x1="{x(start):.1f}" x2="{x(points[-1]["size"]):.1f}" '
            f'y1="{y(top * start / points[-1]["size"]):.1f}" y2="{y(top):.1f}"/>'
        )
    for number, column in enumerate(columns):
        line = " ".join(f"{x(each['size']):.1f},{y(each[column.name]):.1f}" for each in points if each[column.name] > 0)
        across, down = left + number % 2 * 160, TOP + HEIGHT + 32 + number // 2 * 17
        parts.append(
            f'<polyline class="curve c{number}" points="{line}"/>'
            f'<rect class="c{number}" x="{across}" y="{down}" width="14" height="4"/>'
            f'<text class="small" x="{across + 18}" y="{down + 6}">{escape(column.title)}</text>'
        )
    return "\n".join(parts)


def of_ten(power: int, unit: str) -> str:
    """A power of ten, for an axis."""
    names = {"s": {-9: "ns", -6: "µs", -3: "ms", 0: "s", 3: "ks"}, "B": {0: "B", 3: "kB", 6: "MB", 9: "GB"}}[unit]
    base = power // 3 * 3
    return f"{10 ** (power - base)} {names[base]}"


def column_last(points: Sequence[Figures], column: Column) -> float:
    return max(points[-1][column.name], 1e-9)


ABOUT: Final = """\
# How cost grows

Made by `python benchmarks/growth.py`; do not edit. Measured on {machine}; what counts is the shape, not the figures.

{verdict}

- Time is the processor's, of the thread of the event loop. The last line of each table is the exponent over the larger
  half of the points: `n^1.00` is linear, and up to {steep} passes for it.
- *Blocked* is the longest that the loop's thread worked between two beats of a heartbeat that wants to beat every
  millisecond; it is to stay within {longest}. What loro does in one call has a column of its own, for it holds the
  interpreter's lock and cannot be divided.
- Collections of garbage have columns of their own, too: a full one looks at all that the program holds, of which a room
  is three objects, one of them the user's. A program that has very many of them and cannot have the pause says
  `gc.freeze()` once its rooms are joined.
- Each point is a process of its own, and so is its server: the stub of the benchmarks for rooms and clients, the
  embedded server for documents. It is the median of three runs, and for what blocked the best of them; of clients, that
  are idle for long, there is one run.
- In the pictures both axes are logarithmic. Dashed is what would be linear; dotted, the limit.
"""


def page(result: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    bad = [
        f"{curve.title}: {column.title}"
        for curve, points in measured(result)
        for column in curve.columns
        if any(word in verdict(column, points) for word in ("WORSE", "OVER"))
    ]
    bad += [f"{name}: no figures for {', '.join(sizes)}" for name, sizes in result.get("failed", {}).items() if sizes]
    parts = [
        ABOUT.format(
            machine=result["machine"],
            verdict=f"**Not as it should be: {'; '.join(bad)}.**"
            if bad
            else "**Nothing grows worse than linearly, and nothing blocks for longer than it may.**",
            steep=MAX_EXPONENT,
            longest=shown(MAX_BLOCKED, "s"),
        )
    ]
    for curve, points in measured(result):
        parts.append(
            f"## {curve.title}\n\n![{curve.title}](growth-{curve.name}.svg)\n\n{as_markdown(table(curve, points))}\n"
        )
    if result.get("pacing"):
        parts.append(about_pacing(result["pacing"]))
    return "\n".join(parts)


def measured(result: Mapping[str, Any]) -> list[tuple[Curve, list[Figures]]]:
    return [(curve, result["curves"][curve.name]) for curve in CURVES if result["curves"].get(curve.name)]


def about_pacing(results: Sequence[Mapping[str, Any]]) -> str:
    """How many joins at once."""
    head = ["server", "round trip", "at once", "all rejoined", "worst ping", "most in flight"]
    lines = [
        [
            each["server"],
            shown(each["round_trip"], "s") if each["round_trip"] else "0",
            str(each["at_once"] or "all"),
            shown(each["seconds"], "s"),
            shown(each["ping"], "s"),
            f"{each['most_in_flight']:,.0f}",
        ]
        for each in results
    ]
    return (
        "## How many joins at once\n\n10,000 rooms are joined again after a reset, over links of several round trips, "
        "while pings go on. By the clock.\n\n" + as_markdown([head, *lines]) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, for correctness")
    parser.add_argument("--curves", help=f"of {', '.join(each.name for each in CURVES)}; all by default")
    parser.add_argument("--pacing", action="store_true", help="measure how many joins at once, instead")
    parser.add_argument("--out", type=Path, default=BUILD, help="where growth.json and the pictures go")
    parser.add_argument("--point", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve[0], args.serve[1:]))
        return 0
    if args.point:
        print(json.dumps(asyncio.run(point(args.point[0], args.point[1:]))))
        return 0
    kept = args.out / "growth.json"
    args.out.mkdir(parents=True, exist_ok=True)
    result = json.loads(kept.read_text()) if kept.exists() else {"curves": {}}
    result.setdefault("failed", {})
    result["machine"] = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    if args.pacing:
        result["pacing"] = measure_pacing(args.quick)
    names = [] if args.pacing else (args.curves or ",".join(each.name for each in CURVES)).split(",")
    for curve in (each for each in CURVES if each.name in names):
        points = result["curves"][curve.name] = measure(curve, args.quick)
        wanted = curve.quick if args.quick else curve.sizes
        failed = [named(curve, size) for size in wanted if size not in [each["size"] for each in points]]
        result.setdefault("failed", {})[curve.name] = failed
        print(f"\n{curve.title}\n{as_text(table(curve, points))}\n", flush=True)
    kept.write_text(json.dumps(result, indent=1) + "\n")
    docs = ROOT / "docs" if args.out == BUILD and not args.quick else args.out
    for curve, points in measured(result):
        (docs / f"growth-{curve.name}.svg").write_text(picture(curve, points))
    (docs / "growth.md").write_text(page(result))
    return int(any(result["failed"].get(name) for name in names))


if __name__ == "__main__":
    sys.exit(main())
