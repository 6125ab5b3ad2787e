"""The herd: 100,000 clients lose a server. Writes docs/herd.md and its pictures.

    python benchmarks/herd.py                    # in full: about 20 minutes of CPU, on two processes
    python benchmarks/herd.py --clients 2000 --jobs 1 --out build/herd

Everything is simulated and seeded: the figures are the same on every machine, except the seconds that it took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from reconnect_fsm.retry import MAX_DOUBLINGS, RetryPolicy
from reconnect_fsm.status import AttemptFailure, FailureKind
from reconnect_fsm.testing.herd import POLICIES, HerdRun, draw_svg, simulate_herd

ROOT: Final = Path(__file__).parent.parent
CLIENTS: Final = 100_000
PER_SECOND: Final = CLIENTS // 50  # accepts: the server needs 50 s for all of them
BACKLOG, LONG_BACKLOG, ENDLESS_BACKLOG = 128, 4_096, 65_535  # aiohttp.web's default; Linux' default; the most there is
OUTAGE: Final = 30.0  # seconds
SEED: Final = 1
TIMEOUT: Final = 600.0  # seconds; where it might take for ever


# ------------------------------------------------------------------------------------------- what else could be done


@dataclass(frozen=True)
class OneDraw(RetryPolicy):
    """One factor for all waits that follow a loss, instead of one for each wait."""

    factor: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def delay(self, attempt: int) -> float:
        if attempt <= 1:
            self.factor[:] = [self.random.uniform(1 - self.jitter, 1 + self.jitter)]
        centre = min(self.base * 2.0 ** min(attempt - 1, MAX_DOUBLINGS), self.cap / (1 + self.jitter))
        return min(centre * self.factor[0], self.cap)


@dataclass(frozen=True)
class ToTheSecond(RetryPolicy):
    """Reconnects when Retry-After says, to the second, without jitter."""

    def no_sooner(self, retry_after: float) -> float:
        return retry_after


def to_the_second(random: Random) -> RetryPolicy:
    return ToTheSecond(random=random)


def one_draw(random: Random) -> RetryPolicy:
    return OneDraw(random=random)


def half_jitter(random: Random) -> RetryPolicy:
    return RetryPolicy(jitter=0.5, random=random)


def most_jitter(random: Random) -> RetryPolicy:
    return RetryPolicy(jitter=0.99, random=random)


ALTERNATIVES: Final[Mapping[str, Callable[[Random], RetryPolicy]]] = {
    "one draw a loss": one_draw,
    "jitter=0.5": half_jitter,
    "jitter=0.99": most_jitter,
}


def busy(retry_after: float) -> AttemptFailure:
    return AttemptFailure(FailureKind.ANSWER, "HTTP 503", http_status=503, retry_after=retry_after)


@dataclass(frozen=True)
class AnyOf:
    """A server that sends each client another Retry-After: whole seconds, from 1 to ``most``."""

    most: int
    random: Random = field(default_factory=lambda: Random(SEED))

    def __call__(self, now: float) -> AttemptFailure:
        return busy(self.random.randint(1, self.most))


# --------------------------------------------------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Scenario:
    """What happens to the server, as it is for 100,000 clients; scaled for fewer."""

    name: str
    words: str
    """What happens; ``{rate}`` is how many it accepts in a second, ``{queue}`` how many may wait."""
    outage: float = OUTAGE
    limited: bool = False
    backlog: int = BACKLOG

    def described(self, clients: int) -> str:
        return self.words.format(rate=f"{self.rate(clients):,g}", queue=f"{self.queue(clients):,}")

    def rate(self, clients: int) -> float:
        return PER_SECOND * clients / CLIENTS

    def queue(self, clients: int) -> int:
        return max(round(self.backlog * clients / CLIENTS), 1) if self.backlog else 0

    def options(self, clients: int) -> dict[str, Any]:
        options: dict[str, Any] = {"clients": clients, "outage": self.outage, "seed": SEED}
        if self.limited:
            options |= {"accepts_per_second": self.rate(clients), "backlog": self.queue(clients)}
        if self == ENDLESS:
            options["at_most"] = TIMEOUT
        return options


OPEN: Final = Scenario("outage", "down for 30 s, then accepts all")
LIMITED: Final = Scenario("limited", "down for 30 s, then accepts {rate}/s and refuses the rest", limited=True)
QUEUED: Final = Scenario("queued", "the same, but {queue} may wait for their turn", limited=True, backlog=LONG_BACKLOG)
ENDLESS: Final = Scenario("endless", "the same, but {queue} may wait", limited=True, backlog=ENDLESS_BACKLOG)
BARE: Final = Scenario("bare", "the same, but nobody may wait", limited=True, backlog=0)
BLIP: Final = Scenario("blip", "all reset, accepts all", outage=0.0)
BLIP_LIMITED: Final = Scenario("blip_limited", "all reset, accepts {rate}/s and refuses the rest", 0.0, True)
SCENARIOS: Final = (OPEN, LIMITED, QUEUED, BLIP, BLIP_LIMITED)
DRAWN: Final = (LIMITED, OPEN, BLIP_LIMITED)

RETRY_AFTER: Final[Mapping[str, Any]] = {
    "10 s": busy(10),
    "30 s": busy(30),
    "each another, 1 to 50 s": AnyOf(50),
}

Key = tuple[str, str]
"""A row and a column: who, and in which scenario."""


@dataclass(frozen=True)
class Task:
    """One run; made of what another process can be given."""

    key: Key
    policy: str
    scenario: Scenario
    clients: int
    over_capacity: Any = None

    def __call__(self) -> tuple[Key, HerdRun, float]:
        options = self.scenario.options(self.clients)
        if self.over_capacity is not None:
            options |= {"over_capacity": deepcopy(self.over_capacity), "at_most": TIMEOUT}  # a server that begins anew
        policy = {**POLICIES, **ALTERNATIVES, "to the second": to_the_second}[self.policy]
        began = time.process_time()
        run = simulate_herd(policy, **options)
        return self.key, run, time.process_time() - began


def tasks(clients: int) -> list[Task]:
    found = [Task((name, each.name), name, each, clients) for name in POLICIES for each in SCENARIOS]
    for each in (OPEN, LIMITED, BLIP_LIMITED):
        found += [Task((name, each.name), name, each, clients) for name in ALTERNATIVES]
    found += [Task((name, ENDLESS.name), name, ENDLESS, clients) for name in ("ours", "full")]
    found += [Task((name, BARE.name), name, BARE, clients) for name in ("ours", "reference", "after-cap", "full")]
    for words, answer in RETRY_AFTER.items():
        for each in (LIMITED, BLIP_LIMITED):
            found.append(Task((words, each.name), "ours", each, clients, answer))
            found.append(Task((f"{words}, to the second", each.name), "to the second", each, clients, answer))
    return found


def carry_out(task: Task) -> tuple[Key, HerdRun, float]:
    return task()


@dataclass(frozen=True)
class Figures:
    """All runs, and the seconds of CPU that each took."""

    clients: int
    runs: Mapping[Key, HerdRun]
    seconds: Mapping[Key, float]


def measure(clients: int, jobs: int) -> Figures:
    todo = tasks(clients)
    if jobs > 1:
        with multiprocessing.Pool(jobs, maxtasksperchild=4) as pool:
            done = pool.map(carry_out, todo, chunksize=1)
    else:
        done = [carry_out(each) for each in todo]
    return Figures(clients, {key: run for key, run, _ in done}, {key: seconds for key, _, seconds in done})


# ------------------------------------------------------------------------------------------------------------ the page


def page(figures: Figures) -> str:
    """docs/herd.md: every number in it comes from the runs."""
    facts = _Facts(figures)
    filled = re.sub(r'{([^{}"]+)}', lambda found: facts.look_up(found[1]), PAGE)
    return "\n\n".join(map(_refilled, filled.split("\n\n")))


def _refilled(block: str) -> str:
    """A paragraph or list whose figures have come to be longer or shorter, in lines of the usual length again."""
    if block.startswith(("#", "|", "!", "```", "run =")):
        return block
    items = re.split(r"\n(?=- )", block.rstrip("\n"))
    return "\n".join(
        textwrap.fill(
            " ".join(each.split()), 120, subsequent_indent="  " * each.startswith("- "), break_on_hyphens=False
        )
        for each in items
    )


class _Facts:
    """What the page has in braces: ``{who/scenario/what}``, or one of the tables."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures

    def look_up(self, wanted: str) -> str:
        if "/" not in wanted:
            return str(getattr(self, wanted)())
        who, scenario, what = wanted.split("/")
        run = self.figures.runs[who, scenario]
        return {"peak": _peak, "back": _back, "tries": _tries, "first": _first}[what](run)

    def clients(self) -> str:
        return f"{self.figures.clients:,}"

    def limit(self) -> str:
        """Seconds that 99 % need if the server is never idle."""
        run = self.figures.runs["ours", LIMITED.name]
        assert run.accepts_per_second is not None
        return f"{0.99 * run.clients / run.accepts_per_second:.1f} s"

    def rate(self) -> str:
        return f"{LIMITED.rate(self.figures.clients):,g}"

    def waiting(self) -> str:
        return f"{LIMITED.queue(self.figures.clients):,}"

    def long(self) -> str:
        return f"{QUEUED.queue(self.figures.clients):,}"

    def endless(self) -> str:
        return f"{ENDLESS.queue(self.figures.clients):,}"

    def runs(self) -> str:
        return str(len(self.figures.runs))

    def cpu(self) -> str:
        attempts = sum(run.total_attempts for run in self.figures.runs.values())
        seconds = sum(self.figures.seconds.values())
        ours = self.figures.seconds["ours", LIMITED.name]
        return (
            f"{attempts:,} attempts, {seconds / 60:.0f} minutes of CPU; *ours* in the second column took {ours:.0f} s"
        )

    def ratio(self) -> str:
        reference, ours = (self.figures.runs[who, LIMITED.name].back_after(0.99) for who in ("reference", "ours"))
        return f"{reference / ours:.1f}" if reference and ours else "?"

    def policies(self) -> str:
        limits = ["*no policy can do better*", "0.0 s", self.limit(), self.limit(), "0.0 s", self.limit()]
        return self.table(
            ["", *(each.described(self.figures.clients) for each in SCENARIOS)], POLICIES, SCENARIOS, _cell, limits
        )

    def tried(self) -> str:
        return self.table(
            ["", "outage", "limited", "waiting allowed", "blip", "blip, limited"], POLICIES, SCENARIOS, _tries
        )

    def alternatives(self) -> str:
        scenarios = (OPEN, LIMITED, BLIP_LIMITED)
        return self.table(
            ["", *(each.described(self.figures.clients) for each in scenarios)],
            ("ours", *ALTERNATIVES),
            scenarios,
            _cell,
        )

    def retry_after(self) -> str:
        rows = ["ours", *(row for each in RETRY_AFTER for row in (each, f"{each}, to the second"))]
        scenarios = (LIMITED, BLIP_LIMITED)
        return self.table(
            ["Retry-After", *(each.described(self.figures.clients) for each in scenarios)], rows, scenarios, _cell
        ).replace("| ours |", "| none |")

    def table(
        self,
        head: list[str],
        rows: Iterable[str],
        scenarios: Iterable[Scenario],
        cell: Callable[[HerdRun], str],
        last: list[str] | None = None,
    ) -> str:
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        lines += [[row, *(cell(self.figures.runs[row, each.name]) for each in scenarios)] for row in rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *([last] if last else [])])


