"""JoinLimiter: a bound on rooms asked for at a time, those of a higher priority first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from doubles import EmptyAdaptor
from kit import client_of, until
from reconnect_fsm import Client, JoinRefused, Room, RoomStatus, Unauthorized
from reconnect_fsm._asyncio.join_limiter import Admission, AnswersDue, JoinLimiter
from reconnect_fsm.loro_protocol import (
    CrdtType,
    JoinError,
    JoinErrorCode,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    RoomError,
    RoomErrorCode,
    decode,
    encode,
)
from reconnect_fsm.testing.virtual_time import serving

PATIENCE = 300.0  # seconds of virtual time for what must come
JOIN_TIMEOUT = 10.0


# ------------------------------------------------------------------------------------------------------------ the queue


def all_of(limiter: JoinLimiter[Any]) -> list[Any]:
    """Everyone whose turn it is, if nobody is ever done."""
    return list(iter(limiter.pop, None))


def test_the_higher_the_priority_the_sooner_and_among_equals_first_come_first_served() -> None:
    """Whatever order they came in; negative ones too."""
    limiter: JoinLimiter[str] = JoinLimiter(None)
    for one, priority in (("e", 0), ("g", -1), ("a", 7), ("f", 0), ("c", 2), ("b", 7), ("d", 2)):
        limiter.enqueue(one, priority)
    assert all_of(limiter) == list("abcdefg")
    assert limiter.queues == {}


def test_whoever_comes_late_is_served_by_priority_too() -> None:
    """Also after a queue of that priority was used up."""
    limiter: JoinLimiter[str] = JoinLimiter(None)
    for one, priority in (("b", 1), ("a", 9)):
        limiter.enqueue(one, priority)
    assert limiter.pop() == "a"
    limiter.enqueue("A", 9)
    limiter.enqueue("c", 0)
    assert all_of(limiter) == ["A", "b", "c"]


def test_there_is_no_turn_while_so_many_are_busy() -> None:
    """And there is again as soon as one is done; who is busy is for others to say."""
    limiter: JoinLimiter[str] = JoinLimiter(2)
    for one in "abc":
        limiter.enqueue(one, 0)
    for _ in range(2):
        one = limiter.pop()
        assert one is not None
        limiter.in_flight.add(one)
    assert limiter.pop() is None
    limiter.in_flight.discard("a")
    assert limiter.pop() == "c"
    assert limiter.pop() is None


def test_nobody_waits_and_nobody_is_busy_after_a_clear() -> None:
    """Not even those of whom there were too many, and what comes then is served as ever."""
    limiter: JoinLimiter[str] = JoinLimiter(1)
    limiter.in_flight.add("busy")
    limiter.enqueue("a", 3)
    limiter.enqueue("b", 5)
    limiter.clear()
    assert limiter.pop() is None
    assert (limiter.queues, limiter.in_flight) == ({}, set())
    limiter.enqueue("c", 3)
    assert limiter.pop() == "c"


@given(
    most=st.none() | st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["wait", "wait", "next", "next", "done", "clear"]), st.integers(-2, 2))),
)
def test_it_is_a_sorted_list_with_a_bound(most: int | None, steps: list[tuple[str, int]]) -> None:
    """Compared, step by step, with the plainest way to write it."""
    limiter: JoinLimiter[int] = JoinLimiter(most)
    waiting: list[tuple[int, int]] = []  # negated priority and number: the first of them sorted is next
    busy: set[int] = set()
    numbers = count(1)
    for step, priority in steps:
        match step:
            case "wait":
                number = next(numbers)
                limiter.enqueue(number, priority)
                waiting.append((-priority, number))
            case "next":
                is_free = most is None or len(busy) < most
                expected = min(waiting)[1] if waiting and is_free else None
                assert limiter.pop() == expected
                if expected is not None:
                    waiting.remove(min(waiting))
                    busy.add(expected)
                    limiter.in_flight.add(expected)
            case "done" if busy:
                limiter.in_flight.discard(min(busy))
                busy.discard(min(busy))
            case "clear":
                limiter.clear()
                waiting.clear()
                busy.clear()
        assert limiter.in_flight == busy
        assert all(limiter.queues.values()), "an empty queue is kept"
        assert sum(map(len, limiter.queues.values())) == len(waiting)


# -------------------------------------------------------------------------------------------- which rooms hear of what


class Applicant:
    """A room that asks for nothing else."""

    def __init__(self, priority: int = 0) -> None:
        self.joined_after = 0
        self.priority = priority


def admitted(admission: Admission[Applicant]) -> list[Applicant]:
    """The rooms whose turn it is, if no request ever ends."""
    return [room for room, _ in iter(admission.next_turn, None)]


def test_a_room_hears_of_what_is_announced_after_it_was_joined() -> None:
    """Not of what was announced before and the others hear of only now."""
    admission: Admission[Applicant] = Admission(None)
    early, late = Applicant(), Applicant()
    admission.add(early)
    first = admission.announce()
    admission.add(late)
    second = admission.announce()
    assert [admission.hears(room, first) for room in (early, late)] == [True, False]
    assert [admission.hears(room, second) for room in (early, late)] == [True, True]


def test_each_room_is_queued_once_for_a_connection() -> None:
    """By the announcement if it was joined before the rooms began to hear of it, by `add` if after; never by both."""
    admission: Admission[Applicant] = Admission(None)
    before, between, after = Applicant(), Applicant(), Applicant()
    admission.add(before)
    opened = admission.announce()
    admission.add(between)
    admission.begin(opened, "connected")
    lost = admission.announce()  # nothing is done about it yet
    admission.add(after)
    for room in (before, between, after):
        if not admission.missed_by(room, opened):
            admission.enqueue(room)
    assert admitted(admission) == [before, between]
    admission.begin(lost, None)
    admission.add(Applicant())
    assert admitted(admission) == []
    admission.begin(admission.announce(), "connected again")
    admission.add(after)
    assert admitted(admission) == [after]


def test_turns_are_claimed_once_while_there_are_any() -> None:
    """Who claims them takes them to the end; then they can be claimed again."""
    admission: Admission[Applicant] = Admission(1)
    one, two = Applicant(), Applicant()
    admission.begin(admission.announce(), "connected")
    assert not admission.claim_turns()
    for room in (one, two):
        admission.enqueue(room)
    assert [admission.claim_turns(), admission.claim_turns()] == [True, False]
    assert admission.next_turn() == (one, None)
    admission.begin_request(one)
    assert admission.next_turn() is None
    assert [admission.is_waiting(one), admission.is_waiting(two)] == [False, True]
    assert [admission.is_requested(one), admission.is_requested(two)] == [True, False]
    assert not admission.claim_turns()
    admission.end_request(one)
    assert admission.claim_turns()
    assert admission.next_turn() == (two, None)


def test_with_the_loop_what_was_scheduled_in_it_is_gone() -> None:
    """Turns can be claimed in the next loop, once there is a connection; no announcement is still to be heard of."""
    admission: Admission[Applicant] = Admission(None)
    admission.begin(admission.announce(), "connected")
    admission.enqueue(Applicant())
    assert admission.claim_turns()
    admission.announce()
    admission.forget_loop()
    assert admission.opened is None
    room = Applicant()
    admission.add(room)
    admission.begin(admission.announce(), "connected")
    admission.add(room)
    assert admission.claim_turns()
    assert admitted(admission) == [room]


# ------------------------------------------------------------------------------------------------------ whose answer


def test_d_leave_answers_for_a_room_that_was_left_come_first_and_are_dropped() -> None:
    """D-LEAVE: as many as there were requests; those of rooms with other names are not touched."""
    answers = AnswersDue()
    for header in (b"r", b"r", b"s"):
        answers.expect(header, is_tracked=True)
    answers.disown(b"r")
    assert answers
    answers.expect(b"r", is_tracked=True)
    assert [answers.take(b"r") for _ in range(3)] == [False, False, True]
    assert not answers
    assert answers.take(b"s")
    answers.disown(b"s")
    assert not answers


def test_d_leave_a_request_of_a_room_that_is_about_to_leave_counts_as_its_own() -> None:
    """It is no longer tracked, and another room of that name may be."""
    answers = AnswersDue()
    answers.expect(b"r", is_tracked=False)
    answers.expect(b"r", is_tracked=True)
    assert [answers.take(b"r"), answers.take(b"r"), answers.take(b"r")] == [False, True, True]


def test_an_answer_to_nothing_is_for_the_tracked_room() -> None:
    """A server may send a JoinError whenever it likes: the machine decides."""
    answers = AnswersDue()
    assert answers.take(b"r")
    answers.disown(b"r")
    assert not answers


def test_with_the_connection_all_answers_are_gone() -> None:
    """Those of the next are for the rooms of that time."""
    answers = AnswersDue()
    answers.expect(b"r", is_tracked=True)
    answers.disown(b"r")
    answers.expect(b"r", is_tracked=True)
    answers.clear()
    assert not answers
    answers.disown(b"r")
    assert answers.take(b"r")


# ------------------------------------------------------------------------------------------------------------- a server


class Desk:
    """A server with one clerk for each connection, who deals with one message after another."""

    def __init__(self, seconds: float | None, *, at_a_time: bool) -> None:
        self.seconds = seconds
        """How long a request to join takes; None: it is never answered."""
        self.at_a_time = at_a_time
        """Whether the next message waits for as long."""
        self.refuses: dict[str, JoinErrorCode] = {}
        self.url = ""
        self.asked: list[str] = []
        """The rooms asked for, in order, on all connections."""
        self.left: list[str] = []
        self.unanswered: set[str] = set()
        """On the present connection."""
        self.most = 0
        """Rooms unanswered at the same time."""
        self.pings = 0
        self.connects = 0
        self._ws = web.WebSocketResponse()
        self._transport: asyncio.Transport | None = None

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        self._ws = ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        self._transport = request.transport
        self.connects += 1
        self.unanswered.clear()
        answers: asyncio.Queue[tuple[float, JoinRequest]] = asyncio.Queue()
        clerk = asyncio.create_task(self._answer_each(ws, answers))
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    self.pings += 1
                    await ws.send_str("pong")
                elif message.type is WSMsgType.BINARY:
                    await self._take(ws, decode(message.data), answers)
        finally:
            clerk.cancel()
        return ws

    async def _take(self, ws: web.WebSocketResponse, message: Message, answers: asyncio.Queue[Any]) -> None:
        if isinstance(message, Leave):
            self.left.append(message.room_id)
            return
        assert isinstance(message, JoinRequest)
        self.asked.append(message.room_id)
        self.unanswered.add(message.room_id)
        self.most = max(self.most, len(self.unanswered))
        if self.seconds is None:
            return
        if self.at_a_time:
            await asyncio.sleep(self.seconds)
            await self._answer(ws, message)
        else:
            answers.put_nowait((asyncio.get_running_loop().time() + self.seconds, message))

    async def _answer_each(self, ws: web.WebSocketResponse, answers: asyncio.Queue[tuple[float, JoinRequest]]) -> None:
        while True:
            due, message = await answers.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            await self._answer(ws, message)

    async def _answer(self, ws: web.WebSocketResponse, request: JoinRequest) -> None:
        self.unanswered.discard(request.room_id)
        code = self.refuses.get(request.room_id)
        if code is None:
            await ws.send_bytes(encode(JoinResponseOk(request.crdt, request.room_id, "write", b"")))
        else:
            await ws.send_bytes(encode(JoinError(request.crdt, request.room_id, code, "no")))

    async def evicted(self, room_id: str) -> None:
        """Put the client out of a room, and suggest to come back."""
        await self._ws.send_bytes(encode(RoomError(CrdtType.ELO, room_id, RoomErrorCode.REJOIN_SUGGESTED, "")))

    async def let_in(self, room_id: str) -> None:
        """Answer a request, however late."""
        await self._answer(self._ws, JoinRequest(CrdtType.ELO, room_id, b"", b""))

    def drop(self) -> None:
        """End the TCP connection without a close frame, and forget what was counted."""
        assert self._transport is not None
        self._transport.abort()
        self.asked.clear()
        self.most = 0


@asynccontextmanager
async def desk(seconds: float | None = 0.5, *, at_a_time: bool = False) -> AsyncIterator[Desk]:
    """A server that answers each request so many seconds after it came, or after it was its turn."""
    it = Desk(seconds, at_a_time=at_a_time)
    async with serving(it.handle) as url:
        it.url = str(url)
        yield it


async def all_joined(rooms: Sequence[Room]) -> None:
    """Wait until every room is."""
    async with asyncio.timeout(PATIENCE):
        for room in rooms:
            await room
    assert {room.status for room in rooms} == {RoomStatus.JOINED}


# ------------------------------------------------------------------------------------------------------------ the bound


@pytest.mark.virtual_time
@pytest.mark.parametrize("at_once", [1, 3, 40, 100])
async def test_never_are_more_rooms_asked_for_than_may_be(at_once: int) -> None:
    """First joins and rejoins alike; and no fewer, as long as rooms wait; each is asked for once."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=at_once) as client:
        rooms = [client.join(f"{number}", EmptyAdaptor()) for number in range(40)]
        await all_joined(rooms)
        assert (server.most, len(server.asked), len(set(server.asked))) == (min(at_once, 40), 40, 40)
        server.drop()
        await until(lambda: server.connects == 2)
        await all_joined(rooms)
        assert (server.most, len(server.asked), len(set(server.asked))) == (min(at_once, 40), 40, 40)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("at_once", "asked"), [({}, 512), ({"max_concurrent_joins": None}, 600), ({"max_concurrent_joins": 600}, 600)]
)
async def test_the_bound_is_512_unless_another_is_given_or_none(at_once: dict[str, Any], asked: int) -> None:
    """Of 600 rooms of a server that answers nothing."""
    async with desk(None) as server, client_of(server.url, **at_once) as client:
        rooms = [client.join(f"{number}", EmptyAdaptor()) for number in range(600)]
        await until(lambda: server.asked)
        await asyncio.sleep(JOIN_TIMEOUT / 2)
        assert len(server.asked) == asked
        assert sum(room.state == "joining" for room in rooms) == asked
        assert sum(room.state == "queued" for room in rooms) == 600 - asked


