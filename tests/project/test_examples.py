"""Every program of examples/ does what it says, against real servers and clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from loro import LoroDoc

from kit import PATIENCE, hold, until_equal
from node_peers import NODE_DIR, skip_without_node
from reconnect_fsm import Client
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.testing import EmbeddedServer

EXAMPLES = Path(__file__).parents[2] / "examples"

BY_THEMSELVES = {  # each program that ends, and what it prints
    "custom_adaptor": ["Bob sees red", "Alice sees blue"],
    "custom_policy": ["updating"],
    "many_rooms": [
        "2000 rooms joined; the first: ['document-1998', 'document-1999']",
        "joined again after a lost connection; the first: ['document-1998', 'document-1999']",
        "2 rooms left",
    ],
    "presence": ["Bob sees user/ada user/bob", "Bob sees user/bob"],
    "plain_websocket": ["price 1: 42", "price 2: 42", "price 3: 42"],
    "status": ["… connecting", "● online", "○ offline, your changes are kept (", "    attempt 1 in 0.1 s", "● online"],
    "tokens": ["the server was shown token-2: good", "joined again with a fresh one", "raised Unauthorized"],
}
WITH_OTHERS = {"share", "shut_down", "service_aiohttp", "service_fastapi"}


class Program:
    """An example in a process of its own; all that it has printed so far is in ``said``."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, words: str) -> None:
        """Read on until it has said so."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stdout.readline()).decode():
                self.said += line
                if words in line:
                    return
        raise AssertionError(f"it ended without saying {words!r}:\n{self.said}")

    async def ended(self, by: signal.Signals | None = None) -> int | None:
        """Read on until it ends, perhaps of a signal; return its exit code."""
        if by is not None:
            self.process.send_signal(by)
        async with asyncio.timeout(PATIENCE):
            out, _ = await self.process.communicate()
        self.said += out.decode()
        return self.process.returncode


@asynccontextmanager
async def running(path: Path, *arguments: str, **environment: str) -> AsyncGenerator[Program, None]:
    """The program, which is killed if it still runs in the end."""
    runner = [sys.executable, "-W", "error"] if path.suffix == ".py" else ["node"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    process = await asyncio.create_subprocess_exec(
        *runner, str(path), *arguments, stdout=PIPE, stderr=STDOUT, env=environment
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def port() -> Iterator[int]:
    """For a program that has to be told one."""
    with hold() as held:
        yield held.getsockname()[1]


def test_each_example_is_run_here() -> None:
    """None is forgotten."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == BY_THEMSELVES.keys() | WITH_OTHERS


@pytest.mark.parametrize("name", BY_THEMSELVES)
async def test_an_example_ends_well(name: str) -> None:
    """It says what it promises, in this order, with no warning."""
    async with running(EXAMPLES / f"{name}.py") as program:
        assert await program.ended() == 0, program.said
    at = 0
    for words in BY_THEMSELVES[name]:
        found = program.said.find(words, at)
        assert found >= 0, f"{words!r} is not there:\n{program.said}"
        at = found + len(words)


@pytest.mark.node
async def test_a_text_is_shared_with_javascript(tmp_path: Path, port: int) -> None:
    """The tutorial's three programs: Python and JavaScript show both lines, and Python is back after the server."""
    skip_without_node()
    peers = shutil.copytree(EXAMPLES / "js-peer", tmp_path / "js-peer")
    assert json.loads((peers / "package.json").read_text())["dependencies"] == INSTALLED
    (peers / "node_modules").symlink_to(NODE_DIR / "node_modules")
    url = f"ws://127.0.0.1:{port}"
    async with running(peers / "server.mjs", str(port)) as server:
        await server.says("listening")
        async with running(peers / "peer.mjs", url) as javascript:
            await javascript.says("Hello from JavaScript")
            async with running(EXAMPLES / "share.py", url) as python:
                await python.says("Hello from JavaScript")
                await javascript.says("Hello from Python")
                await python.says("Hello from Python")
                await server.ended(signal.SIGTERM)
                await python.says("[reconnecting]")
                async with running(peers / "server.mjs", str(port)) as again:
                    await again.says("listening")
                    await python.says("[connected]")
                    assert await python.ended(signal.SIGINT) == 0
    assert python.said.endswith("closed\n")


INSTALLED = json.loads((NODE_DIR / "package.json").read_text())["dependencies"]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_the_last_words_arrive(by: signal.Signals) -> None:
    """``shut_down.py`` ends on either signal, with everything saved."""
    async with EmbeddedServer() as server:
        async with running(EXAMPLES / "shut_down.py", server.url) as program:
            await program.says("running")
            assert await program.ended(by) == 0
        assert "all is saved" in program.said
        assert server.document("notes").get_text("text").to_string() == "the last words"


@pytest.mark.parametrize("name", ["service_aiohttp", "service_fastapi"])
async def test_a_service_begins_and_ends_with_its_client(name: str, port: int) -> None:
    """Edits are synced, readiness is told, and on SIGTERM it ends by itself."""
    doc = LoroDoc()
    service = f"http://127.0.0.1:{port}"
    async with EmbeddedServer() as server, Client(server.url) as client, aiohttp.ClientSession() as http:
        await client.join("notes", LoroAdaptor(doc))

        async def ready() -> str:
            try:
                async with http.get(f"{service}/ready") as answer:
                    return str((await answer.json())["status"])
            except aiohttp.ClientError:  # it is not up yet
                return ""

        async with running(EXAMPLES / f"{name}.py", SYNC_URL=server.url, PORT=str(port)) as program:
            await until_equal(ready, "connected", within=PATIENCE)
            async with http.post(f"{service}/notes", data="milk") as answer:
                assert await answer.text() == "milk\n"
            await until_equal(lambda: doc.get_text("text").to_string(), "milk\n", within=PATIENCE)
            await program.ended(signal.SIGTERM)
        assert "Traceback" not in program.said, program.said
