"""What a simulation says: `Report` counts what happened, `Violation` tells which invariant was broken."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from reconnect_fsm.testing.simulation.checks import INVARIANTS
from reconnect_fsm.testing.simulation.nemesis import CALLS, FAULTS

__all__ = ["Report", "Violation"]


@dataclass
class Report:
    """What happened in a simulation, counted."""

    seeds: list[int] = field(default_factory=list)
    hours: float = 0.0
    """Of virtual time."""
    episodes: int = 0
    checks: int = 0
    """How often the invariants were looked at."""
    faults: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FAULTS, 0)))
    """Kind of fault, and how many there were; 0 for a kind that never happened."""
    calls: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CALLS, 0)))
    """Kind of call by a user, likewise."""
    seen: Counter[str] = field(default_factory=Counter)
    """What the clients did: attempts, connected, transitions, each state that was entered (``state waiting``), …"""
    digest: str = ""
    """Of the trace, SHA-256 in hexadecimal digits."""

    def add(self, other: Report) -> None:
        """Count in another run."""
        self.seeds += other.seeds
        self.hours += other.hours
        self.episodes += other.episodes
        self.checks += other.checks
        for mine, its in ((self.faults, other.faults), (self.calls, other.calls), (self.seen, other.seen)):
            for name, count in its.items():  # `+` would drop the kinds that never happened
                mine[name] += count
        self.digest = hashlib.sha256((self.digest + other.digest).encode()).hexdigest()

    def __str__(self) -> str:
        kinds = [
            f"  {what}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
            for what, counts in (("faults", self.faults), ("calls", self.calls), ("seen", self.seen))
        ]
        head = (
            f"{self.hours:,.1f} simulated hours, {self.episodes:,} storms, {self.faults.total():,} faults, "
            f"{self.calls.total():,} calls, {self.checks:,} checks; digest {self.digest[:16]}"
        )
        return "\n".join([head, *kinds])


class Violation(AssertionError):
    """An invariant was broken. Its text says which, how, after what, and how to see it again."""

    def __init__(self, invariant: str, what: str, at: float, episode: int, command: str, events: Sequence[str]) -> None:
        super().__init__(invariant, what, at, episode, command, events)
        self.invariant = invariant
        """Its name in `INVARIANTS`."""
        self.what = what
        self.at = at
        """Virtual seconds since the start."""
        self.episode = episode
        """The number of the storm, from 0."""
        self.command = command
        """Replays it."""
        self.events = tuple(events)
        """The last events before it."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.invariant}: {INVARIANTS[self.invariant]}",
                f"violated at {self.at:.6f} s: {self.what}",
                f"the last {len(self.events)} events:",
                *(f"  {event}" for event in self.events),
                f"replay: {self.command}",
            ]
        )
