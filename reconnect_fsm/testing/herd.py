"""Many clients that lose one server at once: the curve of their connects, and how long until they are back.

::

    run = simulate_herd(POLICIES["ours"], clients=100_000, outage=30, accepts_per_second=2_000)
    print(run.peak_after(run.outage), run.back_after(0.99))
    print(draw_text({"ours": run}))

Each client is a real `ClientFSM` with a real `RetryPolicy`. An event queue in simulated time stands for the driver: it
runs the effects (`Dial` asks the simulated server, `StartTimer` schedules an event) and fires the machine's events. So
this measures what clients really do, with attempt limits, the reset of the backoff and Retry-After, and a subclass of
either can be tried before it meets a server. No loop, no socket, no clock; the same seed gives the same run.

The simulated world: all clients have been connected for an hour when, at time 0, every connection is lost at once. The
network takes no time. For ``outage`` seconds the server accepts no attempt. Then it accepts ``accepts_per_second``, one
after the other. ``backlog`` attempts may wait for their turn; further ones are refused, which costs the server nothing.
A client gives up an attempt that waits for longer than ``connect_timeout``. The server does not know that, and spends
its time on the attempt all the same.
"""

from __future__ import annotations

import textwrap
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from html import escape
from itertools import pairwise
from math import ceil, log10
from random import Random
from types import MappingProxyType
from typing import Final, TypeAlias

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import CancelDial, CloseSocket, Dial, Effect, Release, StartTimer, StopTimer
from reconnect_fsm.retry import MAX_DOUBLINGS, RetryPolicy
from reconnect_fsm.status import AttemptFailure, ClientStatus, CloseInfo, FailureKind

__all__ = [
    "BIN",
    "POLICIES",
    "AfterTheCap",
    "DecorrelatedJitter",
    "EqualJitter",
    "FullJitter",
    "HerdRun",
    "PolicyFactory",
    "ReferenceFormula",
    "Rejection",
    "draw_svg",
    "draw_text",
    "simulate_herd",
]

BIN: Final = 0.1
"""Seconds in which connects are counted together."""

BACKLOG: Final = 128  # what aiohttp.web passes to listen()
EARLIER: Final = 3600.0  # seconds that the clients have been connected when the connections are lost
MAX_EVENTS: Final = 10_000  # of a client; far more than an hour of retries takes, far fewer than a loop without end

REFUSED: Final = AttemptFailure(FailureKind.NETWORK, "connection refused")
TIMED_OUT: Final = AttemptFailure(FailureKind.NETWORK, "no answer in time")
RESET: Final = CloseInfo(1006)

PolicyFactory: TypeAlias = Callable[[Random], RetryPolicy]
"""Makes the policy of one client from a seeded source of randomness, which all clients share."""

Rejection: TypeAlias = AttemptFailure | Callable[[float], AttemptFailure] | None
"""How a rejected attempt ends: with this failure, or the one that a function of the time returns; None: by timeout."""


# ------------------------------------------------------------------------------------------------- formulas to compare


@dataclass(frozen=True)
class _Formula(RetryPolicy):
    def exponential(self, attempt: int) -> float:
        """Seconds: doubling, neither capped nor spread."""
        return self.base * 2.0 ** min(max(attempt - 1, 0), MAX_DOUBLINGS)


