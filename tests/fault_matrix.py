"""The fault matrix: what goes wrong, what the client and its rooms do about it, and how long that takes.

Each fault is declared once, as a `Fault`. `play` makes it happen to a client with a joined room and asserts what is
declared; ``python tests/fault_matrix.py`` prints the same declarations as ``docs/faults.md``. So the page cannot say
what was not seen to happen.

A declaration is about one life: a room is joined, the fault strikes, the client notices, the fault ends, and the client
recovers: by itself, or, if the fault was fatal, when asked to. Edits are made before, during and after it, at both ends
where the other one can, and all of them are in both documents at the end.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from loro import LoroDoc

from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm._asyncio.room_driver import Auth
from reconnect_fsm._asyncio.transport.url import UrlSource
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import StateChange
from reconnect_fsm.testing.virtual_time import VirtualTimeLoop

__all__ = ["DEFAULTS", "SMALL", "Fault", "Settings", "Stage", "edit", "fault_id", "page", "play", "seconds", "text_of"]

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "faults.md"
SOURCES: Final = ("test_faults_wire", "test_faults_system")  # the modules that hold a list FAULTS

ROOM: Final = "notes"
SECRET: Final = "s3cret"  # what no reason may show; for the query strings and credentials of stages

# Under virtual time a bound is kept to the millisecond. Under real time the machine may be busy with something else.
EXACT: Final = 0.001
SLACK_FACTOR: Final = 3.0
SLACK: Final = 10.0  # seconds
SHOWN: Final = 30  # steps, when a test fails
POLL: Final = 0.02  # seconds
RESYNCING: Final = RoomFSM.resyncing.name
ASKING: Final = tuple(state.name for state in RoomFSM.REQUESTING)
ABOUT: Final = "about "  # two seconds less at most: HTTP tells the time in whole seconds


# ------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """The settings that bounds are formulas of, in seconds; ``jitter`` is a fraction."""

    interval: float
    timeout: float
    connect_timeout: float
    close_timeout: float
    base: float
    cap: float
    jitter: float
    join_timeout: float
    rejoin_interval: float

    def backoff(self, attempt: int) -> tuple[float, float]:
        """The shortest and the longest wait before this attempt (D-JITTER)."""
        centre = min(self.base * 2 ** (attempt - 1), self.cap / (1 + self.jitter))
        return centre * (1 - self.jitter), centre * (1 + self.jitter)


def _defaults() -> Settings:
    keepalive, retry = Keepalive(), RetryPolicy()
    return Settings(
        interval=keepalive.interval,
        timeout=keepalive.timeout,
        connect_timeout=10.0,
        close_timeout=2.0,
        base=retry.base,
        cap=retry.cap,
        jitter=retry.jitter,
        join_timeout=RoomFSM.join_timeout,
        rejoin_interval=RoomFSM.rejoin_interval,
    )


DEFAULTS: Final = _defaults()
"""What a client has that was told nothing else; the page's numbers are these, and so are those of virtual time."""

SMALL: Final = Settings(
    interval=0.4,
    timeout=0.4,
    connect_timeout=1.0,
    close_timeout=0.2,
    base=0.02,
    cap=0.1,
    jitter=0.25,
    join_timeout=0.5,
    rejoin_interval=0.5,
)
"""What real time can wait for."""


def seconds(formula: str, settings: Settings) -> float:
    """The value of a sum of settings, ``2 × setting``, ``7 s`` and ``at once``."""
    total = 0.0
    for term in formula.split(" + "):
        factor, times, name = term.rpartition(" × ")
        if term.endswith(" s"):
            total += float(term.removesuffix(" s"))
        elif term != "at once":
            total += (float(factor) if times else 1.0) * getattr(settings, name)
    return total


# --------------------------------------------------------------------------------------------------------------- faults


class Stage:
    """Where a fault is played: a server that a client can reach, until something happens to it."""

    url: UrlSource
    options: Mapping[str, Any] = {}  # never written to
    """For `Client`, beside the settings: ``ssl=`` and the like."""
    auth: Auth = b""
    """For `Client.join`."""
    client: Client
    """The one that it is played with, and its settings."""
    settings: Settings

    def edit(self, words: str) -> bool:
        """Make an edit at the server's side that reaches the members of the room; False if this stage cannot."""
        return False

    def text(self) -> str | None:
        """What the server's copy of the document holds; None if this stage does not know."""
        return None


