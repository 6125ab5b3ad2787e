"""Pictures and tables: they lose nothing of a machine, are legible, the same on every run, and up to date."""

from __future__ import annotations

import html
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reconnect_fsm import diagrams
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.diagrams import (
    CannotDraw,
    Machine,
    cards,
    digest,
    dot,
    load,
    main_machines,
    matrix,
    mermaid,
    picture,
    statuses_dot,
    svg,
    write,
)
from reconnect_fsm.diagrams.as_cards import GAP, INSIDE, WIDTH
from reconnect_fsm.diagrams.ink import (
    BOX,
    COLOURS,
    DARK,
    FAINT,
    INK,
    MARK,
    PAPER,
    SPARE,
    balanced,
    escaped,
    fitting,
    text_width,
    wrapped,
)
from reconnect_fsm.diagrams.plan import ADDED, OVERRIDDEN, Changes
from reconnect_fsm.heartbeat_fsm import HeartbeatFSM
from reconnect_fsm.machine import ANY, FSM, OTHERWISE, STAY, Rule, event, ignore, row, state
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import ClientStatus

KEPT = Path(__file__).parents[2] / "diagrams"
SHIPPED = Path(diagrams.__file__).parent / "pictures"
SVG = "{http://www.w3.org/2000/svg}"

# --------------------------------------------------------------------------------------- machines as a user writes them


class CarefulFSM(ClientFSM):
    """A client with one more state, one more event, and a row before the inherited ones."""

    __slots__ = ()

    cooling = state(ClientStatus.RECONNECTING, like=ClientFSM.waiting, doc="one <long> timer & no hurry")

    def is_told_to_wait(self) -> bool:
        """The server's last words were: not so often."""
        return "often" in self.loss.reason

    socket_closed = ClientFSM.socket_closed.first(
        row(ClientFSM.connected, to=cooling, when=is_told_to_wait, do=ClientFSM.forget_attempts, clause="X-1")
    )

    @event(row(cooling, to=ClientFSM.waiting, clause="X-2"), ignore(OTHERWISE, because="nothing | to calm"))
    def calmed_down(self) -> None:
        """The long wait is over."""


class LiftFSM(FSM[str]):
    """Statuses of its own, no guards, a status that is left as a whole."""

    __slots__ = ()

    halted = state("out: of-order")
    idle = state("idle")
    rising = state("in service", enter="hum")
    sinking = state("in service", enter="hum")
    parked = state("night")
    initial = halted

    def hum(self) -> None:
        pass

    @event(row((rising, sinking), to=idle), ignore(OTHERWISE, because="it did not move"))
    def arrived(self) -> None: ...

    @event(row(idle, to=rising), row(OTHERWISE, to=STAY))
    def called(self) -> None: ...

    @event(row(idle, to=sinking), row((rising, sinking), to=idle, do=hum), row(OTHERWISE, to=parked))
    def evening_came(self) -> None: ...

    @event(row(ANY, to=STAY, do=hum))
    def door_moved(self) -> None: ...

    @event(row(ANY, to=halted))
    def faulted(self) -> None: ...

    @event(row(halted, to=idle), ignore(OTHERWISE, because="it works already"))
    def repaired(self) -> None: ...


class GateFSM(FSM[str]):
    """Guards in every place: alone, before a refusal, before a row that stays, before a way back to the same state."""

    __slots__ = ()

    shut = state("shut")
    ajar = state("ajar")
    open = state("open")
    initial = shut

    def is_locked(self) -> bool:
        return False

    def is_windy(self) -> bool:
        return False

    def creak(self) -> None:
        pass

    @event(
        row(shut, to=ajar, when=is_windy),
        row(shut, to=STAY, when=is_locked, do=creak),
        row(shut, to=open),
        row(ajar, to=ajar, when=is_windy),
        row(OTHERWISE, to=open),
    )
    def pushed(self) -> None: ...

    @event(row(open, to=ajar, when=(is_windy, is_locked)), ignore(OTHERWISE, because="no wind can do that"))
    def wind_blew(self) -> None: ...

    @event(row((shut, ajar), to=STAY, when=is_locked, do=creak, clause="Q"), row(OTHERWISE, to=STAY))
    def knocked(self) -> None: ...

    @event(
        row((shut, open), to=open, when=is_windy),
        row((shut, open), to=ajar),
        ignore(OTHERWISE, because="it is so already"),
    )
    def nudged(self) -> None: ...


class ShiftsFSM(FSM[str]):
    """Two statuses that have the same choice."""

    __slots__ = ()

    early, late = state("day"), state("day")
    dusk, dawn = state("night"), state("night")
    home, away, ill, gone = state("home"), state("away"), state("ill"), state("gone")
    initial = early

    def is_friday(self) -> bool:
        return False

    @event(
        row((early, late, dusk, dawn), to=away, when=is_friday, clause="F"),
        row((early, late, dusk, dawn), to=home),
        row(home, to=early, when=is_friday),
        row(away, to=dusk, when=is_friday),
        row((ill, gone), to=dawn, when=is_friday),
        row(OTHERWISE, to=gone),
    )
    def bell_rang(self) -> None: ...


