"""Pictures and tables: nothing of a machine is lost in them, they are the same on every run, the kept ones are new."""

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

from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.diagrams import CannotDraw, Machine, dot, load, main_machines, matrix, mermaid, svg, write
from reconnect_fsm.machine import ANY, FSM, REST, STAY, Rule, event, refuse, row, state
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import ClientStatus

KEPT = Path(__file__).parent.parent / "diagrams"
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

    @event(row(cooling, to=ClientFSM.waiting, clause="X-2"), refuse(REST, because="nothing | to calm"))
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

    @event(row((rising, sinking), to=idle), refuse(REST, because="it did not move"))
    def arrived(self) -> None: ...

    @event(row(idle, to=rising), row(REST, to=STAY))
    def called(self) -> None: ...

    @event(row(idle, to=sinking), row((rising, sinking), to=idle, do=hum), row(REST, to=parked))
    def evening_came(self) -> None: ...

    @event(row(ANY, to=STAY, do=hum))
    def door_moved(self) -> None: ...

    @event(row(ANY, to=halted))
    def broke(self) -> None: ...

    @event(row(halted, to=idle), refuse(REST, because="it works already"))
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
        row(REST, to=open),
    )
    def pushed(self) -> None: ...

    @event(row(open, to=ajar, when=(is_windy, is_locked)), refuse(REST, because="no wind can do that"))
    def wind_blew(self) -> None: ...

    @event(row((shut, ajar), to=STAY, when=is_locked, do=creak, clause="Q"), row(REST, to=STAY))
    def knocked(self) -> None: ...

    @event(
        row((shut, open), to=open, when=is_windy), row((shut, open), to=ajar), refuse(REST, because="it is so already")
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
        row(REST, to=gone),
    )
    def bell_rang(self) -> None: ...


MACHINES: list[Machine] = [ClientFSM, RoomFSM, CarefulFSM, LiftFSM, GateFSM, ShiftsFSM]
each_machine = pytest.mark.parametrize("cls", MACHINES, ids=lambda cls: cls.__name__)


def states_of(cls: Machine) -> list[str]:
    """Its states; ``initial`` is only a second name of one of them."""
    return [name for name, each in cls.states.items() if name == each.name]


def rules_of(cls: Machine) -> list[Rule]:
    return [rule for rule in cls.rules if rule.source in states_of(cls)]


# ---------------------------------------------------------------------------------------------------- reading DOT again


def pieces(label: str) -> list[str]:
    """The texts of an HTML-like label."""
    return [html.unescape(text) for text in re.split(r"<[^<>]*>", label) if text.strip()]


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
                if frame:
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
        (rule.source, rule.target) == (tail, head) and wanted <= set(texts) for tail, head, texts in drawing.arrows
    )


# ------------------------------------------------------------------------------------------------------ nothing is lost


@each_machine
def test_the_full_picture_shows_every_rule(cls: Machine) -> None:
    """No row is lost: each one can be read from the picture, with its guards, order, actions and clauses."""
    drawing = Drawing.of(dot(cls, "full"))
    rules = [rule for rule in rules_of(cls) if not rule.is_refusal]
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
            r for r in rules_of(cls) if (r.event, r.source) == table.groups() and not r.is_refusal
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
        also = re.search(r"also from (.*)", " ".join(texts))
        sources = {tail, *(also[1].split(", ") if also else [])}
        shown |= {(source, target, text) for source in sources for text in texts}
    moves = {(r.source, r.target, r.event) for r in rules_of(cls) if r.target not in (None, r.source)}
    assert moves - shown == set()


@each_machine
def test_the_matrix_holds_every_rule(cls: Machine) -> None:
    """Each cell lists its rules in order: guards, target or refusal with its reason, actions, clauses."""
    text = matrix(cls)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
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
                if rule.is_refusal:
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
    assert "| `is_told_to_wait` | The server's last words were: not so often. |" in text
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
    assert set(states_of(cls)) <= {each.text for each in root.iter(f"{SVG}text")}
    assert set(re.findall(r"\w+://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"graphviz|<!--|<!DOCTYPE", text, re.IGNORECASE)
    background = root.find(f"{SVG}g/{SVG}polygon")
    assert background is not None
    assert background.get("fill") == "white"  # so that it is legible on a dark page as well


@pytest.mark.dot
@each_machine
@pytest.mark.parametrize("detail", ["overview", "full"])
def test_svg_is_well_formed_and_shows_every_state(cls: Machine, detail: Any) -> None:
    """Graphviz accepts the DOT, and the result names no version and no address, and has a background."""
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
        "lift_fsm.mmd",
        "lift_fsm.md",
    }


def test_without_dot_an_svg_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install; DOT and Mermaid come all the same."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotDraw, match=r"program dot is not on the PATH: install Graphviz.*DOT, Mermaid"):
        svg(LiftFSM)
    assert dot(LiftFSM).startswith("digraph")
    assert mermaid(LiftFSM).startswith("stateDiagram-v2")


# ---------------------------------------------------------------------------------------------------------------- files


def kept_texts() -> list[tuple[Machine, str]]:
    return [(cls, ending) for cls in main_machines() for ending in (".dot", "_full.dot", ".mmd", ".md")]


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
@pytest.mark.parametrize("ending", [".svg", "_full.svg"])
def test_the_kept_pictures_show_every_state(cls: Machine, ending: str) -> None:
    """They are checked for what does not depend on the version of Graphviz."""
    stem = {ClientFSM: "client_fsm", RoomFSM: "room_fsm"}[cls]
    check_svg((KEPT / f"{stem}{ending}").read_text(encoding="utf-8"), cls)


@pytest.mark.dot
def test_write_names_files_after_the_class(tmp_path: Path) -> None:
    """It makes the directory, writes six files and returns their paths; a second time they are the same."""
    written = write(CarefulFSM, tmp_path / "new" / "pictures")
    assert [each.name for each in written] == [
        "careful_fsm.dot",
        "careful_fsm_full.dot",
        "careful_fsm.mmd",
        "careful_fsm.md",
        "careful_fsm.svg",
        "careful_fsm_full.svg",
    ]
    before = [each.read_bytes() for each in written]
    assert [each.read_bytes() for each in write(CarefulFSM, str(tmp_path / "new" / "pictures"))] == before
    assert written[1].read_text(encoding="utf-8") == dot(CarefulFSM, "full")


def test_texts_are_the_same_in_every_process() -> None:
    """Nothing depends on the order of sets or on addresses."""
    code = (
        "from reconnect_fsm.diagrams import *\n"
        "for cls in main_machines(): print(dot(cls), dot(cls, 'full'), mermaid(cls), matrix(cls), sep='')"
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
    here = "".join(f"{dot(cls)}{dot(cls, 'full')}{mermaid(cls)}{matrix(cls)}\n" for cls in main_machines())
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
