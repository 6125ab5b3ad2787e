"""The sequence picture: what it shows of a record, how it stays small and legible, and that it shows real runs."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from reconnect_fsm import Client, RetryPolicy
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.diagrams import sequence
from reconnect_fsm.diagrams.ink import COLOURS, DARK, PAPER, text_width
from reconnect_fsm.recorder.recorder import Transition
from reconnect_fsm.testing import EmbeddedServer

loro = pytest.importorskip("loro")

SVG = "{http://www.w3.org/2000/svg}"
WIDTHS = (320, 360, 820)

OUTAGE = [
    Transition(10.0, "client", "start_requested", "disconnected", "connecting", "connecting", "started"),
    Transition(10.1, "client", "socket_opened", "connecting", "connected", "connected", "connected"),
    Transition(10.1, "notes", "join_accepted", "joining", "joined", "joined", "let in"),
    Transition(11.0, "client", "socket_closed", "connected", "waiting", "reconnecting", "it was lost", 1, 0.5),
    Transition(11.0, "notes", "connection_lost", "joined", "stale", "reconnecting", "it was lost"),
    Transition(11.5, "client", "timer_fired", "waiting", "retrying", "reconnecting", "it was lost", 1),
    Transition(12.0, "client", "socket_opened", "retrying", "connected", "connected", "connected"),
    Transition(12.001, "notes", "join_accepted", "rejoining", "joined", "joined", "let in"),
]


def parsed(picture: str) -> ElementTree.Element:
    """The picture, found to be named, legible and well-formed."""
    root = ElementTree.fromstring(picture)
    width = float(root.get("width", "0"))
    used = {each.get(key) for each in root.iter() for key in ("fill", "stroke")} - {None, "none"}
    assert used <= set(DARK)
    assert root.get("role") == "img"
    assert [each.tag for each in root][:3] == [f"{SVG}title", f"{SVG}desc", f"{SVG}style"]
    for each in root.iter(f"{SVG}text"):
        shown = "".join(t for t in [each.text or "", *(part.tail or "" for part in each)])
        extent = text_width(shown, float(each.get("font-size", "0")), bold=each.get("font-weight") == "bold")
        assert float(each.get("x", "0")) >= 0, shown
        assert float(each.get("x", "0")) + extent <= width, shown
    ys = [float(each.get("y", "0")) for line in lines(root) for each in line.findall(f"{SVG}text")[1:]]
    assert all(below - above >= 12 for above, below in itertools.pairwise(ys)), "lines overlap"
    return root


def lines(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in root.iter(f"{SVG}g") if each.get("class") == "line"]


def words(root: ElementTree.Element) -> list[list[str]]:
    """What stands in each line: the time first."""
    return [[each.text or "" for each in line.findall(f"{SVG}text")] for line in lines(root)]


def bars(root: ElementTree.Element, machine: str) -> list[tuple[str, list[str | None]]]:
    """What each bar of a machine says, and the fills of its parts."""
    return [
        ((bar.findtext(f"{SVG}title") or "").partition(": ")[2], [each.get("fill") for each in bar.iter(f"{SVG}rect")])
        for bar in root.iter(f"{SVG}g")
        if bar.get("data-machine") == machine
    ]


def test_each_fact_has_a_line_and_each_state_a_bar() -> None:
    """Time, fact, new state, reason and next attempt; what rooms do at that instant stands with it."""
    root = parsed(sequence(OUTAGE, title="An outage"))
    assert words(root) == [
        ["0 s", "start_requested → connecting", "started"],
        ["100 ms", "socket_opened → connected", "connected", "notes: join_accepted → joined"],
        ["1.00 s", "socket_closed → waiting", "it was lost", "attempt 1 in 500 ms", "notes: connection_lost → stale"],
        ["1.50 s", "timer_fired → retrying", "it was lost"],
        ["2.00 s", "socket_opened → connected", "connected", "notes: join_accepted → joined"],
    ]
    fills = {status: [colour.fill] for status, colour in COLOURS.items()}
    assert bars(root, "client") == [
        ("disconnected", fills["disconnected"]),
        ("connecting", fills["connecting"]),
        ("connected", fills["connected"]),
        ("waiting", fills["reconnecting"]),
        ("retrying", fills["reconnecting"]),
        ("connected", fills["connected"]),
    ]
    assert [state for state, _ in bars(root, "notes")] == ["joining", "joined", "stale", "joined"]
    assert root.findtext(f"{SVG}title") == "An outage"
    assert "1.00 s: socket_closed → waiting." in (root.findtext(f"{SVG}desc") or "")


def test_what_a_room_does_later_has_a_line_of_its_own() -> None:
    """Only what happens within milliseconds of a fact stands with it."""
    later = OUTAGE[7]._replace(time=12.3)
    assert words(parsed(sequence([*OUTAGE[:7], later])))[-1] == ["2.30 s", "notes: join_accepted → joined"]


def test_much_at_one_instant_is_cut_short() -> None:
    """Three kinds of what rooms do stand in a line, the others are counted."""
    kinds = [OUTAGE[2]._replace(machine=f"room {n}", event=f"event {n}") for n in range(6)]
    (line,) = words(parsed(sequence(kinds)))
    assert line[1:] == [*(f"room {n}: event {n} → joined" for n in range(3)), "and 3 more kinds of transitions"]


def test_bars_end_where_the_next_begins() -> None:
    """A bar begins at the line of the fact that led to its state."""
    root = parsed(sequence(OUTAGE))
    rects = [
        rect for bar in root.iter(f"{SVG}g") if bar.get("data-machine") == "client" for rect in bar.iter(f"{SVG}rect")
    ]
    tops = [float(each.get("y", "0")) for each in rects]
    bottoms = [float(each.get("y", "0")) + float(each.get("height", "0")) for each in rects]
    assert tops[1:] == bottoms[:-1]
    ticks = [re.search(r"M\S+ (\S+)H", line.findall(f"{SVG}path")[0].get("d", "")) for line in lines(root)]
    assert [tick and float(tick[1]) for tick in ticks] == tops[1:]


def test_a_long_quiet_stretch_is_shortened_and_says_so() -> None:
    """An hour among seconds takes little more space than a second, and its length stands at the break."""
    late = [each._replace(time=each.time + 3600) for each in OUTAGE]
    usual, quiet = parsed(sequence(OUTAGE + late[:0])), parsed(sequence([*OUTAGE, *late]))
    breaks = [each for each in quiet.iter(f"{SVG}g") if each.get("class") == "quiet"]
    assert [each.findtext(f"{SVG}title") for each in breaks] == ["nothing for 3,598 s: shortened"]
    assert [each for each in usual.iter(f"{SVG}g") if each.get("class") == "quiet"] == []
    assert float(quiet.get("height", "0")) < 2.2 * float(usual.get("height", "0"))


def test_the_same_record_gives_the_same_picture() -> None:
    """To the byte, from any order of what happened at different times, and from any clock."""
    shuffled = sorted(OUTAGE, key=lambda step: (-step.time, OUTAGE.index(step)))
    moved = [step._replace(time=step.time + 1000) for step in OUTAGE]
    assert sequence(iter(OUTAGE)) == sequence(shuffled) == sequence(moved)


def test_the_busiest_rooms_are_shown_and_the_others_counted() -> None:
    """Columns are few; a room that is not shown is still told of in the line of its fact."""
    many = [OUTAGE[2]._replace(machine=f"room {number}") for number in range(30)]
    root = parsed(sequence([*OUTAGE, *many], rooms=2))
    assert bars(root, "notes")
    assert bars(root, "room 0")
    assert not bars(root, "room 1")
    assert "29 more rooms are not shown." in {each.text for each in root.iter(f"{SVG}text")}
    assert "notes, room 0 and 29 more: join_accepted → joined" in words(root)[1]
    only_client = parsed(sequence(OUTAGE, rooms=0))
    assert not bars(only_client, "notes")
    assert "1 more room are not shown." not in (texts := {each.text for each in only_client.iter(f"{SVG}text")})
    assert "1 more room is not shown." in texts


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rooms", [0, 3, 1000])
def test_everything_fits_the_width(width: int, rooms: int) -> None:
    """At the width of a phone too, and however many rooms are asked for; long words are cut, and kept in hints."""
    long = OUTAGE[3]._replace(reason="a_word_that_never_ends_" * 50 + " and some more words" * 20)
    steps = [*OUTAGE, long, *(OUTAGE[2]._replace(machine=f"{number} {'long name ' * 9}") for number in range(30))]
    root = parsed(sequence(steps, title="a title " * 40, width=width, rooms=rooms))
    assert root.get("width") == str(width)
    assert any("timer_fired" in line[1] for line in words(root))


def test_ten_thousand_transitions_are_summed_up() -> None:
    """The picture stays as small; each line counts its facts, each bar shows how long each status lasted."""
    moves = [
        ("socket_opened", "retrying", "connected", "connected", 3.0),
        ("socket_closed", "connected", "waiting", "reconnecting", 0.5),
        ("timer_fired", "waiting", "retrying", "reconnecting", 0.5),
    ]
    steps: list[Transition] = []
    time = 0.0
    for number in range(9_999):
        event, old, new, status, lasts = moves[number % 3]
        steps.append(Transition(time, "client", event, old, new, status))
        time += lasts
    picture = sequence(steps)
    root = parsed(picture)
    assert len(picture) < 80_000
    assert len(lines(root)) <= 48
    assert sum(int(line[1].split()[0].replace(",", "")) for line in words(root)) == 9_999
    assert words(root)[0][2].startswith(("socket_opened ×70", "socket_opened ×71"))
    (title, parts) = bars(root, "client")[5]
    shares = dict(re.findall(r"(\w+) (\d+)%", title))
    assert parts == [COLOURS["connected"].fill, COLOURS["reconnecting"].fill]
    assert 73 <= int(shares["connected"]) <= 77
    assert "Each line sums up several events; bars show the shares of the statuses." in picture


def test_nothing_in_a_record_is_taken_for_markup() -> None:
    """Names, reasons and titles of others are text, whatever they hold."""
    evil = '"/><script>alert(1)</script><a href="https://evil.example/">&\x00\x1b\ud800'
    steps = [Transition(0, evil, evil, evil, evil, evil, evil), Transition(1, "client", evil, evil, evil, evil, evil)]
    picture = sequence(steps, title=evil)
    root = parsed(picture)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
        "svg", "title", "desc", "style", "rect", "text", "g", "path",
    }  # fmt: skip
    assert "<script" not in picture
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", picture)


@pytest.mark.parametrize("width", WIDTHS)
def test_little_can_be_drawn(width: int) -> None:
    """Nothing at all, one step, only rooms, statuses of one's own, all at once."""
    assert "Nothing was recorded." in sequence([], width=width)
    parsed(sequence([], width=width))
    assert len(words(parsed(sequence(OUTAGE[:1], width=width)))) == 1
    assert "client" not in {each.text for each in parsed(sequence(OUTAGE[2:3], width=width)).iter(f"{SVG}text")}
    parsed(sequence([step._replace(status=f"own {number}") for number, step in enumerate(OUTAGE)], width=width))
    assert len(words(parsed(sequence([step._replace(time=5) for step in OUTAGE], width=width)))) == 5


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ([OUTAGE[0]._replace(time=float("nan"))], {}, "must be a number of seconds, not nan"),
        ([*OUTAGE, OUTAGE[0]._replace(time=float("inf"))], {}, "must be a number of seconds, not inf"),
        (OUTAGE, {"width": 319}, "at least 320 pixels"),
        (OUTAGE, {"rooms": -1}, "no fewer than 0 rooms"),
    ],
)
def test_what_cannot_be_drawn_is_refused(steps: list[Transition], options: dict[str, Any], message: str) -> None:
    """A time that is none, or a size that leaves no space, is an error that says so."""
    with pytest.raises(ValueError, match=message):
        sequence(steps, **options)


