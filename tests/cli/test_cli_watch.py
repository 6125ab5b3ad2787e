"""The commands that connect: ``watch`` in all its views, ``serve`` and ``inspect``, against real servers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from loro import LoroDoc
from rich.console import Console

from kit import PATIENCE, until
from node_peers import NodeServer, requires_node, skip_without_node
from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.cli import main
from reconnect_fsm.cli.live import picture, sparkline
from reconnect_fsm.cli.views import in_words, size
from reconnect_fsm.cli.watched import WatchedClient, beginning, shown_url
from reconnect_fsm.loro_protocol import CrdtType
from reconnect_fsm.testing import EmbeddedServer, NoPong, ScriptedServer

ROOT = Path(__file__).parents[2]
SECRET = "open-sesame-4711"

Capture = pytest.CaptureFixture[str]
LATER = RetryPolicy(base=40, cap=40, jitter=0)
PINGS = Keepalive(interval=0.05, timeout=PATIENCE)
Update = dict[str, Any]


class Command:
    """A command in a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self, has: str = "") -> str:
        """The next line of its standard output in which this is found."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stdout.readline()).decode():
                if has in line:
                    return line
        raise AssertionError(f"it ended without a line with {has!r}: {await self.ended()}")

    async def update(self, kind: str, **what: object) -> Update:
        """The next JSON line of that kind that says so."""
        while True:
            update: Update = json.loads(await self.line())
            if update["kind"] == kind and what.items() <= update.items():
                return update

    async def ended(self) -> tuple[int, str, str]:
        """The exit code, and what was left to read on standard output and error."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def interrupted(self, by: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        self.process.send_signal(by)
        return await self.ended()


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncGenerator[Command, None]:
    """The command, running; it is killed if it still runs in the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "reconnect_fsm", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | environment,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command to its end: the exit code, and what it printed on standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        async with asyncio.timeout(PATIENCE):
            code = await asyncio.to_thread(main, arguments)
    return code, out.getvalue(), err.getvalue()


# ----------------------------------------------------------------------------------------------------------- JSON lines


async def test_watch_follows_an_outage() -> None:
    """Into a pipe go JSON lines: connected, joined, lost, retried, back; Ctrl-C ends it with exit code 0."""
    async with (
        EmbeddedServer() as server,
        running("watch", f"{server.url}?token={SECRET}", "--room", "notes", "--room", "here:ephemeral") as watch,
    ):
        start = await watch.update("start")
        assert (start["url"], start["rooms"]) == (server.url, ["notes", "here"])
        await watch.update("status", new="connected")
        assert (await watch.update("latency"))["seconds"] > 0
        joined = await watch.update("room", room="here", new="joined")
        assert (joined["crdt"], joined["permission"]) == ("%EPH", "write")
        await server.stop(1012, "maintenance")
        lost = await watch.update("transition", event="socket_closed")
        assert (lost["old"], lost["new"], lost["status"]) == ("connected", "waiting", "reconnecting")
        assert "1012" in lost["reason"]
        assert lost["retry_in"] > 0
        await watch.update("transition", event="dial_failed")
        await server.start()
        await watch.update("room", room="notes", new="joined")
        code, out, err = await watch.interrupted()
        end = json.loads(out.splitlines()[-1])
        assert (code, err) == (0, "")
        assert (end["kind"], end["status"], end["connects"], end["exit_code"]) == ("end", "connected", 2, 0)
        assert end["failures"] >= 1


async def test_watch_shows_what_is_in_a_room() -> None:
    """A document is told with its size and the beginning of what it holds, and again when it changes."""
    doc = LoroDoc()
    async with EmbeddedServer() as server, Client(server.url) as client:
        room = client.join("notes", LoroAdaptor(doc))
        async with running("watch", server.url, "--room", "notes:loro") as watch:
            await watch.update("room", new="joined")
            doc.get_text("text").insert(0, "hello")
            doc.commit()
            await room.synced()
            told = await watch.update("document", room="notes", crdt="%LOR")
            assert (told["operations"], json.loads(told["value"])) == (5, {"text": "hello"})
            assert (await watch.interrupted(signal.SIGTERM))[0] == 0


async def test_no_line_holds_a_secret(tmp_path: Path) -> None:
    """Neither a query, nor a header, nor a room's authentication is told, though the server says it back to us."""
    seen: list[bytes] = []

    def authenticate(room_id: str, crdt: CrdtType, auth: bytes) -> None:
        seen.append(auth)

    auth = tmp_path / "auth"
    auth.write_text(SECRET)
    async with EmbeddedServer(authenticate=authenticate) as server:
        url = server.url.replace("//", f"//me:{SECRET}@") + f"?token={SECRET}"
        options = ("--room", "notes", "--auth", f"@{auth}", "-H", f"X-Key: {SECRET}", "--once", "--format")
        for view in ("json", "lines"):
            code, out, err = await run("watch", url, *options, view)
            assert code == 3
            assert "notes" in out
            assert "the room notes is not joined" in err
            assert SECRET not in out + err
    assert seen == [SECRET.encode()] * 2


