"""What can go wrong in a simulation, and what its users do: every kind, with how often it happens.

A kind is a function of the `World` and of a source of randomness of its own, from which it draws its parameters. It
acts at once; what lasts longer is undone by the world before the network is good again. The plan of a storm is drawn
before it begins, so what happens does not change what comes later.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, TypeAlias

from reconnect_fsm.errors import Unauthorized
from reconnect_fsm.loro_protocol import (
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragmentHeader,
    JoinError,
    JoinErrorCode,
    JoinResponseOk,
    RoomError,
    RoomErrorCode,
    UpdateStatusCode,
    encode,
)
from reconnect_fsm.testing.simulation.sabotage import SECRET, Sabotage

if TYPE_CHECKING:
    from reconnect_fsm.testing.simulation.users import User
    from reconnect_fsm.testing.simulation.world import World

__all__ = ["CALLS", "FAULTS", "KINDS", "Kind", "StormStep", "plan"]

Deed: TypeAlias = Callable[["World", Random], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault, or of call."""

    name: str
    weight: float
    do: Deed


FAULTS: Final[dict[str, Kind]] = {}
"""What the network, the server and the program's own functions do."""
CALLS: Final[dict[str, Kind]] = {}
"""What users do."""


@dataclass(frozen=True)
class StormStep:
    """One thing that happens."""

    index: int
    at: float
    """Seconds after the storm began."""
    kind: str


def _fault(weight: float = 1.0) -> Callable[[Deed], Deed]:
    return _kind(FAULTS, weight)


def _call(weight: float = 1.0) -> Callable[[Deed], Deed]:
    return _kind(CALLS, weight)


def _kind(kinds: dict[str, Kind], weight: float) -> Callable[[Deed], Deed]:
    def add(do: Deed) -> Deed:
        name = do.__name__.strip("_").replace("_", " ")
        kinds[name] = Kind(name, weight, do)
        return do

    return add


def plan(random: Random) -> list[StormStep]:
    """What happens in one storm. Each has favourite kinds, some have few kinds, so rare combinations come, too."""
    kinds = list(KINDS.values())
    if random.random() < 0.5:
        kinds = random.sample(kinds, random.choice((3, 6, 12)))
    weights = [kind.weight * random.choice((0.01, 0.2, 1.0, 1.0, 5.0)) for kind in kinds]
    gap = random.choice((0.02, 0.3, 2.0, 2.0, 6.0, 12.0))
    steps, at = [], 0.0
    for index in range(random.randrange(15, 60)):
        at += random.expovariate(1 / gap)
        steps.append(StormStep(index, at, random.choices(kinds, weights)[0].name))
    return steps


# The server


@_fault(2)
def _stop_the_server(world: World, random: Random) -> None:
    world.stop_server(*_closing(random), random.choice((0.0, 0.5, 3.0, 20.0, 60.0)) * random.uniform(0.5, 1.5))


@_fault()
def _forget(world: World, random: Random) -> None:
    world.server.forget()
    world.needs_rejoin = True


@_fault(4)
def _freeze(world: World, random: Random) -> None:
    world.freeze(random.choice((0.5, 5.0, 30.0, 90.0)) * random.uniform(0.5, 1.5))


@_fault(2)
def _reset_all(world: World, random: Random) -> None:
    world.server.reset_all()


@_fault(3)
def _close_all(world: World, random: Random) -> None:
    world.close_all(*_closing(random))


@_fault(2)
def _refuse_upgrades(world: World, random: Random) -> None:
    status = random.choice((200, 204, 301, 307, 400, 401, 403, 404, 418, 426, 429, 429, 500, 502, 503, 503, 504))
    after = random.choice((None, None, "0", "1", "7", "120", "99999999999", "soon", "-3", *DATES))
    headers = {} if after is None else {"Retry-After": after}
    if status in (301, 307):
        headers["Location"] = "http://127.0.0.99:1/elsewhere"
    world.server.refuse_upgrades(status, headers)
    world.undo(random.uniform(1, 40), lambda: world.server.refuse_upgrades(None))


DATES: Final = ("Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 31 Dec 2099 23:59:59 GMT")  # long ago, and in a long time


@_fault()
def _drop_on_accept(world: World, random: Random) -> None:
    world.server.drop_on_accept = True
    world.undo(random.uniform(1, 60), lambda: setattr(world.server, "drop_on_accept", False))