Act: TypeAlias = Callable[[Any], Awaitable[None]]  # what is done to a stage


async def nothing(_: Stage) -> None:
    """Nobody has to end this fault."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault, and everything that is promised about it."""

    group: str
    what: str
    """What happens; unique."""
    stage: Callable[[], AbstractAsyncContextManager[Any]] = field(repr=False)
    strike: Act = field(repr=False)
    """Makes it happen, to a client that is connected and whose room is joined."""
    says: str = ""
    """Part of the reason that the client, or the room, gives; empty if the fault does no harm."""
    within: str = "at once"
    """How long it takes until that is noticed, as a formula of the settings (see `seconds`).

    Counted from the strike's end or from the client's last step before it is noticed, whichever is later; so for a
    fault of the handshake from the begin of the attempt.
    """
    client: str = "connected → reconnecting → connected"
    """The statuses that the client goes through. If it ends in another than connected, it has to be asked to go on."""
    room: str = "joined → reconnecting → joined"
    """The statuses that the room goes through, likewise."""
    again: str = "backoff"
    """When the client tries again: ``backoff``, a longer wait that was asked for (``7 s``, ``about 30 s``), ``never``,
    or "" if it has no reason to. Where it is the room that says what is wrong, the room's next request: that of a join,
    or of a comparison of versions; likewise, or a formula of the settings (``at once``, ``rejoin_interval``)."""
    compares: bool = False
    """Whether the room compares versions while it is `joined`, in the session that goes on (D-RESYNC)."""
    heal: Act = field(default=nothing, repr=False)
    """Ends the fault, once it was noticed."""
    real: bool = True
    """Whether it is played on the kernel's sockets, in real time with `SMALL` settings."""
    virtual: bool = True
    """Whether it is played in virtual time, with the settings that a client has by default."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For `Client`, beside those of the stage."""

    @property
    def harmless(self) -> bool:
        """Neither the client nor the room changes its status, or says anything."""
        return not self.says


def fault_id(fault: Fault) -> str:
    """For pytest."""
    return f"{fault.group}: {fault.what}"


# ---------------------------------------------------------------------------------------------------------------- play


@dataclass(frozen=True)
class Step:
    """One change of state, of the client or of the room."""

    when: float
    of: str
    state: str
    reason: str
    change: StateChange | None = None


class Log:
    """What a client and its room went through."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.client = ["disconnected"]
        self.room = ["disconnected"]
        self._news = asyncio.Event()

    def begin(self, client: Client) -> None:
        """Note what the client says."""
        client.on_transition(lambda each: self._add(Step(_now(), "client", each.new, each.reason, each)))
        client.on_status(lambda change: self._status(self.client, change.new.value))

    def room_status(self, change: Any) -> None:
        """Note what the room says."""
        self._status(self.room, change.new.value)

    def room_step(self, state: str, reason: str) -> None:
        """Note what the room's machine does."""
        self._add(Step(_now(), "room", state, reason))

    def forget(self) -> None:
        """Begin anew, from the present statuses."""
        self.steps.clear()
        del self.client[:-1], self.room[:-1]

    async def until(self, true: Callable[[], object], patience: float, what: str) -> None:
        """Wait until something holds of the log; fail with the whole log if it does not within the time."""
        try:
            async with asyncio.timeout(patience):
                while not true():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come within {patience:g} s\n{self}") from None

    def __str__(self) -> str:
        lines = [f"  {step.when:.3f} {step.of}: {step.state}: {step.reason}" for step in self.steps[:SHOWN]]
        return "\n".join([f"  client {' → '.join(self.client)}", f"  room {' → '.join(self.room)}", *lines])

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._news.set()

    def _status(self, path: list[str], status: str) -> None:
        path.append(status)
        self._news.set()