@pytest.mark.virtual_time
async def test_rooms_joined_while_others_are_asked_for_wait_as_well() -> None:
    """With a connection a room is asked for at once, unless too many are."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=2) as client:
        await client.wait_connected()
        rooms = [client.join(name, EmptyAdaptor()) for name in "abcd"]
        assert [room.state for room in rooms] == ["joining", "joining", "queued", "queued"]
        await all_joined(rooms)
        assert (server.most, server.asked) == (2, list("abcd"))
        assert client.join("e", EmptyAdaptor()).state == "joining"


@pytest.mark.virtual_time
async def test_rooms_that_are_asked_for_again_wait_for_their_turn_too() -> None:
    """D-TIMEOUT: what was not answered in time counts as all others do, behind those that were not asked for yet."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=2) as client:
        rooms = [client.join(f"{number}", EmptyAdaptor()) for number in range(6)]
        for _ in range(100):
            await asyncio.sleep(0.5)
            assert sum(room.state == "joining" for room in rooms) <= 2
        assert server.asked[:8] == ["0", "1", "2", "3", "4", "5", "0", "1"]


@pytest.mark.virtual_time
async def test_a_room_that_is_asked_for_again_does_not_wait_for_nobody() -> None:
    """D-TIMEOUT: if no other is being asked for, it is its turn when its own wait is over."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        client.join("a", EmptyAdaptor())
        await asyncio.sleep(JOIN_TIMEOUT + 0.125 + 0.01)
        assert server.asked == ["a", "a"]


@pytest.mark.virtual_time
async def test_rooms_that_the_server_has_asked_to_come_back_do_not_wait() -> None:
    """D-ROOMERR: at once is at once; but those who wait for a turn wait for these as well."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=2) as client:
        rooms = [client.join(f"{number}", EmptyAdaptor()) for number in range(6)]
        await all_joined(rooms)
        server.asked.clear()
        for room in rooms:
            await server.evicted(room.id)
        await until(lambda: len(server.asked) == 6)
        late = client.join("late", EmptyAdaptor())
        assert {room.state for room in rooms} == {"resyncing"}
        assert late.state == "queued"
        await all_joined([late])
        assert {room.state for room in rooms} == {"joined"}


