"""Measure all clients side by side: ``python benchmarks/run.py [--quick] [--works joins,updates] [--rounds 5]``.

A client does its work in a process of its own, pinned to one core, against a stub server pinned to another. Runs
alternate between the clients, so that whatever else the machine does falls on all of them. What is measured goes to
``build/benchmarks.json`` and ``build/benchmarks.svg``, and the table to stdout; a whole run rewrites
``docs/benchmarks.md`` and its picture too.

``--profile WORK`` does one work of ours under cProfile instead, and says where the time went.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import contextlib
import json
import os
import platform
import resource
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import report
from works import CLIENTS, CLIENTS_DIR, HERE, NODE_DIR, WORKS, Client, Work

TIMEOUT = 300.0  # seconds for one run
SPARE_FILES = 200  # descriptors beyond those of the connections

Figures = dict[str, Any]


class Failed(Exception):
    """A client did not do its work."""


class Process:
    """A child that talks by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout

    async def line(self) -> str:
        """What it says next; empty when it has ended."""
        return (await self._stdout.readline()).decode().strip()

    def tell(self, line: str) -> None:
        """Send it a line."""
        self._stdin.write(f"{line}\n".encode())

    async def ask(self, line: str) -> Any:
        """Send it a command, and give its answer. Raises Failed if there is none."""
        self.tell(line)
        answer = await self.line()
        if not answer or "error" in (result := json.loads(answer) or {}):
            raise Failed(f"{line!r}: {answer or 'the stub server is gone'}")
        return result

    async def end(self) -> int:
        """Close its stdin and wait until it has ended; its exit code."""
        self._stdin.close()
        return await self._process.wait()


@contextlib.asynccontextmanager
async def child(command: Sequence[str], core: int, directory: Path, **environment: str) -> AsyncIterator[Process]:
    """A process on a core of its own. It is killed if it has not ended by itself."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=directory,
        env=os.environ | environment,
        preexec_fn=settling(core),
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def settling(core: int) -> Callable[[], None]:
    """What a child does first: go to its core, and allow itself as many descriptors as it may have."""

    def settle() -> None:
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[core % len(cores)]})
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return settle


async def run(client: Client, name: str, count: int, **environment: str) -> dict[str, Figures]:
    """One run of a work: what was measured in each of its sections. Raises Failed."""
    if name == "imports":
        assert client.module is not None
        async with child([sys.executable, str(CLIENTS_DIR / "imports.py"), client.module], 1, HERE.parent) as process:
            figures = json.loads(await process.line())
        return {figures.pop("end"): figures}
    stub = [sys.executable, str(HERE / "stub_server.py"), client.speaks]
    async with child(stub, 0, HERE.parent) as server:
        url = f"ws://127.0.0.1:{await server.line()}/"
        command = [*client.command, name, url, str(count)]
        async with child(command, 1, client.directory, **environment) as process:
            sections = await measured(WORKS[name], count, server, process)
            code = await process.end()
    if code or not sections:
        raise Failed(f"{client.title}, {name}: it ended with exit code {code}")
    return sections


async def measured(work: Work, count: int, server: Process, client: Process) -> dict[str, Figures]:
    """Lead a client through the sections of its work."""
    sections: dict[str, Figures] = {}
    back = 0.0
    while line := await client.line():
        said = json.loads(line)
        if section := said.get("begin"):
            await server.ask("usage")
            client.tell("go")
            for step in work.steps.get(section, ()):
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    await server.ask("usage")
                else:
                    back = (await server.ask(step.format(count=count))).get("at", back)
        else:
            usage = await server.ask("usage")
            section, ended = said.pop("end"), said.pop("at")
            took = said["wall"]
            if section == "usable":
                took = said["since_back"] = ended - back
            sections[section] = said | {"server": usage["cpu"] / took, "load": said["cpu"] / said["wall"]}
    return sections


async def run_all(works: Sequence[str], clients: Sequence[str], rounds: int, *, quick: bool) -> dict[str, Any]:
    """Run works, alternating between those clients that can be had. Raises Failed."""
    skipped = {name: why for name in clients if (why := CLIENTS[name].missing())}
    for name, why in skipped.items():
        print(f"SKIPPED: {CLIENTS[name].title}: {why}", file=sys.stderr)
    measured: dict[str, Any] = {}
    for name in works:
        work = WORKS[name]
        count = work.quick if quick else affordable(name, work.count)
        runs: dict[str, dict[str, list[Figures]]] = {}
        for number in range(min(rounds, work.max_rounds) * (1 if quick else work.runs)):
            for client in work.clients:
                if client in clients and client not in skipped:
                    progress(f"{name}, run {number + 1}: {CLIENTS[client].title}")
                    async with asyncio.timeout(TIMEOUT):
                        for section, figures in (await run(CLIENTS[client], name, count)).items():
                            runs.setdefault(section, {}).setdefault(client, []).append(figures)
        measured[name] = {"count": count, "sections": runs}
    progress("")
    return {"quick": quick, "rounds": rounds, "machine": machine(), "skipped": skipped, "works": measured}


def affordable(name: str, count: int) -> int:
    """Fewer connections where there are not enough descriptors; their pings then come the more often."""
    if not name.startswith("idle"):
        return count
    return min(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES)


def progress(what: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, str]:
    """Where it was measured, in general words."""
    found = {"system": platform.system(), "cores": str(len_cores()), "Python": platform.python_version()}
    for package in ("aiohttp", "transitions", "loro", "websockets", "centrifuge-python", "python-socketio"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    pins = json.loads((NODE_DIR / "package.json").read_text())["dependencies"]
    return found | {f"npm {name}": pins[name] for name in ("loro-websocket", "loro-crdt", "ws")}


def len_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def profile(name: str) -> None:
    """One work of ours, with where the time went on stderr."""
    figures = await run(CLIENTS["ours"], name, WORKS[name].count, PROFILE="1")
    print(json.dumps(figures, indent=2))


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Names with commas between them."""

    def parse(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return text.split(",")

    return parse


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0].partition(":")[0] + ".")
    parser.add_argument("--works", type=names(list(WORKS)), default=list(WORKS), help="which, with commas between them")
    parser.add_argument("--clients", type=names(list(CLIENTS)), default=list(CLIENTS), help="whose, likewise")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each client; 5 if not given")
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it works, not how fast")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "build", help="where the figures go; build/ if not given"
    )
    parser.add_argument("--profile", metavar="WORK", choices=list(WORKS), help="profile one work of ours instead")
    arguments = parser.parse_args()
    compileall.compile_dir(HERE.parent / "reconnect_fsm", quiet=2)  # as pip does with what it installs
    try:
        if arguments.profile:
            asyncio.run(profile(arguments.profile))
            return
        result = asyncio.run(run_all(arguments.works, arguments.clients, arguments.rounds, quick=arguments.quick))
    except Failed as failure:
        sys.exit(f"{failure}")
    is_whole = arguments.works == list(WORKS) and arguments.clients == list(CLIENTS)
    report.write(result, arguments.out, docs=HERE.parent / "docs" if is_whole and not arguments.quick else None)


if __name__ == "__main__":
    main()
