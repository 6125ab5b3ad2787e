"""The log: one logger tree, one line at INFO for each change of the client's status, nothing that floods, no secret."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from loro import LoroDoc

import reconnect_fsm
from reconnect_fsm import Client, ClientStatus, Keepalive, RetryPolicy, StatusChange
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.testing.server import (
    Answer,
    Close,
    JoinFails,
    NoPong,
    Reset,
    RoomFails,
    ScriptedServer,
    Send,
    StopListening,
)

PACKAGE = Path(reconnect_fsm.__file__).parent
NAME = "reconnect_fsm"
ABOVE_DEBUG = logging.INFO
virtual = pytest.mark.virtual_time


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def client_of(server: ScriptedServer, **options: object) -> Client:
    policy = RetryPolicy(base=1.0, cap=4.0, jitter=0, stable_after=0)
    return Client(server.url, retry=policy, keepalive=Keepalive(interval=5.0, timeout=2.0), **options)  # type: ignore[arg-type]


def ours(caplog: pytest.LogCaptureFixture, least: int = logging.DEBUG) -> list[logging.LogRecord]:
    """What the client logged; the server that these tests run is of the same tree."""
    return [record for record in caplog.records if record.name == NAME and record.levelno >= least]


@cache
def all_calls() -> list[tuple[Path, str, ast.Call]]:
    """All calls of a logger's methods, or of ``logging``'s functions, in the package."""
    found: list[tuple[Path, str, ast.Call]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger" | "_log" | "logging"), attr=name)):
                    found.append((path, name, node))
                case _:
                    pass
    return found


def calls(kind: str) -> list[tuple[Path, ast.Call]]:
    return [(path, call) for path, name, call in all_calls() if name == kind]


def test_there_is_one_tree() -> None:
    """Whoever silences or redirects `reconnect_fsm` has dealt with all of it; only `transitions` is another's."""
    names = {ast.unparse(call.args[0]) for path, call in calls("getLogger") if "testing" not in path.parts}
    assert names == {f"'{NAME}'", "'transitions'"}


def test_the_words_are_made_only_if_somebody_reads_them() -> None:
    """And one message is one message for who counts them: the arguments are apart from the words."""
    for kind in ("debug", "info", "warning", "error", "exception", "log"):
        for path, call in calls(kind):
            words = call.args[1 if kind == "log" else 0]
            assert not isinstance(words, ast.JoinedStr | ast.BinOp), f"{path.name}:{call.lineno}"


def test_nobody_says_info_but_for_the_status() -> None:
    """Two places of the library log at INFO, the second the end of an outage (D-HEARD); its level promises no more."""
    assert [path.name for path, _ in calls("info")] == ["connection_driver.py", "connection_driver.py"]
    for kind in ("critical", "fatal", "warn"):
        assert calls(kind) == []


@virtual
async def test_one_line_for_each_change_of_status(caplog: pytest.LogCaptureFixture) -> None:
    """What, why, and when the next try is; nothing else at INFO, however many attempts fail in between."""
    changes: list[StatusChange[ClientStatus]] = []
    script = [(Answer(503, after=0.25),), StopListening(1.5), NoPong(), Close(4401, "token expired", after=1.0)]
    async with ScriptedServer(script) as server:
        client = client_of(server)
        client.on_status(changes.append)
        async with client:
            await client.join("notes", LoroAdaptor(LoroDoc()))
            await asyncio.sleep(30.0)
            assert client.status == "disconnected"
            await client.connect()
            client.set_online(False)
            await asyncio.sleep(1.0)
    lines = [record.getMessage() for record in ours(caplog, ABOVE_DEBUG)]
    assert [re.sub(r"^127\.0\.0\.1:\d+: ", "", line) for line in lines] == [
        "disconnected → connecting: started",
        "connecting → reconnecting: the server answered HTTP 503 (retry 1 in 1.0 s)",
        "reconnecting → connected: connected",
        "connected → reconnecting: no answer to a ping within 2 s: the connection is dead "
        "(or this server does not answer the text 'ping' with 'pong'; see Keepalive) (retry 1 in 1.0 s)",
        "reconnecting → connected: connected",
        "connected → disconnected: closed with code 4401: token expired",
        "disconnected → connecting: asked to connect",
        "connecting → connected: connected",
        "connected → reconnecting: offline",
        "reconnecting → disconnected: closed by this program",
    ]
    assert len(lines) == len(changes)
    for line, change in zip(lines, changes, strict=True):
        assert f"{change.old} → {change.new}: {change.reason}" in line


@virtual
async def test_d_heard_an_hour_of_outage_is_four_lines(caplog: pytest.LogCaptureFixture) -> None:
    """D-HEARD: lost, heard of, connected, over. The attempts are at DEBUG: a server that is gone fills no disk."""
    async with ScriptedServer([Reset(after=1.0), StopListening(3600.0)]) as server, client_of(server) as client:
        await client.wait_connected()
        caplog.clear()
        await asyncio.sleep(3700.0)
        assert client.status == "connected"
        lines = [(record.levelname, record.getMessage()) for record in ours(caplog, ABOVE_DEBUG)]
        assert [level for level, _ in lines] == ["INFO", "WARNING", "INFO", "INFO"]
        assert "not connected: could not connect: " in lines[1][1]
        assert lines[1][1].endswith("; retry 3 comes after a wait of 4.0 s")
        assert lines[2][1].endswith("the outage is over: the connection has lasted")
    assert len(ours(caplog)) > 1000


