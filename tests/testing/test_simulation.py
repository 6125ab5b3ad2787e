"""Simulated hours.

Real clients, aiohttp and documents in virtual time, against a seeded nemesis.
The simulation is worth what it finds: for every invariant there is something here that breaks it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from async_solipsism import SleepForeverError

from figures import Figures, soak
from reconnect_fsm import Client, ClientFSM, ClientStatus, CloseInfo, RetryPolicy, RoomFSM, StateChange
from reconnect_fsm._asyncio.client_driver import ClientDriver
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm._asyncio.listeners import Listeners
from reconnect_fsm._asyncio.slots import EMPTY
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.effects import (
    AnnounceConnected,
    CloseSocket,
    Dial,
    Effect,
    NotifyRooms,
    RequestJoin,
    StartKeepalive,
    StartTimer,
    StopTimer,
)
from reconnect_fsm.loro_protocol import UpdateStatusCode
from reconnect_fsm.machine import ANY, row
from reconnect_fsm.testing import EmbeddedServer, every_schedule, many_schedules, run_in_virtual_time
from reconnect_fsm.testing.simulation import INVARIANTS, Report, Violation, main, simulate
from reconnect_fsm.testing.simulation.nemesis import CALLS, FAULTS, plan
from reconnect_fsm.testing.simulation.network import LATENCY, NetworkLoop
from reconnect_fsm.testing.virtual_time import in_memory_connections
from take_outs import TAKE_OUTS

HOURS = 10.0  # simulated, a seed
CHUNKS = ((2, range(25)), (2, range(25, 50)), (2, range(50, 75)), (3, range(75, 100)))  # clients, and seeds
SMALL = 3  # seeds of an hour each, always
PATIENCE = 40  # seeds within which something broken is found

# ---------------------------------------------------------------------------------------------------------- simulations


@pytest.mark.proof
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("clients", "seeds"), CHUNKS)
def test_no_invariant_is_broken(clients: int, seeds: range, figures: Figures) -> None:
    """A thousand hours of storms and calms, and every kind of fault and of call in each quarter of them."""
    report = simulated(seeds, HOURS * soak(), clients)
    assert report.hours >= HOURS * soak() * len(seeds)
    assert [name for counts in (report.faults, report.calls) for name, count in counts.items() if not count] == []
    assert (set(report.faults), set(report.calls)) == (set(FAULTS), set(CALLS))
    rarest = min(report.faults, key=lambda name: report.faults[name])
    figures(
        f"{clients} clients, seeds {seeds[0]}–{seeds[-1]}",
        hours=int(report.hours),
        storms=report.episodes,
        faults=report.faults.total(),
        kinds_of_fault=len(report.faults),
        rarest_fault=f"{rarest} ({report.faults[rarest]})",
        calls=report.calls.total(),
        kinds_of_call=len(report.calls),
        attempts=report.seen["attempts"],
        connected=report.seen["connected"],
        edits=report.seen["edits"],
        checks=report.checks,
        violations=0,
    )


def test_some_hours_of_it() -> None:
    """The same, small."""
    report = simulated(range(SMALL), 1.0, 2)
    assert report.hours >= SMALL
    assert report.seen["connected"] > SMALL
    assert report.seen["edits"] > SMALL


def simulated(seeds: range, hours: float, clients: int) -> Report:
    report = Report()
    for seed in seeds:
        report.add(simulate(seed, hours, clients=clients))
    return report


# -------------------------------------------------------------------------------------------------------- repeatability


def test_a_run_is_repeatable_to_the_byte(tmp_path: Path) -> None:
    """Twice here and once in a process that hashes differently: the same trace, every byte of it."""
    traces = [tmp_path / name for name in ("first", "second")]
    digests = []
    for path in traces:
        with path.open("w") as trace:
            digests.append(simulate(4, 1, trace=trace).digest)
    assert traces[0].read_bytes() == traces[1].read_bytes()
    assert len(set(digests)) == 1
    elsewhere = in_a_process("--seed", "4", "--hours", "1", PYTHONHASHSEED="4711")
    assert digests[0] in elsewhere.stdout


def test_another_seed_is_another_run() -> None:
    """The digest depends on the seed, and so does what happens."""
    assert simulate(1, 0).digest != simulate(2, 0).digest


def test_a_plan_does_not_depend_on_what_happens() -> None:
    """One storm alone is the same as the one in its place."""
    from random import Random

    assert plan(Random("x")) == plan(Random("x"))
    assert [step.index for step in plan(Random("x"))] == list(range(len(plan(Random("x")))))


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests / "testing", tests / "support", tests, tests.parent)))
    return subprocess.run(
        [sys.executable, "-m", "reconnect_fsm.testing.simulation", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_counts_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress for each seed, then all kinds, those that never happened too."""
    assert main(["--seed", "1", "--hours", "0", "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "seed 1: " in said
    assert "seed 2: " in said
    assert "2 storms" in said
    assert all(name in said for name in (*FAULTS, *CALLS))


def test_until_stopped_is_bounded_by_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """``--until-stopped --for 0``: one seed at most, then it says what it counted."""
    assert main(["--hours", "0", "--until-stopped", "--for", "0"]) == 0
    assert "simulated hours" in capsys.readouterr().out


def test_a_violation_is_told_made_short_and_replayed() -> None:
    """Exit 1; the invariant, the seed, the last events; and a command that shows the same, with few steps."""
    found = in_a_process("--seed", "3", "--hours", "1", "--fsm", "test_simulation:WaitsWithoutTimer")
    assert found.returncode == 1, found.stderr
    assert "seed 3: VIOLATION of never-wedged" in found.stdout
    assert "nemesis: step" in found.stdout
    *_, command = re.findall("replay: (.*)", found.stdout)
    _, _, _, *arguments = shlex.split(command)
    only = arguments[arguments.index("--only") + 1]
    assert len(only.split(",")) <= 3
    again = in_a_process(*arguments, "--no-shrink")
    assert again.returncode == 1
    assert "VIOLATION of never-wedged" in again.stdout
    assert again.stdout == in_a_process(*arguments, "--no-shrink", PYTHONHASHSEED="1").stdout


def test_a_class_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The mistake is in the command, so that is what is told."""
    with pytest.raises(SystemExit):
        main(["--fsm", "reconnect_fsm:Nothing"])
    assert "'reconnect_fsm:Nothing' is not MODULE:NAME" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the network


@contextmanager
def network() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=NetworkLoop) as runner, in_memory_connections():
        yield runner


async def connected(loop: NetworkLoop, host: str = "127.0.0.2") -> tuple[Client, EmbeddedServer]:
    server = EmbeddedServer()
    await server.start()
    client = Client(f"ws://{host}:{server.port}/")
    client.start()
    await client.wait_connected()
    return client, server


def test_what_is_sent_arrives_after_the_latency_of_the_link() -> None:
    """There and back, in either direction, and for this client alone."""

    async def scenario() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, NetworkLoop)
        client, server = await connected(loop)
        usual = await client.ping()
        loop.link("127.0.0.2").latency = 1.5
        slow = await client.ping()
        await client.close()
        await server.stop()
        return usual, slow

    with network() as runner:
        assert runner.run(scenario()) == pytest.approx((2 * LATENCY, 3.0))


def test_a_blocked_link_loses_nothing_and_a_cut_one_resets() -> None:
    """Blocked: what was sent comes when it is open again. Cut: both ends hear of it at once."""

    async def scenario() -> tuple[float, int, ClientStatus]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, NetworkLoop)
        client, server = await connected(loop)
        link = loop.link("127.0.0.2")
        link.block()
        loop.call_later(3, link.unblock)
        held_up = await client.ping(timeout=5)
        assert link.cut() == 1
        await asyncio.sleep(1e-3)
        seen = server.connections, client.status
        await client.close()
        await server.stop()
        return held_up, *seen

    with network() as runner:
        held_up, connections, status = runner.run(scenario())
    assert 3 <= held_up < 3 + 3 * LATENCY
    assert connections == 0
    assert status is ClientStatus.RECONNECTING


def test_a_slow_link_delivers_in_pieces_and_in_order() -> None:
    """A byte at a time, or so many bytes a second: late, but whole."""

    async def scenario() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, NetworkLoop)
        client, server = await connected(loop)
        link = loop.link("127.0.0.2")
        link.most = 1
        in_pieces = await client.ping()
        link.most, link.rate = None, 10.0
        slow = await client.ping()  # "ping" with header and mask is 10 bytes, "pong" with its header 6
        await client.close()
        await server.stop()
        return in_pieces, slow

    with network() as runner:
        assert runner.run(scenario()) == pytest.approx((2 * LATENCY, 2 * LATENCY + 1.6), abs=1e-5)


# --------------------------------------------------------------------------------------------------------------- broken


class KeepsItsSocket(ClientFSM):
    def close_socket(self) -> None:
        super().close_socket()
        assert self._effects is not None
        self._effects[:] = [effect for effect in self._effects if not isinstance(effect, CloseSocket)]


class KeepsItsDial(ClientFSM):
    def cancel_dial(self) -> None: ...


class KeepsItsTimer(Client):
    def run_effect(self, effect: Effect) -> None:
        if isinstance(effect, StopTimer):
            connection_driver_of(self).timer = EMPTY
        else:
            super().run_effect(effect)


class DialsWhenStopped(ClientFSM):
    def stop(self) -> None:
        super().stop()
        self.emit(Dial())


class Stubborn(ClientFSM):
    socket_closed = ClientFSM.socket_closed.first(
        row(ClientFSM.connected, to=ClientFSM.waiting, do="count_attempt", silences=ANY)
    )


class Slow(RetryPolicy):
    def delay(self, attempt: int) -> float:
        return 2 * self.cap


def with_slow_policy(url: Any, /, **options: Any) -> Client:
    return Client(url, **{**options, "retry": Slow(random=options["retry"].random)})


class Impatient(ClientFSM):
    def start_retry_timer(self) -> None:
        super().start_retry_timer()
        assert self.retry_in is not None
        self.emit(StartTimer(self.retry_in / 2))


class DoesNotCount(ClientFSM):
    def count_attempt(self) -> None: ...


class Forgetful(Listeners[StateChange]):
    def notify(self, news: StateChange) -> None:
        if news.new != "waiting":
            super().notify(news)


class ForgetsToTell(Client):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        connection_driver_of(self).on_transition = Forgetful("on_transition")


class TellsTwice(ClientFSM):
    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None:
        super().status_changed(old, new)
        super().status_changed(old, new)


class TellsNothing(ClientFSM):
    def status_changed(self, old: ClientStatus, new: ClientStatus) -> None: ...


class WaitsWithoutTimer(ClientFSM):
    def start_retry_timer(self) -> None:
        self.retry_in = self.policy.delay(self.attempt)


class TellsRoomsLater(Client):
    def run_effect(self, effect: Effect) -> None:
        if isinstance(effect, NotifyRooms):
            asyncio.get_running_loop().call_later(0, super().run_effect, effect)
        else:
            super().run_effect(effect)


class RoomTellsNothing(RoomFSM):
    def status_changed(self, old: Any, new: Any) -> None: ...


class AsksWithoutTimer(RoomFSM):
    def request_join(self) -> None:
        self.emit(RequestJoin(self.version))


class NeverMissesAPong(Client):
    def run_effect(self, effect: Effect) -> None:
        super().run_effect(effect)
        heartbeat = connection_driver_of(self).heartbeat
        if isinstance(effect, StartKeepalive) and heartbeat is not None:
            heartbeat.stop()


class LosesHeart(Client):
    def run_effect(self, effect: Effect) -> None:
        super().run_effect(effect)
        if isinstance(effect, StartKeepalive):
            fire = connection_driver_of(self).fire
            asyncio.get_running_loop().call_later(400, fire, ClientFSM.pong_missed, CloseInfo(1006))


class AnnouncesNothing(Client):
    def run_effect(self, effect: Effect) -> None:
        if not isinstance(effect, AnnounceConnected):
            super().run_effect(effect)


class RaisesAnything(Client):
    async def ping(self, timeout: float = 5.0) -> float:
        raise KeyError(timeout)


class TearsDownSlowly(ClientDriver):
    def own(self, work: Coroutine[Any, Any, None]) -> None:
        async def slowly() -> None:
            await work
            await asyncio.sleep(100)

        super().own(slowly())


class LetsGoSlowly(Client):
    _driver_type = TearsDownSlowly


class WaitsForHours(RoomFSM):
    def start_retry_timer(self) -> None:
        self.emit(StartTimer(10_000))


class Selfish(EmbeddedServer):
    def _apply(self, connection: Any, room: Any, updates: tuple[bytes, ...], batch_id: int) -> None:
        room.contents.add(updates)
        self._ack(connection, room.crdt, room.room_id, batch_id, UpdateStatusCode.OK)


class Eraser(LoroAdaptor):
    def apply(self, updates: Sequence[bytes]) -> None:
        super().apply(updates)
        edits = self.doc.get_map("edits")
        for key in list(edits.keys())[:1]:
            edits.delete(key)


class GuardRaises(ClientFSM):
    def is_fatal_close(self) -> bool:
        raise KeyError


class NeverRests(Client):
    def run_effect(self, effect: Effect) -> None:
        super().run_effect(effect)
        if isinstance(effect, AnnounceConnected):
            self._spin()

    def _spin(self) -> None:
        asyncio.get_running_loop().call_soon(self._spin)


class LeavesATask(Client):
    tasks: list[asyncio.Task[Any]]

    def run_effect(self, effect: Effect) -> None:
        super().run_effect(effect)
        if isinstance(effect, AnnounceConnected):
            self.tasks = [*getattr(self, "tasks", ()), asyncio.create_task(asyncio.Event().wait(), name="forgotten")]


BROKEN: dict[str, dict[str, Any]] = {
    "one-socket": {"fsm": KeepsItsSocket},
    "one-dial": {"fsm": KeepsItsDial},
    "one-timer": {"client": KeepsItsTimer},
    "no-uncalled-attempt": {"fsm": DialsWhenStopped},
    "fatal-is-final": {"fsm": Stubborn},
    "wait-in-range": {"client": with_slow_policy},
    "wait-is-kept": {"fsm": Impatient},
    "backoff-grows": {"fsm": DoesNotCount},
    "all-is-told": {"client": ForgetsToTell},
    "no-status-twice": {"fsm": TellsTwice},
    "status-is-true": {"fsm": TellsNothing},
    "never-wedged": {"fsm": WaitsWithoutTimer},
    "rooms-first": {"client": TellsRoomsLater},
    "room-is-true": {"room_fsm": RoomTellsNothing},
    "room-never-wedged": {"room_fsm": AsksWithoutTimer},
    "half-open-noticed": {"client": NeverMissesAPong},
    "good-network-holds": {"client": LosesHeart},
    "operations-end": {"client": AnnouncesNothing},
    "errors-as-documented": {"client": RaisesAnything},
    "let-go-in-time": {"client": LetsGoSlowly},
    "settles-in-time": {"room_fsm": WaitsForHours},
    "documents-converge": {"server": Selfish},
    "no-edit-lost": {"adaptor": Eraser},
    "no-error-logged": {"fsm": GuardRaises},
    "time-goes-by": {"client": NeverRests},
    "nothing-left": {"client": LeavesATask},
}
"""Invariant, and the arguments of `simulate` that break it."""


def test_each_invariant_has_something_that_breaks_it() -> None:
    """None is left out: those that are not here are broken by fixes that are taken out."""
    found = {name for taken_out in TAKE_OUTS.values() for name in taken_out.finds}
    assert {*BROKEN, *found} == set(INVARIANTS)


@pytest.mark.parametrize("invariant", BROKEN)
def test_what_is_broken_is_found(invariant: str) -> None:
    """Within a few seeds, and told as what it is; the same again with the same seed."""
    found = next(
        (each for seed in range(PATIENCE) if (each := violation(seed, invariant)).invariant == invariant), None
    )
    assert found is not None
    assert INVARIANTS[invariant] in str(found)
    seed = int(re.findall("--seed ([0-9]+)", found.command)[0])
    again = violation(seed, invariant)
    assert (again.at, again.what, again.events) == (found.at, found.what, found.events)


def violation(seed: int, invariant: str) -> Violation:
    """The first violation in an hour of what breaks this invariant; "none" if there is none."""
    try:
        simulate(seed, 1.0, **BROKEN[invariant])
    except Violation as found:
        return found
    return Violation("none", "", 0.0, 0, "", ())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clients": 0}, ValueError, "one or more, not 0"),
        ({"hours": -1}, ValueError, "a number of hours, not -1"),
        ({"client": ClientFSM}, TypeError, "client is Client, or one of your own"),
        ({"episode": 0, "only": [999]}, ValueError, r"no such steps in storm 0: \[999\]"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    """Before anything is run."""
    with pytest.raises(error, match=message):
        simulate(**arguments)


async def test_it_is_not_for_async_tests() -> None:
    """It has loops of its own, as have the others."""
    for call in (simulate, lambda: many_schedules(_nothing), lambda: every_schedule(_nothing)):
        with pytest.raises(RuntimeError, match="call it from a plain function"):
            call()


def test_a_scenario_is_handed_over_uncalled() -> None:
    """A coroutine can be run only once."""
    with pytest.raises(TypeError, match=r"many_schedules\(scenario\)"):
        many_schedules(_nothing())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"such as range\(3\), not 3"):
        many_schedules(_nothing, seeds=3)  # type: ignore[arg-type]


def test_what_waits_for_ever_is_told_why() -> None:
    """And names are not looked up, but for one."""

    async def resolve(name: str) -> Any:
        return await asyncio.get_running_loop().getaddrinfo(name, 80)

    with pytest.raises(SleepForeverError) as caught:
        run_in_virtual_time(asyncio.Event().wait)
    assert "never comes" in "".join(caught.value.__notes__)
    assert run_in_virtual_time(lambda: resolve("localhost"))[0][4] == ("127.0.0.1", 80)
    with pytest.raises(OSError, match=r"knows no names such as 'example\.org'"):
        run_in_virtual_time(lambda: resolve("example.org"))


async def _nothing() -> None:
    """A scenario."""
