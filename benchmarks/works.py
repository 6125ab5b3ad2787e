"""The clients, the works and the goals of the benchmark; `run.py` and `report.py` read them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
CLIENTS_DIR = HERE / "clients"

sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from node_peers import NODE_DIR, node_available  # noqa: E402  # the npm packages are installed once, for both


@dataclass(frozen=True)
class Client:
    """A client that is measured."""

    title: str
    script: str
    module: str | None = None
    """What has to be installed for it; None for the npm packages."""
    speaks: str = "loro"

    @property
    def command(self) -> list[str]:
        """How to start it, in `directory`; the work follows as arguments."""
        if self.module is None:
            return ["node", "--expose-gc", "--no-warnings", str(CLIENTS_DIR / self.script)]
        return [sys.executable, str(CLIENTS_DIR / self.script)]

    @property
    def directory(self) -> Path:
        """Where to start it."""
        return NODE_DIR if self.module is None else HERE.parent

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None if it can."""
        if self.module is None:
            return node_available()
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed: pip install 'reconnect-fsm[bench]'"
        return None


CLIENTS: Mapping[str, Client] = {
    "ours": Client("reconnect_fsm", "ours.py", "reconnect_fsm"),
    "official": Client("official JS client", "official.mjs"),
    "floor": Client("bare aiohttp", "floor.py", "aiohttp"),
    "websockets": Client("websockets", "websockets_client.py", "websockets"),
    "centrifuge": Client("centrifuge-python", "centrifuge_client.py", "centrifuge", speaks="centrifuge"),
    "socketio": Client("python-socketio", "socketio_client.py", "socketio", speaks="socketio"),
}

Step = str | float
"""What the runner does in a section: a command for the stub server, or seconds to wait before the next one."""

AWAY: Sequence[Step] = ("stop", 0.2, "start")


@dataclass(frozen=True)
class Work:
    """A work that clients do. Each run is a process of its own, and has one section or more."""

    count: int
    quick: int
    """The count of the small version, which only shows that everything works."""
    clients: Sequence[str]
    steps: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    """What the runner does in a section."""
    max_rounds: int = 100
    runs: int = 1
    """In a round, of each client: more for works that are short, or depend on when a wait began."""


WORKS: Mapping[str, Work] = {
    "joins": Work(10_000, 100, ("ours", "official", "floor"), {"rejoin": AWAY}),
    "updates": Work(20_000, 200, ("ours", "official", "floor")),
    "edits": Work(20_000, 200, ("ours", "official")),
    "applies": Work(20_000, 200, ("ours", "official"), {"applies": ["edits room {count}"]}),
    "room_memory": Work(10_000, 500, ("ours", "official")),
    "receive": Work(100_000, 1_000, ("ours", "floor", "websockets"), {"receive": ["send {count} 128"]}),
    "decode": Work(100_000, 1_000, ("ours", "official", "floor"), {"decode": ["flood room {count} 100 10"]}),
    "usable": Work(
        1_000,
        50,
        ("ours", "official", "floor", "websockets", "centrifuge", "socketio"),
        {"usable": AWAY},
        runs=3,
    ),
    "idle": Work(10_000, 100, ("ours", "floor"), max_rounds=3),
    "idle_memory": Work(1_000, 50, ("ours", "floor")),
    "half_open": Work(6, 2, ("ours", "official"), {"half_open": ["mute"]}, max_rounds=1),
    "imports": Work(1, 1, ("ours", "floor"), runs=3),
}


@dataclass(frozen=True)
class Goal:
    """At most ``limit`` times the figure of client ``than``; if that is None, at most ``limit``."""

    limit: float
    than: str | None


def milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def microseconds(value: float) -> str:
    return f"{value * 1e6:.2f} µs"


def share(value: float) -> str:
    return f"{value:.1%} of a core"


def kibibytes(value: float) -> str:
    return f"{value / 1024:.2f} KiB"


def seconds(value: float) -> str:
    return f"{value:.0f} s"


@dataclass(frozen=True)
class Row:
    """A line of the table: one figure of one section."""

    title: str
    """With {count} where it goes."""
    work: str
    section: str
    figure: str
    """``wall``: seconds by the clock; ``since_back``: since the server listened again; ``cpu``: seconds of the
    processor; ``load``: its part of a core; ``bytes``; ``most``: seconds, the worst of several."""
    show: Callable[[float], str]
    goals: Sequence[Goal]
    each: bool = False
    """The figure is divided by the count."""


ROWS: Sequence[Row] = (
    Row("{count} rooms: first join → all joined", "joins", "join", "wall", milliseconds, [Goal(0.35, "official")]),
    Row("{count} rooms: server back → all rejoined", "joins", "rejoin", "wall", milliseconds, [Goal(0.4, "official")]),
    Row(
        "{count} updates of 100 B → last Ack", "updates", "updates", "wall", milliseconds, [Goal(0.4, "official")]
    ),
    Row("{count} real Loro edits → last Ack", "edits", "edits", "wall", milliseconds, [Goal(0.6, "official")]),
    Row(
        "receive and apply {count} Loro updates", "applies", "applies", "wall", milliseconds, [Goal(0.7, "official")]
    ),
    Row("memory a room, its document apart", "room_memory", "room_memory", "bytes", kibibytes, [Goal(1536, None)]),
    Row(
        "receive messages of 128 B: CPU a message",
        "receive", "receive", "cpu", microseconds, [Goal(1 / 0.8, "floor")], each=True,
    ),
    Row(
        "receive and decode DocUpdates: CPU a message",
        "decode", "decode", "cpu", microseconds, [Goal(1.5, "floor")], each=True,
    ),
    Row(
        "{count} rooms usable again, all delays 10 ms",
        "usable", "usable", "since_back", milliseconds, [Goal(2.0, "floor"), Goal(0.3, "centrifuge")],
    ),
    Row("{count} idle connections, 500 pings a second", "idle", "idle", "load", share, [Goal(1.3, "floor")]),
    Row("memory of an idle connection", "idle_memory", "idle_memory", "bytes", kibibytes, [Goal(1.25, "floor")]),
    Row("half-open noticed, default settings", "half_open", "half_open", "max", seconds, [Goal(30.0, None)]),
    Row("import, CPU", "imports", "imports", "cpu", milliseconds, [Goal(1.15, "floor")]),
)  # fmt: skip
