"""The real npm `loro-websocket` server and client, each in a Node process, driven from tests.

    @requires_node
    async def test_something() -> None:
        skip_without_node()
        async with NodeServer() as server, NodeClient() as client:
            await client.connect(server.url)
            await client.join("room")
            await client.insert("room", 0, "hello")
            await until_equal(lambda: server.text("room"), "hello")

A peer is a script of `tests/node` that obeys one JSON command a line on stdin. Its process ends when stdin closes, so
nothing outlives a test run that dies. All durations are in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import subprocess
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict, cast

import pytest

from kit import PATIENCE, hold

NODE_DIR = Path(__file__).parents[1] / "node"
OLDEST_NODE = 18
INSTALL_TIMEOUT = 180.0
COMMAND_TIMEOUT = PATIENCE
EXIT_TIMEOUT = 5.0
STDERR_KEPT = 16 * 1024
LONGEST_LINE = 64 * 1024 * 1024

Crdt = Literal["%LOR", "%EPH"]

requires_node = pytest.mark.node


class NodeError(Exception):
    """A command failed in the peer, or the peer is gone. The text ends with what it wrote to stderr."""


class RoomStats(TypedDict):
    """A room the server knows, and how many clients are in it."""

    room: str
    crdt: str
    members: int


class Stats(TypedDict):
    """What the server has seen: `clients` and `rooms` as they are now, the rest counted since the process began.

    `handshakes` counts HTTP upgrade requests, refused ones too; `connections` those let in.
    """

    clients: int
    rooms: list[RoomStats]
    handshakes: int
    connections: int
    pings: int
    joins: int
    leaves: int
    updates: int
    fragments: int
    acks: int


@functools.cache
def node_available() -> str | None:
    """Return None if the peers can run, else why not. Installs their packages on first use (at most 180 s)."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node and npm are not on the PATH"
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"node does not run: {error}"
    version = re.match(r"v(\d+)\.", answer)
    if version is None or int(version[1]) < OLDEST_NODE:
        return f"node {answer.strip() or '?'} is older than {OLDEST_NODE}"
    return _install(npm)


def _install(npm: str) -> str | None:
    package = NODE_DIR / "package.json"
    # Written last: an install that was killed halfway leaves a node_modules, but not this.
    finished = NODE_DIR / "node_modules" / ".installed"
    with package.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system whatever becomes of us; leaves no file behind
        wanted = lock.read()
        if finished.is_file() and finished.read_text() == wanted:
            return None
        command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command, cwd=NODE_DIR, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"npm install: {error}"
        if done.returncode:
            return f"npm install exited with {done.returncode}: {done.stderr.strip()[-500:]}"
        finished.write_text(wanted)
    return None


def skip_without_node() -> None:
    """Skip the calling test or fixture, with the reason, if there is no Node; under CI fail it instead.

    Raises:
        pytest.skip.Exception: the peers cannot run here.
        pytest.fail.Exception: likewise, and the environment variable CI is "true" or "1".
    """
    reason = node_available()
    if reason is None:
        return
    if os.environ.get("CI") in {"true", "1"}:
        pytest.fail(f"CI has to run the real peers: {reason}")
    pytest.skip(f"the real peers cannot run: {reason}")


