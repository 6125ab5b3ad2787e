"""Nothing is lost.

Two clients edit the same documents, online and offline, while the server and the clients are killed, frozen, closed and
restarted. In the end every edit of both is in both documents and in the server's, and each of them once. `loss` has the
schedules against the embedded server, on virtual time, and the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from loro import LoroDoc

import loss
from figures import Figures, soak
from kit import PATIENCE, until
from loss import Ledger, LostError, Peer, Schedule, StoringAdaptor, converge, impatient, run_schedule
from node_peers import NodeClient, NodeServer, requires_node, skip_without_node
from reconnect_fsm import Client
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.loro_protocol import RoomErrorCode, UpdateStatusCode
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.virtual_time import run

SCHEDULES = 1_000  # against the embedded server
REAL_SCHEDULES = 50  # against the npm server
AT_ONCE = 5  # of them
KILLS = 15  # SIGKILLs of a peer's process


# The embedded server ----------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quarter", range(4))
def test_schedules(quarter: int, figures: Figures) -> None:
    """All edits of both are in both documents and in the server's, whatever was killed meanwhile."""
    seeds = range(quarter, SCHEDULES * soak(), 4)
    counts: Counter[str] = Counter()
    for seed in seeds:
        counts += run_schedule(seed).counts
    figures(
        f"random kill schedules of the embedded server and of two clients, quarter {quarter + 1}",
        schedules=len(seeds),
        **_tallied(counts),
        seeds=f"{seeds[0]}, {seeds[1]} … {seeds[-1]}",
        edits_lost=0,
    )


JAVASCRIPT = (
    "edits of the JavaScript client",
    "edits that stayed in the JavaScript client",
    "JavaScript clients with all edits",
)


def _tallied(counts: Counter[str]) -> dict[str, int]:
    """What was made, and the sum of all that went wrong."""
    made = ("edits", "large edits", "ephemeral entries", "connections", "virtual seconds", *JAVASCRIPT)
    faults = sum(number for what, number in counts.items() if what not in made and not what.startswith("refused"))
    refused = sum(number for what, number in counts.items() if what.startswith("refused"))
    return {what.replace(" ", "_"): counts[what] for what in made if counts[what]} | {
        "faults_and_user_calls": faults,
        "batches_refused": refused,
    }


def test_schedules_briefly() -> None:
    """The same, for a moment."""
    counts = sum((run_schedule(seed).counts for seed in range(1_000_000, 1_000_010)), Counter[str]())
    assert counts["edits"] > 50


def test_a_schedule_is_a_function_of_its_seed() -> None:
    """The same faults and edits at the same times, and the same documents."""
    one, other = run_schedule(5), run_schedule(5)
    assert one.log == other.log
    assert one.counts == other.counts
    assert one.peers[0].docs["notes"].get_deep_value() == other.peers[1].docs["notes"].get_deep_value()


def _forget_an_edit(it: Schedule) -> None:
    it.ledgers["notes"].texts.append("<a999>")


def _make_an_edit_twice(it: Schedule) -> None:
    it.ledgers["notes"].texts.append("<a999>")
    it.peers[0].docs["notes"].get_text("text").insert(0, "<a999><a999>")


def _come_back_from_removal(it: Schedule) -> None:
    it.peers[1].docs["notes"].get_map("map").insert("<b999>", 1)


def _count_wrong(it: Schedule) -> None:
    it.ledgers["notes"].count += 1