@pytest.mark.virtual_time
async def test_a_turn_that_is_not_needed_any_more_changes_nothing() -> None:
    """A late answer came while the room waited to ask again; what is under way when its turn comes is not meant."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=2) as client:
        await client.wait_connected()
        room, *others = [client.join(name, EmptyAdaptor()) for name in "abcd"]
        await asyncio.sleep(JOIN_TIMEOUT + 2)
        assert room.state == "join_delayed"  # it would ask again, but it is the turn of c and d
        await server.let_in("a")
        await all_joined([room])
        await server.evicted("a")
        await until(lambda: room.state == "resyncing")
        for name in "bcd":
            await server.let_in(name)
        await all_joined(others)
        assert room.state == "resyncing"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "x", b"1"])
def test_a_bound_that_makes_no_sense_is_refused(wrong: Any) -> None:
    """At once, and in words that say what to give."""
    with pytest.raises(ValueError, match="max_concurrent_joins must be a number of rooms, or None for no bound, not "):
        Client("ws://127.0.0.1:1", max_concurrent_joins=wrong)


@pytest.mark.parametrize("wrong", ["x", 1.5, None])
def test_a_priority_that_makes_no_sense_is_refused(wrong: Any) -> None:
    """And the room is not tracked."""
    client = Client("ws://127.0.0.1:1")
    with pytest.raises(TypeError, match="priority must be an int, the higher the sooner, not "):
        client.join("r", EmptyAdaptor(), priority=wrong)
    assert client.rooms == ()


# ------------------------------------------------------------------------------------------------------------ the order

PRIORITIES = {"e": 0, "a": 9, "f": 0, "c": 3, "b": 9, "d": 3, "g": -5}


@pytest.mark.virtual_time
@pytest.mark.parametrize("at_once", [1, 2, None])
async def test_rooms_of_a_higher_priority_are_asked_for_first(at_once: int | None) -> None:
    """First joins and rejoins alike; among equals the first that was joined."""
    async with desk() as server:
        client = client_of(server.url, max_concurrent_joins=at_once)
        rooms = [client.join(name, EmptyAdaptor(), priority=priority) for name, priority in PRIORITIES.items()]
        async with client:
            await all_joined(rooms)
            assert server.asked == sorted(PRIORITIES)
            server.drop()
            await until(lambda: server.connects == 2)
            await all_joined(rooms)
            assert server.asked == sorted(PRIORITIES)


@pytest.mark.virtual_time
async def test_a_room_that_comes_late_goes_before_those_of_a_lower_priority_that_wait() -> None:
    """It waits only for those that are being asked for."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        rooms = [
            client.join(name, EmptyAdaptor(), priority=priority) for name, priority in (("a", 0), ("c", 0), ("b", 1))
        ]
        await all_joined(rooms)
        assert server.asked == ["a", "b", "c"]


