"""Fuzzing.

The decoder, the fragments and a whole client, against frames that nobody ought to send. `fuzz` makes the frames and
says what must hold. A failure shows the frame, or the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

import pytest
from loro import EphemeralStore, ExportMode, LoroDoc

import fuzz
from figures import Figures, soak
from fuzz import FragmentSteps, Frames, Messages, Model, Violation, fuzz_decoder, outcome
from reconnect_fsm import Client, ClientStatus, Connection, RetryPolicy, RoomStatus
from reconnect_fsm.adaptors import EphemeralAdaptor, LoroAdaptor
from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    FRAGMENT_SIZE,
    MAX_MESSAGE_SIZE,
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Message,
    Reassembler,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    decode,
    encode,
    split,
)
from reconnect_fsm.testing import EmbeddedServer
from reconnect_fsm.testing.virtual_time import run

INPUTS = 1_000_000  # frames a seed
SEEDS = {"first half": range(5), "second half": range(5, 10)}
ROUND_TRIPS = 500_000
STEPS = 1_000_000  # messages about fragments
STORMS, STORM = 150, 400  # runs of a whole client, and hostile frames in each

LORO = CrdtType.LORO


# The decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", SEEDS)
def test_decoder(half: str, figures: Figures) -> None:
    """Ten million frames: messages or ProtocolErrors, which come back the same when encoded; and memory stays flat."""
    seeds = [soak_round * 10 + seed for soak_round in range(soak()) for seed in SEEDS[half]]
    counts = sum((fuzz_decoder(seed, INPUTS) for seed in seeds), fuzz.Counts())
    figures(
        f"decoder: random, mutated, crossed and grammar-built frames, {half}",
        inputs=counts.inputs,
        decoded_and_encoded_again=counts.accepted,
        seeds=f"{seeds[0]}–{seeds[-1]}",
        most_blocks_of_memory_kept=counts.blocks_kept,
        violations=0,
    )


def test_decoder_briefly() -> None:
    """The same, for a moment; a good part of the frames is accepted, so that both ways are trodden."""
    counts = fuzz_decoder("brief", 50_000)
    assert counts.inputs / 5 < counts.accepted < counts.inputs / 2


def messages_round_trip(seed: int | str, messages: int) -> int:
    """Encode and decode random messages; raise `Violation` for the first that comes back as another one."""
    for number, message in enumerate(islice(Messages(Random(seed)), messages)):
        back = decode(encode(message))
        if back != message or type(back) is not type(message):
            raise Violation(f"seed {seed!r}, message {number}: {message!r:.300} came back as {back!r:.300}")
    return messages


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_round_trips(figures: Figures) -> None:
    """Whatever is encoded decodes to the same."""
    messages = messages_round_trip(0, ROUND_TRIPS * soak())
    figures("codec: random messages, encoded and decoded", messages=messages, seeds="0", violations=0)


def test_round_trips_briefly() -> None:
    """The same, for a moment."""
    assert messages_round_trip("brief", 10_000) == 10_000


def test_no_frame_costs_more_memory_than_a_small_multiple_of_its_size() -> None:
    """Each of the frames, measured by itself: at most 40 times its bytes, and 8 KiB, at the peak.

    Two bytes of update in a frame of their own are three bytes there and an object of 40 here.
    """
    frames = Frames("memory")
    tracemalloc.start()
    try:
        for frame in [frame for _ in range(5) for frame in frames.block()] + [frames.huge() for _ in range(40)]:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(ProtocolError):
                decode(frame)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 40 * len(frame) + 8 * 1024, f"{len(frame)} bytes, {frame[:80]!r}"
    finally:
        tracemalloc.stop()


HEAD = b"%LOR\1r"
FAMILIES: dict[str, Callable[[int], bytes]] = {
    "empty updates": lambda n: HEAD + b"\3" + fuzz.varuint(n) + bytes(n) + bytes(8),
    "small updates": lambda n: HEAD + b"\3" + fuzz.varuint(n) + b"\2ab" * n + bytes(8),
    "small updates, cut": lambda n: HEAD + b"\3" + fuzz.varuint(n) + b"\2ab" * n,
    "overlong lengths": lambda n: HEAD + b"\3" + fuzz.varuint(n) + b"\x81\x80\x80\x80\0a" * n + bytes(8),
    "bad text": lambda n: HEAD + b"\6\1" + fuzz.varuint(n) + b"\xff" * n,
    "long text": lambda n: HEAD + b"\6\1" + fuzz.varuint(3 * n) + "部".encode() * n,
    "long room id": lambda n: b"%LOR" + fuzz.varuint(n) + b"\xff" * n + b"\7",
    "one update": lambda n: HEAD + b"\3\1" + fuzz.varuint(n) + bytes(n) + bytes(8),
    "trailing bytes": lambda n: HEAD + b"\7" + bytes(n),
    "continued for ever": lambda n: b"%LOR" + b"\x80" * n,
}


def seconds(what: Callable[[], object], repeats: int = 9) -> float:
    """The least CPU time that it takes; at least a microsecond, so that ratios of nothing are not noise."""
    best = 1.0
    for _ in range(repeats):
        began = time.thread_time()
        what()
        best = min(best, time.thread_time() - began)
    return max(best, 1e-6)


def assert_linear(work: Callable[[int], Callable[[], object]], size: int, what: str) -> None:
    """Eight times the size takes less than 24 times the time: linear with much noise, and not quadratic, 64."""
    for _ in range(3):  # a busy machine may spoil a measurement, not three of them
        small, large = seconds(work(size)), seconds(work(8 * size))
        if large < 24 * max(small, 2e-5):
            return
    raise AssertionError(f"{what}: {small * 1e6:.0f} µs for {size}, {large * 1e6:.0f} µs for {8 * size}")


@pytest.mark.parametrize("family", FAMILIES)
def test_time_is_linear_in_the_size_of_a_frame(family: str) -> None:
    """No family of frames takes more than its share of time when it grows."""

    def work(size: int) -> Callable[[], object]:
        frame = FAMILIES[family](size)
        return lambda: fuzz.check(frame)

    assert_linear(work, 4_000, family)


@pytest.mark.parametrize("order", ["in order", "reversed", "each twice"])
def test_time_is_linear_in_the_number_of_fragments(order: str) -> None:
    """Neither the order in which fragments come nor how often makes the work grow faster than their number."""

    def work(count: int) -> Callable[[], object]:
        pieces = [DocUpdateFragment(LORO, "r", 1, index, b"ab") for index in range(count)]
        if order == "reversed":
            pieces.reverse()
        elif order == "each twice":
            pieces = [piece for piece in pieces for _ in range(2)]

        def reassemble() -> None:
            reassembler = Reassembler()
            assert reassembler.begin(DocUpdateFragmentHeader(LORO, "r", 1, count, 2 * count), 0.0) is None
            assert [bytes] == [type(got) for piece in pieces if (got := reassembler.add(piece, 0.0)) is not None]

        return reassemble

    assert_linear(work, Reassembler.MAX_FRAGMENTS // 8, order)


@pytest.mark.parametrize(
    ("fault", "frame", "why"),
    [
        (lambda _: 1 / 0, b"", "raised ZeroDivisionError"),
        (lambda _: bytearray(2**32), b"", "raised MemoryError"),
        (lambda _: Ack(LORO, "r", 1, 0), b"", "wrong type"),  # type: ignore[arg-type]
        (lambda _: DocUpdate(LORO, "r", (), 2**64), b"", "encode refuses"),
        (lambda frame: Ack(LORO, "r", len(frame), UpdateStatusCode.OK), b"", "another message"),
    ],
)
def test_the_check_finds(
    fault: Callable[[bytes], Message], frame: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of fault that a decoder may have is found, also an allocation that is never touched."""
    monkeypatch.setattr(fuzz, "decode", fault)
    with fuzz.bounded_address_space(), pytest.raises(Violation, match=why):
        fuzz.check(frame)


