"""Names and addresses: threads of our own (NET-DNS), and what failed is tried last (NET-ADDR)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import ResolveResult

import faulty
from faulty import Peer, Watch
from kit import PATIENCE, until
from reconnect_fsm import Connection, Keepalive, RetryPolicy
from reconnect_fsm._asyncio.transport.resolver import (
    MAX_FAILED,
    MAX_LOOKUPS,
    MAX_LOOKUPS_OF_A_NAME,
    FailedAddresses,
    Resolver,
)

QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)


def found(*hosts: str) -> list[ResolveResult]:
    return [ResolveResult(hostname="n", host=host, port=80, family=2, proto=6, flags=0) for host in hosts]


def order(failures: FailedAddresses, *hosts: str) -> str:
    return "".join(each["host"] for each in failures.in_order(found(*hosts)))


def test_net_addr_the_order() -> None:
    """NET-ADDR: what has not failed, then what failed longest ago; who accepts and fails races against nobody."""
    failures = FailedAddresses()
    assert order(failures, "a", "b", "c") == "abc"
    failures.failed([("b", 80)], accepted=False)
    assert order(failures, "a", "b", "c") == "acb"
    failures.failed([("a", 80)], accepted=True)
    assert order(failures, "a", "b", "c") == "cb"
    failures.failed([("c", 80)], accepted=True)
    assert order(failures, "a", "b", "c") == "b"  # all have failed: b longest ago
    failures.failed([("b", 80)], accepted=False)
    assert order(failures, "a", "b", "c") == "ab"
    failures.work([("c", 80)])
    assert order(failures, "a", "b", "c") == "cb"
    assert order(failures, "a") == "a"
    assert order(failures) == ""


def test_net_addr_only_so_many_are_remembered() -> None:
    """A name with ever new addresses fills no memory."""
    failures = FailedAddresses()
    for number in range(3 * MAX_FAILED):
        failures.failed([(str(number), 80)], accepted=True)
    assert len(failures._failed) == MAX_FAILED
    assert order(failures, str(3 * MAX_FAILED - 1), "0") == "0"


class System:
    """The system's resolver: what it says, who asks, and whether it hangs."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.hangs = False
        self.go_on = threading.Event()
        self.threads: list[threading.Thread] = []

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host not in self.addresses:
            return self.real(host, port, *args, **more)
        self.asked.append(host)
        self.threads.append(threading.current_thread())
        if self.hangs:
            self.go_on.wait(PATIENCE)
        if not self.addresses[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, int(port or 0))) for each in self.addresses[host]]

    real = staticmethod(socket.getaddrinfo)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    made = System()
    monkeypatch.setattr(aiohttp, "DefaultResolver", aiohttp.ThreadedResolver)
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.go_on.set()
    for each in made.threads:
        each.join(PATIENCE)


ILL = {
    "answers 503": faulty.answer(503),
    "hangs up": faulty.hang_up_in_handshake,
    "resets": faulty.reset_in_handshake,
    "stays mute": faulty.never_answer,
    "is no WebSocket": faulty.wrong_accept,
    "accepts and hangs up": faulty.accept_then_hang_up,
    "accepts and closes": faulty.accept_then_close(1011),
    "accepts and answers no ping": faulty.ignore_pings,
}


