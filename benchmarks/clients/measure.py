"""What the Python clients have in common: how they are run, and how they say what they measured.

`run.py` starts a client as ``CLIENT WORK URL COUNT``. A work has sections. Before each the client says which on
stdout, ``{"begin": SECTION}``, and waits for a line on stdin; from then on the runner does the server's part in it (it
restarts, or sends messages). At its end the client says ``{"end": SECTION, "wall": seconds, "cpu": seconds, …}``.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import os
import pstats
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

TIMEOUT = 240.0  # seconds for a whole work
DELAY = 0.01  # seconds: every wait before another attempt

PROFILE = cProfile.Profile() if os.environ.get("PROFILE") else None  # of the sections alone

T = TypeVar("T")
Work = Callable[[str, int], Coroutine[Any, Any, None] | None]


def begin(section: str) -> None:
    """Report the beginning of a section, and wait for permission. The loop is blocked meanwhile."""
    gc.collect()  # a section pays for its own garbage, not for what went before
    print(json.dumps({"begin": section}), flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the runner is gone")
    if PROFILE is not None:
        PROFILE.enable()


class Stopwatch:
    """Runs from when it is made, or started again."""

    def __init__(self) -> None:
        self.start()

    def start(self, *_: object) -> None:
        """Begin anew."""
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def end(self, section: str, **figures: float) -> None:
        """Say how long the section took, by the clock and in processor time, and what else is known."""
        figures |= {
            "wall": time.monotonic() - self._wall,
            "cpu": time.process_time() - self._cpu,
            "at": time.monotonic(),
        }
        if PROFILE is not None:
            PROFILE.disable()
        print(json.dumps({"end": section, **figures}), flush=True)


def resident() -> int:
    """Bytes of this process that are in memory, garbage apart."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_groups(these: Sequence[T], size: int = 100) -> Iterator[Sequence[T]]:
    """Open so many connections at a time: a server's backlog is limited."""
    for at in range(0, len(these), size):
        yield these[at : at + size]


def ping_interval(connections: int) -> float:
    """Seconds between the pings of a connection, such that there are 500 a second, as of 10,000 every 20 s."""
    return connections / 500


def main(*works: Work) -> None:
    """Do the work that the command line names. With PROFILE set, say on stderr where the time went."""
    name, url, count = sys.argv[1:]
    work = next(each for each in works if each.__name__ == name)
    under_way = work(url, int(count))
    if under_way is not None:
        asyncio.run(asyncio.wait_for(under_way, TIMEOUT))
    if PROFILE is not None:
        pstats.Stats(PROFILE, stream=sys.stderr).sort_stats("tottime").print_stats(40)