@dataclass(frozen=True)
class ReferenceFormula(_Formula):
    """The reference JavaScript client's: the cap comes after the jitter, so from the 7th attempt all wait equally long.

    ``computeBackoffDelay`` of npm loro-websocket 0.6.2; whole milliseconds.
    """

    def delay(self, attempt: int) -> float:
        spread = self.exponential(attempt) * (1 + (self.random.random() * 2 - 1) * self.jitter)
        return min(self.cap, spread * 1000 // 1 / 1000)


@dataclass(frozen=True)
class AfterTheCap(_Formula):
    """The jitter comes after the cap: the waits at the cap are spread, and exceed it by up to ``jitter``."""

    def delay(self, attempt: int) -> float:
        return min(self.exponential(attempt), self.cap) * self.random.uniform(1 - self.jitter, 1 + self.jitter)


@dataclass(frozen=True)
class FullJitter(_Formula):
    """Anything from 0 to the exponential wait (``jitter`` is not used)."""

    def delay(self, attempt: int) -> float:
        return self.random.uniform(0, min(self.exponential(attempt), self.cap))


@dataclass(frozen=True)
class EqualJitter(_Formula):
    """Anything from half of the exponential wait to all of it (``jitter`` is not used)."""

    def delay(self, attempt: int) -> float:
        most = min(self.exponential(attempt), self.cap)
        return self.random.uniform(most / 2, most)


@dataclass(frozen=True)
class DecorrelatedJitter(_Formula):
    """Anything from ``base`` to three times the last wait, capped. It has memory: each client needs its own."""

    previous: list[float] = field(default_factory=list[float], init=False, repr=False, compare=False)

    def delay(self, attempt: int) -> float:
        if attempt <= 1:
            self.previous[:] = [self.base]
        self.previous[0] = min(self.cap, self.random.uniform(self.base, self.previous[0] * 3))
        return self.previous[0]


POLICIES: Final[Mapping[str, PolicyFactory]] = MappingProxyType(
    {
        "ours": lambda random: RetryPolicy(random=random),
        "reference": lambda random: ReferenceFormula(random=random),
        "after-cap": lambda random: AfterTheCap(random=random),
        "full": lambda random: FullJitter(random=random),
        "equal": lambda random: EqualJitter(random=random),
        "decorrelated": lambda random: DecorrelatedJitter(random=random),
    }
)
"""The default policy and the formulas to compare it with, by name; all from 0.5 s to 15 s."""


# ------------------------------------------------------------------------------------------------------ the simulation


@dataclass(frozen=True)
class HerdRun:
    """What happened. All times are seconds since the connections were lost; curves count per `BIN`."""

    clients: int
    outage: float
    """Seconds in which the server accepted no attempt."""
    accepts_per_second: float | None
    attempts: tuple[int, ...]
    """Attempts that began."""
    accepted: tuple[int, ...]
    """Attempts that the server accepted."""
    refused: tuple[int, ...]
    """Attempts that failed: refused, or given up by the client because no answer came in time."""
    timed_out: int
    """How many of the failed attempts were given up because no answer came in time."""
    back: Sequence[float]
    """When each client that came back was accepted, in order."""
    statuses: Mapping[ClientStatus, int]
    """How many clients were in each status at the end."""

    @property
    def peak(self) -> int:
        """The most attempts in one `BIN`, whether the server was there to see them or not."""
        return max(self.attempts, default=0)

    def peak_after(self, seconds: float) -> int:
        """The most attempts in one `BIN` from that time on; ``peak_after(run.outage)`` is what the server sees."""
        return max(self.attempts[round(seconds / BIN) :], default=0)

    @property
    def total_attempts(self) -> int:
        """Attempts of all clients together."""
        return sum(self.attempts)

    def back_after(self, share: float) -> float | None:
        """Seconds from the end of the outage until that share of the clients, above 0 up to 1, was back; None: never.

        Raises ValueError for a share out of that range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {share!r}")
        enough = ceil(share * self.clients - 1e-9)  # 0.07 * 100 is a little above 7
        return self.back[enough - 1] - self.outage if enough <= len(self.back) else None


def simulate_herd(
    policy_factory: PolicyFactory,
    *,
    clients: int,
    outage: float,
    accepts_per_second: float | None = None,
    backlog: int = BACKLOG,
    while_down: Rejection = REFUSED,
    over_capacity: Rejection = REFUSED,
    loss: CloseInfo = RESET,
    connect_timeout: float = 10.0,
    fsm: type[ClientFSM] = ClientFSM,
    seed: int = 0,
    at_most: float = 3600.0,
) -> HerdRun:
    """Let ``clients`` lose their server, and see how they come back.

    Parameters:
        policy_factory: makes the policy of each client; see `POLICIES`.
        clients: how many.
        outage: seconds in which the server accepts no attempt; with 0 it was never down.
        accepts_per_second: how many the server accepts, one after the other; None: all, at once.
        backlog: how many attempts may wait to be accepted; more are refused.
        while_down: how an attempt ends during the outage.
        over_capacity: how an attempt ends when the backlog is full; a 503 with Retry-After, for instance, is
            ``AttemptFailure(FailureKind.ANSWER, "503", http_status=503, retry_after=10)``.
        loss: how the connections end.
        connect_timeout: seconds after which a client gives an attempt up.
        fsm: the class of the machines.
        seed: of all chance.
        at_most: simulated seconds after the loss; clients that are not back then are left out.

    Raises ValueError for numbers that make no sense, RuntimeError if clients retry without any time passing, and
    whatever a policy or a machine raises.
    """
    for name, number in (("clients", clients), ("backlog", backlog), ("outage", outage)):
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name} must be a finite number from 0, not {number!r}")
    for name, limit in (("connect_timeout", connect_timeout), ("at_most", at_most)):
        if not 0 < limit < float("inf"):
            raise ValueError(f"{name} must be a positive number of seconds, not {limit!r}")
    if accepts_per_second is not None and not 0 < accepts_per_second < float("inf"):
        raise ValueError(f"accepts_per_second must be None (no limit) or positive, not {accepts_per_second!r}")
    server = _Server(outage, accepts_per_second, backlog, while_down, over_capacity)
    random = Random(seed)
    herd = _Herd([_Client(fsm(policy_factory(random))) for _ in range(clients)], server, connect_timeout, at_most)
    herd.run(loss)
    return HerdRun(
        clients,
        outage,
        accepts_per_second,
        herd.curve(herd.attempts),
        herd.curve(herd.accepted),
        herd.curve(herd.refused),
        herd.timed_out,
        herd.back,
        Counter(each.fsm.status for each in herd.clients),
    )


class _Server:
    """Decides about an attempt in the moment in which it is made."""

    def __init__(
        self, outage: float, per_second: float | None, backlog: int, while_down: Rejection, over_capacity: Rejection
    ) -> None:
        self.outage = outage
        self.service = 0.0 if per_second is None else 1 / per_second  # seconds that one accept takes
        self.longest_queue = (backlog + 1e-6) * self.service  # seconds; floating-point time is not exact
        self.while_down = while_down
        self.over_capacity = over_capacity
        self.free_at = outage  # when it has accepted all that wait

    def answer(self, now: float) -> float | Rejection:
        """In how many seconds an attempt of now is accepted; or how it ends instead."""
        if now < 0:
            return 0.0
        if now < self.outage:
            return self.refuse(self.while_down, now)
        wait = max(self.free_at - now, 0.0)
        if wait > self.longest_queue:
            return self.refuse(self.over_capacity, now)
        self.free_at = now + wait + self.service
        return wait

    def refuse(self, refusal: Rejection, now: float) -> Rejection:
        return refusal(now) if callable(refusal) else refusal


class _Client:
    """One machine, and what its effects have started."""

    __slots__ = ("dial", "fsm", "has_socket", "is_back", "timer")

    def __init__(self, fsm: ClientFSM) -> None:
        self.fsm = fsm
        self.timer = self.dial = 0  # the number of the event that ends it; 0: there is none
        self.has_socket = self.is_back = False


class _Herd:
    """The event queue, and the driver of all machines."""

    def __init__(self, clients: list[_Client], server: _Server, connect_timeout: float, at_most: float) -> None:
        self.clients = clients
        self.server = server
        self.connect_timeout = connect_timeout
        self.at_most = at_most
        self.now = -EARLIER
        self.numbers = 0  # the events scheduled so far; those of the same time come in this order
        self.events_left = MAX_EVENTS * max(len(clients), 1)
        self.queue: list[tuple[float, int, _Client, Callable[[_Client], None]]] = []
        bins = int(at_most / BIN) + 2
        self.attempts, self.accepted, self.refused = [0] * bins, [0] * bins, [0] * bins
        self.timed_out = 0
        self.back: array[float] = array("d")
        self.effects: dict[type[Effect], Callable[[_Client, Effect], None]] = {
            Dial: self.dial,
            CancelDial: self.cancel_dial,
            StartTimer: self.start_timer,
            StopTimer: self.stop_timer,
            CloseSocket: self.close_socket,
            Release: self.release,
        }

    def run(self, loss: CloseInfo) -> None:
        for client in self.clients:
            self.tell(client, client.fsm.start_requested())
        self.run_until(0.0)
        for client in self.clients:
            if client.has_socket:
                client.has_socket = False
                self.tell(client, client.fsm.socket_closed(loss))
        self.run_until(self.at_most)

    def run_until(self, end: float) -> None:
        queue = self.queue
        while queue and queue[0][0] < end:
            self.now, number, client, happen = heappop(queue)
            if number in (client.timer, client.dial):  # else it was stopped meanwhile
                happen(client)
        self.now = end

    def tell(self, client: _Client, effects: list[Effect]) -> None:
        """Run the effects of an event."""
        self.events_left -= 1
        if self.events_left < 0:
            raise RuntimeError(
                f"each client had {MAX_EVENTS:,} events within {self.now + EARLIER:,.1f} simulated seconds: "
                "the policy's delay() hardly waits, or the machine asks for something again and again. "
                "Make it wait longer, or simulate for a shorter time (at_most)"
            )
        for effect in effects:
            run = self.effects.get(type(effect))  # the others are for rooms, listeners and pings, which are not here
            if run is not None:
                run(client, effect)

    def schedule(self, seconds: float, client: _Client, happen: Callable[[_Client], None]) -> int:
        self.numbers += 1
        heappush(self.queue, (self.now + seconds, self.numbers, client, happen))
        return self.numbers

    # Effects

    def dial(self, client: _Client, _: Effect) -> None:
        self.count(self.attempts)
        answer = self.server.answer(self.now)
        if isinstance(answer, AttemptFailure):
            failure = answer
            client.dial = self.schedule(0.0, client, lambda client: self.failed(client, failure))
        elif isinstance(answer, float) and answer <= self.connect_timeout:
            client.dial = self.schedule(answer, client, self.opened)
        else:
            client.dial = self.schedule(self.connect_timeout, client, self.gave_up)

    def cancel_dial(self, client: _Client, _: Effect) -> None:
        client.dial = 0

    def start_timer(self, client: _Client, effect: Effect) -> None:
        assert isinstance(effect, StartTimer)
        client.timer = self.schedule(effect.seconds, client, self.rang)

    def stop_timer(self, client: _Client, _: Effect) -> None:
        client.timer = 0

    def close_socket(self, client: _Client, _: Effect) -> None:
        client.has_socket = False

    def release(self, client: _Client, _: Effect) -> None:
        client.timer = client.dial = 0
        client.has_socket = False

    # Facts

    def rang(self, client: _Client) -> None:
        client.timer = 0
        self.tell(client, client.fsm.timer_fired())

    def opened(self, client: _Client) -> None:
        client.dial = 0
        client.has_socket = True
        self.count(self.accepted)
        if self.now >= 0 and not client.is_back:
            client.is_back = True
            self.back.append(self.now)
        self.tell(client, client.fsm.socket_opened())

    def failed(self, client: _Client, failure: AttemptFailure) -> None:
        client.dial = 0
        self.count(self.refused)
        self.tell(client, client.fsm.dial_failed(failure, self.now))

    def gave_up(self, client: _Client) -> None:
        self.timed_out += self.now >= 0
        self.failed(client, TIMED_OUT)

    # What is counted

    def count(self, curve: list[int]) -> None:
        if self.now >= 0:
            curve[int(self.now / BIN)] += 1

    def curve(self, counts: list[int]) -> tuple[int, ...]:
        """A curve up to the last moment in which anything happened; all three are equally long."""
        last = next((each for each in reversed(range(len(counts))) if self.attempts[each] or self.accepted[each]), -1)
        return tuple(counts[: last + 1])


# ------------------------------------------------------------------------------------------------------------ pictures

STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)  # seconds between the ticks of a time axis
BLOCKS: Final = " ▁▂▃▄▅▆▇█"
GUTTER: Final = 7  # characters left of the curve in the terminal
NARROWEST: Final = 40  # characters


@dataclass(frozen=True)
class _Scales:
    """The axes that all curves of a picture share: seconds, and attempts per `BIN` on a logarithmic scale."""

    bins: int
    decades: int

    @classmethod
    def of(cls, runs: Mapping[str, HerdRun]) -> _Scales:
        if not runs:
            raise ValueError("there is nothing to draw: give at least one run")
        bins = max(len(run.attempts) for run in runs.values())
        most = max(run.peak for run in runs.values())
        return cls(max(bins, 1), max(ceil(log10(max(most, 1)) - 1e-9), 1))

    @property
    def seconds(self) -> float:
        return self.bins * BIN

    def level(self, count: float) -> float:
        """From 0 (none, or one) to 1 (the top)."""
        return max(log10(count), 0.0) / self.decades if count else 0.0

    def columns(self, counts: Sequence[int], width: int) -> list[int]:
        """The curve in so many columns; each shows the busiest `BIN` that it covers, so that no peak is lost."""
        edges = [each * self.bins // width for each in range(width + 1)]
        return [max(counts[first : max(end, first + 1)], default=0) for first, end in pairwise(edges)]

    def ticks(self, limit: int) -> list[float]:
        """Round times, about ``limit`` of them at most."""
        step = next((each for each in STEPS if self.seconds / each <= limit), self.seconds)
        return [each * step for each in range(int(self.seconds / step + 1e-9) + 1)]


def draw_text(runs: Mapping[str, HerdRun], *, width: int = 80, height: int = 4) -> str:
    """The curves of attempts, one below the other on the same scales, in block characters and plain text.

    ``runs`` by the names to be shown; ``width`` and ``height`` (of one curve) in characters. A width below 40 is taken
    for 40. Raises ValueError if there is no run, or no height.
    """
    if height < 1:
        raise ValueError(f"a curve is at least 1 character high, not {height!r}")
    width = max(width, NARROWEST)
    scales = _Scales.of(runs)
    wide = width - GUTTER
    lines: list[str] = []
    for name, run in runs.items():
        figures = _figures(run)
        lines += [f"{name}  {figures}"] if len(name) + 2 + len(figures) <= width else [name[:width], figures[:width]]
        levels = [round(8 * height * scales.level(each)) or each > 0 for each in scales.columns(run.attempts, wide)]
        for row in reversed(range(height)):
            label = _short(10**scales.decades) if row == height - 1 else ""
            blocks = "".join(BLOCKS[min(max(each - 8 * row, 0), 8)] for each in levels)
            lines.append(f"{label:>{GUTTER - 2}} ┤{blocks}".rstrip())
        axis = ["─"] * wide
        if run.outage and run.outage < scales.seconds:
            axis[int(run.outage / scales.seconds * wide)] = "▲"
        lines.append(f"{'1':>{GUTTER - 2}} ┼{''.join(axis)}")
    labels = [" "] * width
    for tick in scales.ticks(wide // 10):
        text = f"{tick:g} s"
        at = GUTTER + int(tick / scales.seconds * wide)
        if at + len(text) <= width:
            labels[at : at + len(text)] = text
    legend = f"attempts per {BIN * 1000:.0f} ms (log scale), by seconds since the loss"
    if any(run.outage for run in runs.values()):
        legend += "; ▲ the server is back: the times beside the names count from there"
    return "\n".join([*lines, "".join(labels).rstrip(), *textwrap.wrap(legend, width)])


def draw_svg(runs: Mapping[str, HerdRun], *, title: str = "Attempts to connect after a loss") -> str:
    """The same as an SVG of its own, for light and dark surroundings, with what was accepted in a colour of its own.

    Made to be read at a width of 350 pixels or more. Raises ValueError if there is no run.
    """
    return _Svg(runs, title).draw()


class _Svg:
    WIDTH, LEFT, RIGHT, PLOT, HEAD, GAP = 480, 40, 10, 64, 28, 10  # units of the viewBox
    COLUMN = 2  # units
    STYLE = (
        ":root{--page:#fff;--ink:#1f2328;--soft:#59636e;--grid:#d8dee4;--tried:#f2b27a;--let-in:#0969da}"
        "@media(prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--grid:#30363d;"
        "--tried:#9a5a20;--let-in:#58a6ff}}"
        "text{font:12.5px system-ui,sans-serif;fill:var(--ink)}.soft{fill:var(--soft);font-size:11.5px}"
        ".strong{font-weight:600}.title{font-size:15px;font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}"
        ".page{fill:var(--page)}.grid{stroke:var(--grid)}.tried{fill:var(--tried)}.let-in{fill:var(--let-in)}"
        ".back{stroke:var(--ink);stroke-dasharray:4 3}.limit{stroke:var(--soft);stroke-dasharray:1 3}"
    )

    def __init__(self, runs: Mapping[str, HerdRun], title: str) -> None:
        self.runs = runs
        self.title = title
        self.scales = _Scales.of(runs)
        self.wide = self.WIDTH - self.LEFT - self.RIGHT
        self.parts: list[str] = []

    def draw(self) -> str:
        words = textwrap.wrap(self.title, 50)
        for number, line in enumerate(words):
            self.text(8, 22 + 19 * number, line, "title")
        top = self.legend(22 + 19 * len(words))
        for name, run in self.runs.items():
            self.panel(top + self.HEAD, name, run)
            top += self.HEAD + self.PLOT + self.GAP
        bottom = top - self.GAP
        for tick in self.scales.ticks(8):
            self.text(self.x(tick), bottom + 15, f"{tick:g}", "soft mid")
        self.text(self.LEFT + self.wide / 2, bottom + 32, "seconds since the connections were lost", "soft mid")
        height = bottom + 42
        described = "; ".join(f"{name}: {_figures(run)}" for name, run in self.runs.items())
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {height}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<desc>{escape(described)}</desc>",
                f"<style>{self.STYLE}</style>",
                f'<rect class="page" width="{self.WIDTH}" height="{height}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )

    def legend(self, y: float) -> int:
        """What the colours and lines mean; returns where the first panel may begin."""
        at = 8.0
        for kind, words in (("tried", "attempts"), ("let-in", "of these accepted")):
            self.parts.append(f'<rect class="{kind}" x="{at:g}" y="{y - 9:g}" width="11" height="11"/>')
            self.text(at + 16, y, f"{words} per {BIN * 1000:.0f} ms" if kind == "tried" else words, "soft")
            at += 150
        self.text(self.WIDTH - 8, y, "log scale", "soft end")
        marks = [
            *([("back", "the server is back")] if any(run.outage for run in self.runs.values()) else []),
            *([("limit", "what it can accept")] if any(run.accepts_per_second for run in self.runs.values()) else []),
        ]
        for number, (kind, words) in enumerate(marks):
            at = 8.0 + 150 * number
            self.parts.append(f'<path class="{kind}" d="M{at:g} {y + 13.5:g}h11"/>')
            self.text(at + 16, y + 18, words, "soft")
        return int(y) + (28 if marks else 10)

    def panel(self, top: float, name: str, run: HerdRun) -> None:
        bottom = top + self.PLOT
        self.text(8, top - 10, name, "strong")
        self.text(self.WIDTH - self.RIGHT, top - 10, _figures(run), "end")
        for decade in range(self.scales.decades + 1):
            y = bottom - self.PLOT * decade / self.scales.decades
            self.parts.append(f'<path class="grid" d="M{self.LEFT} {y:g}h{self.wide}"/>')
            if self.scales.decades <= 3 or decade % 2 == self.scales.decades % 2:
                self.text(self.LEFT - 5, y + 4, _short(10**decade), "soft end")
        self.area("tried", run.attempts, bottom)
        self.area("let-in", run.accepted, bottom)
        if run.accepts_per_second is not None:
            y = bottom - self.height(run.accepts_per_second * BIN)
            self.parts.append(f'<path class="limit" d="M{self.LEFT} {y:.1f}h{self.wide}"/>')
        if run.outage and run.outage <= self.scales.seconds:
            self.parts.append(f'<path class="back" d="M{self.x(run.outage):.1f} {top:g}v{self.PLOT}"/>')

    def area(self, kind: str, counts: Sequence[int], bottom: float) -> None:
        columns = self.scales.columns(counts, self.wide // self.COLUMN)
        path = f"M{self.LEFT} {bottom:g}"
        for number, count in enumerate(columns):
            if count != (columns[number - 1] if number else 0):
                path += f"H{self.LEFT + number * self.COLUMN}V{bottom - self.height(count):.1f}"
        self.parts.append(f'<path class="{kind}" d="{path}H{self.LEFT + self.wide}V{bottom:g}z"/>')

    def height(self, count: float) -> float:
        """Units above the axis; one alone is still seen."""
        return max(self.PLOT * self.scales.level(count), 1.5) if count else 0.0

    def x(self, seconds: float) -> float:
        return self.LEFT + self.wide * seconds / self.scales.seconds

    def text(self, x: float, y: float, words: str, kind: str) -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.4g}" y="{y:g}">{escape(words)}</text>')


def _figures(run: HerdRun) -> str:
    """What matters of a run, in a few words."""
    seconds = run.back_after(0.99)
    back = "99 % never came back" if seconds is None else f"99 % back in {seconds:.1f} s"
    return f"server's peak {run.peak_after(run.outage):,} · {back}"


def _short(count: int) -> str:
    return f"{count // 10**6}M" if count >= 10**6 else f"{count // 1000}k" if count >= 1000 else str(count)
