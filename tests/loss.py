"""Documents that are edited while servers and clients die, and the ledger that says what must be in them afterwards.

A schedule is a function of its seed. ``python tests/loss.py SEED`` runs one again, against the embedded server and on
virtual time, and shows what it did.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from loro import EphemeralStore, ExportMode, LoroDoc

from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm.adaptors import Adaptor, EphemeralAdaptor, LoroAdaptor
from reconnect_fsm.errors import JoinRefused
from reconnect_fsm.loro_protocol import CrdtType, RoomError, RoomErrorCode, UpdateStatusCode
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.virtual_time import run

__all__ = [
    "TOKEN",
    "Ledger",
    "LostError",
    "Peer",
    "Schedule",
    "StoringAdaptor",
    "converge",
    "impatient",
    "run_schedule",
]

LORO, EPHEMERAL = CrdtType.LORO, CrdtType.EPHEMERAL
ROOMS = ("notes", "部屋", "third")
PRESENCE = "presence"
LARGE = 300_000  # bytes of an edit that travels in fragments
CONVERGE_WITHIN = 300.0  # seconds, once everything works again
FOR_EVER = 10**9  # milliseconds that an entry of an ephemeral store lives; its clock is the real one
TOKEN = re.compile(r"<[^<>]*>")


class LostError(AssertionError):
    """An edit is not where it ought to be, or is there twice."""


# What was edited --------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """Every edit that anybody made in a room; each bears a token of its own."""

    texts: list[str] = field(default_factory=list)
    entries: dict[str, int | str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    items: list[str] = field(default_factory=list)
    count: int = 0
    large: dict[str, bytes] = field(default_factory=dict)

    def check(self, doc: LoroDoc, whose: str) -> None:
        """Raises `LostError` unless all edits are in the document, and each once."""
        there = doc.get_deep_value()
        text: str = there.get("text", "")
        for what, expected, found in (
            ("text", Counter(self.texts), Counter(TOKEN.findall(text))),
            ("length of the text", sum(map(len, self.texts)), len(text)),
            ("map", self.entries, there.get("map", {})),
            ("list", Counter(self.items), Counter(there.get("list", []))),
            ("counter", self.count, round(there.get("counter", 0))),
            ("large", self.large, there.get("large", {})),
        ):
            if found != expected:
                raise LostError(f"{whose}, {what}: {_difference(expected, found)}")


def _difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict):
        lost = [key for key, value in expected.items() if found.get(key) != value]
        more = [key for key, value in found.items() if expected.get(key) != value]
        return f"lost {lost}, too much {more}"
    return f"{found} instead of {expected}"


def edit(random: Random, doc: LoroDoc, ledger: Ledger, token: str, large: bool = False) -> None:
    """Change the document in one of six ways, and write it down. Sometimes nothing is committed yet."""
    removable = [key for key in ledger.entries if key.startswith(token[:2])]  # its own: concurrent removal is no loss
    kind = random.randrange(6)
    if large:
        data = random.randbytes(LARGE)
        doc.get_map("large").insert(token, data)
        ledger.large[token] = data
    elif kind <= 1:
        text = doc.get_text("text")
        content = text.to_string()
        edges = [0, *(match.end() for match in TOKEN.finditer(content))]
        text.insert(random.choice(edges), token)
        ledger.texts.append(token)
    elif kind == 2:
        items = doc.get_list("list")
        items.insert(random.randint(0, len(items)), token)
        ledger.items.append(token)
    elif kind == 3:
        step = random.randrange(1, 1_000)
        doc.get_counter("counter").increment(step)
        ledger.count += step
    elif kind == 4 and removable:
        key = random.choice(removable)
        doc.get_map("map").delete(key)
        del ledger.entries[key]
        ledger.removed.add(key)
    else:
        value = random.randrange(1 << 30)
        doc.get_map("map").insert(token, value)
        ledger.entries[token] = value
    if random.random() < 0.8:
        doc.commit()


# Who edits --------------------------------------------------------------------------------------------------------


class Peer:
    """A client with documents of its own, which outlive it."""

    def __init__(
        self,
        name: str,
        random: Random,
        rooms: tuple[str, ...],
        ledgers: dict[str, Ledger],
        make_client: Callable[[], Client],
    ) -> None:
        self.name = name
        self.docs = {room: LoroDoc() for room in rooms}
        self.store = EphemeralStore(FOR_EVER)
        self.made = 0
        self.refused: Counter[str] = Counter()
        """How often the server refused a batch, by status."""
        self._random = random
        self._ledgers = ledgers
        self._make_client = make_client
        for doc in self.docs.values():
            doc.peer_id = random.getrandbits(63)
        self._adapt()
        self.client = make_client()

    def token(self) -> str:
        """One that nobody has had."""
        self.made += 1
        return f"<{self.name}{self.made}>"

    def edit(self, room: str, large: bool = False) -> None:
        """Change a document."""
        edit(self._random, self.docs[room], self._ledgers[room], self.token(), large)

    def join_all(self) -> None:
        """Be in all rooms; does nothing for those where it is."""
        for room, adaptor in self._adaptors.items():
            self.client.join(room, adaptor)

    def _adapt(self) -> None:
        self._adaptors: dict[str, Adaptor] = {
            room: LoroAdaptor(doc, on_refused=self._refused) for room, doc in self.docs.items()
        }
        self._adaptors[PRESENCE] = EphemeralAdaptor(self.store, on_refused=self._refused)

    def _refused(self, _: Sequence[bytes], status: UpdateStatusCode) -> None:
        self.refused[status.name] += 1

    async def restart(self) -> None:
        """The program ends, and begins again with what it had stored: new documents, a new client."""
        await self.client.close()
        for room, old in self.docs.items():
            old.commit()
            doc = self.docs[room] = LoroDoc()
            doc.import_(old.export(ExportMode.Snapshot()))
            doc.peer_id = self._random.getrandbits(63)
        self._adapt()
        self.client = self._make_client()
        self.client.start()
        self.join_all()

    async def synced(self) -> None:
        """All that the server had is here, and all that is here is there."""
        self.client.set_online(True)
        self.client.connect()
        self.join_all()
        while True:
            try:
                for room in self.client.rooms:
                    await room.synced()
            except JoinRefused:  # put out in the last moment
                self.join_all()
            else:
                return


async def converge(docs: Callable[[], Iterable[LoroDoc]], within: float = CONVERGE_WITHIN, every: float = 0.5) -> None:
    """Wait until all documents have the same version, or the time is over: then the ledger tells what is lost."""
    for _ in range(int(within / every)):
        versions = []
        for doc in docs():
            doc.commit()
            versions.append(doc.oplog_vv)
        if all(versions[0].includes_vv(other) and other.includes_vv(versions[0]) for other in versions):
            return
        await asyncio.sleep(every)


# Schedules against the embedded server -----------------------------------------------------------------------------


class Schedule:
    """One life of two clients and a server that is killed again and again."""

    def __init__(self, seed: int | str) -> None:
        random = self.random = Random(seed)
        self.seed = seed
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.rooms = ROOMS[: random.randint(1, len(ROOMS))]
        self.large = random.random() < 0.15
        self.steps = random.choice([5, 10, 20, 40])
        self.ledgers = {room: Ledger() for room in self.rooms}
        self.peers: list[Peer] = []
        self.server = EmbeddedServer()
        self._url = ""
        self.running = True
        self.frozen = False

    async def run(self) -> None:
        """Live it, mend everything, and check that nothing is lost."""
        asyncio.get_running_loop().set_debug(False)  # it costs more than all the rest
        async with AsyncExitStack() as stack:
            await self.server.start()
            stack.push_async_callback(self.server.stop)
            self._url = self.server.url
            self.peers = [Peer(name, self.random, self.rooms, self.ledgers, self._client) for name in "ab"]
            for peer in self.peers:
                stack.push_async_callback(lambda peer: peer.client.close(), peer)
                peer.client.start()
                peer.join_all()
            for _ in range(self.steps):
                await self._step()
            await self.mend()
            self._check()

    def _client(self) -> Client:
        return Client(self._url, retry=RetryPolicy(random=Random(self.random.random())))

    def note(self, what: str) -> None:
        """Write down a step, and when it was."""
        self.log.append(f"{asyncio.get_running_loop().time():.3f} {what}")

    async def _step(self) -> None:
        random = self.random
        for _ in range(random.choice([0, 1, 1, 2, 5])):
            self.edit(random.choice(self.peers), large=self.large and random.random() < 0.2)
        if random.random() < 0.2:
            peer = random.choice(self.peers)
            peer.store.set(peer.token(), peer.made)
            self.counts["ephemeral entries"] += 1
        if random.random() < 0.7:
            (name,) = random.choices(list(FAULTS), weights=[weight for _, weight in FAULTS.values()])
            self.note(name)
            self.counts[name] += 1
            await FAULTS[name][0](self)
        await self._wait()

    def edit(self, peer: Peer, large: bool = False) -> None:
        """Change one of the documents."""
        room = self.random.choice(self.rooms)
        peer.edit(room, large)
        self.counts["edits"] += 1
        self.counts["large edits"] += large
        self.note(f"{peer.name} edits {room}{', large' if large else ''}")

    async def _wait(self) -> None:
        """Anything from the middle of a frame to a long while."""
        kind = self.random.random()
        if kind < 0.5:
            for _ in range(self.random.randrange(60)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.random.choice([0.001, 0.1, 0.6, 3.0, 11.0, 35.0]) * self.random.random())

    async def mend(self) -> None:
        self.note("everything is mended")
        await mend_server(self)
        async with asyncio.timeout(CONVERGE_WITHIN):
            for peer in self.peers:
                await peer.synced()
        for room in self.rooms:
            await converge(lambda room=room: [self.server.document(room), *(peer.docs[room] for peer in self.peers)])  # type: ignore[misc]
        self.counts["virtual seconds"] += int(asyncio.get_running_loop().time())
        self.counts["connections"] += self.server.stats.connects
        for peer in self.peers:
            self.counts.update({f"refused: {status}": number for status, number in peer.refused.items()})

    def _check(self) -> None:
        for room, ledger in self.ledgers.items():
            for peer in self.peers:
                ledger.check(peer.docs[room], f"the document of {peer.name} in {room!r}")
            ledger.check(self.server.document(room), f"the server's document of {room!r}")
        one, other = (peer.store.get_all_states() for peer in self.peers)
        if one != other:
            raise LostError(f"ephemeral: {_difference(one, other)}")
        if len(one) != self.counts["ephemeral entries"]:
            raise LostError(f"ephemeral: {len(one)} entries instead of {self.counts['ephemeral entries']}")


# Faults. Each is a plain function of the schedule, or a coroutine.


async def mend_server(it: Schedule) -> None:
    await start(it)
    thaw(it)
    it.server.hold_acks = it.server.ignore_joins = it.server.drop_on_accept = False
    it.server.release_acks()
    it.server.refuse_upgrades(None)


async def be_well(it: Schedule) -> None:
    """Everything works for a while, so that faults do not only meet what is broken already."""
    await mend_server(it)
    for peer in it.peers:
        peer.client.set_online(True)
        peer.client.connect()
        peer.join_all()
    await asyncio.sleep(it.random.random() * 20)


async def start(it: Schedule) -> None:
    if not it.running:
        await it.server.start()
        it.running = True


def thaw(it: Schedule) -> None:
    it.server.thaw()
    it.frozen = False


def freeze(it: Schedule) -> None:
    if it.running and not it.frozen:
        it.server.freeze()
        it.frozen = True


async def stall(it: Schedule) -> None:
    """Too short for the client to notice, if need be, and long enough to break off what is under way."""
    freeze(it)
    await asyncio.sleep(it.random.random() * 25)
    thaw(it)


async def break_off(it: Schedule) -> None:
    """A large edit gets half of the way, and the rest comes when the server has given it up."""
    await be_well(it)
    it.edit(it.random.choice(it.peers), large=True)
    for _ in range(it.random.randrange(40)):
        await asyncio.sleep(0)
    freeze(it)
    await asyncio.sleep(it.random.uniform(9, 20))
    thaw(it)


async def stop(it: Schedule) -> None:
    await it.server.stop()
    it.running = it.frozen = False


async def die(it: Schedule) -> None:
    """The server is killed: no close frame, nothing listens, and it may have stored nothing of what it acknowledged."""
    if it.running:
        it.server.reset_all()
        if it.random.random() < 0.5:
            it.server.forget()
        await stop(it)


async def close_all(it: Schedule) -> None:
    if not it.frozen:
        code = it.random.choice([1000, 1001, 1011, 1012, 1013, 4000, 1008, 4401])
        await it.server.close_all(code, it.random.choice(["", "room_closed", "going away"]))


def lose_rooms(it: Schedule) -> None:
    it.server.forget()
    it.server.reset_all()


def hold_acks(it: Schedule) -> None:
    it.server.hold_acks = not it.server.hold_acks
    if it.random.random() < 0.5:
        it.server.release_acks()


def ignore_joins(it: Schedule) -> None:
    it.server.ignore_joins = not it.server.ignore_joins


def drop_on_accept(it: Schedule) -> None:
    it.server.drop_on_accept = not it.server.drop_on_accept


def refuse_upgrades(it: Schedule) -> None:
    it.server.refuse_upgrades(it.random.choice([500, 503, 401, None]))


async def evicted(it: Schedule) -> None:
    code = it.random.choice([RoomErrorCode.REJOIN_SUGGESTED, RoomErrorCode.REJOIN_SUGGESTED, RoomErrorCode.EVICTED])
    room = it.random.choice(it.rooms)
    await it.server.send(room, LORO, RoomError(LORO, room, code, ""))


async def close_client(it: Schedule) -> None:
    await it.random.choice(it.peers).client.close()


def connect(it: Schedule) -> None:
    it.random.choice(it.peers).client.connect(reset_backoff=it.random.random() < 0.5)


def retry_now(it: Schedule) -> None:
    it.random.choice(it.peers).client.retry_now()


def offline(it: Schedule) -> None:
    it.random.choice(it.peers).client.set_online(False)


def online(it: Schedule) -> None:
    it.random.choice(it.peers).client.set_online(True)


def leave(it: Schedule) -> None:
    rooms = it.random.choice(it.peers).client.rooms
    if rooms:
        it.random.choice(rooms).leave()


def join(it: Schedule) -> None:
    it.random.choice(it.peers).join_all()


async def restart_client(it: Schedule) -> None:
    await it.random.choice(it.peers).restart()


def _async(fault: Callable[[Schedule], None]) -> Callable[[Schedule], Awaitable[None]]:
    async def call(it: Schedule) -> None:
        fault(it)

    return call


FAULTS: dict[str, tuple[Callable[[Schedule], Awaitable[None]], int]] = {
    "all is well for a while": (be_well, 14),
    "the server resets all connections": (_async(lambda it: it.server.reset_all()), 10),
    "the server freezes": (_async(freeze), 8),
    "the server thaws": (_async(thaw), 8),
    "the server stalls": (stall, 4),
    "the server stalls in the middle of an edit": (break_off, 6),
    "the server stops": (stop, 4),
    "the server dies": (die, 6),
    "the server starts": (start, 12),
    "the server loses its rooms": (_async(lose_rooms), 3),
    "the server closes all connections": (close_all, 6),
    "the server holds acks, or no longer": (_async(hold_acks), 4),
    "the server ignores joins, or no longer": (_async(ignore_joins), 4),
    "the server drops who connects, or no longer": (_async(drop_on_accept), 2),
    "the server refuses upgrades, or no longer": (_async(refuse_upgrades), 3),
    "the server puts all out of a room": (evicted, 4),
    "a client closes": (close_client, 3),
    "a client connects": (_async(connect), 8),
    "a client retries now": (_async(retry_now), 3),
    "a client goes offline": (_async(offline), 4),
    "a client goes online": (_async(online), 6),
    "a client leaves a room": (_async(leave), 2),
    "a client joins all rooms": (_async(join), 4),
    "a client restarts from what it stored": (restart_client, 3),
}
"""What goes wrong, or right again, and how often."""


def run_schedule(seed: int | str) -> Schedule:
    """Live a schedule on virtual time. Raises `LostError`, or what went wrong, with the steps that led to it."""
    schedule = Schedule(seed)
    try:
        run(schedule.run)
    except BaseException as error:
        error.add_note(f"replay it with: python tests/loss.py {seed}\n" + "\n".join(schedule.log))
        raise
    return schedule


# A peer that is killed ----------------------------------------------------------------------------------------------


class StoringAdaptor(LoroAdaptor):
    """Appends every update to a file, its own before they are sent: what a program does that may be killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(self._load(path))
        self._file = path.open("ab", buffering=0)

    @staticmethod
    def _load(path: Path) -> LoroDoc:
        doc, at = LoroDoc(), 0
        stored = path.read_bytes() if path.exists() else b""
        while at + 4 <= len(stored) and (end := at + 4 + int.from_bytes(stored[at : at + 4], "big")) <= len(stored):
            doc.import_(stored[at + 4 : end])
            at = end
        if at < len(stored):  # killed in the middle of a record, which nobody has heard of
            path.write_bytes(stored[:at])
        return doc

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def apply(self, updates: Sequence[bytes]) -> bool:
        """Import the updates, and store them."""
        is_complete = super().apply(updates)
        for update in updates:
            self._store(update)
        return is_complete

    def attach(self, send: Callable[[bytes | None], None]) -> Callable[[], None]:
        """Store every local commit, then pass it on. Of those made during an upload ``send`` is not told one by one."""
        storing = self.doc.subscribe_local_update(self._store)
        passing_on = super().attach(send)

        def detach() -> None:
            passing_on()
            storing.unsubscribe()

        return detach

    def _store(self, update: bytes) -> bool:
        self._file.write(len(update).to_bytes(4, "big") + update)
        return True


