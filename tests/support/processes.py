"""A server, or a client, in a process of its own: for signals, and for what only a process can suffer.

    async with ServerProcess() as server, Client(server.url) as client:
        ...
        server.signal(SIGSTOP)

The process is this very file, run by the same Python. It prints one JSON object a line, and obeys one word a line on
stdin; it ends when stdin closes, so nothing outlives a test run that dies. Durations are in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from loro import ExportMode, LoroDoc

from kit import PATIENCE
from reconnect_fsm import Client, Keepalive, RetryPolicy
from reconnect_fsm.adaptors.loro import LoroAdaptor
from reconnect_fsm.loro_protocol import CrdtType, DocUpdate, DocUpdateFragment, DocUpdateFragmentHeader
from reconnect_fsm.testing import EmbeddedServer

__all__ = ["ClientProcess", "ServerProcess", "established", "write_at"]

BATCHES: Final = itertools.count(1 << 40)  # ids of a test's own batches
ROOM: Final = "notes"
KEEPALIVE: Final = Keepalive(interval=0.5, timeout=2.0)  # of the client process
LONGEST_LINE: Final = 16 * 1024 * 1024
HALF: Final = 4  # fragments sent of a batch of twice as many


def established(port: int) -> set[int]:
    """The TCP connections that the kernel has to this port, accepted or not, each by our own port."""
    rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    ends = [[int(end.rpartition(":")[2], 16) for end in row[1:3]] for row in rows if row[3] == "01"]  # ESTABLISHED
    return {ours for ours, theirs in ends if theirs == port}


async def write_at(server: EmbeddedServer, room: str, words: str) -> None:
    """Write something at the end of the server's own copy of a document, and send it to the members of the room."""
    doc = server.document(room)
    before = doc.oplog_vv
    text = doc.get_text("text")
    text.insert(text.len_unicode, words)
    doc.commit()
    update = doc.export(ExportMode.Updates(before))
    await server.send(room, CrdtType.LORO, DocUpdate(CrdtType.LORO, room, (update,), next(BATCHES)))


# ---------------------------------------------------------------------------------------------------- from the outside


class _Process:
    """This file in a process of its own, playing a role. An async context manager."""

    role = ""

    def __init__(self, *arguments: object) -> None:
        self.said: list[dict[str, Any]] = []
        """What it said, oldest first."""
        self._arguments = [str(each) for each in arguments]
        self._process: asyncio.subprocess.Process | None = None
        self._heard = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
        await self.ended()

    async def start(self) -> None:
        """Start it and wait until it says what it is. Raises AssertionError, with its stderr, if it does not."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            self.role,
            *self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LONGEST_LINE,
            env={**os.environ, "PYTHONDEVMODE": ""},
        )
        self.said.clear()
        self._reading = asyncio.create_task(self._read())
        await self.until(lambda: self.said)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal; nothing if it is gone."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def tell(self, word: str) -> None:
        """Give it a command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    async def text(self) -> str:
        """What its copy of the document of `ROOM` holds."""
        before = len(self.said)
        self.tell("text")
        await self.until(lambda: any("text" in each for each in self.said[before:]))
        text: str = next(each["text"] for each in self.said[before:] if "text" in each)
        return text

    async def ended(self) -> int:
        """Wait until it has ended, of itself or of a signal, and return its exit status."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with asyncio.timeout(PATIENCE):
            status = await self._process.wait()
            if self._reading is not None:
                await self._reading
        self._process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.wait_closed()
        return status

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds, which is looked at whenever it says something."""
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert not self._reading.done(), f"the {self.role} process ended early; it said {self.said}"
                self._heard.clear()
                await self._heard.wait()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.said.append(json.loads(line))
            self._heard.set()
        self._heard.set()


class ServerProcess(_Process):
    """An `EmbeddedServer` on a port of its own; started once more, it has the same port and empty rooms."""

    role = "server"

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)

    @property
    def port(self) -> int:
        port: int = self.said[0]["port"]
        return port

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        await super().start()
        self._arguments = [str(self.port)]

    async def send_half_a_batch(self) -> None:
        """Have it send every member of `ROOM` the first half of a batch of fragments."""
        self.tell("half")
        await self.until(lambda: {"sent": "half"} in self.said)

    def reset_all(self) -> None:
        """Have it end every connection with a reset (RST)."""
        self.tell("reset")

    def write(self, words: str) -> None:
        """Have it write something at the end of its own copy of the document of `ROOM`, and send it to the members."""
        self.tell(f"write {words}")


class ClientProcess(_Process):
    """A `Client` in the room `ROOM`, pinging as `KEEPALIVE` says; it tells every change of its statuses."""

    role = "client"

    def __init__(self, url: str) -> None:
        super().__init__(url)

    @property
    def statuses(self) -> list[str]:
        """The client's statuses, in order."""
        return [each["client"] for each in self.said if "client" in each]

    @property
    def rooms(self) -> list[str]:
        """The room's statuses, in order."""
        return [each["room"] for each in self.said if "room" in each]

    @property
    def pongs(self) -> int:
        """How many pongs came."""
        return sum("latency" in each for each in self.said)


# ------------------------------------------------------------------------------------------------------- in the process


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def _serve(port: str) -> None:
    async with EmbeddedServer(port=int(port)) as server:
        terminated = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)

        async def half(_: str) -> None:
            await server.send(ROOM, CrdtType.LORO, DocUpdateFragmentHeader(CrdtType.LORO, ROOM, 1, 2 * HALF, 2 * HALF))
            for index in range(HALF):
                await server.send(ROOM, CrdtType.LORO, DocUpdateFragment(CrdtType.LORO, ROOM, 1, index, b"."))
            _say(sent="half")

        async def write(words: str) -> None:
            await write_at(server, ROOM, words)

        async def text(_: str) -> None:
            _say(text=server.document(ROOM).get_text("text").to_string())

        async def reset(_: str) -> None:
            server.reset_all()

        _say(port=server.port)
        await _obey({"half": half, "write": write, "text": text, "reset": reset}, terminated)


async def _connect(url: str) -> None:
    client = Client(url, keepalive=KEEPALIVE, retry=RetryPolicy(base=0.05, cap=0.1))
    doc = LoroDoc()
    client.on_status(lambda change: _say(client=change.new, reason=change.reason))
    client.on_latency(lambda seconds: _say(latency=seconds))

    async def write(words: str) -> None:
        doc.get_text("text").insert(0, words)
        doc.commit()
        await room.synced()
        _say(wrote=words)

    async def text(_: str) -> None:
        _say(text=doc.get_text("text").to_string())

    async with client:
        room = client.join(ROOM, LoroAdaptor(doc), on_status=lambda change: _say(room=change.new))
        await _obey({"write": write, "text": text}, asyncio.Event())


async def _obey(commands: dict[str, Callable[[str], Awaitable[None]]], stop: asyncio.Event) -> None:
    """Obey what is said on stdin until it closes, or until told to stop."""
    stdin = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            line = asyncio.create_task(stdin.readline())
            await asyncio.wait({line, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() or not line.result():
                line.cancel()
                return
            word, _, rest = line.result().decode().removesuffix("\n").partition(" ")
            await commands[word](rest)
    finally:
        stopped.cancel()
        pipe.close()


if __name__ == "__main__":
    asyncio.run({"server": _serve, "client": _connect}[sys.argv[1]](sys.argv[2]))