def test_the_run_finds_what_is_kept() -> None:
    """A decoder that remembers something of one frame in a hundred is found by the memory it keeps."""
    kept: list[bytes] = []

    def check(frame: bytes) -> bool:
        if len(frame) % 100 == 7:
            kept.append(bytes(bytearray(frame)))
        return True

    with pytest.raises(Violation, match="blocks of memory are kept"):
        fuzz_decoder("kept", 200_000, check)


# Fragments --------------------------------------------------------------------------------------------------------


class Small(Reassembler):
    """Bounds that a run reaches often."""

    __slots__ = ()
    MAX_FRAGMENTS = 5  # type: ignore[misc]
    MAX_BATCH_BYTES = 1_200  # type: ignore[misc]


def held_by(reassembler: Reassembler) -> tuple[int, int]:
    """How many objects can be reached from it, and how many bytes are in those that are bytes."""
    objects = size = 0
    todo: list[object] = [reassembler]
    while todo:
        for found in gc.get_referents(todo.pop()):
            if isinstance(found, type | CrdtType):
                continue
            objects += 1
            if isinstance(found, bytes):
                size += len(found)
            else:
                todo.append(found)
    return objects, size


@dataclass
class Fragments:
    """What a run against reassemblers saw."""

    steps: int = 0
    whole: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    most_bytes: int = 0
    most_objects: int = 0