def impatient(url: str, random: Random) -> Client:
    """A client for real time: whatever it waits for, it does not wait for long."""
    return Client(
        url,
        retry=RetryPolicy(base=0.05, cap=0.3, stable_after=0.2, random=random),
        keepalive=Keepalive(interval=0.5, timeout=0.5),
        connect_timeout=2.0,
        close_timeout=0.3,
        room_fsm=ImpatientRoomFSM,
    )


class ImpatientRoomFSM(RoomFSM):
    """The same for rooms."""

    join_timeout = 1.0
    rejoin_interval = 0.2


async def peer_process(url: str, path: Path) -> None:
    """Insert each line of stdin into the text, and say so once it is stored; end with stdin."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    adaptor = StoringAdaptor(path)
    async with impatient(url, Random(0)) as client:
        room = client.join("room", adaptor)
        while line := await lines.readline():
            token = line.decode().strip()
            adaptor.doc.get_text("text").insert(0, token)
            adaptor.doc.commit()
            sys.stdout.write(f"{token}\n")
            sys.stdout.flush()
        await room.synced()


def main(arguments: list[str]) -> None:
    """Be a peer, or run a schedule again."""
    if arguments[0] == "peer":
        asyncio.run(peer_process(arguments[1], Path(arguments[2])))
    else:
        done = run_schedule(int(arguments[0]))
        sys.stdout.write("\n".join([*done.log, f"{dict(done.counts)}", ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