def _lose_presence(it: Schedule) -> None:
    it.counts["ephemeral entries"] += 1


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (_forget_an_edit, "text"),
        (_make_an_edit_twice, "text"),
        (_come_back_from_removal, "map"),
        (_count_wrong, "counter"),
        (_lose_presence, "ephemeral"),
    ],
)
def test_the_ledger_finds(fault: Callable[[Schedule], None], what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is nowhere, one that is there twice, one that was removed, a wrong count, presence that is gone."""
    mend = Schedule.mend

    async def faulty(self: Schedule) -> None:
        fault(self)
        await mend(self)

    monkeypatch.setattr(Schedule, "mend", faulty)
    with pytest.raises(LostError, match=what) as caught:
        run_schedule(7)
    assert "python tests/loss.py 7" in caught.value.__notes__[0]


def test_a_client_that_does_not_catch_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adaptor that says the server lacks nothing loses what was edited offline."""
    monkeypatch.setattr(LoroAdaptor, "missing_from", lambda self, version: ())

    def run_some() -> None:
        for seed in range(10):
            run_schedule(seed)

    with pytest.raises(LostError):
        run_some()


@pytest.mark.parametrize("status", [UpdateStatusCode.FRAGMENT_TIMEOUT, UpdateStatusCode.RATE_LIMITED])
def test_a_batch_that_the_server_gave_up_is_sent_again(status: UpdateStatusCode) -> None:
    """D-ACK: what the server could not take this time it gets with the next join, and not after the next outage."""

    class Busy(EmbeddedServer):
        """Refuses the first batch."""

        def _apply(self, connection, room, updates, batch_id) -> None:  # type: ignore[no-untyped-def]
            if not self.stats.updates:
                self.stats.updates += 1
                self._ack(connection, room.crdt, room.room_id, batch_id, status)
            else:
                super()._apply(connection, room, updates, batch_id)

    async def scenario() -> None:
        doc = LoroDoc()
        async with Busy() as server, Client(server.url) as client:
            room = await client.join("r", LoroAdaptor(doc, on_refused=lambda *_: None))
            doc.get_text("text").insert(0, "hello")
            doc.commit()
            await room.synced()
            assert server.document("r").get_text("text").to_string() == "hello"
            assert server.stats.connects == 1

    run(scenario)


# The npm server ---------------------------------------------------------------------------------------------------


SERVER_FAULTS = ("kick", "terminate", "pause", "resume", "stop", "kill", "start", "refuse", "let in", "put out")
CLIENT_FAULTS = ("close", "connect", "offline", "online", "restart")


class RealSchedule:
    """The same against the real server, in real time; in every third there is a real JavaScript client too.

    The server cannot keep a document of more than 256 KiB. The JavaScript client has faults of its own, so that some of
    its edits never leave it: those that reach the server must reach everybody, once.
    """

    def __init__(self, seed: int) -> None:
        random = self.random = Random(f"real {seed}")
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.rooms = loss.ROOMS[: random.randint(1, 2)]
        self.ledgers = {room: Ledger() for room in self.rooms}
        self.with_javascript = seed % 3 == 0
        self.javascript: NodeClient | None = None
        self.peers: list[Peer] = []
        self.running = True

    async def run(self) -> None:
        """Live it, mend everything, and check that nothing is lost."""
        async with AsyncExitStack() as stack:
            self.server = await stack.enter_async_context(NodeServer())
            if self.with_javascript:
                self.javascript = await stack.enter_async_context(NodeClient())
                await self.javascript.connect(
                    self.server.url, pingIntervalMs=500, reconnect={"initialDelayMs": 50, "maxDelayMs": 300}
                )
                await self.javascript.join(self.rooms[0])
            self.peers = [Peer(name, self.random, self.rooms, self.ledgers, self._client) for name in "ab"]
            for peer in self.peers:
                stack.push_async_callback(lambda peer: peer.client.close(), peer)
                peer.client.start()
                peer.join_all()
            for _ in range(self.random.randint(6, 14)):
                await self._step()
            await self._mend()
            await self._check()

    def _client(self) -> Client:
        return impatient(self.server.url, Random(self.random.random()))

    async def _step(self) -> None:
        random = self.random
        for _ in range(random.randrange(4)):
            peer, room = random.choice(self.peers), random.choice(self.rooms)
            peer.edit(room)
            self.counts["edits"] += 1
        if random.random() < 0.3:
            peer = random.choice(self.peers)
            peer.store.set(peer.token(), peer.made)
            self.counts["ephemeral entries"] += 1
        if self.javascript is not None and random.random() < 0.5:
            self.counts["edits of the JavaScript client"] += 1
            token = f"<j{self.counts['edits of the JavaScript client']}>"
            await self.javascript.insert(self.rooms[0], 0, token)
        fault = random.choice([*SERVER_FAULTS, "start", *CLIENT_FAULTS])
        self.log.append(fault)
        self.counts[fault] += 1
        await (self._to_server(fault) if fault in SERVER_FAULTS else self._to_client(fault))
        await asyncio.sleep(random.choice([0.0, 0.02, 0.1, 0.3, 0.8]) * random.random())

    async def _to_server(self, fault: str) -> None:
        random, server = self.random, self.server
        match fault:
            case "kick":
                codes = [1000, 1001, 1011, 1012, 1013, 4000] + [4401] * (not self.with_javascript)
                await server.kick(random.choice(codes), "go away")
            case "stop":
                await server.stop()
                self.running = False
            case "kill":  # and whatever it had is gone
                await server.terminate()
                await server.stop()
                await server.start(keep_rooms=False)
                self.running = True
            case "start" if not self.running:
                await server.start(keep_rooms=random.random() < 0.6)
                self.running = True
            case "refuse" | "let in":
                await server.http_refuse(random.choice([500, 503]) if fault == "refuse" else None)
            case "put out":
                await server.room_error(random.choice(self.rooms), RoomErrorCode.REJOIN_SUGGESTED)
            case "terminate" | "pause" | "resume":
                await getattr(server, fault)()

    async def _to_client(self, fault: str) -> None:
        peer = self.random.choice(self.peers)
        match fault:
            case "close":
                await peer.client.close()
            case "connect":
                peer.client.connect(reset_backoff=self.random.random() < 0.5)
            case "restart":
                await peer.restart()
            case _:
                peer.client.set_online(fault == "online")

    async def _mend(self) -> None:
        if not self.running:
            await self.server.start(keep_rooms=self.random.random() < 0.5)
        await self.server.resume()
        await self.server.http_refuse(None)
        async with asyncio.timeout(PATIENCE):
            for peer in self.peers:
                await peer.synced()
        self.counts["connections"] += (await self.server.stats())["connections"]

    async def _check(self) -> None:
        """The server's documents are those that a newcomer gets."""
        async with impatient(self.server.url, Random(0)) as observer:
            docs = {room: LoroDoc() for room in self.rooms}
            for room, doc in docs.items():
                await observer.join(room, LoroAdaptor(doc))
            if self.javascript is not None:
                await self._wait_for_javascript(docs[self.rooms[0]])
            for room, ledger in self.ledgers.items():
                theirs = {"the server": docs[room], **{peer.name: peer.docs[room] for peer in self.peers}}
                await converge(theirs.values, PATIENCE, 0.02)
                ledger.texts += self._javascript_edits(docs[room])
                for whose, doc in theirs.items():
                    ledger.check(doc, f"the document of {whose} in {room!r}")
        one, other = (peer.store.get_all_states() for peer in self.peers)
        if one != other or len(one) != self.counts["ephemeral entries"]:
            raise LostError(f"ephemeral: {sorted(one)} and {sorted(other)}")

    def _javascript_edits(self, doc: LoroDoc) -> list[str]:
        return sorted({token for token in loss.TOKEN.findall(doc.get_text("text").to_string()) if token[1] == "j"})

    async def _wait_for_javascript(self, doc: LoroDoc) -> None:
        """It has a while, and one more connection, to get its edits out and everybody's in."""
        made = self.counts["edits of the JavaScript client"]
        assert self.javascript is not None
        for _ in range(2):
            for _ in range(30):
                text = await self.javascript.text(self.rooms[0])
                if text == doc.get_text("text").to_string() and len(self._javascript_edits(doc)) == made:
                    self.counts["JavaScript clients with all edits"] += 1
                    return
                await asyncio.sleep(0.1)
            await self.server.terminate()
        self.counts["edits that stayed in the JavaScript client"] += made - len(self._javascript_edits(doc))


async def run_real_schedule(seed: int) -> RealSchedule:
    """Live it; raises `LostError`, or what went wrong, with the faults that led to it."""
    schedule = RealSchedule(seed)
    try:
        await schedule.run()
    except BaseException as error:
        error.add_note(f"real schedule {seed}: {', '.join(schedule.log)}")
        raise
    return schedule


@requires_node
@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", [0, 1])
async def test_real_schedules(half: int, figures: Figures) -> None:
    """All edits of all are in all documents and in the real server's, JavaScript clients among them."""
    skip_without_node()
    counts: Counter[str] = Counter()
    seeds = range(half, REAL_SCHEDULES * soak(), 2)
    for first in range(0, len(seeds), AT_ONCE):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_real_schedule(seed)) for seed in seeds[first : first + AT_ONCE]]
        counts += sum((task.result().counts for task in tasks), Counter[str]())
    figures(
        f"random kill schedules of the npm server, half {half + 1}",
        schedules=len(seeds),
        with_a_JavaScript_client=sum(seed % 3 == 0 for seed in seeds),
        **_tallied(counts),
        seeds=f"{seeds[0]}, {seeds[1]} … {seeds[-1]}",
        edits_lost=0,
    )