async def test_headers_and_protocols_reach_the_server() -> None:
    """What is given on the command line is what the handshake says."""
    asked: list[aiohttp.web.BaseRequest] = []

    class Server(EmbeddedServer):
        async def _refuse(self, request: aiohttp.web.BaseRequest) -> aiohttp.web.Response | None:
            asked.append(request)
            return await super()._refuse(request)

    async with Server() as server:
        assert (await run("watch", server.url, "-H", "X-Key: a: b", "--protocol", "feed", "--once"))[0] == 0
    assert asked[0].headers["X-Key"] == "a: b"
    assert asked[0].headers["Sec-WebSocket-Protocol"] == "feed"


# ---------------------------------------------------------------------------------------------------------- exit codes


async def test_once_is_for_scripts() -> None:
    """It ends as soon as it is connected, was answered, and its rooms are joined."""
    async with EmbeddedServer() as server:
        code, out, err = await run("watch", server.url, "--room", "notes", "--once", "--format", "lines")
    assert (code, err) == (0, "")
    assert "room notes: connecting → joined (write)" in out
    assert out.splitlines()[-1].endswith("the end: connected; connects 1 · failed attempts 0 · losses 0")
    assert "closed by this program" not in out
    assert re.search(r"latency \d+\.\d ms", out)


@requires_node
async def test_once_with_the_npm_server() -> None:
    """The same with the server that the JavaScript clients have."""
    skip_without_node()
    async with NodeServer() as server:
        code, out, err = await run("watch", server.url, "--room", "notes", "--once", "--format", "lines")
    assert (code, err) == (0, "")
    assert "room notes: connecting → joined (write)" in out
    assert "latency" in out


async def test_once_without_a_server() -> None:
    """Nobody listens: exit code 3, and one sentence that tells why."""
    code, out, err = await run("watch", "ws://127.0.0.1:9/", "--once", "--for", "0.3")
    assert code == 3
    assert json.loads(out.splitlines()[-1])["exit_code"] == 3
    assert re.fullmatch(r"reconnect-fsm: ws://127.0.0.1:9/: reconnecting after \d+ s: could not connect: .*\n", err)


async def test_once_with_a_server_that_knows_no_ping() -> None:
    """It is connected, but not well, and told what to do; with --no-ping it is well."""
    async with ScriptedServer([NoPong()] * 9) as server:
        code, _, err = await run("watch", server.url, "--once", "--for", "2")
        assert code == 3
        assert "say --no-ping" in err
        assert (await run("watch", server.url, "--once", "--no-ping"))[0] == 0


async def test_a_connection_that_dies_of_unknown_pings_is_explained() -> None:
    """Whoever watches a server that is not Loro's is told why it is lost again and again."""
    async with ScriptedServer([NoPong()] * 9) as server:
        pings = ("--ping-interval", "0.1", "--ping-timeout", "0.1")
        code, _, err = await run("watch", server.url, *pings, "--attempts", "1")
    assert code == 3
    assert "never answered a ping" in err