# ------------------------------------------------------------------------------------- who makes room, and who does not


@pytest.mark.virtual_time
async def test_a_room_that_is_left_while_it_waits_is_not_asked_for() -> None:
    """The server hears nothing of it, and those behind it lose nothing."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        rooms = {name: client.join(name, EmptyAdaptor()) for name in "abcd"}
        await client.wait_connected()
        rooms["b"].leave()
        await rooms["c"].leave()
        assert [rooms[name].state for name in "bc"] == ["left", "left"]
        await all_joined([rooms["a"], rooms["d"]])
        assert (server.asked, server.left) == (["a", "d"], [])


@pytest.mark.virtual_time
async def test_a_room_that_is_left_while_it_is_asked_for_makes_room() -> None:
    """At once, not when it would have been answered."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        room, other = client.join("a", EmptyAdaptor()), client.join("b", EmptyAdaptor())
        room.leave()
        assert (room.state, other.state) == ("left", "joining")
        await until(lambda: server.asked == ["a", "b"])
        assert server.left == ["a"]


@pytest.mark.virtual_time
async def test_a_room_left_and_joined_again_while_it_waits_is_asked_for_once() -> None:
    """The one that was left had its place in the queue; it is another's now."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        first = client.join("a", EmptyAdaptor())
        client.join("b", EmptyAdaptor()).leave()
        again = client.join("b", EmptyAdaptor())
        await all_joined([first, again])
        assert server.asked == ["a", "b"]


@pytest.mark.virtual_time
async def test_a_room_without_an_answer_makes_room_after_its_time() -> None:
    """D-TIMEOUT: a server that answers nothing keeps nobody waiting for longer than ten seconds a turn."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        began = asyncio.get_running_loop().time()
        rooms = [client.join(name, EmptyAdaptor()) for name in "abc"]
        for number, room in enumerate(rooms):
            await until(lambda room=room: room.state == "joining")
            assert asyncio.get_running_loop().time() - began == pytest.approx(number * JOIN_TIMEOUT, abs=0.5)