@requires_node
async def test_real_schedules_briefly() -> None:
    """The same, for a moment."""
    skip_without_node()
    await run_real_schedule(1_000_002)  # divisible by three: with a JavaScript client


# A process that is killed -----------------------------------------------------------------------------------------


@asynccontextmanager
async def peer_process(url: str, path: Path, stored: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A peer in a process of its own, which is killed in the end unless it has ended by itself."""
    command = [sys.executable, loss.__file__, "peer", url, str(path)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.endswith(b"\n"):
                stored.append(line.decode().strip())

    reader = asyncio.create_task(read())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reader
        process.stdin.close()


async def kill_peer(kills: int, path: Path, seed: int) -> Counter[str]:
    """A peer that stores what it edits is killed again and again; what it said it had stored is never lost."""
    random, mine, stored, counts = Random(seed), LoroDoc(), list[str](), Counter[str]()
    asked: list[str] = []
    async with EmbeddedServer() as server, impatient(server.url, random) as client:
        room = client.join("room", LoroAdaptor(mine))

        def edit_here() -> None:
            counts["edits of the other"] += 1
            mine.get_text("text").insert(0, f"<b{counts['edits of the other']}>")
            mine.commit()

        for kill in range(kills + 1):
            already = len(stored)
            async with peer_process(server.url, path, stored) as process:
                assert process.stdin is not None
                async with asyncio.timeout(PATIENCE):
                    edit_here()
                    for _ in range(random.randrange(1, 8)):
                        asked.append(f"<a{len(asked)}>")
                        process.stdin.write(f"{asked[-1]}\n".encode())
                    await until(lambda: len(stored) > already)  # noqa: B023
                    if random.random() < 0.5:
                        server.reset_all()
                    await asyncio.sleep(random.choice([0.0, 0.01, 0.1]))
                    if kill == kills:  # the last one ends well
                        process.stdin.close()
                        await process.wait()
            counts["kills"] += kill < kills
        edit_here()
        await room.synced()
        adaptor = StoringAdaptor(path)  # what the process would find at its next start
        adaptor.close()
        await converge(lambda: [server.document("room"), mine], PATIENCE, 0.02)
        others = [f"<b{number + 1}>" for number in range(counts["edits of the other"])]
        for doc, whose, expected in (
            (mine, "the other", {*stored, *others}),
            (server.document("room"), "the server", {*stored, *others}),
            (adaptor.doc, "the file", set(stored)),
        ):
            found = Counter(loss.TOKEN.findall(doc.get_text("text").to_string()))
            twice = [token for token, number in found.items() if number > 1]
            if twice or not expected <= found.keys() <= {*asked, *others}:
                raise LostError(f"{whose}: lost {sorted(expected - found.keys())}, twice {twice}")
    counts["edits stored"] = len(stored)
    return counts


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_a_peer_that_is_killed(tmp_path: Path, figures: Figures) -> None:
    """What a process had stored when it was killed is in all documents in the end, and nothing is there twice."""
    counts = await kill_peer(KILLS * soak(), tmp_path / "updates", 0)
    figures(
        "SIGKILL of a process whose adaptor stores every update; it reloads its document from the file",
        **{name.replace(" ", "_"): number for name, number in counts.items()},
        seeds="0",
        edits_lost=0,
    )


async def test_a_peer_that_is_killed_briefly(tmp_path: Path) -> None:
    """The same, once."""
    assert (await kill_peer(1, tmp_path / "updates", 0))["kills"] == 1


def test_a_file_cut_anywhere_is_read(tmp_path: Path) -> None:
    """A record that was not written to its end is dropped, and the next one is written where it began."""
    path = tmp_path / "updates"
    for cut in range(1, 30):
        path.unlink(missing_ok=True)
        for number in range(3):
            adaptor = StoringAdaptor(path)
            detach = adaptor.attach(lambda _: None)
            adaptor.doc.get_text("text").insert(0, str(number))
            adaptor.doc.commit()
            detach()
            adaptor.close()
            if number == 1:
                path.write_bytes(path.read_bytes()[:-cut])
        adaptor = StoringAdaptor(path)
        adaptor.close()
        assert adaptor.doc.get_text("text").to_string() == "20"