@_fault()
def _ignore_joins(world: World, random: Random) -> None:
    world.server.ignore_joins = True
    world.undo(random.uniform(1, 60), lambda: setattr(world.server, "ignore_joins", False))


@_fault()
def _hold_acks(world: World, random: Random) -> None:
    world.server.hold_acks = True
    world.undo(random.uniform(1, 60), world.release_acks)


@_fault()
def _refuse_joins(world: World, random: Random) -> None:
    world.verdict = random.choice((None, "read", Sabotage, "slow"))
    world.needs_rejoin = True
    world.undo(random.uniform(0.1, 20), lambda: setattr(world, "verdict", "write"))


@_fault(2)
def _room_error(world: World, random: Random) -> None:
    crdt, room = world.a_room(random)
    code = random.choice((RoomErrorCode.REJOIN_SUGGESTED, *RoomErrorCode))
    world.send(RoomError(crdt, room, code, _words(random)))


@_fault()
def _join_error(world: World, random: Random) -> None:
    crdt, room = world.a_room(random)
    code = random.choice(tuple(JoinErrorCode))
    version = random.choice((None, b"", b"\xff\x00")) if code is JoinErrorCode.VERSION_UNKNOWN else None
    app_code = "quota" if code is JoinErrorCode.APP_ERROR else None
    world.send(JoinError(crdt, room, code, _words(random), receiver_version=version, app_code=app_code))
    world.needs_rejoin = True  # the server thinks that they are in the room


@_fault()
def _made_up_answer(world: World, random: Random) -> None:
    crdt, room = world.a_room(random)
    world.send(
        random.choice(
            (
                JoinResponseOk(crdt, room, "write", b""),
                JoinResponseOk(crdt, room, "read", b"\xff\xff"),
                Ack(crdt, room, random.getrandbits(64), random.choice(tuple(UpdateStatusCode))),
                DocUpdate(crdt, room, (b"garbage" + random.randbytes(4), b""), random.getrandbits(64)),
                DocUpdate(crdt, "nobody is in here", (b"x",), 1),
                DocUpdateFragmentHeader(crdt, room, random.getrandbits(64), 3, 1000),
            )
        )
    )
    world.needs_rejoin = True


@_fault()
def _malformed_frame(world: World, random: Random) -> None:
    whole = encode(DocUpdate(CrdtType.LORO, "notes", (b"0123456789",), 7))
    data: bytes | str = random.choice(
        (
            random.randbytes(random.randrange(40)),
            whole[: random.randrange(len(whole))],
            whole + b"more",
            b"%XXX" + whole[4:],
            "pong",
            "ping",
            "no word of the protocol",
            "",
        )
    )
    world.spawn(world.server.send_raw(data))


@_fault(0.3)
def _huge_frame(world: World, random: Random) -> None:
    world.spawn(world.server.send_raw(bytes(4 * 1024 * 1024 + 17)))


def _closing(random: Random) -> tuple[int, str]:
    code = random.choice((1000, 1001, 1001, 1005, 1006, 1011, 1012, 1013, 1015, 0, 999, 2999, 3000, 5000, 65535))
    if random.random() < 0.15:
        code = random.choice((1008, 4400, 4401, 4499))
    reasons = ("", "", "going away", "permission_changed", "room_closed", "ü" * 61, "a\nb\0c", _words(random))
    return code, random.choices(reasons, (9, 9, 9, 0.5, 0.5, 1, 1, 6))[0]


def _words(random: Random) -> str:
    """A reason of the server: it may repeat what the client sent."""
    told = f"Bearer {SECRET}", f"c-{SECRET}", f"auth-{SECRET}", f"bearer.{SECRET}", SECRET
    return random.choice(("by the nemesis", *(f"not let in with {each}" for each in told)))


@_fault(3)
def _chatter(world: World, random: Random) -> None:
    """Texts, several at once, at which the program calls its client; then a close, perhaps."""
    if random.random() < 0.7:
        user = world.a_user(random)
        deeds = [DEEDS[random.choice(("connect", "go online", "edit", "ping", "join", "send"))] for _ in range(4)]

        def meddle() -> None:
            for deed in deeds:
                deed(user, 0)

        user.mischief["on_message"] = [meddle] * random.choice((30, 500))
    for _ in range(random.choice((1, 1, 4))):
        count = random.choice((3, 50, 100, 300))
        world.server.say(f"text {world.texts + number}" for number in range(count))
        world.texts += count
    if random.random() < 0.6:
        code, reason = _closing(random)
        world.note("nemesis", f"the server closes with {code} {reason!r}, behind its texts")
        world.server.close_each(code, reason)