@pytest.mark.virtual_time
@pytest.mark.parametrize("code", [JoinErrorCode.AUTH_FAILED, JoinErrorCode.VERSION_UNKNOWN])
async def test_a_room_that_is_refused_makes_room(code: JoinErrorCode) -> None:
    """Once it is refused for good, that is: another version is asked for in the same turn."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        server.refuses["a"] = code
        refused, other = client.join("a", EmptyAdaptor()), client.join("b", EmptyAdaptor())
        with pytest.raises(JoinRefused):
            await refused
        await all_joined([other])
        assert (server.asked[0], server.asked[-1], server.most) == ("a", "b", 1)


class BrokenVersion(EmptyAdaptor):
    def version(self) -> bytes:
        raise RuntimeError("the document is damaged")


async def fails() -> bytes:
    raise OSError("the token server is gone")


async def refuses() -> bytes:
    raise Unauthorized


def fails_at_once() -> bytes:
    raise OSError("the token server is gone")


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("adaptor", "auth", "state"),
    [
        (BrokenVersion(), b"", "error"),
        (EmptyAdaptor(), refuses, "error"),
        (EmptyAdaptor(), fails, "join_delayed"),
        (EmptyAdaptor(), fails_at_once, "join_delayed"),
        (EmptyAdaptor(), lambda: "no bytes", "error"),
        (EmptyAdaptor(), bytes(300_000), "error"),
    ],
    ids=["version raises", "unauthorized", "auth raises later", "auth raises", "no bytes", "too much"],
)
async def test_a_room_that_cannot_be_asked_for_makes_room(adaptor: EmptyAdaptor, auth: Any, state: str) -> None:
    """Nothing of this is the next one's business."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        room, other = client.join("a", adaptor, auth=auth), client.join("b", EmptyAdaptor())
        await until(lambda: other.state == "joining")
        assert room.state == state
        assert server.asked in ([], ["b"])


