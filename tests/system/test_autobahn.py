"""Autobahn: the cases of its test suite, against our transport

A `Connection` that echoes every message meets the suite's fuzzing server (autobahn_server.py), in a process and a
virtual environment of its own. Compression (categories 12 and 13) is not among them: we do not negotiate it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import venv
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from figures import Figures
from reconnect_fsm import Keepalive, NotConnected, RetryPolicy
from reconnect_fsm._asyncio.connection import Connection

PACKAGES = ("autobahntestsuite==25.10.1", "autobahn==26.10.2")
PLACE = Path(__file__).parents[2] / "build" / "autobahn"
TIME_TO_INSTALL = 240.0  # seconds
LARGEST = 16 * 1024 * 1024  # bytes: what the cases of category 9 send
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


def suite() -> Path:
    """The Python of a virtual environment that has the suite; made if there is none."""
    python = PLACE / "bin" / "python"
    done = PLACE / "installed"
    if not (done.exists() and done.read_text() == " ".join(PACKAGES)):
        venv.create(PLACE, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *PACKAGES]
        try:
            subprocess.run(command, check=True, timeout=TIME_TO_INSTALL, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"the suite cannot be installed: {getattr(error, 'stderr', b'') or error!r}")
        done.write_text(" ".join(PACKAGES))
    return python


class Suite:
    """The running server."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, cases: list[str]) -> None:
        self._process = process
        self._port = port
        self.cases = cases

    async def line(self) -> Any:
        """What the server tells next."""
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def run(self, case: str) -> Any:
        """Run a case, echoing, and return what the server says of it."""
        connection = Connection(
            f"ws://127.0.0.1:{self._port}/?case={case}",
            retry=RetryPolicy(enabled=False),
            keepalive=Keepalive(enabled=False),
            max_msg_size=LARGEST,
        )
        echoes: set[asyncio.Task[None]] = set()

        async def echo(data: str | bytes) -> None:
            with suppress(NotConnected):
                await connection.send(data)

        def heard(data: str | bytes) -> None:
            task = asyncio.create_task(echo(data))
            echoes.add(task)
            task.add_done_callback(echoes.discard)

        connection.on_message(heard)
        async with connection:
            told = await self.line()
        await asyncio.gather(*echoes)
        assert told["case"] == case
        return told


@asynccontextmanager
async def serving(python: Path) -> AsyncIterator[Suite]:
    """The fuzzing server, until it is left."""
    program = Path(__file__).parents[1] / "support" / "autobahn_server.py"
    process = await asyncio.create_subprocess_exec(
        python, program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
    )
    try:
        started = Suite(process, 0, [])
        began = await started.line()
        yield Suite(process, began["port"], began["cases"])
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_every_case_of_the_suite(figures: Figures) -> None:
    """All cases that apply are OK, NON-STRICT or INFORMATIONAL, and so are their closes."""
    python = await asyncio.to_thread(suite)
    async with serving(python) as server, asyncio.timeout(800):
        report = [await server.run(case) for case in server.cases]
    (PLACE / "report.json").write_text(json.dumps(report, indent=1))
    bad = [told for told in report if not {told["behavior"], told["behaviorClose"]} <= GOOD]
    found = Counter(told["behavior"] for told in report)
    assert bad == []
    assert len(report) > 300
    figures(
        "Autobahn|Testsuite, client, without compression",
        cases=len(report),
        **{name.lower().replace("-", "_"): count for name, count in sorted(found.items())},
        violations=len(bad),
    )


def test_the_suite_is_pinned() -> None:
    """The cases are those of one version, whatever comes next; and the server's own program is Python."""
    assert all("==" in package for package in PACKAGES)
    compile((Path(__file__).parents[1] / "support" / "autobahn_server.py").read_text(), "autobahn_server.py", "exec")