MACHINES: list[Machine] = [ClientFSM, RoomFSM, HeartbeatFSM, CarefulFSM, LiftFSM, GateFSM, ShiftsFSM]
each_machine = pytest.mark.parametrize("cls", MACHINES, ids=lambda cls: cls.__name__)


def states_of(cls: Machine) -> list[str]:
    """Its states; ``initial`` is only a second name of one of them."""
    return [name for name, each in cls.states.items() if name == each.name]


def rules_of(cls: Machine) -> list[Rule]:
    return [rule for rule in cls.rules if rule.source in states_of(cls)]


# ---------------------------------------------------------------------------------------------------- reading DOT again


def marked_pieces(label: str) -> list[str]:
    """The texts of an HTML-like label."""
    return [html.unescape(text) for text in re.split(r"<[^<>]*>", label) if text.strip()]


def pieces(label: str) -> list[str]:
    """The texts of a label without the marks of what a subclass changed."""
    return [re.sub(rf"^(\d+  )?[{ADDED}{OVERRIDDEN}] ", r"\1", text) for text in marked_pieces(label)]


@dataclass
class Drawing:
    """What a reader sees in a DOT source: boxes, arrows between them, and the text on each."""

    labels: dict[str, str] = field(default_factory=dict)
    arrows: list[tuple[str, str, list[str]]] = field(default_factory=list)
    lines: set[frozenset[str]] = field(default_factory=set)
    frames: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str) -> Drawing:
        drawing, frame = cls(), ""
        for line in source.splitlines():
            if match := re.match(r'\s+subgraph "cluster (.*)" {', line):
                drawing.frames[frame := match[1]] = []
            elif line == "  }":
                frame = ""
            elif match := re.match(r'\s+"([^"]+)"(?::\S+)? -> "([^"]+)"(?::\S+)? \[(.*)\]', line):
                drawing.add_edge(match[1], match[2], match[3])
            elif match := re.match(r'\s+"([^"]+)" \[.*?label=(?:<(.*)>|"")', line):
                drawing.labels[match[1]] = match[2] or ""
                if frame and match[1] != "(start)":
                    drawing.frames[frame].append(match[1])
        return drawing

    def add_edge(self, tail: str, head: str, attributes: str) -> None:
        label = re.search(r"label=<(.*)>", attributes)
        frames = dict(re.findall(r'(lhead|ltail)="cluster ([^"]*)"', attributes))
        tails = self.frames[frames["ltail"]] if "ltail" in frames else [tail]
        heads = self.frames[frames["lhead"]] if "lhead" in frames else [head]
        for ends in itertools.product(tails, heads):
            if 'arrowhead="none"' in attributes:
                self.lines.add(frozenset(ends))
            else:
                self.arrows.append((*ends, pieces(label[1]) if label else []))

    def leads(self, tail: str, head: str) -> bool:
        return any((tail, head) == arrow[:2] for arrow in self.arrows)

    def sources(self, texts: Iterable[str], target: str, states: list[str]) -> set[str]:
        """The states that the words "from …" of a table mean."""
        words = " ".join(texts)
        if "from any state" in words:
            return set(states)
        if "from any other state" in words:
            return set(states) - {target}
        if match := re.search(r"from any but ((\w+, )*\w+)", words):
            return set(states) - set(match[1].split(", "))
        match = re.search(r"from ((\w+, )*\w+)", words)
        return set(match[1].split(", ")) if match else set()

    @staticmethod
    def sources_of_arrow(tail: str, texts: Iterable[str]) -> set[str]:
        """The state where an arrow begins, and those that its words "also from …" mean."""
        also = re.search(r"also from ((\w+, )*\w+)", " ".join(texts))
        return {tail, *(also[1].split(", ") if also else [])}


def is_drawn(rule: Rule, drawing: Drawing, states: list[str]) -> bool:
    """True if the full picture shows all of the rule: from where, on what, if what, to where, doing what, and why."""
    small = [f"/ {each}" for each in rule.do] + [rule.clause] * bool(rule.clause)
    guards = " and ".join(rule.when)
    for name, label in drawing.labels.items():
        table = re.fullmatch(rf"{rule.event} in (.*)", name)
        if table and rule.source in table[1].split(", "):
            head, *rows = [pieces(each) for each in label.split("<TR>")[1:]]
            joined = frozenset((rule.source, name)) in drawing.lines or rule.source in drawing.sources(head, "", states)
            outcome = f"→ {rule.target}" if rule.target else "stays"
            led = not rule.target or drawing.leads(name, rule.target) or f"to {rule.target}" in drawing.labels
            listed = any(
                {outcome, *small} <= set(row) and row[0].endswith(f"  {guards or 'otherwise'}") for row in rows
            )
            return joined and led and listed
    wanted = {rule.event, *small, *([guards] if guards else [])}
    if rule.target is None:
        wanted_line = rule.event + f" [{guards}]" * bool(guards) + "".join(f" {each}" for each in small)
        return " ".join(wanted_line.split()) in " ".join(" ".join(pieces(drawing.labels[rule.source])).split())
    for text in drawing.labels.get(f"to {rule.target}", "").split("<TR>"):
        if wanted <= set(pieces(text)) and rule.source in drawing.sources(pieces(text), rule.target, states):
            return drawing.leads(f"to {rule.target}", rule.target)
    return any(
        rule.target == head and wanted <= set(texts) and rule.source in drawing.sources_of_arrow(tail, texts)
        for tail, head, texts in drawing.arrows
    )