def _be_slow(world: World, random: Random) -> None:
    """One link has little bandwidth for a while, perhaps."""
    if random.random() < 0.6:
        link = world.a_user(random).link
        link.rate = random.choice((5_000.0, 20_000.0))
        world.undo(random.uniform(100, 300), link.restore)


@_fault()
def _large_text(world: World, random: Random) -> None:
    """What takes a slow link longer than a pong may take."""
    size = random.choice((100_000, 400_000, 2_000_000))
    _be_slow(world, random)
    world.note("nemesis", f"the server says {size} letters")
    world.server.say([f"text {world.texts} ".ljust(size, "x")])
    world.texts += 1


@_fault(2)
def _refuse_batches(world: World, random: Random) -> None:
    refused = [status for status in UpdateStatusCode if status is not UpdateStatusCode.OK]
    for _ in range(random.choice((1, 1, 3))):
        world.server.refusals.append(random.choice(refused))
    world.has_refused = True


@_fault()
def _limit_rates(world: World, random: Random) -> None:
    world.server.is_limiting = True
    world.undo(random.uniform(1, 60), lambda: setattr(world.server, "is_limiting", False))


@_fault(2)
def _harm_updates(world: World, random: Random) -> None:
    for _ in range(random.choice((1, 1, 3))):
        world.server.harm.append(random.choice(("damaged", "lost")))
    world.needs_edits = True


@_fault()
def _refuse_the_next_joins(world: World, random: Random) -> None:
    for _ in range(random.choice((1, 1, 3))):
        world.server.join_refusals.append(random.choice(tuple(JoinErrorCode)))
    world.server.words = _words(random)


@_fault(0.5)
def _gateway(world: World, random: Random) -> None:
    """A gateway in between takes no large messages."""
    world.server.max_bytes = random.choice((20_000, 70_000))
    world.undo(random.uniform(1, 60), lambda: setattr(world.server, "max_bytes", None))


# The network