def _first(run: HerdRun) -> str:
    return f"{run.peak:,}"


def _peak(run: HerdRun) -> str:
    return f"{run.peak_after(run.outage):,}"


def _back(run: HerdRun) -> str:
    seconds = run.back_after(0.99)
    if seconds is None:
        return f"{len(run.back) / run.clients:.0%} after {TIMEOUT / 60:.0f} min".replace("%", " %")
    return f"{seconds:.1f} s"


def _tries(run: HerdRun) -> str:
    return f"{run.total_attempts / run.clients:.1f}"


def _cell(run: HerdRun) -> str:
    return f"{_peak(run)} · **{_back(run)}**"


PAGE: Final = """\
# The herd

Generated by `python benchmarks/herd.py`; every figure was counted by that run.

{clients} clients are connected to one server, and lose it in the same moment. How many knock at its door in the same
100 ms, and how long is it until 99 % are in again? Compared are the default `RetryPolicy` (*ours*), the formula of the
reference JavaScript client, and the formulas from the literature, all from 0.5 s to 15 s:

| | wait before retry n; c = min(15 s, 0.5 s · 2ⁿ⁻¹) |
|---|---|
| ours | ±25 % round min(0.5 s · 2ⁿ⁻¹, 12 s): never above 15 s |
| reference | min(15 s, 0.5 s · 2ⁿ⁻¹ ± 25 %): from n = 7 on exactly 15.000 s |
| after-cap | c ± 25 %: up to 18.75 s |
| full | anything from 0 to c |
| equal | anything from c/2 to c |
| decorrelated | anything from 0.5 s to three times the wait before, at most 15 s |

It is simulated, but not with formulas alone: every client is a real `ClientFSM` with its policy, driven by an event
queue in simulated time ([reconnect_fsm/testing/herd.py](../reconnect_fsm/testing/herd.py) says how the world
round it behaves).

## What happened

The most attempts in 100 ms that the server sees, and the seconds from its return (in a blip: from the loss) until 99 %
are back. Where it accepts {rate} a second, {waiting} attempts may wait for their turn and the rest is refused, unless
the column says otherwise.

{policies}

Attempts a client, those against the dead server included:

{tried}

![Down for 30 s, then {rate} accepts a second](herd_limited.svg)

![Down for 30 s, then accepts all](herd_outage.svg)

![All connections reset, {rate} accepts a second](herd_blip_limited.svg)

## What follows

- **The reference client's herd never disperses.** With {rate} accepts a second 99 % are back after
  {reference/limited/back}; ours after {ours/limited/back}, {ratio} times sooner; {limit} is what the server needs if it
  is never idle. From the 7th attempt all its clients wait exactly 15 s, so the waves keep their shape, and between
  two of them the server has nothing to do. Spread at the cap, they run into one another.
- **Wider jitter fills the gaps that ours leaves**: full jitter {full/limited/back}, equal {equal/limited/back},
  decorrelated {decorrelated/limited/back}. The price of full jitter is {full/limited/tries} attempts a client
  instead of {ours/limited/tries}, some of them with hardly a wait before. Jitter after the cap buys nothing:
  {after-cap/limited/back}, and waits above the cap.
- **The first retry is the worst moment of a blip**: {ours/blip/first} attempts of {clients} in 100 ms, because 0.5 s
  ± 25 % is a quarter of a second wide, for whoever keeps to these words. A server that can take them has all of them
  back within the second.
- **A server that cannot had better let them wait than refuse them.** With room for {long} (two seconds of its
  work; 4,096 is what Linux allows by default) 99 % are back after {ours/queued/back} with ours, {full/queued/back} with
  full jitter: the choice of the backlog is worth more than that of the formula. Only the reference formula still leaves
  the server idle: {reference/queued/back}.
- **But never longer than clients wait.** With room for {endless} (33 s of its work, where clients give up after
  10 s) it spends its turns on those who have left: {ours/endless/back} with ours, {full/endless/back} with full jitter.
  The backlog must stay below accepts a second · `connect_timeout`.

The formulas alone, without machines, once gave 179 s for the reference, 63 s for after-cap and 53.5 s for full. The two
that spread their clients come out alike here. The reference depends on how the server is imagined: if nobody may
wait at all, it is idle from each accept to the next attempt, and 99 % are back after {reference/bare/back} (after-cap
{after-cap/bare/back}, full {full/bare/back}, ours {ours/bare/back}); if {long} may, after {reference/queued/back}.

## Is there a better default?

Within the words of RETRY-1 (from 0.5 s, doubling, capped at 15 s, 25 % either way) there is one, and it is a little
better. For a single wait nothing is to be gained: in ±25 % no distribution is flatter than the uniform one, and centred
on 12 s, as D-JITTER has it, the waits at the cap use all the room below it. But the words do not say how often one
draws. *One draw a loss* keeps one factor for all waits of a client until it is connected again; the sum of the waits is
then spread by ±25 % as each of them is, where independent draws average out:

{alternatives}

So one draw brings a server that refuses {one draw a loss/limited/back} instead of {ours/limited/back}, after a blip
{one draw a loss/blip_limited/back} instead of {ours/blip_limited/back}, with no more attempts
({one draw a loss/limited/tries} a client); it changes nothing about the first retry. It would cost a number a client,
and D-JITTER would have to say so. `jitter=0.5`, outside the words but a setting that is there already, does as much or
more ({jitter=0.5/limited/back}, {jitter=0.5/blip_limited/back}) and halves the first peak: the setting for whoever
runs a large herd against a small server. More than that gains little and costs attempts.

## Retry-After

The server refuses with 503 and Retry-After instead of closing the door; {clients} clients with our policy, at most ten
minutes:

{retry_after}

- **The same Retry-After for everybody, obeyed to the second, undoes the jitter.** Whoever was refused in the same
  moment comes back in the same moment, and above 15 s nothing spreads them any more: after a blip, with 30 s,
  {30 s, to the second/blip_limited/back}; without Retry-After 99 % are back after {ours/blip_limited/back}.
- So `RetryPolicy.no_sooner` stretches it, by a factor from 1 to 1 + 2 · jitter: no sooner than asked, and the herd
  disperses, in {30 s/blip_limited/back}.
- A server can spread its herd itself, by telling each client another number. It gains nothing by that over saying
  nothing at all ({each another, 1 to 50 s/blip_limited/back}), except that it is asked less often:
  {each another, 1 to 50 s/blip_limited/tries} attempts a client instead of {ours/blip_limited/tries}.

## To reproduce

```sh
python benchmarks/herd.py                                               # this page and its pictures
python benchmarks/herd.py --clients 2000 --jobs 1 --out build/herd      # the like of it, in less than a minute
```

Seeded: {runs} runs, {cpu}. A policy or a machine of your own:

```python
from reconnect_fsm import RetryPolicy
from reconnect_fsm.testing.herd import draw_text, simulate_herd

run = simulate_herd(
    lambda random: RetryPolicy(jitter=0.5, random=random), clients=1_000, outage=30, accepts_per_second=20
)
print(run.peak_after(30), run.back_after(0.99))
print(draw_text({"jitter=0.5": run}))
```
"""


def write(figures: Figures, out: Path) -> None:
    """The page and its pictures."""
    out.mkdir(parents=True, exist_ok=True)
    many = f"{figures.clients:,} clients"
    for each in DRAWN:
        runs = {name: figures.runs[name, each.name] for name in POLICIES}
        (out / f"herd_{each.name}.svg").write_text(draw_svg(runs, title=f"{many}: {each.described(figures.clients)}"))
    (out / "herd.md").write_text(page(figures))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The herd: writes herd.md and its pictures.")
    parser.add_argument("--clients", type=int, default=CLIENTS, metavar="N", help=f"how many (default: {CLIENTS:,})")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help="where to write (default: docs)")
    options = parser.parse_args(arguments)
    figures = measure(options.clients, options.jobs)
    write(figures, options.out)
    facts = _Facts(figures)
    print(facts.policies(), facts.alternatives(), facts.retry_after(), facts.cpu(), sep="\n\n")


if __name__ == "__main__":
    main()