@pytest.mark.parametrize("how", ILL)
async def test_net_addr_the_second_address_is_tried(how: str, system: System) -> None:
    """NET-ADDR: an address that accepts TCP and then fails in any way does not have all attempts."""
    contacted = 0

    async def ill(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal contacted
        contacted += 1
        peer = Peer(reader, writer)
        try:
            await ILL[how](peer)
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    async with faulty.server() as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        listener = await asyncio.start_server(ill, "127.0.0.2", port)
        system.addresses["feed.example"] = ["127.0.0.2", "127.0.0.1"]
        keepalive = Keepalive(interval=0.1, timeout=0.3)
        async with Connection(
            f"ws://feed.example:{port}/", retry=QUICK, keepalive=keepalive, connect_timeout=0.3, close_timeout=0.05
        ) as connection:
            watch = Watch(connection)
            await until(lambda: server.connects == 1 and connection.status == "connected")
            assert contacted == 1
            assert server.connects == 1
            await connection.retry_now()  # it is remembered, and the other is as good as ever
            assert (contacted, server.connects) == (1, 2)
            assert watch.states.count("waiting") <= 1
        listener.close()


async def test_net_dns_a_name_that_does_not_resolve(system: System) -> None:
    """D-WORDS: the reason says so; no thread is left."""
    system.addresses["feed.example"] = []
    connection = Connection("ws://feed.example/", retry=RetryPolicy(base=1000.0, cap=1000.0))
    watch = Watch(connection)
    async with connection:
        async with asyncio.timeout(PATIENCE):
            await watch.seen("dial_failed")
        assert connection.reason == "the server's name does not resolve"
    await until(lambda: not any(each.is_alive() for each in system.threads))


async def test_net_dns_a_hanging_resolver_takes_no_thread_of_the_programs(system: System) -> None:
    """NET-DNS: and few of our own, and does not hold up close(); other names are resolved meanwhile."""
    loop = asyncio.get_running_loop()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    system.addresses["feed.example"] = ["127.0.0.1"]
    system.hangs = True
    resolver = Resolver(loop)
    asking = [asyncio.create_task(resolver.resolve("feed.example", 80)) for _ in range(20)]
    await until(lambda: len(system.asked) == MAX_LOOKUPS_OF_A_NAME)
    await asyncio.to_thread(lambda: None)
    async with faulty.server() as server, Connection(server.url.replace("127.0.0.1", "localhost")) as connection:
        async with asyncio.timeout(PATIENCE):
            await connection.wait_connected()
    for each in asking[:10]:
        each.cancel()
    await asyncio.wait(asking[:10])
    await resolver.close()
    system.go_on.set()
    for answer in await asyncio.gather(*asking[10:]):  # those that are still there get theirs
        assert [each["host"] for each in answer] == ["127.0.0.1"]
    assert len(system.asked) == MAX_LOOKUPS_OF_A_NAME
    assert all(each.daemon for each in system.threads)
    executor.shutdown()


async def test_net_dns_only_so_many_lookups_are_under_way(system: System) -> None:
    """NET-DNS: a thread each, however many names hang; the next goes on when one is over, and may be cancelled."""
    system.hangs = True
    names = [f"{number}.example" for number in range(MAX_LOOKUPS + 3)]
    system.addresses = {name: ["127.0.0.1"] for name in names}
    resolver = Resolver(asyncio.get_running_loop())
    asking = [asyncio.create_task(resolver.resolve(name, 80)) for name in names]
    await until(lambda: len(system.asked) == MAX_LOOKUPS)
    too = asyncio.create_task(resolver.resolve(names[-1], 80))
    await asyncio.sleep(0)
    asking[-1].cancel()
    await asyncio.wait([asking[-1]])
    assert asking[-1].cancelled()
    assert len(system.asked) == MAX_LOOKUPS
    system.go_on.set()
    await asyncio.gather(*asking[:-1], too)
    assert sorted(system.asked) == sorted(names)
    await until(lambda: not any(each.is_alive() for each in system.threads))


def test_net_dns_the_program_ends_while_a_lookup_hangs() -> None:
    """NET-DNS: neither asyncio.run() nor the interpreter waits for it."""
    program = """
import asyncio, socket, threading, aiohttp
aiohttp.DefaultResolver = aiohttp.ThreadedResolver
from reconnect_fsm import Connection
asked = threading.Event()
def hangs(*args, **options):
    asked.set()
    threading.Event().wait()
socket.getaddrinfo = hangs
async def main():
    async with Connection("ws://feed.example/"):
        while not asked.is_set():
            await asyncio.sleep(0.01)
asyncio.run(main())
"""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == ""
    assert time.monotonic() - begin < PATIENCE


async def test_net_dns_a_lookup_that_ends_after_its_loop(system: System) -> None:
    """NET-DNS: what comes too late is for nobody."""
    system.addresses["feed.example"] = ["127.0.0.1"]
    system.hangs = True

    async def life() -> None:
        asking = asyncio.create_task(Resolver(asyncio.get_running_loop()).resolve("feed.example", 80))
        await until(lambda: system.asked)
        asking.cancel()
        await asyncio.wait([asking])

    await asyncio.to_thread(asyncio.run, life())
    system.go_on.set()
    await until(lambda: not any(each.is_alive() for each in system.threads))