@_fault(8)
def _blackhole(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.link.block()
    world.look()
    world.undo(random.choice((1.0, 10.0, 45.0, 150.0)) * random.uniform(0.5, 1.5), user.link.unblock)


@_fault(3)
def _cut(world: World, random: Random) -> None:
    world.a_user(random).link.cut()


@_fault(3)
def _slow_link(world: World, random: Random) -> None:
    link = world.a_user(random).link
    link.latency = random.choice((0.001, 0.05, 0.3, 0.3, 2.0, 6.0)) * random.uniform(0.8, 1.2)
    link.max_piece = random.choice((None, None, 1, 7, 1000))
    link.rate = random.choice((None, 1000.0, 5000.0, 20_000.0, 50_000.0))
    world.undo(random.choice((10, 60, 300)) * random.uniform(0.5, 1.5), link.restore)


@_fault(2)
def _stall(world: World, random: Random) -> None:
    seconds = random.choice((0.1, 1.0, 5.0, 12.0, 40.0, 600.0)) * random.uniform(0.5, 1.5)
    world.note("nemesis", f"the loop is blocked for {seconds:.6f} s")
    world.loop.stall(seconds)


# The program's own functions


@_fault()
def _url_function(world: World, random: Random) -> None:
    trouble = random.choice((Sabotage(), Sabotage(), Unauthorized(), 0.0, 3.0, 30.0, TimeoutError()))
    world.a_user(random).url_trouble = trouble


@_fault()
def _adaptor_raises(world: World, random: Random) -> None:
    user = world.a_user(random)
    adaptor = user.adaptors[random.randrange(len(user.adaptors))]
    methods = "version", "missing_from", "apply", "refused", "alternative_version", "covers"
    adaptor.trouble = random.choice(methods)
    world.needs_rejoin = True
    world.undo(60, lambda: setattr(adaptor, "trouble", None))


@_fault(6)
def _callback(world: World, random: Random) -> None:
    """Code of the user's that raises, or calls back into the client, at its next calls."""
    user = world.a_user(random)
    place = random.choice(tuple(user.mischief))
    deed = random.choice(("raise", "raise", "raise", *DEEDS))
    error = random.choice(ERRORS)
    index = random.randrange(len(user.adaptors))

    def meddle() -> None:
        world.note(user.name, f"{place} does this: {deed}")
        if deed == "raise":
            raise world.sabotage(f"{place} of {user.name}", error())
        DEEDS[deed](user, index)

    user.mischief[place] += [meddle] * random.choice((1, 1, 2, 20))


ERRORS: Final[tuple[Callable[[], BaseException], ...]] = (
    Sabotage,
    lambda: BaseException("as loro's are"),
    StopIteration,
    CancelledError,
)
DEEDS: Final[dict[str, Callable[[User, int], object]]] = {
    "close": lambda user, _: user.close(),
    "connect": lambda user, _: user.connect(),
    "retry_now": lambda user, _: user.retry_now(),
    "close and connect": lambda user, _: user.reopen(),
    "join": lambda user, index: user.join(index),
    "leave": lambda user, index: user.leave(index),
    "go offline": lambda user, _: user.set_online(False),
    "go online": lambda user, _: user.set_online(True),
    "ping": lambda user, _: user.ping(5.0),
    "send": lambda user, _: user.send("a text"),
    "synced": lambda user, index: user.synced(index),
    "edit": lambda user, index: user.edit(index),
    "edit without commit": lambda user, index: user.edit(index, commit=False),
    "import": lambda user, index: user.import_into(index),
}


# Users


def _patience(random: Random) -> float | None:
    """After how many seconds the caller is cancelled; None: never."""
    return random.choice((None, None, None, 0.0, 0.001, 0.03, 0.5, 5.0))


@_call(2)
def _connect(world: World, random: Random) -> None:
    world.a_user(random).connect(random.random() < 0.3, patience=_patience(random))


@_call(2)
def _retry_now(world: World, random: Random) -> None:
    world.a_user(random).retry_now(patience=_patience(random))


@_call()
def _start(world: World, random: Random) -> None:
    world.a_user(random).start()


@_call(1.5)
def _close(world: World, random: Random) -> None:
    world.a_user(random).close(patience=_patience(random))


@_call(2)
def _go_offline(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.set_online(False)
    world.undo(random.choice((0.0, 0.1, 10.0, 60.0)), lambda: user.set_online(True))


@_call()
def _go_online(world: World, random: Random) -> None:
    world.a_user(random).set_online(True)


@_call(2)
def _ping(world: World, random: Random) -> None:
    world.a_user(random).ping(random.choice((0.01, 1.0, 5.0, 30.0)), patience=_patience(random))


@_call()
def _wait_connected(world: World, random: Random) -> None:
    world.a_user(random).wait_connected(patience=_patience(random))


@_call(3)
def _join(world: World, random: Random) -> None:
    user = world.a_user(random)
    auth = random.choice(("bytes", "bytes", "function", "slow", "very slow", "raises", "unauthorized"))
    user.join(random.randrange(len(user.adaptors)), auth, patience=_patience(random))


@_call(1.5)
def _leave(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.leave(random.randrange(len(user.adaptors)), patience=_patience(random))


@_call(2)
def _synced(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.synced(random.randrange(len(user.adaptors)), patience=_patience(random))


@_call(6)
def _edit(world: World, random: Random) -> None:
    user = world.a_user(random)
    for _ in range(random.choice((1, 1, 1, 20))):
        user.edit(random.randrange(len(user.adaptors)))


@_call(0.3)
def _large_edit(world: World, random: Random) -> None:
    """More than fits one message: it travels in fragments."""
    _be_slow(world, random)
    world.a_user(random).edit(0, size=300_000)


@_call()
def _edit_without_commit(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.edit(random.randrange(len(user.adaptors)), commit=False)


@_call(0.2)
def _crowd(world: World, random: Random) -> None:
    """Some hundred rooms more, until the network is good."""
    world.a_user(random).crowd(random.choice((200, 1000)))


@_call()
def _send(world: World, random: Random) -> None:
    world.a_user(random).send("a text", patience=_patience(random))


@_call()
def _close_and_connect(world: World, random: Random) -> None:
    world.a_user(random).reopen()


@_call()
def _two_at_once(world: World, random: Random) -> None:
    """Two calls without a pass of the event loop in between."""
    user = world.a_user(random)
    for _ in range(2):
        deed = random.choice(tuple(DEEDS))
        DEEDS[deed](user, random.randrange(len(user.adaptors)))


@_call(1.5)
def _import(world: World, random: Random) -> None:
    user = world.a_user(random)
    user.import_into(random.randrange(len(user.adaptors)))


KINDS: Final[dict[str, Kind]] = {**FAULTS, **CALLS}