def fuzz_reassembler(seed: int | str, steps: int, kind: type[Reassembler] = Small) -> Fragments:
    """Three rooms, whose messages come interleaved and with the same batch ids, each against its model.

    Every message goes over the wire's format. Raises `Violation` for an answer that the model would not have given,
    and when other bytes are held than those of the fragments that the model holds.
    """
    seen, random = Fragments(), Random(seed)
    rooms = [(FragmentSteps(f"{seed} {room}", kind), kind(), Model(kind)) for room in range(3)]
    while seen.steps < steps:
        source, reassembler, model = random.choice(rooms)
        message = next(source)
        seen.steps += 1
        if message is not None:
            message = decode(encode(message))  # type: ignore[assignment]
        got, wanted = _step(reassembler, model, message, source.now)
        if got != wanted or reassembler.next_deadline() != model.next_deadline():
            raise Violation(f"seed {seed!r}, step {seen.steps}: {got!r:.200} instead of {wanted!r:.200}")
        seen.whole += sum(isinstance(answer, bytes) for answer in got)
        seen.refused.update(answer.name for answer in got if isinstance(answer, UpdateStatusCode))
        if random.random() < 0.0005:
            reassembler.clear()
            model.clear()
        if random.random() < 0.005:
            number = random.randrange(11)
            reassembler.refuse(number, UpdateStatusCode.RATE_LIMITED, "by the caller")
            model.refuse(number, UpdateStatusCode.RATE_LIMITED)
        if seen.steps % 20 == 0:
            objects, size = held_by(reassembler)
            if not size == reassembler.size == model.held:
                held = f"{size} bytes are held instead of {model.held}, said to be {reassembler.size}"
                raise Violation(f"seed {seed!r}, step {seen.steps}: {held}")
            seen.most_bytes, seen.most_objects = max(seen.most_bytes, size), max(seen.most_objects, objects)
    return seen