@virtual
async def test_many_rooms_are_no_line_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Rooms that join, lose the connection and join again are the client's one line each time."""
    caplog.set_level(logging.INFO)
    async with ScriptedServer() as server, client_of(server, max_concurrent_joins=None) as client:
        for number in range(300):
            client.join(f"r{number}", LoroAdaptor(LoroDoc()))
        await asyncio.sleep(1.0)
        server.inflict(Reset())
        await asyncio.sleep(5.0)
        assert {room.status for room in client.rooms} == {"joined"}
    assert len(ours(caplog, ABOVE_DEBUG)) == 5


@virtual
@pytest.mark.parametrize(
    ("flood", "least"),
    [
        pytest.param([Send(b"junk")] * 300, 10, id="malformed messages"),
        pytest.param([JoinFails(2)], 0, id="refused joins"),
        pytest.param([RoomFails(2, after=1.0)], 0, id="rooms put out"),
    ],
)
async def test_a_server_cannot_flood_the_log(flood: list[object], least: int, caplog: pytest.LogCaptureFixture) -> None:
    """Ten complaints a connection, whatever it sends and however often."""
    caplog.set_level(logging.INFO)
    async with ScriptedServer([tuple(flood)]) as server, client_of(server) as client:  # type: ignore[list-item]
        for number in range(300):
            client.join(f"r{number}", LoroAdaptor(LoroDoc()))
        await asyncio.sleep(10.0)
    assert least <= len(ours(caplog, logging.WARNING)) <= 10


@virtual
async def test_an_error_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises: where, that nobody else suffers, and the traceback; a thousand times are few lines."""

    def broken(latency: float) -> None:
        raise ZeroDivisionError

    async with ScriptedServer() as server, client_of(server) as client:
        client.on_latency(broken)
        await asyncio.sleep(1000 * 5.0)
    errors = ours(caplog, logging.WARNING)
    assert errors[0].getMessage() == "a callback of on_latency raised ZeroDivisionError"
    assert errors[0].exc_info is not None
    assert len(errors) < 25


def test_the_program_decides_where_it_goes() -> None:
    """The library sets no handlers that write, and no levels."""
    logger = logging.getLogger(NAME)
    assert [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)] == []
    assert (logger.level, logger.propagate) == (logging.NOTSET, True)
    assert [call.lineno for path, call in calls("basicConfig") if path.parent == PACKAGE] == []


@virtual
async def test_a_line_has_fields_for_those_who_collect_them(caplog: pytest.LogCaptureFixture) -> None:
    """A formatter that writes JSON gets what the words say, and which server; no user, password or query string."""
    async with ScriptedServer([Answer(503)]) as server:
        url = server.url.replace("://", "://user:s3cret@") + "?token=s3cret"
        async with Client(url, retry=RetryPolicy(base=1.0, jitter=0)) as client:
            await client.wait_connected()
    names = ("server", "old_status", "new_status", "reason", "attempt", "retry_in")
    here = f"127.0.0.1:{server.port}"
    assert [tuple(getattr(record, name) for name in names) for record in ours(caplog, ABOVE_DEBUG)] == [
        (here, "disconnected", "connecting", "started", 0, None),
        (here, "connecting", "reconnecting", "the server answered HTTP 503", 1, 1.0),
        (here, "reconnecting", "connected", "connected", 0, None),
        (here, "connected", "disconnected", "closed by this program", 0, None),
    ]
    assert all(record.getMessage().startswith(f"{here}: ") for record in ours(caplog, ABOVE_DEBUG))


@virtual
async def test_a_room_that_fails_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """It does not sync any more, and perhaps nobody listens; its other changes are at DEBUG."""
    async with ScriptedServer([JoinFails(2, "no")]) as server, client_of(server) as client:
        client.join("notes", LoroAdaptor(LoroDoc()))
        await asyncio.sleep(1.0)
    assert [record.getMessage() for record in ours(caplog, logging.WARNING)] == [
        "room 'notes': connecting → error: the server refused the room: no (JoinError 0x02)"
    ]
    assert "room 'notes': disconnected → connecting: asked to join" in caplog.text


@virtual
async def test_edits_in_a_room_that_may_only_be_read_do_not_flood(caplog: pytest.LogCaptureFixture) -> None:
    """Each is refused; the log says so ten times, then ever more rarely, and what to do about it."""
    doc = LoroDoc()
    async with ScriptedServer(authenticate=lambda *_: "read") as server, client_of(server) as client:
        await client.join("notes", LoroAdaptor(doc))
        for _ in range(1000):
            doc.get_text("t").insert(0, "x")
            doc.commit()
        await asyncio.sleep(1.0)
    lines = [record.getMessage() for record in ours(caplog, logging.WARNING)]
    refusals = [line for line in lines if "pass on_refused=" in line]
    assert len(refusals) == 10 + 6  # 16, 32, … 512
    assert [line for line in lines if line not in refusals] == [
        "room 'notes': the server lacks updates of this document and refuses them: PERMISSION_DENIED"
    ]


def test_a_program_without_logging_is_not_written_to() -> None:
    """A library is silent until its user sets up logging."""
    code = "import logging, reconnect_fsm; logging.getLogger('reconnect_fsm.child').error('x')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