def make_client(stage: Stage, settings: Settings, log: Log, options: Mapping[str, Any]) -> Client:
    """A client with these settings, whose every step is logged."""

    class LoggedRoom(RoomFSM):
        join_timeout = settings.join_timeout
        rejoin_interval = settings.rejoin_interval

        def state_changed(self) -> None:
            super().state_changed()
            log.room_step(self.state, self.reason)

    client = Client(
        stage.url,
        retry=RetryPolicy(base=settings.base, cap=settings.cap, jitter=settings.jitter, random=random.Random(0)),
        keepalive=Keepalive(interval=settings.interval, timeout=settings.timeout),
        connect_timeout=settings.connect_timeout,
        close_timeout=settings.close_timeout,
        room_fsm=LoggedRoom,
        **{**stage.options, **options},
    )
    log.begin(client)
    return client


async def play(fault: Fault, settings: Settings) -> None:
    """Make the fault happen, and assert all that is declared about it. Under virtual time the bounds are exact."""
    log, doc = Log(), LoroDoc()
    bound = seconds(fault.within, settings)
    patience = SLACK_FACTOR * (bound + settings.cap + settings.join_timeout + settings.connect_timeout) + SLACK
    async with fault.stage() as stage, make_client(stage, settings, log, fault.options) as client:
        stage.client, stage.settings = client, settings
        room = client.join(ROOM, LoroAdaptor(doc), auth=stage.auth, on_status=log.room_status)
        edit(doc, "before ")
        async with asyncio.timeout(patience):
            await room.synced()
        log.forget()

        await fault.strike(stage)
        struck = _now()
        edit(doc, "during ")
        if not fault.harmless:
            await log.until(lambda: _noticed(log, fault), patience, f"that somebody says {fault.says!r}")
            _check_noticed(log, fault, settings, struck)
            edit(doc, "noticed ")
        await fault.heal(stage)

        client_path, room_path = _path(fault.client), _path(fault.room)
        if fault.again.endswith(" s"):
            patience += seconds(fault.again.removeprefix(ABOUT), settings)
        # It may take another attempt on a busy machine, but no other status.
        await log.until(lambda: len(log.client) >= len(client_path), patience, f"the client's {fault.client}")
        await log.until(lambda: len(log.room) >= len(room_path), patience, f"the room's {fault.room}")
        if fault.harmless:
            await _prove_alive(stage, room, doc, patience, "proof ")
        if fault.compares:
            await log.until(lambda: _compared(log), patience, "that versions are compared")
        await _stays(log, client_path, room_path, settings)
        assert _compared(log) == fault.compares, log
        _check_asked_again(log, fault, settings)
        room = await _ask_to_go_on(stage, room, log, doc, patience)

        edit(doc, "after ")
        await _prove_alive(stage, room, doc, patience, "server ")
        expected = ["before ", "during ", "after ", *([] if fault.harmless else ["noticed "])]
        assert all(words in text_of(doc) for words in expected), text_of(doc)
        assert SECRET not in str(log), "a secret is shown"


def _noticed(log: Log, fault: Fault) -> Step | None:
    """The first step that gives this reason: the client's, for its rooms are told before anybody else is."""
    found = [step for step in log.steps if fault.says in step.reason]
    return next((step for step in found if step.of == "client"), found[0] if found else None)


def _check_noticed(log: Log, fault: Fault, settings: Settings, struck: float) -> None:
    """The bound on time, and when it is tried again."""
    noticed = _noticed(log, fault)
    assert noticed is not None
    before = [step.when for step in log.steps[: log.steps.index(noticed)] if step.of == "client"]
    took, bound = max(noticed.when - max([struck, *before]), 0.0), seconds(fault.within, settings)
    assert took <= (bound + EXACT if _is_virtual() else SLACK_FACTOR * bound + SLACK), f"{took} s\n{log}"
    assert took >= 0.9 * bound or not _is_virtual(), f"declared to take {bound} s, took {took} s\n{log}"

    if noticed.change is None:
        return  # it is the room's: see `_check_asked_again`
    wait = noticed.change.retry_in
    if fault.again in ("", "never"):
        assert wait is None, log
    else:
        assert wait is not None, log
        shortest, longest = settings.backoff(noticed.change.attempt)
        if fault.again != "backoff":
            asked = seconds(fault.again.removeprefix(ABOUT), settings)
            shortest = asked - (2.0 if fault.again.startswith(ABOUT) else 0.0)
            longest = max(asked * (1 + 2 * settings.jitter), longest)
        assert shortest <= wait <= longest, f"waits {wait} s\n{log}"