def test_a_change_of_status_alone_can_be_drawn() -> None:
    """Of one who knows no more: it names no fact."""
    news = Transition(7.0, "notes", "", "joined", "reconnecting", "reconnecting", "lost")
    assert words(parsed(sequence([news]))) == [["0 s", "notes → reconnecting"]]


# ------------------------------------------------------------------------------------------------------------ real runs


async def recorded(outage: float) -> list[Transition]:
    """A client with two rooms, through an outage of so many seconds."""
    async with asyncio.timeout(600), EmbeddedServer() as server:
        client = Client(server.url, retry=RetryPolicy(base=0.05, cap=outage / 4, random=random.Random(1)))
        async with client:
            rooms = [client.join(name, LoroAdaptor(loro.LoroDoc())) for name in ("notes", "todo")]
            for room in rooms:
                await room
            await server.stop()
            await asyncio.sleep(outage)
            await server.start()
            for room in rooms:
                await room.synced()
    return [each for each in client.transitions() if each.old != each.new]


async def test_a_real_run_is_drawn() -> None:
    """Sockets, a server that stops and comes back: the picture tells it, at both widths."""
    steps = await recorded(0.3)
    for width in WIDTHS:
        root = parsed(sequence(steps, width=width))
        told = [line[1].partition(" ")[0] for line in words(root) if line[1] and "," not in line[1].split(" → ")[0]]
        facts = [step.event for step in steps if step.machine == "client"]
        assert [each for each in told if each in facts] == facts
        states = [state for state, _ in bars(root, "client")]
        assert states[:3] == ["disconnected", "connecting", "connected"]
        assert states[-2:] == ["connected", "disconnected"]
        assert {"waiting", "retrying"} <= set(states)
        notes = [state for state, _ in bars(root, "notes")]
        assert [state for state in notes if state != "rejoining"][-4:] == ["joined", "stale", "joined", "disconnected"]


def round_times(steps: list[Transition]) -> list[Transition]:
    """To microseconds: two sums of the same waits may differ in the last bit."""
    return [each._replace(time=round(each.time, 6)) for each in steps]


@pytest.mark.virtual_time
async def test_a_run_in_virtual_time_is_drawn_alike_each_time() -> None:
    """An outage of two minutes, run twice: the same picture to the byte."""
    pictures = set[str]()
    for _ in range(2):
        pictures.add(sequence(round_times(await recorded(120))))
    assert len(pictures) == 1
    assert PAPER in pictures.pop()