@pytest.mark.parametrize(("status", "options"), [(403, []), (503, ["--attempts", "1"])])
async def test_it_ends_when_the_client_stops(status: int, options: list[str]) -> None:
    """The server says no for good, or the attempts are used up: exit code 3, without being interrupted."""
    async with EmbeddedServer() as server:
        server.refuse_upgrades(status)
        code, out, err = await run("watch", server.url, *options)
    assert code == 3
    assert json.loads(out.splitlines()[-1])["status"] == "disconnected"
    assert "the client stopped" in err
    assert str(status) in err


async def test_for_some_time() -> None:
    """--for ends it then; well is what is connected in the end."""
    async with EmbeddedServer() as server:
        code, out, err = await run("watch", server.url, "--for", "2")
        assert (code, err) == (0, "")
        assert json.loads(out.splitlines()[-1])["at"] >= 2
        server.ignore_joins = True
        code, _, err = await run("watch", server.url, "--room", "notes", "--for", "2")
        assert code == 3
        assert "the room notes is not joined" in err
        assert "no answer" in err


async def test_watch_with_a_machine_of_theirs(tmp_path: Path) -> None:
    """--fsm takes a subclass, as Client does."""
    (tmp_path / "watched_app.py").write_text(
        "from reconnect_fsm import ClientFSM\n"
        "class Stubborn(ClientFSM):\n    def is_fatal_failure(self) -> bool:\n        return False\n"
    )
    async with EmbeddedServer() as server:
        server.refuse_upgrades(403)
        arguments = ("watch", server.url, "--for", "2", "--fsm", "watched_app:Stubborn")
        async with running(*arguments, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}") as watch:
            _, out, _ = await watch.ended()
    assert json.loads(out.splitlines()[-1])["status"] == "reconnecting"


async def test_a_recording_of_what_was_watched_is_replayed(tmp_path: Path) -> None:
    """--record writes what `replay` reads."""
    file = tmp_path / "run.jsonl"
    async with EmbeddedServer() as server:
        assert (await run("watch", server.url, "--room", "notes", "--once", "--record", str(file)))[0] == 0
        code, out, err = await run("watch", server.url, "--once", "--record", str(tmp_path))
        assert (code, out) == (2, "")
        assert err.startswith("reconnect-fsm: cannot write")
    code, out, _ = await run("replay", str(file))
    assert code == 0
    assert "2 machines" in out