@pytest.mark.virtual_time
async def test_a_room_whose_credentials_are_awaited_has_its_turn_meanwhile() -> None:
    """So that a token server is not asked ten thousand times at once either."""

    async def token() -> bytes:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(1)
        asking -= 1
        return b"token"

    asking = most = 0
    async with desk(0) as server, client_of(server.url, max_concurrent_joins=3) as client:
        await all_joined([client.join(f"{number}", EmptyAdaptor(), auth=token) for number in range(12)])
        assert most == 3
        assert server.most <= 3


@pytest.mark.virtual_time
async def test_rooms_that_wait_when_the_connection_is_lost_wait_for_the_next() -> None:
    """Those that were asked for do not count any more; nobody is asked for twice on the next connection."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=2) as client:
        rooms = [client.join(name, EmptyAdaptor()) for name in "abcdef"]
        await until(lambda: server.asked == ["a", "b"])
        server.seconds = 0.5
        server.drop()
        await until(lambda: rooms[0].state == "queued")
        assert {room.state for room in rooms} == {"queued"}
        await all_joined(rooms)
        assert (server.asked, server.most) == (list("abcdef"), 2)


@pytest.mark.virtual_time
async def test_nobody_has_a_turn_while_there_is_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Rooms that hear of the loss late make no room for those that have heard of it."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=2) as client:
        rooms = [client.join(name, EmptyAdaptor(), priority=name > "d") for name in "abcdef"]
        await until(lambda: server.asked == ["e", "f"])
        server.drop()
        await until(lambda: rooms[-1].state == "queued")
        assert {room.state for room in rooms} == {"queued"}
        await until(lambda: server.asked == ["e", "f"])
        assert [room.state for room in rooms] == ["queued"] * 4 + ["joining"] * 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.virtual_time
async def test_rooms_that_wait_when_the_client_is_stopped_are_asked_for_when_it_is_started() -> None:
    """D-STOP: the limiter begin anew."""
    async with desk(None) as server, client_of(server.url, max_concurrent_joins=2) as client:
        rooms = [client.join(name, EmptyAdaptor()) for name in "abcdef"]
        await until(lambda: server.asked == ["a", "b"])
        await client.close()
        assert {room.state for room in rooms} == {"disconnected"}
        server.seconds = 0.5
        server.asked.clear()
        await client.connect()
        await all_joined(rooms)
        assert server.asked == list("abcdef")


@pytest.mark.virtual_time
async def test_of_a_queue_nothing_is_kept_once_all_have_had_their_turn() -> None:
    """Neither of those who were joined, nor of those who left."""
    async with desk() as server, client_of(server.url, max_concurrent_joins=1) as client:
        await client.wait_connected()
        rooms = [client.join(name, EmptyAdaptor(), priority=number % 2) for number, name in enumerate("abcdef")]
        rooms.pop().leave()
        await all_joined(rooms)
        limiter = client._rooms.admission._limiter
        assert (limiter.queues, limiter.in_flight) == ({}, set())


# ---------------------------------------------------------------------------------------------------------------- pings

ROOMS = 10_000
A_REQUEST = 1 / 1024  # seconds that the server takes for each


@pytest.mark.virtual_time
@pytest.mark.parametrize("bound", [{}, {"max_concurrent_joins": None}], ids=["by default", "without a bound"])
async def test_pings_get_through_while_ten_thousand_rooms_rejoin(bound: dict[str, Any]) -> None:
    """LIVE-2: a ping waits behind what is not answered yet, 512 requests; without a bound, behind all of them."""
    asyncio.get_running_loop().set_debug(False)  # it costs many times what is done here
    async with desk(0) as server:
        client = client_of(server.url, **bound)
        rooms = [client.join(f"{number}", EmptyAdaptor()) for number in range(ROOMS)]
        async with client:
            await all_joined(rooms)
            server.seconds, server.at_a_time = A_REQUEST, True
            server.drop()
            await until(lambda: server.connects == 2)
            trips: list[float] = []
            while rooms[-1].status is not RoomStatus.JOINED:
                trips.append(await client.ping(PATIENCE))
            assert len(server.asked) == ROOMS
        if bound:
            assert max(trips) > 0.9 * ROOMS * A_REQUEST
        else:
            assert max(trips) < 1.5 * 512 * A_REQUEST