def _check_asked_again(log: Log, fault: Fault, settings: Settings) -> None:
    """When the room made its next request, if it is the room that noticed."""
    noticed = _noticed(log, fault)
    if fault.harmless or noticed is None or noticed.of == "client":
        return
    steps = [step for step in log.steps[log.steps.index(noticed) :] if step.of == "room"]
    asked = next((step for step in steps if step.state in ASKING), None)
    if fault.again == "":
        assert asked is None, f"the room asked again\n{log}"
        return
    assert asked is not None, f"the room never asked again\n{log}"
    waited = asked.when - noticed.when
    if fault.again == "backoff":
        shortest, longest = settings.backoff(1)
    else:
        longest = seconds(fault.again, settings)
        shortest = 0.9 * longest
    slack = EXACT if _is_virtual() else SLACK_FACTOR * longest + SLACK
    assert shortest - EXACT <= waited <= longest + slack, f"the room waited {waited} s\n{log}"


def _compared(log: Log) -> bool:
    """The room compared versions while it was joined, and has the answer."""
    states = [step.state for step in log.steps if step.of == "room"]
    return RESYNCING in states and states[-1] == RoomFSM.joined.name


async def _stays(log: Log, client_path: list[str], room_path: list[str], settings: Settings) -> None:
    """It went through these statuses, and goes through no others by itself."""
    if _is_virtual():
        await asyncio.sleep(2 * (settings.interval + settings.timeout))
    elif client_path[-1] != "connected":
        await asyncio.sleep(3 * settings.cap)
    assert log.client == client_path, log
    assert log.room == room_path, log


async def _ask_to_go_on(stage: Stage, room: Room, log: Log, doc: LoroDoc, patience: float) -> Room:
    """What a person does after a fatal fault, and how it ends."""
    client = stage.client
    async with asyncio.timeout(patience):
        if log.client[-1] != "connected":
            log.forget()
            stopped = log.client[-1]
            await client.retry_now()
            await log.until(lambda: log.client[-1] == "connected", patience, "the client's connected")
            assert log.client == [stopped, "connecting", "connected"], log
            if room.status.value != "error":
                await room
                assert log.room == ["disconnected", "connecting", "joined"], log
        if log.room[-1] == "error":
            assert room not in client.rooms, "a room in error is not tracked"
            log.room[:] = ["disconnected"]
            room = await client.join(ROOM, LoroAdaptor(doc), auth=stage.auth, on_status=log.room_status)
            assert log.room == ["disconnected", "connecting", "joined"], log
    return room


async def _prove_alive(stage: Stage, room: Room, doc: LoroDoc, patience: float, words: str) -> None:
    """Edits pass both ways, and all is in both documents."""
    async with asyncio.timeout(patience):
        await room.synced()
        if stage.edit(words):
            while words not in text_of(doc):  # noqa: ASYNC110  # loro's events come in no loop
                await asyncio.sleep(POLL)
        await room.synced()
    assert stage.text() in (None, text_of(doc))


def edit(doc: LoroDoc, words: str) -> None:
    """Write something at the end of the document."""
    doc.get_text("text").push_str(words)
    doc.commit()


def text_of(doc: LoroDoc) -> str:
    """What is written in the document."""
    return str(doc.get_text("text").to_string())


def _path(statuses: str) -> list[str]:
    return statuses.split(" → ")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_virtual() -> bool:
    return isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


# ---------------------------------------------------------------------------------------------------------------- page


def _rejoins(fault: Fault) -> bool:
    return (_path(fault.client)[-1], _path(fault.room)[-1]) == ("connected", "joined")


def _reconnects(fault: Fault) -> bool:
    return _rejoins(fault) and len(_path(fault.client)) > 1


