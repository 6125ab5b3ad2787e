"""What ``reconnect-fsm demo`` shows: a client lives through real outages, in eight acts, and loses nothing.

Everything is real and in this process: a server on a port of this machine, two clients, and a Loro document that both
edit. An act is a plain function that does something to the server or the network, waits for what should come of it
and states what it expects. `ACTS`, at the end, is the programme. The first expectation that fails ends the demo.

As an example of how to use the library, begin with `Author`, then read the acts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TextIO

from loro import LoroDoc

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.status import ClientStatus, RoomStatus, StateChange, StatusChange
from reconnect_fsm.testing.embedded_server import EmbeddedServer

__all__ = ["ACTS", "Act", "Unexpected", "run"]

ROOM: Final = "story"
TEXT: Final = "text"  # the name of the text in the document

# Short, so that you need not wait; the defaults suit real networks. All in seconds.
BASE, CAP, STABLE_AFTER = 0.2, 1.0, 0.5
PING_INTERVAL, PONG_TIMEOUT = 0.5, 0.5
READING_TIME = 1.0  # for the user, before each act
NOTICED_WITHIN: Final = 3.0  # half-open: ping and pong take 1 s at most; the rest is for busy machines
PAUSE: Final = CAP + 0.5  # long enough for an attempt, if one were made
EXPECTATION_TIMEOUT = 10.0  # of each expectation
ACT_TIMEOUT = 30.0  # of an act, which bounds every other wait
POLL_INTERVAL: Final = 0.02  # between two checks of an expectation

logger = logging.getLogger("reconnect_fsm")


class Author:
    """One author of the document: a client, a room, and a copy of the document."""

    def __init__(self, name: str, url: str, seed: int) -> None:
        self.name = name
        self.doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
        self.client = Client(
            url,
            retry=RetryPolicy(base=BASE, cap=CAP, stable_after=STABLE_AFTER, random=Random(seed)),
            keepalive=Keepalive(interval=PING_INTERVAL, timeout=PONG_TIMEOUT),
            connect_timeout=2.0,
            close_timeout=1.0,
        )

    def join(self, on_status: Callable[[StatusChange[RoomStatus]], object] | None = None) -> None:
        """Join the room. It may be called at any time: the request is sent once the client is connected."""
        self.client.join(ROOM, LoroAdaptor(self.doc), on_status=on_status)

    def append(self, line: str) -> None:
        """Add a line. What is committed is sent, now or after the next reconnect."""
        self.doc.get_text(TEXT).push_str(line + "\n")
        self.doc.commit()

    @property
    def text(self) -> str:
        return self.doc.get_text(TEXT).to_string()


# The acts -------------------------------------------------------------------------------------------------------------


async def connect_and_join(stage: Stage) -> None:
    """CONN-2, JOIN-1: a room can be asked for before there is a connection."""
    stage.tell("alice", "joins the room, before there is a connection")
    stage.alice.join(on_status=stage.show_room_change)
    stage.bob.join()
    stage.alice.client.start()
    stage.bob.client.start()
    await stage.alice.client.wait_connected()
    stage.write(stage.alice, "hello, is anyone there?")
    stage.write(stage.bob, "I am.")
    await stage.until_all_is_well()
    attempts = [change.new for change in stage.changes].count("connecting")
    stage.expect("connected and joined at the first attempt, and both edits are everywhere", attempts == 1)


async def server_down(stage: Stage) -> None:
    """CONN-3, RETRY-1, D-ACK: attempts go on, further and further apart; edits are kept."""
    stage.tell("server", "stops: nothing listens on its port")
    await stage.server.stop(1012, "maintenance")
    stage.write(stage.alice, "the server is down, and I write on")
    stage.write(stage.bob, "so do I")
    await stage.until("three attempts have failed", lambda: stage.count("dial_failed") >= 3)
    waits = [change.retry_in for change in stage.changes if change.retry_in is not None]
    stage.tell("server", "starts again")
    await stage.server.start()
    await stage.until_all_is_well()
    in_words = ", ".join(f"{wait:.2f}" for wait in waits)
    stage.expect(f"the waits grew: {in_words} s; then it was back", waits[0] < waits[1] < waits[2])


async def reset(stage: Stage) -> None:
    """CONN-3, REJOIN-2, D-ACK: the edit goes into a dead socket, and arrives all the same."""
    stage.tell("server", "resets all its connections")
    stage.server.reset_all()
    stage.write(stage.alice, "that was a hard reset")
    await stage.until("the loss is noticed", lambda: stage.count("socket_closed") > 0)
    await stage.until_all_is_well()
    stage.expect("noticed without waiting for a ping, and back", stage.changes[0].event == "socket_closed")


async def half_open(stage: Stage) -> None:
    """LIVE-1, LIVE-2, OK-2: only a ping can tell."""
    stage.tell("server", "freezes: TCP stays up, nothing is read or answered")
    stage.server.freeze()
    frozen_at = time.monotonic()
    stage.write(stage.alice, "is this line still alive?")
    await stage.until("the silence is noticed", lambda: stage.count("pong_missed") > 0)
    took = time.monotonic() - frozen_at
    stage.tell("server", "thaws")
    stage.server.thaw()
    await stage.until_all_is_well()
    stage.expect(f"noticed after {took:.1f} s, by a missing pong; and back", took < NOTICED_WITHIN)


async def amnesia(stage: Stage) -> None:
    """D-CODES, REJOIN-2: going away is no reason to give up, and the rejoin brings what the server lacks."""
    stage.tell("server", "restarts, with close code 1001, and has forgotten the room")
    await stage.server.stop()
    stage.server.forget()
    stage.write(stage.bob, "the server forgets, we do not")
    await stage.server.start()
    await stage.until_all_is_well()
    stage.expect("1001 is not fatal, and the server has the whole text again", "1001" in stage.changes[0].reason)


async def offline(stage: Stage) -> None:
    """OFF-1, OFF-2, OK-1: no attempts while offline, one at once when online."""
    stage.tell("alice", "client.set_online(False): the cable is out")
    stage.alice.client.set_online(False)
    stage.write(stage.alice, "written on the train, in a tunnel")
    stage.write(stage.bob, "written at home, meanwhile")
    await asyncio.sleep(PAUSE)
    states_offline = [change.new for change in stage.changes]
    stage.tell("alice", "client.set_online(True)")
    stage.alice.client.set_online(True)
    await stage.until_all_is_well()
    states = [change.new for change in stage.changes]
    stage.expect(
        "no attempt while offline; online again, one at once",
        states_offline == ["paused"] and states[:3] == ["paused", "retrying", "connected"],
    )


async def fatal_close(stage: Stage) -> None:
    """CONN-4, RETRY-3, RETRY-4: after a fatal close no attempt is made."""
    stage.tell("server", "closes all connections with code 4401")
    await stage.server.close_all(4401, "token expired")
    stage.write(stage.alice, "disconnected, but I can still write")
    await asyncio.sleep(PAUSE)
    stage.expect("disconnected, and no attempt was made", [change.new for change in stage.changes] == ["disconnected"])


async def manual_retry(stage: Stage) -> None:
    """CTRL-1, OK-3: a manual retry connects again after a fatal close."""
    stage.tell("both", "client.retry_now()")
    await asyncio.gather(stage.alice.client.retry_now(), stage.bob.client.retry_now())
    await stage.until_all_is_well()
    states = [change.new for change in stage.changes]
    stage.expect("connected at the first attempt, and joined again", states == ["connecting", "connected"])


@dataclass(frozen=True)
class Act:
    title: str
    plot: str
    """What will happen, and what the client should do."""
    play: Callable[[Stage], Awaitable[None]]


ACTS = (
    Act(
        "Connect and join",
        "The server is up; the client should connect, join the room it asked for, and pass edits both ways.",
        connect_and_join,
    ),
    Act(
        "The server is down",
        "The server is gone for a while; the client should try again and again, each time after a longer wait.",
        server_down,
    ),
    Act(
        "Reset",
        "The TCP connections are reset without a word; the client should notice at once and come back.",
        reset,
    ),
    Act(
        "Half-open",
        "The server falls silent while TCP stays up; only a ping without a pong can tell, and the client should.",
        half_open,
    ),
    Act(
        "Restart",
        "The server restarts and has lost all its data; the client should come back and bring the document along.",
        amnesia,
    ),
    Act(
        "Offline, online",
        "The network goes away; the client should not try in vain, and dial the moment the network is back.",
        offline,
    ),
    Act(
        "Fatal close",
        "The server says that the token has expired; the client should stay disconnected.",
        fatal_close,
    ),
    Act(
        "Manual retry",
        "The user has logged in again and asks for a fresh attempt; the client should connect again.",
        manual_retry,
    ),
)


# The stage ------------------------------------------------------------------------------------------------------------


class Unexpected(Exception):
    """An expectation failed; the message says which."""


class Stage:
    """What the acts use: the server, both authors, and the transitions of Alice's client."""

    def __init__(self, server: EmbeddedServer, screen: Screen, seed: int) -> None:
        self.server = server
        self.screen = screen
        self.alice = Author("alice", server.url, seed)
        self.bob = Author("bob", server.url, seed + 1)
        self.written: list[str] = []
        """Every line that was written, by either author."""
        self.all_changes: list[StateChange] = []
        self.changes: list[StateChange] = []
        """Those of the present act."""
        self.alice.client.on_transition(self._changed)

    async def play(self, number: int, act: Act) -> None:
        """Raises `Unexpected` if an expectation fails."""
        self.screen.headline(f"{number}  {act.title}", act.plot)
        await asyncio.sleep(READING_TIME)
        self.changes = []
        try:
            async with asyncio.timeout(ACT_TIMEOUT):
                await act.play(self)
        except TimeoutError:
            raise Unexpected(f"the act did not end within {ACT_TIMEOUT:g} s") from None

    async def close(self) -> None:
        """Close both clients, at the same time."""
        await asyncio.gather(self.alice.client.close(), self.bob.client.close())

    # What acts do

    def tell(self, who: str, what: str) -> None:
        """Say on the screen what an actor does."""
        self.screen.note(who, what)

    def write(self, author: Author, text: str) -> None:
        """Have an author edit the document."""
        self.tell(author.name, f'writes "{text}"')
        self.written.append(f"{author.name}: {text}")
        author.append(self.written[-1])

    # What acts expect

    def expect(self, what: str, ok: bool) -> None:
        """Show whether it is so. Raises `Unexpected` if not."""
        if not ok:
            raise Unexpected(what)
        self.screen.verdict(what, ok=True)

    async def until(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait until it has happened. Raises `Unexpected` after `EXPECTATION_TIMEOUT` seconds."""
        for _ in range(round(EXPECTATION_TIMEOUT / POLL_INTERVAL)):
            if happened():
                return
            await asyncio.sleep(POLL_INTERVAL)
        raise Unexpected(f"waited {EXPECTATION_TIMEOUT:g} s in vain until {what}")

    async def until_all_is_well(self) -> None:
        """Wait until both are in the room again, and every line that was written is everywhere."""
        await self.until("both are in the room and every copy has every line", self.is_all_well)

    def is_all_well(self) -> bool:
        rooms = (*self.alice.client.rooms, *self.bob.client.rooms)
        return all(room.status is RoomStatus.JOINED for room in rooms) and self.do_all_copies_agree()

    def do_all_copies_agree(self) -> bool:
        """Whether Alice, Bob and the server have the same text, with every line that was written, once."""
        alice, bob, server = self.copies
        return alice == bob == server and sorted(alice.splitlines()) == sorted(self.written)

    @property
    def copies(self) -> tuple[str, str, str]:
        return self.alice.text, self.bob.text, self.server.document(ROOM).get_text(TEXT).to_string()

    def count(self, event: str) -> int:
        """How often Alice's client changed its state because of this event, in the present act."""
        return sum(change.event == event for change in self.changes)

    # What is shown

    def show_room_change(self, change: StatusChange[RoomStatus]) -> None:
        self.screen.change("room", change, change.new)

    def _changed(self, change: StateChange) -> None:
        self.all_changes.append(change)
        self.changes.append(change)
        self.screen.change("client", change, change.status)


@dataclass(frozen=True)
class Alive:
    """Counts of what a program can leak."""

    tasks: int
    timers: int
    descriptors: int
    """0 on systems that do not list them."""

    @classmethod
    def count(cls) -> Alive:
        loop: Any = asyncio.get_running_loop()
        listing = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
        return cls(
            tasks=len(asyncio.all_tasks()),
            timers=sum(not timer.cancelled() for timer in loop._scheduled),  # asyncio has no public list of them
            descriptors=len(os.listdir(listing)) if listing else 0,
        )

    def is_more_than(self, other: Alive) -> bool:
        return self.tasks > other.tasks or self.timers > other.timers or self.descriptors > other.descriptors


async def what_is_left(before: Alive) -> Alive:
    """Count after everything that is ending has ended; no time passes in which a timer could fire."""
    for _ in range(20):
        if not Alive.count().is_more_than(before):
            break
        await asyncio.sleep(0)
    return Alive.count()


# The screen -----------------------------------------------------------------------------------------------------------


UNBROKEN: Final = "\xa0"  # a space at which no line ends


class Screen:
    """Prints what happens, in aligned columns: when, who, what."""

    SGR: Final = {
        "connecting": "34",
        "connected": "32",
        "joined": "32",
        "reconnecting": "33",
        "disconnected": "35",
        "error": "31",
        "ok": "1;32",
        "failed": "1;31",
        "bold": "1",
        "faint": "2",
    }
    MARGIN: Final = " " * 9
    INDENT: Final = " " * 17

    def __init__(self, out: TextIO, *, plain: bool) -> None:
        self._out = out
        self._coloured = (
            not plain and out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._width = min(max(shutil.get_terminal_size().columns, 60), 110)
        self._began = time.monotonic()
        try:
            "→✓✗".encode(out.encoding or "ascii")
            self._arrow, self._ok, self._failed = "→", "✓", "✗"
        except UnicodeEncodeError:
            self._arrow, self._ok, self._failed = "->", "OK", "FAILED"

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def headline(self, title: str, text: str) -> None:
        self._print("")
        self._print(self._styled(title, "bold"))
        self.paragraph(text)

    def paragraph(self, text: str) -> None:
        self._wrapped("   ", text, "   ")

    def note(self, who: str, text: str, style: str = "") -> None:
        """An actor does something."""
        self._wrapped(self._who(who), text, self.INDENT, style)

    def change(
        self, who: str, change: StateChange | StatusChange[RoomStatus], status: ClientStatus | RoomStatus
    ) -> None:
        """Something changed its state, and has this status now."""
        old, new = f"{change.old!s:>12}", f"{change.new!s:<12}"
        text = change.reason
        if isinstance(change, StateChange) and change.event == "timer_fired":  # its reason is that of the wait
            text = f"retry {change.attempt}"
        if change.retry_in is not None:
            text += " " + f"(retry {change.attempt} in {change.retry_in:.2f} s)".replace(" ", UNBROKEN)
        indent = " " * len(f"{self.INDENT}{old} {self._arrow} {new}  ")
        head = f"{self._who(who)}{old} {self._arrow} {self._styled(new, status)}  "
        with suppress(BrokenPipeError):  # it would be logged as an error of a listener; the act's next line raises it
            self._wrapped(head, text, indent)

    def verdict(self, what: str, *, ok: bool) -> None:
        """An expectation was met, or not."""
        mark = f"{self._ok if ok else self._failed:>7}"
        self._wrapped(f"{self._styled(mark, 'ok' if ok else 'failed')}  ", what, self.MARGIN)

    def quote(self, lines: Iterable[str]) -> None:
        """A text, as it is."""
        for line in lines:
            self._print(f"{self.MARGIN}{self._styled('|', 'faint')} {line}")

    @contextmanager
    def library_log(self) -> Generator[None, None, None]:
        """Meanwhile, show what the library logs."""
        handler = _ScreenLog(self)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)

    def _who(self, who: str) -> str:
        return f"{self.seconds:7.2f}  {who:<6}  "

    def _wrapped(self, head: str, text: str, indent: str, style: str = "") -> None:
        """The text behind ``head``, which is as wide as ``indent``, if colours are not counted."""
        for number, line in enumerate(textwrap.wrap(text, self._width - len(indent)) or [""]):
            line = self._styled(line.replace(UNBROKEN, " "), style)
            self._print(((indent if number else head) + line).rstrip())

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{self.SGR[style]}m{text}\x1b[0m" if self._coloured and style else text

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class _ScreenLog(logging.Handler):
    """Prints log records on the screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        message, *traceback = self.format(record).splitlines()
        with suppress(BrokenPipeError):  # logging must not fail; the next line of an act will
            self._screen.note("log", message, "faint")
            self._screen.quote(traceback)


# The performance ------------------------------------------------------------------------------------------------------


def run(*, plain: bool = False, seed: int = 1, log: bool = False) -> int:
    """Play all acts, on standard output; return 0 if every expectation was met, else 1.

    Parameters:
        plain: no colours, whatever standard output is.
        seed: of the random waits.
        log: show what the library logs, too.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # sys.stdout may have been replaced by another object
    if reconfigure is not None:
        reconfigure(errors="replace")
    screen = Screen(sys.stdout, plain=plain)
    with screen.library_log() if log else nullcontext():
        return asyncio.run(_perform(screen, seed))


async def _perform(screen: Screen, seed: int) -> int:
    before = Alive.count()
    screen.headline(
        "A client that stays connected",
        "Two clients, alice's and bob's, edit one document through a server; all three are in this process. You see "
        "what alice's client and her room go through: seconds since the start, who, old and new state, and why. "
        f"The wait before a retry is {BASE:g} s, doubling up to {CAP:g} s, 25 % more or less (seed {seed}: the same "
        f"on each run). Pings go out every {PING_INTERVAL:g} s and have {PONG_TIMEOUT:g} s to be answered.",
    )
    async with EmbeddedServer() as server:
        stage = Stage(server, screen, seed)
        try:
            failed = await _play_acts(stage)
            screen.headline(
                "The end", "Both clients are closed and the server is stopped; nothing should be missing or left."
            )
        finally:
            await stage.close()
    failed += _take_stock(stage, before, await what_is_left(before))
    screen.paragraph("")
    if failed:
        screen.verdict(f"failed: {'; '.join(failed)}", ok=False)
        return 1
    screen.verdict(f"everything went as expected, in {screen.seconds:.1f} s", ok=True)
    return 0


async def _play_acts(stage: Stage) -> list[str]:
    """Returns the act that failed, if one did. Those after it depend on it, so they are left out."""
    for number, act in enumerate(ACTS, 1):
        try:
            await stage.play(number, act)
        except Unexpected as error:
            why = str(error)
        except BrokenPipeError:
            raise  # the reader of the pipe is gone
        except Exception as error:
            logger.exception("act %d raised", number)
            why = f"{type(error).__name__}: {error}"
        else:
            continue
        stage.screen.verdict(why, ok=False)
        return [f"act {number}, {act.title}"]
    return []


def _take_stock(stage: Stage, before: Alive, after: Alive) -> list[str]:
    """Show the result. Returns the expectations that failed."""
    screen, lines = stage.screen, len(stage.written)
    failed: list[str] = []
    if stage.do_all_copies_agree():
        screen.verdict(f"alice, bob and the server have the same text, with all {lines} lines:", ok=True)
        screen.quote(stage.alice.text.splitlines())
    else:
        have = ", ".join(
            f"{name} {len(set(copy.splitlines()) & set(stage.written))}"
            for name, copy in zip(("alice", "bob", "the server"), stage.copies, strict=True)
        )
        screen.verdict(f"the copies differ: of {lines} lines that were written, there are: {have}", ok=False)
        failed.append("the copies differ")
    counts = (
        f"tasks {before.tasks}, then {after.tasks}; timers {before.timers}, then {after.timers}; "
        f"open descriptors {before.descriptors}, then {after.descriptors}"
    )
    leaked = after.is_more_than(before)
    screen.verdict(f"{'something' if leaked else 'nothing'} is left running: {counts}", ok=not leaked)
    failed += ["something is left running"] * leaked
    states = [change.new for change in stage.all_changes]
    attempts, connections = states.count("connecting") + states.count("retrying"), states.count("connected")
    screen.paragraph(
        f"alice's client: {len(states)} transitions, {attempts} attempts to connect, {connections} connections, "
        f"{max(connections - 1, 0)} of them reconnects"
    )
    return failed