# ------------------------------------------------------------------------------------------------------ nothing is lost


@each_machine
def test_the_full_picture_shows_every_rule(cls: Machine) -> None:
    """No row is lost: each one can be read from the picture, with its guards, order, actions and clauses."""
    drawing = Drawing.of(dot(cls, "full"))
    rules = [rule for rule in rules_of(cls) if not rule.is_ignored]
    assert len(rules) > 5
    assert [rule for rule in rules if not is_drawn(rule, drawing, states_of(cls))] == []


@each_machine
def test_the_full_picture_shows_nothing_else(cls: Machine) -> None:
    """Each arrow between two states, and each row of a table, is a rule of the machine."""
    drawing = Drawing.of(dot(cls, "full"))
    moves = {(rule.source, rule.target) for rule in rules_of(cls)}
    states = set(states_of(cls))
    assert {(tail, head) for tail, head, _ in drawing.arrows if tail in states} <= moves
    assert {end for pair in drawing.lines for end in pair} <= set(drawing.labels)
    assert {end for *ends, _ in drawing.arrows for end in ends} <= set(drawing.labels)
    rows = [label.count("<TR>") - 1 for name, label in drawing.labels.items() if " in " in name]
    distinct = {
        (name, number)
        for name in drawing.labels
        if (table := re.fullmatch(r"(\w+) in (\w+).*", name))
        for number, _ in enumerate(
            r for r in rules_of(cls) if (r.event, r.source) == table.groups() and not r.is_ignored
        )
    }
    assert sum(rows) == len(distinct)


@each_machine
@pytest.mark.parametrize("detail", ["overview", "full"])
def test_a_picture_shows_every_state(cls: Machine, detail: Any) -> None:
    """Each state is a box with its name and its doc, in the frame of its status; the start dot points at the first."""
    drawing = Drawing.of(dot(cls, detail))
    for name in states_of(cls):
        texts = pieces(drawing.labels[name])
        assert texts[0] == name
        assert cls.states[name].doc in " ".join(texts)
        status = str(cls.states[name].status)
        assert name in drawing.frames.get(status, [status])
    assert drawing.leads("(start)", cls.initial.name)


@each_machine
def test_the_overview_leads_wherever_the_machine_can_go(cls: Machine) -> None:
    """Whatever state can follow another, the overview says so, and names the event."""
    drawing = Drawing.of(dot(cls))
    states = states_of(cls)
    shown: set[tuple[str, str | None, str]] = set()
    for name, label in drawing.labels.items():
        head, *rest = [pieces(each) for each in label.split("<TR>")[1:]] or [[]]
        if table := re.fullmatch(r"(.*) in (.*)", name):
            sources = drawing.sources(head, "", states) or {s for s in states if frozenset((s, name)) in drawing.lines}
            assert sources == set(table[2].split(", "))
            targets = {to for tail, to, _ in drawing.arrows if tail == name}
            targets |= {text.removeprefix("→ ") for each in rest for text in each if text.startswith("→ ")}
            shown |= {(source, to, ev) for source in sources for to in targets for ev in table[1].split(", ")}
        elif name.startswith("to "):
            for texts in [head, *rest]:
                shown |= {(source, name[3:], texts[0]) for source in drawing.sources(texts, name[3:], states)}
    for tail, target, texts in drawing.arrows:
        shown |= {(source, target, text) for source in drawing.sources_of_arrow(tail, texts) for text in texts}
    moves = {(r.source, r.target, r.event) for r in rules_of(cls) if r.target not in (None, r.source)}
    assert moves - shown == set()


@each_machine
def test_the_matrix_holds_every_rule(cls: Machine) -> None:
    """Each cell lists its rules in order: guards, target or refusal with its reason, actions, clauses."""
    text = matrix(cls)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    cells = [
        [re.sub(rf"(^|<br>|, |(?<=and )|(?<=/ ))[{ADDED}{OVERRIDDEN}] ", r"\1", cell) for cell in line]
        for line in cells
    ]
    head, _, *rows = [line for line in cells if line][: len(cls.events) + 2]
    assert head == ["event", *states_of(cls)]
    table = {(row[0].strip("*"), source): cell for row in rows for source, cell in zip(head[1:], row[1:], strict=True)}
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    for event_name in cls.events:
        for source in states_of(cls):
            rules = [rule for rule in cls.rules if (rule.event, rule.source) == (event_name, source)]
            lines = table[event_name, source].split("<br>")
            for number, (rule, line) in enumerate(zip(rules, lines, strict=True)):
                assert [guard for guard in rule.when if f"`{guard}`" not in line.partition("→")[0]] == []
                assert line.startswith("otherwise ") == (number > 0 and not rule.when)
                assert [each for each in rule.do if f"`{each}`" not in line.partition(" / ")[2]] == []
                assert rule.clause in line
                if rule.is_ignored:
                    footnote = re.search(r"—<sup>(\d+)</sup>", line)
                    assert footnote
                    assert reasons[footnote[1]] == rule.because.replace("|", r"\|")
                else:
                    assert ("stays" if rule.target is None else f"→ **{rule.target}**") in line