@pytest.mark.parametrize("url", ["ftp://example.org/?token=" + SECRET, "ws://", "nonsense", "ws://x:y/?" + SECRET])
def test_addresses_that_are_none(capsys: Capture, url: str) -> None:
    """An unusable address is refused at once, in one line, without its query."""
    assert main(["watch", url]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert SECRET not in captured.err


def test_rooms_without_loro(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms need loro, and that is told before anything is connected."""
    monkeypatch.setitem(sys.modules, "loro", None)
    assert main(["watch", "ws://127.0.0.1:9/", "--room", "notes"]) == 1
    assert "pip install 'reconnect-fsm[loro]'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ terminals


class Terminal:
    """A pseudo-terminal, and all that was written to it."""

    def __init__(self, columns: int, lines: int) -> None:
        import fcntl
        import struct
        import termios

        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.set_blocking(self.ours, False)
        self.text = ""

    async def until(self, words: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while words not in self.plain:
                self.read()
                await asyncio.sleep(0.02)

    def read(self) -> None:
        try:
            while data := os.read(self.ours, 65536):
                self.text += data.decode(errors="replace")
        except OSError:  # nothing more for now, or the other end is closed
            pass

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@asynccontextmanager
async def in_terminal(*arguments: str, **environment: str) -> AsyncGenerator[tuple[Process, Terminal], None]:
    terminal = Terminal(80, 24)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color"} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=terminal.theirs,
        stderr=terminal.theirs,
    )
    try:
        yield process, terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        terminal.close()


async def test_watch_in_a_terminal() -> None:
    """In a terminal it is a live view on a screen of its own; the last picture stays, and Ctrl-C ends it with 0."""
    async with EmbeddedServer() as server:
        async with in_terminal("-m", "reconnect_fsm", "watch", server.url, "--room", "notes") as (process, terminal):
            await terminal.until("● connected")
            await terminal.until("● notes")
            await server.stop(1012, "maintenance")  # and stays away: a status that passes may never be drawn
            await terminal.until("◐ reconnecting")
            await terminal.until("losses 1")
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE):
                assert await process.wait() == 0
            terminal.read()
        before, entered, rest = terminal.text.partition("\x1b[?1049h")
        _, left, after = rest.partition("\x1b[?1049l")
        assert entered
        assert left
        assert "losses 1" in after
        assert "closed by this program" not in after  # it shows what was watched, not how watching ended
        assert "Traceback" not in before + after


async def test_watch_in_a_terminal_without_rich() -> None:
    """Without rich it says what to install, and prints a line for each change."""
    program = (
        "import sys; sys.modules['rich.console'] = sys.modules['rich'] = None; from reconnect_fsm.cli import main; "
    )
    async with EmbeddedServer() as server:
        program += f"sys.exit(main(['watch', {server.url!r}, '--once']))"
        async with in_terminal("-c", program) as (process, terminal):
            await terminal.until("the end: connected")
            assert await process.wait() == 0
        assert "pip install 'reconnect-fsm[cli]'" in terminal.plain
        assert "disconnected → connecting: started" in terminal.plain


async def test_the_live_view_needs_rich(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for it gets it, or is told what to install."""
    monkeypatch.delitem(sys.modules, "reconnect_fsm.cli.live")
    monkeypatch.setitem(sys.modules, "rich.cells", None)
    assert await asyncio.to_thread(main, ["watch", "ws://127.0.0.1:9/", "--format", "live"]) == 1
    assert "pip install 'reconnect-fsm[cli]'" in capsys.readouterr().err


def drawn(watched: WatchedClient, width: int, height: int) -> list[str]:
    """The picture, as text; it fits."""
    console = Console(file=io.StringIO(), width=width, height=height, record=True, highlight=False)
    console.print(picture(watched, width, height))
    lines = console.export_text().splitlines()
    assert len(lines) < height
    assert [line for line in lines if len(line) > width] == []
    return lines


@pytest.mark.parametrize("width", [50, 80, 200])
async def test_the_picture_at_several_widths(width: int) -> None:
    """Whatever the width, it fits, and says how it stands, what comes next, and which rooms are joined."""
    async with EmbeddedServer() as server:
        url = f"{server.url}a/very/long/way/to/the/server/of/the/notes?token={SECRET}"
        watched = WatchedClient(url)
        client = Client(
            url, retry=RetryPolicy(base=40, cap=40, jitter=0), keepalive=Keepalive(interval=0.05, timeout=5)
        )
        rooms = [
            ("notes", "loro"),
            ("a name that is too long " * 5, "loro"),
            ("日本語" * 9, "ephemeral"),
        ]
        watched.follow(client, rooms)
        async with client:
            await until(lambda: watched.is_well and len(watched.latencies) > 2)
            lines = drawn(watched, width, 24)
            assert lines[0].startswith("● connected for ")
            assert any(re.match(r"  latency \d+\.\d ms [▁▂▃▄▅▆▇█]+ ", line) for line in lines)
            assert sum(line.startswith("● ") and " joined " in line for line in lines) == 3
            assert any("3 rooms: joined" in line for line in lines)
            await server.stop(1012, "maintenance")
            await until(lambda: client.state == "waiting")
            lines = drawn(watched, width, 24)
            assert re.match(r"◐ reconnecting for \d+(\.\d)? s, attempt 1 in [34]\d s", lines[0])
            assert "closed with code 1012: maintenance." in lines[1]
            assert sum(line.startswith("◐ ") and " reconnecting " in line for line in lines[1:]) == 3
            assert not any(SECRET in line or "()" in line for line in lines)


async def test_the_picture_with_many_rooms_and_few_lines() -> None:
    """Rooms that need to be looked at come first, the rest is counted, and what happened last keeps its place."""
    async with EmbeddedServer(authenticate=lambda room_id, *_: None if room_id == "r7" else "write") as server:
        watched, client = WatchedClient(server.url), Client(server.url)
        watched.follow(client, [(f"r{number}", "loro") for number in range(500)])
        async with client:
            await until(lambda: len(watched.refused) == 1 and server.stats.joins == 500)
            await until(lambda: sum(each.room.state == "joined" for each in watched.rooms) == 499)
            lines = drawn(watched, 80, 16)
    at = lines.index("rooms")
    assert lines[at + 1].startswith("✖ r7")
    assert re.search(r"… \d+ more, \d+ of them joined", "\n".join(lines))
    assert "what happened last" in lines
    assert len(watched.history) < 20  # not one for each room


async def test_the_picture_while_pings_are_not_answered() -> None:
    """Whoever is connected to a server that knows no ping is told so; with --no-ping nothing is said of latency."""
    async with ScriptedServer([NoPong()] * 2) as server:
        for pings, told in ((True, "say --no-ping"), (False, "no latency is measured: --no-ping")):
            watched = WatchedClient(server.url, pings=pings)
            client = Client(server.url, keepalive=Keepalive(enabled=False))
            watched.follow(client, [])
            async with client:
                await client.wait_connected()
                assert watched.hint == ""
                watched.since -= 6.0  # as long ago
                assert told in "\n".join(drawn(watched, 100, 20))


async def test_the_picture_tells_old_latency_from_new() -> None:
    """What was measured before the connection was lost is not shown as if it were so now."""
    async with EmbeddedServer() as server:
        watched = WatchedClient(server.url)
        client = Client(
            server.url, retry=RetryPolicy(base=40, cap=40, jitter=0), keepalive=Keepalive(interval=0.05, timeout=5)
        )
        watched.follow(client, [])
        async with client:
            await until(lambda: len(watched.latencies) > 1)
            assert any(line.startswith("  latency ") for line in drawn(watched, 80, 20))
            server.reset_all()
            await until(lambda: client.state == "waiting")
            assert any(line.startswith("  last latency ") for line in drawn(watched, 80, 20))


async def test_what_is_logged_is_shown_and_nothing_else_sees_it(caplog: pytest.LogCaptureFixture) -> None:
    """A warning of the library is update; it is not printed over a picture."""
    import logging

    watched = WatchedClient("ws://127.0.0.1:9/")
    with watched.capturing_log():
        logging.getLogger("reconnect_fsm").warning("something %s\nodd", "rather")
    logging.getLogger("reconnect_fsm").warning("later")
    assert [(each["kind"], each["level"]) for each in watched.updates] == [("log", "warning")]
    assert in_words(watched.updates[0]) == "warning: something rather\N{REPLACEMENT CHARACTER}odd"
    assert caplog.messages == ["later"]


def test_small_things() -> None:
    """Sparklines, values and addresses."""
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert sparkline([]) == ""
    assert (size("%LOR", 1234), size("%EPH", 2)) == ("1,234 operations", "2 keys")
    assert beginning({"a": "x" * 1000})[:9] == '{"a": "xx'
    assert len(beginning({"a": "x" * 1000})) == 400
    assert beginning({"t": b"\x00"}) == '{"t": "b\'\\\\x00\'"}'
    assert shown_url("wss://me:pw@example.org:8443/a?b=c#d") == "wss://example.org:8443/a"


# ---------------------------------------------------------------------------------------------------- serve and inspect


async def test_serve() -> None:
    """It says where it listens and who joins; Ctrl-C ends it with exit code 0."""
    doc = LoroDoc()
    async with running("serve") as serve:
        url = (await serve.line("listening on")).split()[-1]
        async with Client(url) as client:
            await client.join("notes", LoroAdaptor(doc), auth=SECRET.encode())
            told = await serve.line("joins notes (%LOR)")
            assert f"{len(SECRET)} bytes of authentication" in told
        await serve.line("0 clients are connected")
        code, out, err = await serve.interrupted()
    assert (code, err) == (0, "")
    assert SECRET not in told + out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["refuse", "--status", "403"], "403"),
        (["drop"], "the connection was lost"),
        (["close", "--every", "0.3", "--code", "4401"], "4401"),
        (["reset", "--every", "0.3"], "the connection was lost"),
        (["restart", "--every", "0.3"], "1001"),
    ],
)
async def test_serve_misbehaves(options: list[str], told: str) -> None:
    """What the server is told to do wrong is what a client meets."""
    async with running("serve", "--misbehave", *options) as serve:
        url = (await serve.line("listening on")).split()[-1]
        reasons: list[str] = []
        client = Client(url)
        client.on_transition(lambda change: reasons.append(change.reason))
        async with client:
            await until(lambda: any(told in reason for reason in reasons))
        assert (await serve.interrupted())[0] == 0