def _step(
    reassembler: Reassembler, model: Model, message: DocUpdateFragmentHeader | DocUpdateFragment | None, now: float
) -> tuple[list[Any], list[Any]]:
    """What both make of a message, or of time going by: one answer a message, or refusals of what is due."""
    if isinstance(message, DocUpdateFragmentHeader):
        return [outcome(reassembler.begin(message, now))], [model.begin(message, now)]
    if isinstance(message, DocUpdateFragment):
        return [outcome(reassembler.add(message, now))], [model.add(message, now)]
    expired = [(refusal.batch_id, refusal.status) for refusal in reassembler.expire(now)]
    wanted = model.expire(now)
    if expired != wanted:
        raise Violation(f"expired {expired} instead of {wanted}")
    return [status for _, status in expired], [status for _, status in wanted]


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [Small, Reassembler])
def test_reassembler(kind: type[Reassembler], figures: Figures) -> None:
    """Fragments that lie: the answers are the model's, and the memory is that of the fragments held."""
    seen = fuzz_reassembler(0, STEPS // 2 * soak(), kind)
    figures(
        f"reassembler{' with small bounds' if kind is Small else ''}: headers that lie, fragments in any order, twice, "
        "late and unheard of, three rooms interleaved, against a model",
        messages=seen.steps,
        updates_made_whole=seen.whole,
        **{f"refused_{name.lower()}": count for name, count in sorted(seen.refused.items())},
        most_bytes_held=seen.most_bytes,
        most_objects_held=seen.most_objects,
        seeds="0",
        violations=0,
    )


def test_reassembler_briefly() -> None:
    """The same, for a moment; every answer there is was given."""
    seen = fuzz_reassembler("brief", 20_000)
    assert seen.whole > 100
    assert set(seen.refused) == {"INVALID_UPDATE", "PAYLOAD_TOO_LARGE", "RATE_LIMITED", "FRAGMENT_TIMEOUT"}
    assert min(seen.refused.values()) > 20
    assert seen.most_bytes <= Small.MAX_BATCHES * Small.MAX_BATCH_BYTES
    assert seen.most_objects <= Small.MAX_BATCHES * (12 + 2 * Small.MAX_FRAGMENTS) + 2 * Small.MAX_SETTLED + 10


class Forgetful(Small):
    """Says no, and keeps what came."""

    __slots__ = ("kept",)

    def add(self, fragment: DocUpdateFragment, now: float) -> Any:
        self.kept = [*getattr(self, "kept", []), fragment.fragment]
        return super().add(fragment, now)


class Late(Small):
    """Extends the time of a batch with each fragment."""

    __slots__ = ()

    def add(self, fragment: DocUpdateFragment, now: float) -> Any:
        if batch := self._live.get(fragment.batch_id):
            batch.deadline = now + self.TIMEOUT
        return super().add(fragment, now)


@pytest.mark.parametrize(("kind", "why"), [(Forgetful, "bytes are held instead of"), (Late, "instead of")])
def test_the_model_finds(kind: type[Reassembler], why: str) -> None:
    """A reassembler that keeps what it refused, or one that lets a peer keep it waiting, is found."""
    with pytest.raises(Violation, match=why):
        fuzz_reassembler("broken", 20_000, kind)


# A whole client ---------------------------------------------------------------------------------------------------

VICTIMS = ("r", "room")  # also what the rooms of many made frames are called
BYSTANDER = "nobody writes here"


class Storm:
    """Hostile frames for the rooms of a client, with true updates among them."""

    def __init__(self, seed: int | str) -> None:
        self._random = Random(seed)
        self._frames = Frames(f"storm {seed}")
        self._messages = Messages(self._random)
        doc = LoroDoc()
        doc.peer_id = 1
        for number in range(20):
            doc.get_text("text").insert(0, f"{number} ")
            doc.commit()
        self._updates = [doc.export(ExportMode.Updates(doc.oplog_vv)), doc.export(ExportMode.Snapshot()), b""]
        self._updates.append(doc.export(ExportMode.Updates(LoroDoc().oplog_vv)))
        store = EphemeralStore(3_600_000)
        store.set("key", "value")
        self._updates.append(store.encode_all())
        self._block: list[bytes] = []

    def frame(self) -> bytes:
        """The next."""
        if self._random.random() < 0.4:
            while not self._block:
                self._block = self._random.sample([f for f in self._frames.block() if len(f) <= MAX_MESSAGE_SIZE], 100)
            return self._block.pop()
        return encode(self._message())

    def _update(self) -> bytes:
        """A true update, one with a byte changed, or noise."""
        random = self._random
        update = bytearray(random.choice(self._updates))
        if update and random.random() < 0.5:
            update[random.randrange(len(update))] ^= 1 << random.randrange(8)
        return bytes(update) if random.random() < 0.8 else random.randbytes(random.randrange(60))

    def _message(self) -> Message:
        random = self._random
        room = random.choice([LORO, LORO, CrdtType.EPHEMERAL]), random.choice([*VICTIMS, *VICTIMS, "none of ours"])
        number = random.choice([0, 1, 2, random.getrandbits(64)])
        match random.randrange(9):
            case 0 | 1:
                return DocUpdate(*room, tuple(self._update() for _ in range(random.randrange(4))), number)
            case 2 | 3:
                count, size = random.choice([1, 2, 3, 2**32 - 1]), random.choice([0, 30, 60, 2**32 - 1])
                return DocUpdateFragmentHeader(*room, number, count, size)
            case 4 | 5:
                return DocUpdateFragment(
                    *room, number, random.randrange(4), self._update()[: random.choice([30, 9999])]
                )
            case 6:
                return Ack(*room, number, random.choice(list(UpdateStatusCode)))
            case 7:
                code = random.choice(list(JoinErrorCode) + [JoinErrorCode.VERSION_UNKNOWN] * 3)
                version = random.choice([None, b"", random.randbytes(9)]) if code == 1 else None
                error = JoinError(*room, code, "no", version)
                ok = JoinResponseOk(*room, random.choice(["read", "write"]), self._update(), b"")
                return random.choice([error, ok, RoomError(*room, RoomErrorCode.REJOIN_SUGGESTED, "again")])
            case _:
                return next(self._messages)


async def storm(seed: int | str, frames: int) -> None:
    """A client in rooms that are stormed and in one that is not; then it must be as if nothing had been.

    The server is a real one, which would close the connection for any frame that a client may not send.
    """
    asyncio.get_running_loop().set_debug(False)  # it costs more than all the rest
    random, hostile = Random(seed), Storm(seed)
    docs = {room: LoroDoc() for room in (*VICTIMS, BYSTANDER)}
    store = EphemeralStore(3_600_000)
    changes: list[str] = []
    async with EmbeddedServer() as server, Client(server.url, retry=RetryPolicy(random=Random(0))) as client:
        await client.wait_connected()
        client.on_status(lambda change: changes.append(f"client {change.new}: {change.reason}"))
        good = await client.join(BYSTANDER, LoroAdaptor(docs[BYSTANDER]))
        good.on_status(lambda change: changes.append(f"bystander {change.new}: {change.reason}"))

        victims = [(room, LoroAdaptor(docs[room], on_refused=lambda *_: None)) for room in VICTIMS]
        presence = EphemeralAdaptor(store, on_refused=lambda *_: None)

        def join_victims() -> None:
            for room, adaptor in victims:
                client.join(room, adaptor)
            client.join(VICTIMS[0], presence)

        join_victims()
        for number in range(frames):
            await server.send_raw(hostile.frame())
            if random.random() < 0.1:
                await asyncio.sleep(random.choice([0.0, 0.01, 1.0, 11.0]))
            if random.random() < 0.05:
                edited = random.choice(VICTIMS)
                docs[edited].get_text("mine").insert(0, f"<{number}>")
                docs[edited].commit()
                join_victims()  # those that were put out come back
        docs[BYSTANDER].get_text("text").insert(0, "still here")
        docs[BYSTANDER].commit()
        await good.synced()
        for room in client.rooms:
            if room is not good:
                room.leave()
        join_victims()
        async with asyncio.timeout(300):
            for room in client.rooms:
                await room.synced()
        assert server.document(BYSTANDER).get_text("text").to_string() == "still here"
        for name in VICTIMS:
            mine = docs[name].get_text("mine").to_string()
            assert server.document(name).get_text("mine").to_string() == mine, "an edit of a stormed room was lost"
        assert client.status is ClientStatus.CONNECTED
        assert good.status is RoomStatus.JOINED
        assert (changes, server.stats.connects) == ([], 1)


def weather(seed: int | str, frames: int) -> None:
    """Run a storm; what the product logs as an error of its own is one."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        run(lambda: storm(seed, frames))
    except BaseException as error:
        error.add_note(f"the storm of seed {seed!r}, {frames} frames")
        raise
    finally:
        logging.getLogger().removeHandler(handler)
    assert not records, (seed, [record.getMessage() for record in records])


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", [0, 1])
def test_a_client_outlasts_storms(half: int, figures: Figures) -> None:
    """Random messages from a server break neither the connection nor a room that they are not about."""
    seeds = range(half, STORMS * soak(), 2)
    for seed in seeds:
        weather(seed, STORM)
    figures(
        f"a joined client: random and malformed messages from its server, half {half + 1}",
        clients=len(seeds),
        frames=len(seeds) * STORM,
        seeds=f"{seeds[0]}–{seeds[-1]}, every other",
        violations=0,
    )


def test_a_client_outlasts_a_storm() -> None:
    """The same, for a moment."""
    for seed in range(3):
        weather(f"brief {seed}", STORM)


def test_a_frame_that_was_split_fits() -> None:
    """What `split` makes of any update decodes, is within the limit, and comes back whole."""
    random = Random(0)
    for size in [0, 1, FRAGMENT_SIZE - 1, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, 3 * FRAGMENT_SIZE, 1_000_003]:
        update = random.randbytes(size)
        (batch,) = split(LORO, "r" * 128, [update], lambda: 2**64 - 1)
        assert all(len(frame) <= MAX_MESSAGE_SIZE for frame in batch.frames)
        assert all(fuzz.check(frame) for frame in batch.frames)
        with pytest.raises(ProtocolError):
            decode(batch.frames[-1][:-1])


def expiries(monkeypatch: pytest.MonkeyPatch, scenario: Callable[[], Awaitable[None]]) -> int:
    """How often `Reassembler.expire` is called while the scenario runs on virtual time; an endless loop fails."""
    calls, expire = 0, Reassembler.expire

    def counted(self: Reassembler, now: float) -> Any:
        nonlocal calls
        calls += 1
        assert calls < 1_000, "the timer runs again and again, and no time goes by"
        return expire(self, now)

    monkeypatch.setattr(Reassembler, "expire", counted)
    run(scenario)
    return calls


def test_a_client_gives_fragments_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """D-TIMEOUT: however times round, the timer of a batch runs once or twice, and not for ever."""

    async def scenario() -> None:
        async with EmbeddedServer() as server, Client(server.url) as client:
            await client.join("r", LoroAdaptor(LoroDoc()))
            for batch_id in range(50):
                await server.send("r", LORO, DocUpdateFragmentHeader(LORO, "r", batch_id, 2, 2))
                await asyncio.sleep(0.1 * batch_id)
                await server.send("r", LORO, DocUpdateFragment(LORO, "r", batch_id, 0, b"a"))
                await asyncio.sleep(40)

    assert 50 <= expiries(monkeypatch, scenario) < 300


def test_the_server_gives_fragments_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the embedded server."""

    async def scenario() -> None:
        async with EmbeddedServer() as server, Connection(server.url) as connection:
            await connection.wait_connected()
            await connection.send(encode(JoinRequest(LORO, "r", b"", b"")))
            for batch_id in range(50):
                await asyncio.sleep(10.1 + 0.000_000_3 * batch_id)
                await connection.send(encode(DocUpdateFragmentHeader(LORO, "r", batch_id, 2, 2)))
            await asyncio.sleep(20)

    assert 50 <= expiries(monkeypatch, scenario) < 300