class NodePeer:
    """A Node process that obeys commands: the base of `NodeServer` and `NodeClient`. An async context manager.

    Call `skip_without_node()` before: without its packages the process dies, and entering raises `NodeError`.
    """

    script: ClassVar[str]

    def __init__(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        """What the peer reported of itself, oldest first."""
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._stderr = b""

    @property
    def pid(self) -> int:
        """The process id, for signals."""
        return self._running().pid

    async def __aenter__(self) -> Self:
        self._process = process = await asyncio.create_subprocess_exec(
            "node",
            NODE_DIR / self.script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(self._read_stderr(process.stderr))
        self._tasks = [errors, asyncio.create_task(self._read_stdout(process.stdout, errors))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._running()
        assert process.stdin is not None
        process.stdin.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_TIMEOUT):
                    await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            await asyncio.gather(*self._tasks)

    async def call(self, command: str, /, *, within: float = COMMAND_TIMEOUT, **arguments: object) -> Any:
        """Send a command of the script and return its result.

        Raises:
            NodeError: the command failed, was not answered within `within` seconds, or the process is gone.
        """
        process = self._running()
        assert process.stdin is not None
        if self._tasks[-1].done():
            self._fail(command, "the process is gone")
        self._last_id = number = self._last_id + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(json.dumps({"id": number, "command": command, **arguments}).encode() + b"\n")
            async with asyncio.timeout(within):
                await process.stdin.drain()
                reply = await answer
        except TimeoutError:
            self._fail(command, f"no answer within {within} s")
        except ConnectionError:
            self._fail(command, "the process is gone")
        finally:
            del self._answers[number]
        if reply is None:
            self._fail(command, "the process is gone")
        if "error" in reply:
            self._fail(command, reply["error"])
        return reply["result"]

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "enter the context first"
        return self._process

    def _fail(self, command: str, error: str) -> NoReturn:
        stderr = self._stderr.decode(errors="replace").strip()
        raise NodeError(f"{self.script} {command}: {error}" + (f"\n{stderr}" if stderr else ""))

    async def _read_stdout(self, stdout: asyncio.StreamReader, errors: asyncio.Task[None]) -> None:
        try:
            while line := await stdout.readline():
                message = json.loads(line)
                if "id" not in message:
                    self.events.append(message)
                elif (answer := self._answers.get(message["id"])) and not answer.done():
                    answer.set_result(message)
        finally:
            await asyncio.wait([errors], timeout=1.0)  # whoever waits for an answer wants to read what it died of
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result(None)

    async def _read_stderr(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(4096):
            self._stderr = (self._stderr + chunk)[-STDERR_KEPT:]


class NodeServer(NodePeer):
    """The real server. Listens from the moment the context is entered, on a port of its own."""

    script = "server.mjs"

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        """The port: chosen at the first start, the same ever after."""
        self._held: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"ws://127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._let_go()
        await super().__aexit__(kind, error, traceback)

    async def start(self, *, keep_rooms: bool = False) -> None:
        """Listen (again), on the same port; with the documents it had before, or empty."""
        result = await self.call("start", port=self.port, keep_rooms=keep_rooms)
        self.port = result["port"]
        self._let_go()

    async def stop(self) -> None:
        """Close every client with 1001 "Server stopping" and the port after it. Paused sockets are resumed first."""
        await self.call("stop")
        self._let_go()
        self._held = hold(self.port)

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    async def kick(self, code: int, reason: str = "") -> int:
        """Send every client a close frame; return how many there were. A code no server may send raises NodeError."""
        return cast(int, await self.call("kick", code=code, reason=reason))

    async def terminate(self) -> int:
        """Drop every client's TCP connection without a close frame; return how many there were."""
        return cast(int, await self.call("terminate"))

    async def pause(self) -> int:
        """Make the present connections half-open: nothing is read or written, TCP stays. Return how many are so.

        Connections made afterwards work.
        """
        return cast(int, await self.call("pause"))

    async def resume(self) -> None:
        """Undo `pause`: what was held back is read and written now."""
        await self.call("resume")

    async def room_error(self, room: str, code: int, message: str = "", *, crdt: Crdt = "%LOR") -> int:
        """Send a RoomError to all in the room; return how many. Any code but 1 (rejoin suggested) puts them out."""
        return cast(int, await self.call("room_error", room=room, crdt=crdt, code=code, message=message))

    async def auth(
        self, mode: Literal["write", "read", "hang"] | None, *, token: str | None = None, room: str | None = None
    ) -> None:
        """Set what joins get from now on, in one room or, without `room`, in all that have no setting of their own.

        None refuses (JoinError 2), "hang" never answers; with `token`, any other auth than its UTF-8 bytes is refused.
        """
        await self.call("auth", mode=mode, token=token, room=room)

    async def http_refuse(self, status: int | None, headers: Mapping[str, str] | None = None) -> None:
        """Answer handshakes with this HTTP status (and headers, such as Retry-After); None lets clients in again."""
        await self.call("http_refuse", status=status, headers=dict(headers or {}))

    async def stats(self) -> Stats:
        """Return what the server has seen so far."""
        return cast(Stats, await self.call("stats"))

    async def text(self, room: str) -> str | None:
        """Return the LoroText "text" of the server's %LOR document, or None if it has no such room."""
        return cast("str | None", await self.call("text", room=room))


class NodeClient(NodePeer):
    """The real JavaScript client, with an empty document or store of its own for each room."""

    script = "client.mjs"

    @property
    def statuses(self) -> list[str]:
        """The client's statuses so far, oldest first."""
        return [event["status"] for event in self.events if event["event"] == "status"]

    def room_statuses(self, room: str, *, crdt: Crdt = "%LOR") -> list[str]:
        """Return the room's statuses so far, oldest first."""
        return [
            event["status"]
            for event in self.events
            if event["event"] == "room" and (event["room"], event["crdt"]) == (room, crdt)
        ]

    async def connect(self, url: str, **options: object) -> None:
        """Connect, once in its life; returns when connected. `options` are LoroWebsocketClientOptions."""
        await self.call("connect", url=url, options=options)

    async def join(self, room: str, *, crdt: Crdt = "%LOR", auth: str = "", within: float = COMMAND_TIMEOUT) -> None:
        """Join; returns when the document holds what the server had. A refusal raises NodeError."""
        await self.call("join", room=room, crdt=crdt, auth=auth, within=within)

    async def insert(self, room: str, pos: int, text: str) -> None:
        """Insert into the LoroText "text" of the room's document, and commit."""
        await self.call("insert", room=room, pos=pos, text=text)

    async def text(self, room: str) -> str:
        """Return the LoroText "text" of the room's document."""
        return cast(str, await self.call("text", room=room))

    async def eph_set(self, room: str, key: str, value: object) -> None:
        """Set a key of the room's ephemeral store to a JSON value."""
        await self.call("eph_set", room=room, key=key, value=value)

    async def eph_get(self, room: str, key: str) -> Any:
        """Return a key of the room's ephemeral store; None if it is not there."""
        return await self.call("eph_get", room=room, key=key)

    async def eph_all(self, room: str) -> dict[str, Any]:
        """Return all of the room's ephemeral store."""
        return cast("dict[str, Any]", await self.call("eph_all", room=room))

    async def leave(self, room: str, *, crdt: Crdt = "%LOR") -> None:
        """Leave the room for good and forget its document or store."""
        await self.call("leave", room=room, crdt=crdt)

    async def status(self) -> str:
        """Return "connecting", "connected" or "disconnected": the JavaScript client has no other."""
        return cast(str, await self.call("status"))

    async def close(self) -> None:
        """Close the connection; it does not reconnect."""
        await self.call("close")


def main() -> None:
    """Install the packages before the tests begin, whose time is short, and say what is done or why not."""
    finished = NODE_DIR / "node_modules" / ".installed"
    if not (finished.is_file() and finished.read_text() == (NODE_DIR / "package.json").read_text()):
        print("tests/node: npm install of the reference server and client, up to a minute …", flush=True)
    if reason := node_available():
        print(f"the tests against the reference server and client will be skipped: {reason}")
    for program, what in (("dot", "pictures that Graphviz draws"), ("chromium", "pages in a real browser")):
        if not shutil.which(program):
            print(f"the tests of {what} will be skipped: {program} is not installed")


if __name__ == "__main__":
    main()