def _compares(fault: Fault) -> bool:
    return fault.compares and _path(fault.room) == ["joined"]


HEAD = """# What goes wrong, and what happens then

{kinds} kinds of faults in {groups} groups. Generated by `python tests/fault_matrix.py` from the declarations that
`tests/system/test_faults_wire.py` and `tests/system/test_faults_system.py` play, each with a client that has a joined
room, and assert: every status, the reason, the bound on time, when it is tried again, that edits made before, during
and after the fault are in both documents in the end, that a client which was stopped stays so until it is asked to go
on and then does, and that no task, timer, socket, descriptor or thread is left.

*Noticed within* is counted from the fault, or from the beginning of the attempt that meets it; in seconds with the
settings that a client has by default:
{settings}.
*Tries again*: `backoff` is {base:g} s, doubling up to {cap:g} s, with {jitter:.0%} jitter either way; a time that the
server asked for is kept, and up to twice the jitter is added to it; `never` means not before `connect()` or
`retry_now()`, which the tests then call; `–` that no wait is announced. Where the connection stays, it is the room that
asks again: to be let in, or, if *compares versions* stands with its statuses, for a comparison within the session,
which goes on meanwhile.
*Says*: words that the reason contains; there may be more before and after them.
"""

OUTCOMES: Final[tuple[tuple[str, Callable[[Fault], bool]], ...]] = (
    ("no harm is done: neither the client nor the room changes its status", lambda fault: fault.harmless),
    ("the client recovers by itself, and the room is joined again", _reconnects),
    ("the connection stays, the room stays joined, and compares versions", _compares),
    ("the room is in `error`, and the client goes on", lambda fault: _path(fault.client)[-1] == "connected"),
    ("the client is in `error`: it cannot work as it is configured", lambda fault: _path(fault.client)[-1] == "error"),
    ("the client is `disconnected` until it is asked to go on", lambda fault: True),
)

COLUMNS = ("#", "fault", "client", "room", "noticed within", "tries again", "says")


def page(faults: list[Fault]) -> str:
    """The page, as Markdown."""
    named = ("interval", "timeout", "connect_timeout", "close_timeout", "join_timeout", "rejoin_interval")
    groups = list(dict.fromkeys(fault.group for fault in faults))
    lines = [
        HEAD.format(
            kinds=len(faults),
            groups=len(groups),
            settings=", ".join(f"`{name}` {getattr(DEFAULTS, name):g}" for name in named),
            **{name: value for name, value in asdict(DEFAULTS).items() if name not in named},
        )
    ]
    outcomes = [next(words for words, is_it in OUTCOMES if is_it(fault)) for fault in faults]
    lines += [_line(("in the end", "kinds")), "| --- | ---: |"]
    lines += [_line((words, str(outcomes.count(words)))) for words, _ in OUTCOMES]
    titles = [f"{group} ({sum(fault.group == group for fault in faults)})" for group in groups]
    lines += ["", *(f"- [{title}](#{_anchor(title)})" for title in titles), ""]
    number = 0
    for group, title in zip(groups, titles, strict=True):
        members = [fault for fault in faults if fault.group == group]
        lines += [f"## {title}\n", _line(COLUMNS), _line(("---",) * len(COLUMNS))]
        for fault in members:
            number += 1
            lines.append(_line((str(number), fault.what, *_cells(fault))))
        lines.append("")
    return "\n".join(lines)


def _anchor(title: str) -> str:
    """Of the heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _cells(fault: Fault) -> tuple[str, ...]:
    within = "no harm is done" if fault.harmless else fault.within
    value = seconds(fault.within, DEFAULTS)
    if value and not fault.harmless and not fault.within.endswith(" s"):
        within += f" = {value:g} s"
    room = f"{fault.room}; compares versions" if fault.compares else fault.room
    return fault.client, room, within, fault.again or "–", fault.says or "–"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def declared() -> list[Fault]:
    """Every fault of both files."""
    return [fault for source in SOURCES for fault in importlib.import_module(source).FAULTS]


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(declared()))
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    importlib.import_module("fault_matrix").main()  # the one that the sources import