def test_the_matrix_explains_its_words() -> None:
    """Its legends say what the states, events and guards mean."""
    text = matrix(CarefulFSM)
    assert "| **waiting** | reconnecting | one retry timer | `start_retry_timer` | `stop_retry_timer` |" in text
    assert "| **calmed_down** | The long wait is over. |" in text
    assert "| + `is_told_to_wait` | The server's last words were: not so often. |" in text
    assert "It begins in **disconnected**." in text
    assert "## Guards" not in matrix(LiftFSM)
    assert "| `is_windy` |  |" in matrix(GateFSM)


def test_a_subclass_is_drawn_with_what_it_adds() -> None:
    """The added state is in its frame, the added event leads on, and the row put first comes first."""
    drawing = Drawing.of(dot(CarefulFSM, "full"))
    assert "cooling" in drawing.frames["reconnecting"]
    assert drawing.leads("cooling", "waiting")
    assert "1  is_told_to_wait" in pieces(drawing.labels["socket_closed in connected"])
    assert "cooling" in mermaid(CarefulFSM)
    assert "calmed_down" in mermaid(CarefulFSM)
    assert "| **calmed_down** |" in matrix(CarefulFSM)


def test_a_status_that_is_left_as_a_whole_has_one_arrow() -> None:
    """Where all states of a status share a row, its frame is the beginning of one arrow."""
    source = dot(LiftFSM)
    assert source.count("arrived") == 1
    assert 'ltail="cluster in service"' in source
    assert "status_in_service --> idle : arrived" in mermaid(LiftFSM)
    assert 'ltail="cluster night"' in dot(ShiftsFSM)
    assert 'lhead="cluster day"' in dot(ShiftsFSM)


def test_a_guard_is_named_where_it_can_keep_the_machine_where_it_is() -> None:
    """The overview puts guards in words, and leaves them out where every way leads to the same state."""
    arrows = {(tail, head): texts for tail, head, texts in Drawing.of(dot(GateFSM)).arrows}
    assert arrows["open", "ajar"] == ["wind_blew", "windy and locked", "nudged"]
    assert "connect_requested" in dot(ClientFSM)
    assert "reset asked" not in dot(ClientFSM)


# -------------------------------------------------------------------------------------------------------------- Mermaid


@each_machine
def test_mermaid_gets_only_what_it_can_read(cls: Machine) -> None:
    """Names are words; labels hold no colon, semicolon, quote or hash, which Mermaid takes for syntax."""
    first, *lines = mermaid(cls).splitlines()
    assert first == "stateDiagram-v2"
    label = r"[\w ,./()\[\]']+"
    statements = [
        r"\[\*\] --> \w+",
        rf"\w+ --> \w+ : {label}",
        r"\w+",
        rf'state "{label}" as \w+( {{)?',
        r"}",
        r"state \w+ <<choice>>",
        r"classDef \w+ fill:#\w{6},stroke:#\w{6},color:#\w{6}",
        r"classDef changed stroke:#\w{6},stroke-width:4px",
        r"class \w+ \w+",
    ]
    assert [line for line in lines if not any(re.fullmatch(each, line.strip()) for each in statements)] == []


@each_machine
def test_mermaid_declares_all_that_it_names(cls: Machine) -> None:
    """Each end of an arrow is a state of the machine, or declared; each state is there, and braces are balanced."""
    text = mermaid(cls)
    declared = set(re.findall(r'^ +state (?:"[^"]*" as )?(\w+)', text, re.MULTILINE)) | set(states_of(cls))
    ends = re.findall(r"^ +(\w+) --> (\w+) :", text, re.MULTILINE)
    assert {end for pair in ends for end in pair} <= declared
    assert set(states_of(cls)) <= set(re.findall(r"^ +(\w+)$", text, re.MULTILINE))
    assert text.count("{") == text.count("}")


# ------------------------------------------------------------------------------------------------------------------ SVG