async def test_serve_freezes_and_thaws() -> None:
    """A frozen server answers no ping, until it thaws."""
    async with running("serve", "--misbehave", "freeze", "--every", "0.4") as serve:
        url = (await serve.line("listening on")).split()[-1]
        async with Client(url) as client:
            await client.wait_connected()
            await serve.line("freezes")
            waiting = asyncio.ensure_future(client.ping(timeout=PATIENCE))
            await serve.line("thaws")
            assert await waiting > 0.05
        assert (await serve.interrupted(signal.SIGTERM))[0] == 0


async def test_serve_read_only() -> None:
    """Clients are let in, and may change nothing."""
    async with running("serve", "--read-only") as serve:
        async with Client((await serve.line("listening on")).split()[-1]) as client:
            room = await client.join("notes", LoroAdaptor(LoroDoc()))
            assert room.permission == "read"
        assert (await serve.interrupted())[0] == 0


def test_serve_where_it_cannot(capsys: Capture) -> None:
    """An address that is not this machine's is refused in one line."""
    assert main(["serve", "--host", "192.0.2.1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "cannot listen on 192.0.2.1" in captured.err


@pytest.mark.parametrize(
    "arguments", [("serve", "--misbehave", "reset", "--every", "0.05"), ("watch", "ws://127.0.0.1:9/")]
)
async def test_the_reader_of_what_goes_on_goes_away(arguments: tuple[str, ...]) -> None:
    """A pipe that is closed while the command runs ends it without a word, with exit code 141."""
    async with running(*arguments) as command:
        await command.line()
        command.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            assert await command.process.wait() == 141
        assert command.process.stderr is not None
        assert await command.process.stderr.read() == b""


async def test_serve_on_a_port_that_is_taken() -> None:
    """The port is somebody's already: exit code 2 and one sentence."""
    async with EmbeddedServer() as server:
        code, out, err = await run("serve", "--port", str(server.port))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"cannot listen on 127.0.0.1 port {server.port}" in err


@pytest.mark.parametrize("what", [["--demo", "--rooms", "3"], ["{url}", "--room", "notes", "-H", "X-Key: 1"]])
async def test_inspect(what: list[str]) -> None:
    """It prints the page's address, the page is there, and Ctrl-C ends it with exit code 0."""
    async with (
        EmbeddedServer() as server,
        running("inspect", *(each.format(url=server.url) for each in what)) as inspect,
        aiohttp.ClientSession() as session,
    ):
        address = (await inspect.line("open http://")).split()[1]
        async with session.get(address) as answer:
            assert answer.status == 200
            assert "<html" in await answer.text()
        await session.close()
        code, _, err = await inspect.interrupted()
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "either the URL of a server, or --demo"),
        (["--demo", "ws://127.0.0.1:9/"], "either the URL of a server, or --demo"),
        (["ws://127.0.0.1:9/", "--rooms", "3"], "--rooms is for --demo"),
        (["--demo", "--room", "notes"], "are for the URL of a server"),
        (["--demo", "-H", "X-Key: 1"], "are for the URL of a server"),
        (["nonsense"], "ws://"),
    ],
)
def test_inspect_what_cannot_be(capsys: Capture, options: list[str], complaint: str) -> None:
    """What it cannot do is refused in one line."""
    assert main(["inspect", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