def check_svg(text: str, cls: Machine) -> None:
    root = ElementTree.fromstring(text.encode())
    assert root.tag == f"{SVG}svg"
    texts = {unmarked(each.text or "") for each in root.iter(f"{SVG}text")}
    assert set(states_of(cls)) <= texts
    assert set(re.findall(r"\w+://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"graphviz|<!--|<!DOCTYPE|<a[ >]|href", text, re.IGNORECASE)
    check_named(root)
    check_findable(root, cls)
    check_dark(text, root)


def unmarked(text: str) -> str:
    return re.sub(rf"^[{ADDED}{OVERRIDDEN}] ", "", text)


def check_named(root: ElementTree.Element) -> None:
    """It has a title and a description for those who cannot see it, and no id twice."""
    ids = {each.get("id"): each for each in root.iter() if each.get("id")}
    assert len(ids) == sum(1 for each in root.iter() if each.get("id"))
    assert root.get("role") == "img"
    assert all(ids[name].text for name in (root.get("aria-labelledby") or "").split())


def check_findable(root: ElementTree.Element, cls: Machine) -> None:
    """Each state and each move to another state can be found, and no move that is not the machine's."""
    states = {str(each.get("data-state")): each for each in root.iter() if each.get("data-state")}
    assert sorted(states) == sorted(states_of(cls))
    assert all(each.get("id") == f"state-{name}" for name, each in states.items())
    assert [each.get("data-status") for each in states.values()] == [str(cls.states[name].status) for name in states]
    found = {token for each in root.iter() for token in each.get("data-moves", "").split()}
    moves = {f"{r.event}:{r.source}:{r.target}": r for r in rules_of(cls) if r.target is not None}
    assert found <= set(moves)
    assert {token for token, rule in moves.items() if rule.target != rule.source} <= found


def check_dark(text: str, root: ElementTree.Element) -> None:
    """It has a background, and its style sheet has a dark colour for each colour in it."""
    (paper,) = root.findall(f"{SVG}rect")[:1]
    assert paper.get("fill") == PAPER
    used = {each.get(key) for each in root.iter() for key in ("fill", "stroke")} - {None, "none"}
    assert used <= set(DARK)
    for colour in used:
        assert f'[fill="{colour}"]{{fill:{DARK[str(colour)]}}}' in text
        assert f'[stroke="{colour}"]{{stroke:{DARK[str(colour)]}}}' in text


@pytest.mark.dot
@each_machine
@pytest.mark.parametrize("detail", ["overview", "full"])
def test_svg_is_well_formed_and_shows_every_state(cls: Machine, detail: Any) -> None:
    """Graphviz accepts the DOT; the result names no version and no address, and all in it can be found again."""
    check_svg(svg(cls, detail), cls)


def test_without_the_package_an_svg_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install; all that does not need it is written."""
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(CannotDraw, match=r"package graphviz.*pip install 'reconnect-fsm\[diagrams\]'.*DOT, Mermaid"):
        svg(LiftFSM)
    with pytest.raises(CannotDraw):
        write(LiftFSM, tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {
        "lift_fsm.dot",
        "lift_fsm_full.dot",
        "lift_fsm_statuses.dot",
        "lift_fsm.mmd",
        "lift_fsm.md",
        "lift_fsm_cards.svg",
        "lift_fsm_full_cards.svg",
    }


def test_without_dot_an_svg_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install; DOT, Mermaid and cards come all the same."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotDraw, match=r"program dot is not on the PATH: install Graphviz.*DOT, Mermaid"):
        svg(LiftFSM)
    assert dot(LiftFSM).startswith("digraph")
    assert mermaid(LiftFSM).startswith("stateDiagram-v2")
    assert cards(LiftFSM).startswith("<svg")


@each_machine
@pytest.mark.parametrize("detail", ["overview", "full"])
def test_cards_show_every_state_and_move(cls: Machine, detail: Any) -> None:
    """Without Graphviz too, nothing is lost; and no text is wider than its card, so that a phone shows all of it."""
    text = cards(cls, detail)
    check_svg(text, cls)
    root = ElementTree.fromstring(text)
    assert root.get("width") == str(WIDTH + 2 * GAP)
    for each in root.iter(f"{SVG}text"):
        width = text_width(each.text or "", float(each.get("font-size", "0")), bold=each.get("font-weight") == "bold")
        assert float(each.get("x", "0")) + width <= WIDTH - INSIDE / 2, each.text


def test_cards_in_full_name_what_the_overview_leaves_out() -> None:
    """Actions, clauses and what changes no state are on the full cards only."""
    overview, full = cards(CarefulFSM), cards(CarefulFSM, "full")
    for words in ("/ forget_attempts", "X-1", "stays", "on entering / start_retry_timer"):
        assert words in full
        assert words not in overview


def test_cards_can_stand_in_columns() -> None:
    """The same cards, in a picture that is wider and less high; none is no number of columns."""
    one, two, many = (ElementTree.fromstring(cards(RoomFSM, columns=number)) for number in (1, 2, 100))
    check_svg(cards(RoomFSM, columns=2), RoomFSM)
    assert two.get("width") == str(2 * (WIDTH + GAP) + GAP)
    assert float(two.get("height", "0")) < 0.65 * float(one.get("height", "0"))
    assert float(many.get("height", "0")) < float(two.get("height", "0"))
    with pytest.raises(ValueError, match="at least one column, not 0"):
        cards(RoomFSM, columns=0)


# ---------------------------------------------------------------------------------------------- what a subclass changes


class HastyFSM(CarefulFSM):
    """Changes of every kind, on top of another subclass."""

    __slots__ = ()

    error = state(ClientStatus.ERROR, enter="stop", doc="it will not work like this")

    def is_offline(self) -> bool:
        """Never."""
        return False

    def dial(self) -> None:
        """At once."""
        super().dial()

    @event(row(OTHERWISE, to=ClientFSM.disconnected))
    def close_requested(self) -> None:
        """Enough."""


class NightFSM(LiftFSM):
    """What it puts first, and what it overrides, changes no state."""

    __slots__ = ()

    def hum(self) -> None:
        """Softly."""

    door_moved = LiftFSM.door_moved.first(row(LiftFSM.parked, to=STAY, do="hum", clause="N", silences=ANY))


class SameFSM(ClientFSM):
    """Nothing that is drawn is different."""

    __slots__ = ()


def test_changes_are_told_by_kind() -> None:
    """States, events, rows, guards and actions: which were added, and which overridden, whichever class did it."""
    changes = Changes(HastyFSM)
    assert (changes.origin, changes.by) == (ClientFSM, ["HastyFSM", "CarefulFSM"])
    assert changes.in_words() == {
        "states added": ["cooling"],
        "events added": ["calmed_down"],
        "guards added": ["is_told_to_wait"],
        "states overridden": ["error"],
        "events overridden": ["close_requested"],
        "guards overridden": ["is_offline"],
        "actions overridden": ["dial"],
        "rows put first": ["socket_closed in connected"],
    }


def test_what_a_subclass_changes_is_marked() -> None:
    """A plus before what is new, an unequal sign before what is overridden, and a line that explains both."""
    drawing = Drawing.of(source := dot(HastyFSM, "full"))
    assert marked_pieces(drawing.labels["cooling"])[0] == "+ cooling"
    assert marked_pieces(drawing.labels["error"])[0] == "≠ error"
    assert marked_pieces(drawing.labels["waiting"])[0] == "waiting"
    assert "≠ enter / dial" in marked_pieces(drawing.labels["connecting"])
    assert "≠ close_requested" in marked_pieces(drawing.labels["to disconnected"])
    rows = marked_pieces(drawing.labels["socket_closed in connected"])
    assert [text for text in rows if text[:1].isdigit()][:2] == ["1  + is_told_to_wait", "2  is_fatal_close"]
    assert "6  ≠ is_offline" in rows
    for words in ("≠ close_requested", "+ calmed_down", "+ cooling"):
        assert f'COLOR="{MARK.line}"><B>{words}<' in source
    assert "+ added, ≠ overridden by HastyFSM and CarefulFSM; the rest is ClientFSM's." in html.unescape(source)
    assert re.search(rf'"cooling" \[.*color="{MARK.line}"', source)
    for text in (cards(HastyFSM, "full"), cards(HastyFSM)):
        assert {"+ cooling", "≠ error", "≠ close_requested", "+ calmed_down"} <= {
            each.text for each in ElementTree.fromstring(text).iter(f"{SVG}text")
        }
    assert "## What HastyFSM, CarefulFSM changed" in matrix(HastyFSM)
    assert "- rows put first: socket_closed in connected" in matrix(HastyFSM)
    assert "cooling --> waiting : (added) calmed_down" in mermaid(HastyFSM)
    assert "choice_2 --> paused : (overridden) offline" in mermaid(HastyFSM)
    assert "class cooling changed" in mermaid(HastyFSM)


def test_what_changes_no_state_is_marked_in_the_box_of_its_state() -> None:
    """A row put first is told apart from the same row inherited."""
    drawing = Drawing.of(dot(NightFSM, "full"))
    assert "+ door_moved ≠ / hum  N" in " ".join(marked_pieces(drawing.labels["parked"]))
    assert "+" not in " ".join(marked_pieces(drawing.labels["idle"]))
    assert "door_moved ≠ / hum" in " ".join(marked_pieces(drawing.labels["idle"]))


@pytest.mark.parametrize("cls", [ClientFSM, RoomFSM, SameFSM, GateFSM], ids=lambda cls: cls.__name__)
def test_nothing_is_marked_where_nothing_changed(cls: Machine) -> None:
    """A machine of its own, and a subclass that changes nothing that is drawn, bear no marks and no legend of them."""
    for text in (dot(cls), dot(cls, "full"), cards(cls, "full"), mermaid(cls)):
        assert not re.search(
            rf"[{ADDED}{OVERRIDDEN}] |overridden|changed|{MARK.line}\"\]", re.sub(r"<style.*", "", text)
        )
    assert ("Nothing in the tables differs from `ClientFSM`" in matrix(cls)) == (cls is SameFSM)


# -------------------------------------------------------------------------------------------------- pictures for a page


def test_a_page_gets_the_picture_that_the_package_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Graphviz, the machines of this package, and those that look like them, have their drawn picture."""
    monkeypatch.setitem(sys.modules, "graphviz", None)
    for cls, name in ((ClientFSM, "client_fsm.svg"), (RoomFSM, "room_fsm.svg")):
        assert picture(cls) == (SHIPPED / name).read_text(encoding="utf-8")
    same = picture(SameFSM)
    assert '<title id="title">SameFSM</title>' in same
    assert same.replace(">SameFSM<", ">ClientFSM<") == picture(ClientFSM)


def test_a_page_gets_cards_where_nothing_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of the user's own is never shown as another one, and never an error."""
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert picture(CarefulFSM) == cards(CarefulFSM, columns=2)
    assert picture(LiftFSM) == cards(LiftFSM, columns=2)


def test_an_outdated_picture_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package whose pictures are missing, or of another version of the machine, shows cards instead."""
    monkeypatch.setitem(sys.modules, "graphviz", None)
    monkeypatch.setattr("reconnect_fsm.diagrams.files.files", lambda _: tmp_path)
    assert picture(ClientFSM) == cards(ClientFSM, columns=2)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "client_fsm.svg").write_text('<svg data-digest="0123456789abcdef"/>')
    assert picture(ClientFSM) == cards(ClientFSM, columns=2)


@pytest.mark.dot
def test_a_page_gets_a_users_machine_drawn() -> None:
    """Where Graphviz is installed, it draws a machine of the user's own."""
    assert picture(CarefulFSM) == svg(CarefulFSM)


def test_two_pictures_can_share_a_page() -> None:
    """A prefix keeps their ids apart; what finds their states and moves stays."""
    machines: list[Machine] = [ClientFSM, RoomFSM]
    client, room = (ElementTree.fromstring(picture(each, id_prefix=f"{n}-")) for n, each in enumerate(machines))
    ids = [each.get("id") for root in (client, room) for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(each).startswith(("0-", "1-")) for each in ids)
    assert client.get("aria-labelledby") == "0-title 0-desc"
    assert client.find('.//*[@data-state="waiting"]') is not None


@pytest.mark.parametrize("cls", main_machines(), ids=lambda cls: cls.__name__)
def test_a_move_is_found_from_its_state_to_its_target(cls: Machine) -> None:
    """What stands for a move holds an arrow that leads to its target, or a cell that names it."""
    root = ElementTree.fromstring(picture(cls))
    for rule in rules_of(cls):
        if rule.target not in (None, rule.source):
            token = f"{rule.event}:{rule.source}:{rule.target}"
            found = [each for each in root.iter() if token in each.get("data-moves", "").split()]
            assert any(
                each.get("class") == "cell" or str(each.get("id")).endswith(f"-{rule.target}") for each in found
            ), token


# --------------------------------------------------------------------------------------------------- colours, and texts


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [*COLOURS.values(), *SPARE], ids=lambda colour: colour.fill)
def test_every_colour_is_legible(colour: Any) -> None:
    """Text in each colour on its fill, on the paper and on a table, and plain and marked text on the fill: 4.5 to 1."""
    pairs = [(colour.line, colour.fill), (colour.line, PAPER), (colour.line, BOX), (INK.line, colour.fill)]
    pairs += [(FAINT.line, PAPER), (FAINT.line, BOX), (MARK.line, PAPER), (MARK.line, BOX), (MARK.line, colour.fill)]
    pairs += [(INK.line, PAPER), (INK.line, BOX), (FAINT.line, colour.fill)]
    light = {pair: contrast(*pair) for pair in pairs}
    dark = {pair: contrast(*(DARK[each] for each in pair)) for pair in pairs}
    assert {pair: value for pair, value in light.items() if value < 4.5} == {}
    assert {pair: value for pair, value in dark.items() if value < 4.5} == {}


def test_a_dark_colour_stands_for_one_light_colour() -> None:
    """The style sheet goes by the light colour alone, so that one must not mean two things."""
    colours = [
        PAPER,
        *(part for each in (INK, MARK, *dict.fromkeys(COLOURS.values()), *SPARE) for part in (each.fill, each.line)),
    ]
    assert len(colours) == len(set(colours))


def test_texts_are_made_fit() -> None:
    """Cut with an ellipsis, wrapped by words, in lines of the same length, and without what XML cannot hold."""
    assert fitting("short", 100, 10) == "short"
    assert fitting("a rather long text", 60, 10) == "a rather lo…"
    assert fitting("wide", 12, 10) == ""
    assert wrapped("a rather long text", 60, 10) == ["a rather long", "text"]
    assert wrapped("", 60, 10) == []
    assert balanced("one two three four", 15) == ["one two", "three four"]
    assert text_width("m", 10, bold=True) > text_width("m", 10) > text_width("i", 10)
    assert text_width("語", 10) == 10
    assert escaped('<a href="x">&\'\x00\x1b\ud800') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;\ufffd\ufffd\ufffd"


# ---------------------------------------------------------------------------------------------------------------- files


KEPT_TEXTS = (".dot", "_full.dot", "_statuses.dot", ".mmd", ".md", "_cards.svg", "_full_cards.svg")


def kept_texts() -> list[tuple[Machine, str]]:
    return [(cls, ending) for cls in main_machines() for ending in KEPT_TEXTS]


@pytest.mark.parametrize(("cls", "ending"), kept_texts(), ids=lambda each: getattr(each, "__name__", each))
def test_the_kept_files_are_up_to_date(cls: Machine, ending: str, tmp_path: Path) -> None:
    """What is in diagrams/ is what the machines are today."""
    (new,) = [
        each for each in write(cls, tmp_path, svg=False) if re.fullmatch(r"[a-z]+_fsm" + re.escape(ending), each.name)
    ]
    kept = KEPT / new.name
    assert kept.exists(), f"{kept.name} is missing: run `make diagrams`"
    assert kept.read_bytes() == new.read_bytes(), f"{kept.name} is not what {cls.__name__} is now: run `make diagrams`"


@pytest.mark.parametrize("cls", main_machines(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("ending", "detail"), [(".svg", "overview"), ("_full.svg", "full")])
def test_the_kept_pictures_are_up_to_date(cls: Machine, ending: str, detail: Any) -> None:
    """They are checked for what does not depend on the version of Graphviz: content, and what they are made of."""
    stem = {ClientFSM: "client_fsm", RoomFSM: "room_fsm", HeartbeatFSM: "heartbeat_fsm"}[cls]
    text = (KEPT / f"{stem}{ending}").read_text(encoding="utf-8")
    check_svg(text, cls)
    assert f'data-digest="{digest(cls, detail)}"' in text, (
        f"{stem}{ending} is not what {cls.__name__} is now: run `make diagrams`"
    )


@pytest.mark.parametrize("name", ["client_fsm.svg", "room_fsm.svg", "heartbeat_fsm.svg"])
def test_the_pictures_in_the_package_are_the_kept_ones(name: str) -> None:
    """What a user's page shows is what diagrams/ shows."""
    assert (SHIPPED / name).read_bytes() == (KEPT / name).read_bytes(), "run `make diagrams`"


def test_the_picture_of_the_statuses_shows_what_leads_from_one_to_another() -> None:
    """Five statuses, eight arrows: those that are under way in a frame, which has one arrow to each end."""
    source = statuses_dot(ClientFSM)
    arrows = re.findall(r'^  "(\w+)" -> "(\w+)" \[label="(.*?)"(, ltail=cluster_frame)?\]$', source, re.MULTILINE)
    assert [(old, new) for old, new, _, framed in arrows if not framed] == [
        ("disconnected", "connecting"),
        ("connecting", "connected"),
        ("connecting", "reconnecting"),
        ("connected", "reconnecting"),
        ("reconnecting", "connected"),
        ("error", "connecting"),
    ]
    assert {new: words for _, new, words, framed in arrows if framed} == {
        "disconnected": r"close requested\nfatal failure\nretrying off\nattempts used up\n…",
        "error": r"misconfigured\ntoo big again",
    }
    labels = {(old, new): words for old, new, words, _ in arrows}
    assert labels["connected", "reconnecting"] == r"socket closed\npong missed\nwent offline"


def test_the_picture_of_the_statuses_of_a_room() -> None:
    """Also of a machine whose statuses are others; the same on every run."""
    assert '"joined"' in statuses_dot(RoomFSM)
    assert statuses_dot(RoomFSM) == statuses_dot(RoomFSM)
    assert statuses_dot(LiftFSM).startswith("digraph")


@pytest.mark.dot
def test_write_names_files_after_the_class(tmp_path: Path) -> None:
    """It makes the directory, writes ten files and returns their paths; a second time they are the same."""
    written = write(CarefulFSM, tmp_path / "new" / "pictures")
    assert [each.name for each in written] == [
        "careful_fsm.dot",
        "careful_fsm_full.dot",
        "careful_fsm_statuses.dot",
        "careful_fsm.mmd",
        "careful_fsm.md",
        "careful_fsm_cards.svg",
        "careful_fsm_full_cards.svg",
        "careful_fsm.svg",
        "careful_fsm_full.svg",
        "careful_fsm_statuses.svg",
    ]
    before = [each.read_bytes() for each in written]
    assert [each.read_bytes() for each in write(CarefulFSM, str(tmp_path / "new" / "pictures"))] == before
    assert written[1].read_text(encoding="utf-8") == dot(CarefulFSM, "full")


def test_texts_are_the_same_in_every_process() -> None:
    """Nothing depends on the order of sets or on addresses."""
    code = (
        "from reconnect_fsm.diagrams import *\n"
        "for cls in main_machines(): print(dot(cls), dot(cls, 'full'), mermaid(cls), matrix(cls), cards(cls), sep='')"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = "".join(f"{dot(cls)}{dot(cls, 'full')}{mermaid(cls)}{matrix(cls)}{cards(cls)}\n" for cls in main_machines())
    assert [each.decode().replace("\r\n", "\n") for each in outputs] == [here]


# ----------------------------------------------------------------------------------------------------------------- load


def test_load_finds_a_machine() -> None:
    """An address names a module and a class in it."""
    assert load("reconnect_fsm.room_fsm:RoomFSM") is RoomFSM


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("reconnect_fsm.client_fsm", "'reconnect_fsm.client_fsm' names no class: write it as in"),
        (".client_fsm:ClientFSM", "names no class"),
        ("nowhere_at_all.fsm:Any", "there is no module 'nowhere_at_all'"),
        ("reconnect_fsm.nowhere:Any", "there is no module 'reconnect_fsm.nowhere'"),
        ("reconnect_fsm.client_fsm:ClientFMS", "has no 'ClientFMS'; its machines are: ClientFSM"),
        ("reconnect_fsm.client_fsm:NORMAL", "something else, under the name 'NORMAL'; its machines are: ClientFSM"),
        ("reconnect_fsm.errors:Unauthorized", "something else, under the name 'Unauthorized'; its machines are: none"),
        ("reconnect_fsm.machine:FSM", "something else, under the name 'FSM'"),
    ],
)
def test_load_says_what_is_wrong(address: str, message: str) -> None:
    """No module, no such class, or no machine: the message says which, and what there is."""
    with pytest.raises(ValueError, match=re.escape(message)):
        load(address)


def test_load_does_not_hide_what_the_module_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is there, but imports one that is not, is not called missing."""
    (tmp_path / "half_a_module.py").write_text("import the_other_half\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="the_other_half"):
        load("half_a_module:Any")
