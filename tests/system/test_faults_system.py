"""Faults of the system: processes, networks, the kernel's limits, clocks, TLS, names and proxies.

Each is a row of `fault_matrix`, made with the real thing wherever the kernel lets us: signals to processes
(processes.py), packets lost between two machines (namespaces.py), descriptors and ports that are used up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import resource
import socket
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, Final, TypeAlias
from unittest import mock

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

import namespaces
from fault_matrix import ROOM, SECRET, SMALL, Fault, Stage, edit, fault_id, play
from faulty import HOST, unused_port
from figures import Figures
from kit import until
from namespaces import ACK, FIN, HERE, RST, SYN, THERE, Cable, Packet
from processes import KEEPALIVE, ClientProcess, ServerProcess, established, write_at
from reconnect_fsm.status import RoomStatus, StateChange
from reconnect_fsm.testing.embedded_server import EmbeddedServer, reset_connection
from tls import client_side as trusting
from tls import server_side as certified

SEED: Final = 0
DYING: Final = replace(SMALL, interval=0.5, timeout=1.0, connect_timeout=1.5, join_timeout=5.0)
"""For what is noticed by its silence: quick, yet no busy machine is taken for a dead one."""
LASTING: Final = replace(DYING, interval=0.2, timeout=10.0)
"""For what must not be taken for a death: many pings, each with all the time it needs."""
LONG_STALL: Final = 1.5 * (DYING.interval + DYING.timeout)  # seconds; a connection would be dead by then
SHORT_STALL: Final = 0.8  # seconds

HARMLESS: Final[Mapping[str, Any]] = {"client": "connected", "room": "joined", "again": ""}
ERROR: Final[Mapping[str, Any]] = {
    "client": "connected → reconnecting → error",
    "room": "joined → reconnecting → disconnected",
    "again": "never",
}
FATAL: Final[Mapping[str, Any]] = {**ERROR, "client": "connected → reconnecting → disconnected"}

LOST: Final = "the connection was lost"
NO_PONG: Final[Mapping[str, Any]] = {"says": "no answer to a ping within", "within": "interval + timeout"}
TOO_LATE: Final[Mapping[str, Any]] = {"says": "no connection in the time allowed", "within": "connect_timeout"}
HUNG_UP: Final = "the server hung up during the handshake"
NO_TLS: Final = "TLS failed"
NO_SERVER: Final = "the server does not answer as a WebSocket server does"

fault: Final = functools.partial(Fault, virtual=False)  # the kernel knows no virtual time


class Served(Stage):
    """A stage before an `EmbeddedServer`."""

    def __init__(self, server: EmbeddedServer, url: str = "", **options: Any) -> None:
        self.server = server
        self.url = url or server.url
        self.options: Mapping[str, Any] = options
        self._writing: set[asyncio.Task[None]] = set()

    def edit(self, words: str) -> bool:
        task = asyncio.ensure_future(write_at(self.server, ROOM, words))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return True

    def text(self) -> str:
        return str(self.server.document(ROOM).get_text("text").to_string())


def write_much(stage: Stage, size: int) -> None:
    """An edit of ours that cannot be compressed."""
    adaptor: Any = stage.client.rooms[0].adaptor
    edit(adaptor.doc, Random(SEED).randbytes(size // 2).hex())


async def lose_connection(stage: Any) -> None:
    """An RST from the server."""
    stage.server.reset_all()


# --------------------------------------------------------------------------------------------------------- processes


class InProcess(Stage):
    """A stage whose server is a process of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.url = server.url

    def edit(self, words: str) -> bool:
        self.server.write(words)
        return True


@asynccontextmanager
async def in_process() -> AsyncIterator[InProcess]:
    async with ServerProcess() as server:
        yield InProcess(server)
        text = await server.text()
        assert all(words in text for words in ("before ", "during ", "after ")), text


def send(*signals: Signals, after: float = 0.0) -> Callable[[InProcess], Awaitable[None]]:
    """Signals to the server's process, with a pause between them."""

    async def strike(stage: InProcess) -> None:
        for number, each in enumerate(signals):
            if number:
                await asyncio.sleep(after)
            stage.server.signal(each)

    return strike


async def start_again(stage: InProcess) -> None:
    """On the same port, with no rooms."""
    stage.server.signal(SIGCONT)
    await stage.server.ended()
    await stage.server.start()


async def crash_again(stage: InProcess) -> None:
    await start_again(stage)
    await until(lambda: all(room.status is RoomStatus.JOINED for room in stage.client.rooms))
    stage.server.signal(SIGKILL)
    await start_again(stage)


async def kill_in_handshake(stage: InProcess) -> None:
    """The kernel accepts for a stopped process, which never answers."""
    before = established(stage.server.port)
    stage.server.signal(SIGSTOP)
    await until(lambda: established(stage.server.port) - before)
    await asyncio.sleep(0.1)  # the request is on its way
    stage.server.signal(SIGKILL)


async def kill_in_batch(stage: InProcess) -> None:
    await stage.server.send_half_a_batch()
    stage.server.signal(SIGKILL)


async def kill_in_batch_of_ours(stage: InProcess) -> None:
    """A megabyte that nobody reads, then nobody who could."""
    stage.server.signal(SIGSTOP)
    write_much(stage, 1 << 20)
    await asyncio.sleep(0.1)
    stage.server.signal(SIGKILL)


async def stop_with_megabytes_waiting(stage: InProcess) -> None:
    stage.server.signal(SIGSTOP)
    write_much(stage, 1 << 23)


async def no_descriptors_for_the_server(stage: InProcess) -> None:
    """It cannot accept any more; the kernel can."""
    _, hard = resource.prlimit(stage.server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(stage.server.pid, resource.RLIMIT_NOFILE, (0, hard))
    stage.server.reset_all()


async def descriptors_for_the_server(stage: InProcess) -> None:
    _, hard = resource.prlimit(stage.server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(stage.server.pid, resource.RLIMIT_NOFILE, (hard, hard))


process = functools.partial(fault, "Processes", stage=in_process)

PROCESSES = [
    process("the server's process is killed (SIGKILL); another one, with no rooms, takes its port",
            strike=send(SIGKILL), heal=start_again, says=LOST),
    process("the server's process is terminated (SIGTERM) and started again",
            strike=send(SIGTERM), heal=start_again, says="closed with code 1001: Server stopping"),
    process("the server's process is killed, and its successor too as soon as it serves the room",
            strike=send(SIGKILL), heal=crash_again, says=LOST,
            client="connected → reconnecting → connected → reconnecting → connected",
            room="joined → reconnecting → joined → reconnecting → joined"),
    process("the server's process is stopped (SIGSTOP) for less than the keepalive allows",
            strike=send(SIGSTOP, SIGCONT, after=SHORT_STALL), **HARMLESS),
    process("the server's process is stopped (SIGSTOP), and goes on once that was noticed",
            strike=send(SIGSTOP), heal=send(SIGCONT), **NO_PONG),
    process("the server's process is stopped (SIGSTOP) while megabytes of ours wait",
            strike=stop_with_megabytes_waiting, heal=send(SIGCONT),
            says="the connection is dead", within="interval + timeout"),
    process("the server's process is stopped (SIGSTOP): the kernel accepts, nobody answers the upgrade",
            strike=send(SIGSTOP), heal=send(SIGCONT), **TOO_LATE),
    process("the server's process is stopped (SIGSTOP), then killed",
            strike=send(SIGSTOP, SIGKILL, after=0.1), heal=start_again, says=LOST),
    process("the server's process is killed during the handshake",
            strike=kill_in_handshake, heal=start_again, says="Connection reset by peer"),
    process("the server's process is killed in the middle of a batch of fragments of its own",
            strike=kill_in_batch, heal=start_again, says=LOST),
    process("the server's process is killed in the middle of a batch of fragments of ours",
            strike=kill_in_batch_of_ours, heal=start_again, says=LOST),
    process("the server's process has no descriptor left to accept with",
            strike=no_descriptors_for_the_server, heal=descriptors_for_the_server, **TOO_LATE),
]  # fmt: skip


# ------------------------------------------------------------------------------------- stalls of our own, and clocks


async def block_loop(stage: InProcess) -> None:
    """While a ping is under way: its pong is there in time, and read too late."""
    stage.server.signal(SIGSTOP)
    ping = asyncio.create_task(stage.client.ping(timeout=60))
    await asyncio.sleep(0.1)  # until it is written
    stage.server.signal(SIGCONT)
    time.sleep(LONG_STALL)  # noqa: ASYNC251  # that is the fault
    await ping


def block_loop_after(signal: Signals) -> Callable[[InProcess], Awaitable[None]]:
    """The server gets a signal; the client has no time for that."""

    async def strike(stage: InProcess) -> None:
        stage.server.signal(signal)
        time.sleep(LONG_STALL)  # noqa: ASYNC251  # that is the fault

    return strike


async def block_loop_in_dial(stage: InProcess) -> None:
    """Once. The answer is there in time, and read too late."""

    def follow(step: StateChange) -> None:
        if step.new == "waiting":
            stage.server.signal(SIGSTOP)
        else:
            unfollow()
            asyncio.get_running_loop().call_later(0.1, block)

    def block() -> None:
        time.sleep(DYING.connect_timeout / 2)
        stage.server.signal(SIGCONT)
        time.sleep(DYING.connect_timeout)

    unfollow = stage.client.on_transition(follow)
    stage.server.reset_all()


def set_clock(seconds: float) -> Callable[[Any], Awaitable[None]]:
    """What `time.time` says from now on is off by so many seconds."""

    async def strike(stage: Clocks) -> None:
        stage.error = seconds

    return strike


class Clocks(Served):
    """A stage whose wall clock somebody sets."""

    error = 0.0
    right = staticmethod(time.time)

    def time(self) -> float:
        return self.right() + self.error


@asynccontextmanager
async def clocks() -> AsyncIterator[Clocks]:
    async with EmbeddedServer() as server:
        stage = Clocks(server)
        with mock.patch("time.time", stage.time):
            yield stage


async def nothing_to_play(_: object) -> None:
    """For what happens to the client's own process: a test of its own plays it, and asserts what is declared."""


stall = functools.partial(fault, "Stalls and clocks", stage=in_process)
in_client = functools.partial(stall, strike=nothing_to_play)

STOPPED_SHORTLY = in_client("the client's process is stopped (SIGSTOP) for less than the keepalive allows", **HARMLESS)
STOPPED_LONG = in_client("the client's process is stopped (SIGSTOP) for longer than the keepalive allows", **HARMLESS)
STOPPED_MEANWHILE = in_client("the client's process is stopped (SIGSTOP), and the server dies meanwhile", says=LOST)
STOPPED_AND_SILENT = in_client(
    "the client's process is stopped (SIGSTOP), and the server falls silent meanwhile",
    says="no answer to a ping within", within="interval + timeout + timeout",
)  # fmt: skip
CLIENT_KILLED = in_client("the client's process is killed; all that had its Ack is there for the next one", **HARMLESS)
CLIENT_FAULTS = [STOPPED_SHORTLY, STOPPED_LONG, STOPPED_MEANWHILE, STOPPED_AND_SILENT, CLIENT_KILLED]

STALLS = [
    stall("the client's event loop is blocked for longer than the keepalive allows", strike=block_loop, **HARMLESS),
    stall("the client's event loop is blocked, and the server dies meanwhile",
          strike=block_loop_after(SIGKILL), heal=start_again, says=LOST),
    stall("the client's event loop is blocked, and the server falls silent meanwhile",
          strike=block_loop_after(SIGSTOP), heal=send(SIGCONT),
          says="no answer to a ping within", within="interval + timeout + timeout"),
    stall("the client's event loop is blocked during a dial for longer than it may take",
          strike=block_loop_in_dial, **TOO_LATE),
    stall("the wall clock is set back by ten years", stage=clocks, strike=set_clock(-315e6), **HARMLESS),
    stall("the wall clock is set forward by ten years", stage=clocks, strike=set_clock(315e6), **HARMLESS),
]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the network


class Wired(Served):
    """A stage whose server is on another machine, at the other end of a cable."""

    def __init__(self, server: EmbeddedServer, cable: Cable, url: str = "", **options: Any) -> None:
        super().__init__(server, url, **options)
        self.cable = cable
        self.chance = Random(SEED)

    @property
    def flows(self) -> set[int]:
        """Our ports of the connections there are."""
        return established(self.server.port)


@asynccontextmanager
async def wired() -> AsyncIterator[Wired]:
    async with Cable() as cable:
        server = EmbeddedServer(THERE)
        with cable.there:
            await server.start()
        try:
            yield Wired(server, cable)
        finally:
            await server.stop()


def weather(make: Callable[[Wired], namespaces.Weather], *, words: int = 0) -> Callable[[Wired], Awaitable[None]]:
    """The cable behaves so from now on; meanwhile the server writes."""

    async def strike(stage: Wired) -> None:
        stage.cable.weather = make(stage)
        for number in range(words):
            stage.edit(f"{number} ")
            await asyncio.sleep(0.01)

    return strike


async def clear(stage: Wired) -> None:
    stage.cable.weather = namespaces.clear


def of_flows(make: Callable[[Wired], namespaces.Weather]) -> Callable[[Wired], namespaces.Weather]:
    """Such weather for the connections there are now; clear for those to come."""

    def made(stage: Wired) -> namespaces.Weather:
        flows, bad = stage.flows, make(stage)
        return lambda packet: bad(packet) if packet.port_here in flows else namespaces.clear(packet)

    return made


def answered(
    how: Callable[[Packet], bytes], condition: Callable[[Packet], object]
) -> Callable[[Wired], namespaces.Weather]:
    """Somebody in between answers these packets."""
    return lambda stage: namespaces.answer_with(stage.cable, how, condition)


def is_syn(packet: Packet) -> bool:
    return packet.flags & (SYN | ACK) == SYN


def ip(*commands: str) -> Callable[[Wired], Awaitable[None]]:
    """What an administrator does on our machine."""

    async def act(stage: Wired) -> None:
        for command in commands:
            stage.cable.here.ip(*command.split())

    return act


def lose_and(act: Callable[[Wired], Awaitable[None]]) -> Callable[[Wired], Awaitable[None]]:
    """The same; and the connection that there was is gone."""

    async def strike(stage: Wired) -> None:
        stage.server.reset_all()
        await until(lambda: not stage.flows)
        await act(stage)

    return strike


async def reboot_there(stage: Wired) -> None:
    """A machine that lost its power says no goodbye, and remembers no connection when it is back."""
    stage.cable.weather = namespaces.blackhole
    stage.server.reset_all()
    await asyncio.sleep(0.05)
    stage.cable.weather = namespaces.clear


async def end_silently(stage: Wired) -> None:
    stage.cable.weather = namespaces.drop_if(lambda packet: not packet.outward and packet.flags & (FIN | RST))
    stage.server.reset_all()


async def lose_ours_while_it_writes(stage: Wired) -> None:
    """What the server's kernel sends without an ACK of ours is soon used up."""
    stage.cable.weather = namespaces.drop_if(lambda packet: packet.outward)
    for number in range(60):
        stage.edit(f"{number} ")
        await asyncio.sleep(0.05)


async def lower_mtu(stage: Wired) -> None:
    for machine in (stage.cable.here, stage.cable.there):
        machine.ip("link", "set", "wire", "mtu", "600")
    stage.edit("x" * 20_000 + " ")


async def black_hole_for_large_packets(stage: Wired) -> None:
    stage.cable.weather = namespaces.drop_if(lambda packet: len(packet.data) > 600)
    stage.edit("x" * 20_000 + " ")


PORT: Final = 50_000


async def no_ports_left(stage: Wired) -> None:
    """Of the one port that is left to us, somebody else makes use."""
    stage.server.reset_all()
    stage.cable.here.sysctl("net.ipv4.ip_local_port_range", f"{PORT} {PORT}")
    _, stage.other = await asyncio.open_connection(THERE, stage.server.port)  # type: ignore[attr-defined]


async def ports_again(stage: Wired) -> None:
    stage.other.close()  # type: ignore[attr-defined]
    stage.cable.here.sysctl("net.ipv4.ip_local_port_range", "32768 60999")


@asynccontextmanager
async def alone() -> AsyncIterator[Wired]:
    """A stage whose server is on the client's own machine, where nobody else takes ports."""
    async with Cable() as cable, EmbeddedServer(port=PORT) as server:
        # Else the kernel keeps the port for a minute after a dial that reached itself, and no server gets it.
        cable.here.sysctl("net.ipv4.tcp_max_tw_buckets", "0")
        yield Wired(server, cable)


async def connect_to_oneself(stage: Wired) -> None:
    """A client that dials a port where nobody listens, from that very port, reaches itself."""
    await stage.server.stop()
    stage.cable.here.sysctl("net.ipv4.ip_local_port_range", f"{PORT} {PORT}")


async def listen_again(stage: Wired) -> None:
    stage.cable.here.sysctl("net.ipv4.ip_local_port_range", "32768 60999")
    async with asyncio.timeout(10):
        while True:
            try:
                return await stage.server.start()
            except OSError:  # a dial of ours still has the port
                await asyncio.sleep(0.01)


async def nobody_listens(stage: Wired) -> None:
    await stage.server.stop()


async def somebody_listens(stage: Wired) -> None:
    with stage.cable.there:
        await stage.server.start()


@asynccontextmanager
async def wired_names() -> AsyncIterator[Wired]:
    """A server that has a name, an IPv6 and an IPv4 address."""
    async with Cable() as cable, AsyncExitStack() as stack:
        server = EmbeddedServer(THERE)
        with cable.there:
            await server.start()
        stack.push_async_callback(server.stop)
        names = Names(lambda: Answer((namespaces.THERE_6, "10.77.0.9", THERE)))
        connector = aiohttp.TCPConnector(resolver=names, use_dns_cache=False)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Wired(server, cable, f"ws://server.test:{server.port}/", session=session)


async def first_addresses_are_dead(stage: Wired) -> None:
    stage.cable.weather = namespaces.drop_if(lambda packet: packet.version == 6)
    stage.server.reset_all()


net = functools.partial(fault, "Network", stage=wired)

NETWORK = [
    net("every packet is lost, both ways, and nobody is told",
        strike=weather(lambda _: namespaces.blackhole), heal=clear, **NO_PONG),
    net("every packet of ours is lost; the server's arrive",
        strike=weather(lambda _: namespaces.drop_if(lambda packet: packet.outward)), heal=clear, **NO_PONG),
    net("every packet of ours is lost, and the server goes on writing",
        strike=lose_ours_while_it_writes, heal=clear,
        says="the connection is dead", within="2 × interval + 2 × timeout"),
    net("every packet of the server's is lost; ours arrive",
        strike=weather(lambda _: namespaces.drop_if(lambda packet: not packet.outward)), heal=clear, **NO_PONG),
    net("every packet is lost: a dial is not answered",
        strike=weather(lambda _: namespaces.blackhole), heal=clear, **TOO_LATE),
    net("a firewall lets no new connection pass",
        strike=lose_and(weather(lambda _: namespaces.drop_if(is_syn))), heal=clear, **TOO_LATE),
    net("a firewall or NAT forgets our connection, and drops its packets",
        strike=weather(of_flows(lambda _: namespaces.blackhole)), **NO_PONG),
    net("a firewall or NAT forgets our connection, and answers with a reset",
        strike=weather(of_flows(answered(namespaces.reset, lambda packet: True))), says=LOST, within="interval"),
    net("a firewall refuses new connections with a reset",
        strike=weather(answered(namespaces.reset, lambda packet: True)), heal=clear, says="Connection refused"),
    net("a router answers our dial: host unreachable (ICMP)",
        strike=weather(answered(lambda packet: namespaces.unreachable(packet, 1), lambda packet: True)), heal=clear,
        says="No route to host"),
    net("a router answers our dial: network unreachable (ICMP)",
        strike=weather(answered(lambda packet: namespaces.unreachable(packet, 0), lambda packet: True)), heal=clear,
        says="Network is unreachable"),
    net("a router answers our dial: administratively prohibited (ICMP)",
        strike=weather(answered(lambda packet: namespaces.unreachable(packet, 13), lambda packet: True)), heal=clear,
        says="No route to host"),
    net("a router answers an open connection: host unreachable (ICMP), for a moment",
        strike=weather(of_flows(answered(lambda packet: namespaces.unreachable(packet, 1), lambda packet: True))),
        **NO_PONG),
    net("the link goes down under an open connection",
        strike=ip("link set wire down"), heal=ip("link set wire up"), **NO_PONG),
    net("the link is down: a dial has no route",
        strike=ip("link set wire down"), heal=ip("link set wire up"), says="Network is unreachable"),
    net("the link goes down and up again in between two pings",
        strike=ip("link set wire down", "link set wire up"), **HARMLESS),
    net("the address of the interface changes under an open connection",
        strike=ip(f"addr del {HERE}/24 dev wire", "addr add 10.77.0.3/24 dev wire"), **NO_PONG),
    net("the interface loses its address: a dial has no route",
        strike=ip(f"addr del {HERE}/24 dev wire"), heal=ip(f"addr add {HERE}/24 dev wire"),
        says="Network is unreachable"),
    net("a route says: unreachable",
        strike=lose_and(ip(f"route add unreachable {THERE}")), heal=ip(f"route del unreachable {THERE}"),
        says="No route to host"),
    net("a route says: prohibited",
        strike=lose_and(ip(f"route add prohibit {THERE}")), heal=ip(f"route del prohibit {THERE}"),
        says="Permission denied"),
    net("a route says: black hole",
        strike=lose_and(ip(f"route add blackhole {THERE}")), heal=ip(f"route del blackhole {THERE}"),
        says="Invalid argument"),
    net("a reset (RST) by the server's kernel", strike=lose_connection, says=LOST),
    net("the server's machine loses its power and is back at once", strike=reboot_there, says=LOST, within="interval"),
    net("the server's process ends, and the RST that says so is lost",
        strike=end_silently, heal=clear, **NO_PONG),
    net("nobody listens at the server's port",
        strike=nobody_listens, heal=somebody_listens, says="Connection refused"),
    net("every packet takes longer than the keepalive allows",
        strike=weather(lambda stage: namespaces.delay(stage.chance, 3.0)), heal=clear, **NO_PONG),
    net("packets larger than 600 bytes are lost, and nobody is told (an MTU black hole)",
        strike=black_hole_for_large_packets, heal=clear, **NO_PONG),
    net("the MTU drops to 600 bytes", strike=lower_mtu, **HARMLESS),
    net("a tenth of the packets is lost",
        strike=weather(lambda stage: namespaces.lose(stage.chance, 0.1), words=50), heal=clear, **HARMLESS),
    net("a tenth of the packets is corrupted",
        strike=weather(lambda stage: namespaces.corrupt(stage.chance, 0.1), words=50), heal=clear, **HARMLESS),
    net("half of the packets arrive twice",
        strike=weather(lambda stage: namespaces.duplicate(stage.chance, 0.5), words=50), **HARMLESS),
    net("half of the packets are overtaken by later ones",
        strike=weather(lambda stage: namespaces.reorder(stage.chance, 0.5, 0.02), words=50), **HARMLESS),
    net("packets take 50 ms, more or less",
        strike=weather(lambda stage: namespaces.delay(stage.chance, 0.05, 0.04), words=50), **HARMLESS),
    net("only 20,000 bytes a second pass",
        strike=weather(lambda _: namespaces.narrow(20_000.0), words=50), **HARMLESS),
    net("the server's IPv6 address and its first IPv4 address are dead, the next one is not",
        stage=wired_names, strike=first_addresses_are_dead, says=LOST),
]  # fmt: skip


# -------------------------------------------------------------------------------------- what the kernel has no more of


class Limited(Served):
    """A stage whose client makes its sockets as the stage says."""

    shortage = 0
    """The error that the kernel has for each new socket; 0: none."""

    def socket(self, info: Any) -> socket.socket:
        if self.shortage:
            raise OSError(self.shortage, "no more")
        return socket.socket(*info[:3])


@asynccontextmanager
async def limited() -> AsyncIterator[Limited]:
    async with EmbeddedServer() as server:
        connector = aiohttp.TCPConnector(socket_factory=lambda info: stage.socket(info))
        async with aiohttp.ClientSession(connector=connector) as session:
            stage = Limited(server, session=session)
            yield stage


def run_out_of(number: int) -> Callable[[Limited], Awaitable[None]]:
    async def strike(stage: Limited) -> None:
        stage.shortage = number
        stage.server.reset_all()

    return strike


async def is_there_again(stage: Limited) -> None:
    stage.shortage = 0


class Opened(Served):
    """A stage whose process has as many descriptors as it says."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)


def opened(host: str) -> Callable[[], Any]:
    @asynccontextmanager
    async def stage() -> AsyncIterator[Opened]:
        async with EmbeddedServer() as server:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            try:
                yield Opened(server, f"ws://{host}:{server.port}/")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    return stage


async def no_descriptors(stage: Opened) -> None:
    """Those that are open stay so; there is none to be had."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, stage.limits[1]))
    stage.server.reset_all()


async def descriptors(stage: Opened) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, stage.limits)


limit = functools.partial(fault, "Limits of the kernel")

LIMITS = [
    limit("this process has no descriptor left (RLIMIT_NOFILE)",
          stage=opened(HOST), strike=no_descriptors, heal=descriptors, says="Too many open files"),
    limit("this process has no descriptor left to look up a name with (RLIMIT_NOFILE)",
          stage=opened("localhost"), strike=no_descriptors, heal=descriptors,
          says="the server's name does not resolve"),
    limit("the kernel has no buffers (ENOBUFS)",
          stage=limited, strike=run_out_of(errno.ENOBUFS), heal=is_there_again, says="No buffer space available"),
    limit("the kernel has no memory (ENOMEM)",
          stage=limited, strike=run_out_of(errno.ENOMEM), heal=is_there_again, says="Cannot allocate memory"),
    limit("the system has no descriptor left (ENFILE)",
          stage=limited, strike=run_out_of(errno.ENFILE), heal=is_there_again, says="Too many open files in system"),
]  # fmt: skip

PORTS = [
    limit("all ports that a connection may go out from are taken",
          stage=wired, strike=no_ports_left, heal=ports_again, says="Cannot assign requested address"),
    limit("a dial of a dead server of this machine reaches itself (TCP self-connection)",
          stage=alone, strike=connect_to_oneself, heal=listen_again, says=NO_SERVER),
]  # fmt: skip


# ----------------------------------------------------------------------------------------------- who stands in between


Greeting: TypeAlias = Callable[["Tunnel"], Awaitable[bool]]
"""What is said to who comes; returns whether there is a tunnel then."""


class Tunnel:
    """One connection through a `Middle`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        self.reader, self.writer = reader, writer
        self.limit = limit
        """So many more bytes come down to the client, then a FIN; None: all."""
        self.spoiled = False
        """Whether the bytes that come down are not those that were sent."""
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def pour(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, one way."""
        down = writer is self.writer
        while data := await reader.read(1 << 16):
            await self.flowing.wait()
            if down and self.limit is not None:
                data = data[: self.limit]
                self.limit -= len(data)
            writer.write(bytes(each ^ 0xFF for each in data) if down and self.spoiled else data)
            await writer.drain()
            if down and self.limit == 0:
                return

    def reset(self) -> None:
        """An RST, unless it is closing already."""
        if self.writer.transport.is_closing():
            return
        reset_connection(self.writer.transport)


async def pass_on(_: Tunnel) -> bool:
    """Somebody whom nobody notices."""
    return True


class Middle:
    """Stands between the client and a server, and passes on every byte, unless told otherwise."""

    def __init__(self, upstream: int, greet: Greeting = pass_on, host: str = HOST, path: Path | None = None) -> None:
        self.upstream = upstream
        """The port, of this machine, where it all goes."""
        self.greet = greet
        self.limit: int | None = None
        """The `Tunnel.limit` of those who come."""
        self.requests: list[str] = []
        """What a proxy was asked."""
        self.host = host
        self.port = 0
        self.path = path
        """Of a Unix socket, instead of a host and a port."""
        self._tunnels: dict[asyncio.Task[None], Tunnel] = {}
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Middle:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        """On the same port as before, if there was one."""
        if self.path is not None:
            self._listener = await asyncio.start_unix_server(self._accepted, self.path)
            return
        self._listener = await asyncio.start_server(self._accepted, self.host, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody listens any more, and no tunnel is left."""
        assert self._listener is not None
        self._listener.close()
        for task in self._tunnels:
            task.cancel()
        if self._tunnels:
            await asyncio.wait(self._tunnels)
        await asyncio.sleep(0)
        await self._listener.wait_closed()

    @property
    def tunnels(self) -> list[Tunnel]:
        """Those that are open."""
        return list(self._tunnels.values())

    def reset_all(self) -> None:
        """An RST to every client."""
        for tunnel in self.tunnels:
            tunnel.reset()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel = Tunnel(reader, writer, self.limit)
        task = asyncio.create_task(self._carry(tunnel))
        self._tunnels[task] = tunnel
        task.add_done_callback(self._tunnels.pop)

    async def _carry(self, tunnel: Tunnel) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                if await self.greet(tunnel):
                    await self._join(tunnel)
            finally:
                tunnel.writer.close()

    async def _join(self, tunnel: Tunnel) -> None:
        reader, writer = await asyncio.open_connection(HOST, self.upstream)
        both = [
            asyncio.create_task(tunnel.pour(tunnel.reader, writer)),
            asyncio.create_task(tunnel.pour(reader, tunnel.writer)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            for task in both:
                task.cancel()
            await asyncio.wait(both)


class Between(Served):
    """A stage with somebody in the middle."""

    def __init__(self, server: EmbeddedServer, middle: Middle, url: str, **options: Any) -> None:
        super().__init__(server, url, **options)
        self.middle = middle


def greeting(greet: Greeting) -> Callable[[Between], Awaitable[None]]:
    """The connection is lost, and the next ones are greeted so."""

    async def strike(stage: Between) -> None:
        stage.middle.greet = greet
        stage.middle.reset_all()

    return strike


async def hang(tunnel: Tunnel) -> bool:
    """Reads everything, says nothing."""
    while await tunnel.reader.read(1 << 16):
        pass
    return False


async def hang_up(tunnel: Tunnel) -> bool:
    """A FIN, once something was said."""
    await tunnel.reader.read(1 << 16)
    return False


async def hang_up_hard(tunnel: Tunnel) -> bool:
    """An RST, once something was said."""
    await tunnel.reader.read(1 << 16)
    tunnel.reset()
    return False


def say(answer: bytes, *, then: Greeting = hang) -> Greeting:
    """Says this, whatever was said before."""

    async def greet(tunnel: Tunnel) -> bool:
        await tunnel.reader.read(1 << 16)
        tunnel.writer.write(answer)
        return await then(tunnel)

    return greet


def to_tunnels(act: Callable[[Tunnel], None]) -> Callable[[Between], Awaitable[None]]:
    """Something happens to the open connection."""

    async def strike(stage: Between) -> None:
        for tunnel in stage.middle.tunnels:
            act(tunnel)

    return strike


# -------------------------------------------------------------------------------------------------------- Unix sockets


@asynccontextmanager
async def unix() -> AsyncIterator[Between]:
    """A stage whose server listens at a path."""
    async with AsyncExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "socket")
        server = await stack.enter_async_context(EmbeddedServer())
        middle = await stack.enter_async_context(Middle(server.port, path=path))
        connector = aiohttp.UnixConnector(str(path))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Between(server, middle, "ws://socket/", session=session)


async def remove_socket(stage: Between) -> None:
    await stage.middle.stop()
    assert stage.middle.path is not None
    stage.middle.path.unlink(missing_ok=True)


async def leave_socket(stage: Between) -> None:
    """As a server does that dies."""
    assert stage.middle.path is not None
    await remove_socket(stage)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stage.middle.path))


async def put_file(stage: Between) -> None:
    assert stage.middle.path is not None
    await remove_socket(stage)
    stage.middle.path.touch()


async def put_socket(stage: Between) -> None:
    assert stage.middle.path is not None
    stage.middle.path.unlink(missing_ok=True)
    await stage.middle.listen()


at_path = functools.partial(fault, "Unix sockets", stage=unix, heal=put_socket)

UNIX = [
    at_path("the server's Unix socket is gone", strike=remove_socket, says="No such file or directory"),
    at_path("the server's Unix socket is there, and nobody listens", strike=leave_socket, says="Connection refused"),
    at_path("a plain file is in the place of the server's Unix socket", strike=put_file, says="Connection refused"),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- TLS


class Secured(Between):
    """A stage whose server speaks TLS, behind somebody who passes on every byte."""

    def __init__(self, server: EmbeddedServer, middle: Middle, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(server, middle, f"wss://{HOST}:{middle.port}/", ssl=client_side(), **options)
        self.context = context


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def client_side() -> ssl.SSLContext:
    return trusting(authority())


def server_side() -> ssl.SSLContext:
    return certified(authority())


@asynccontextmanager
async def secured() -> AsyncIterator[Secured]:
    context = server_side()
    async with EmbeddedServer(ssl=context) as server, Middle(server.port) as middle:
        yield Secured(server, middle, context)


def certificate(issue: Callable[[], trustme.LeafCert]) -> Callable[[Secured], Awaitable[None]]:
    """The server has another certificate from now on."""

    async def act(stage: Secured) -> None:
        issue().configure_cert(stage.context)
        stage.server.reset_all()

    return act


async def self_signed(stage: Secured) -> None:
    itself = trustme.CA()
    with itself.cert_pem.tempfile() as certificate, itself.private_key_pem.tempfile() as key:
        stage.context.load_cert_chain(certificate, key)
    stage.server.reset_all()


def valid(begin: int, end: int) -> trustme.LeafCert:
    """A certificate that is valid in these days, counted from today."""
    now = datetime.now(UTC)
    return authority().issue_cert(HOST, not_before=now + timedelta(days=begin), not_after=now + timedelta(days=end))


def handshake(change: Callable[[ssl.SSLContext], None]) -> Callable[[Secured], Awaitable[None]]:
    """The server's TLS is another from now on."""

    async def act(stage: Secured) -> None:
        with warnings.catch_warnings():  # the old ones are deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            change(stage.context)
        stage.server.reset_all()

    return act


def only_old(context: ssl.SSLContext) -> None:
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1


def as_before(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DEFAULT")


def wants_certificate(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.maximum_version = version
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    return change


async def cut_in_handshake(stage: Secured) -> None:
    stage.middle.limit = 300
    stage.middle.reset_all()


async def no_cut(stage: Secured) -> None:
    stage.middle.limit = None


async def cut_in_record(stage: Secured) -> None:
    for tunnel in stage.middle.tunnels:
        tunnel.limit = 100
    stage.edit("x" * 5_000 + " ")


async def spoil(stage: Secured) -> None:
    for tunnel in stage.middle.tunnels:
        tunnel.spoiled = True
    stage.edit("spoiled ")


def speak(data: bytes) -> Callable[[Between], Awaitable[None]]:
    return to_tunnels(lambda tunnel: tunnel.writer.write(data))


@asynccontextmanager
async def turncoat(tls: bool) -> AsyncIterator[Between]:
    """A stage whose server is replaced by one that speaks TLS if this one does not, and the other way round."""
    async with AsyncExitStack() as stack:
        good, other = EmbeddedServer(), EmbeddedServer(ssl=server_side())
        if tls:
            good, other = other, good
        for server in (good, other):
            await stack.enter_async_context(server)
        middle = await stack.enter_async_context(Middle(good.port))
        url = f"{'wss' if tls else 'ws'}://{HOST}:{middle.port}/"
        stage = Between(good, middle, url, **({"ssl": client_side()} if tls else {}))
        stage.other = other  # type: ignore[attr-defined]
        yield stage


async def turn(stage: Any) -> None:
    stage.middle.upstream = stage.other.port
    stage.middle.reset_all()


async def turn_back(stage: Any) -> None:
    stage.middle.upstream = stage.server.port


RECORD: Final = b"\x17\x03\x03\x00\x40" + bytes(range(64))  # application data that nobody encrypted
ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal: handshake failure

good = certificate(lambda: authority().issue_cert(HOST))
tls = functools.partial(fault, "TLS", stage=secured)
UNTRUSTED: Final[Mapping[str, Any]] = {"says": "the server's certificate does not verify"}

TLS = [
    tls("the certificate has expired", strike=certificate(lambda: valid(-2, -1)), heal=good, **UNTRUSTED),
    tls("the certificate is not yet valid", strike=certificate(lambda: valid(1, 2)), heal=good, **UNTRUSTED),
    tls("the certificate is for another host",
        strike=certificate(lambda: authority().issue_cert("elsewhere.test")), heal=good, **UNTRUSTED),
    tls("the certificate is of an unknown authority",
        strike=certificate(lambda: trustme.CA().issue_cert(HOST)), heal=good, **UNTRUSTED),
    tls("the certificate is self-signed", strike=self_signed, heal=good, **UNTRUSTED),
    tls("the server speaks only TLS 1.0 and 1.1", strike=handshake(only_old), heal=handshake(as_before), says=HUNG_UP),
    tls("the server asks for a client's certificate (TLS 1.3)",
        strike=handshake(wants_certificate(ssl.TLSVersion.TLSv1_3)), heal=handshake(as_before), says=HUNG_UP),
    tls("the server asks for a client's certificate (TLS 1.2)",
        strike=handshake(wants_certificate(ssl.TLSVersion.TLSv1_2)), heal=handshake(as_before), says=HUNG_UP),
    tls("the connection is cut in the middle of the TLS handshake (FIN)",
        strike=cut_in_handshake, heal=no_cut, says=HUNG_UP),
    tls("the connection is reset in the middle of the TLS handshake (RST)",
        strike=greeting(hang_up_hard), heal=greeting(pass_on), says=HUNG_UP),
    tls("nobody answers the TLS handshake", strike=greeting(hang), heal=greeting(pass_on), **TOO_LATE),
    tls("the TLS handshake is answered with plain HTTP",
        strike=greeting(say(b"HTTP/1.1 400 Bad Request\r\n\r\n")), heal=greeting(pass_on), says=NO_TLS),
    tls("the TLS handshake is answered with garbage",
        strike=greeting(say(bytes(range(200)))), heal=greeting(pass_on), says=NO_TLS),
    tls("the TLS handshake is answered with an alert",
        strike=greeting(say(ALERT)), heal=greeting(pass_on),
        says="the server refused TLS: handshake failure"),
    tls("wss:// to a server that speaks no TLS",
        stage=lambda: turncoat(tls=True), strike=turn, heal=turn_back, says=NO_TLS),
    tls("ws:// to a server that speaks only TLS",
        stage=lambda: turncoat(tls=False), strike=turn, heal=turn_back, says="hung up during the handshake"),
    tls("the stream ends without a close_notify (FIN)", strike=to_tunnels(lambda each: each.writer.close()), says=LOST),
    tls("the stream is reset (RST)", strike=to_tunnels(Tunnel.reset), says=LOST),
    tls("the stream ends in the middle of a record", strike=cut_in_record, says=LOST),
    tls("a record of the stream is spoiled on the way", strike=spoil, says=LOST),
    tls("a record that nobody encrypted is put into the stream", strike=speak(RECORD), says=LOST),
    tls("plain bytes are put into the stream", strike=speak(b"HTTP/1.1 500 Oops\r\n\r\n"), says=LOST),
    tls("an alert that nobody encrypted is put into the stream", strike=speak(ALERT), says=LOST),
    tls("the stream stands still: half-open", strike=to_tunnels(lambda each: each.flowing.clear()), **NO_PONG),
]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class Answer:
    """What whoever is asked for a name says."""

    addresses: tuple[str, ...] = ()
    error: Exception | None = None
    seconds: float = 0.0
    """How long it takes."""


FOREVER: Final = float("inf")
NAME: Final = "server.test"


class Names(AbstractResolver):
    """A resolver for a connector of the user's own."""

    def __init__(self, answer: Callable[[], Answer]) -> None:
        self._answer = answer

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self._answer()
        await (asyncio.Event().wait() if answer.seconds == FOREVER else asyncio.sleep(answer.seconds))
        if answer.error is not None:
            raise answer.error
        return [
            ResolveResult(hostname=host, host=each, port=port, family=_family(each), proto=0, flags=0)
            for each in answer.addresses
        ]

    async def close(self) -> None: ...


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Named(Between):
    """A stage whose server has a name, and the address `OLD`."""

    def __init__(self, server: EmbeddedServer, middle: Middle, **options: Any) -> None:
        super().__init__(server, middle, f"ws://{NAME}:{middle.port}/", **options)
        self.answer = Answer((OLD,))
        self.mute: Middle | None = None
        self.released = threading.Event()
        """Set when the threads that hang in `getaddrinfo` may go on."""

    def getaddrinfo(self, real: Callable[..., Any], host: object, port: Any, *args: Any, **more: Any) -> Any:
        """What the system's resolver says, in a thread."""
        if host != NAME:
            return real(host, port, *args, **more)
        answer = self.answer
        self.released.wait(None if answer.seconds == FOREVER else answer.seconds) if answer.seconds else None
        if answer.error is not None:
            raise answer.error
        return [
            (_family(each), socket.SOCK_STREAM, 6, "", (each, port, 0, 0) if ":" in each else (each, port))
            for each in answer.addresses
        ]


OLD, NEW, MUTE, DEAD = "127.0.0.2", "127.0.0.3", "127.0.0.4", ("127.0.0.8", "127.0.0.9")
MULTICAST: Final = "224.0.0.1"  # no TCP goes there: a second way to fail, and no packet leaves


@asynccontextmanager
async def asked(how: str) -> AsyncIterator[Named]:
    """A stage whose name is asked for at a resolver object, or at the system."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer())
        middle = await stack.enter_async_context(Middle(server.port, host=OLD))
        if how == "system":
            stage = Named(server, middle)
            real = socket.getaddrinfo
            stack.enter_context(mock.patch("socket.getaddrinfo", functools.partial(stage.getaddrinfo, real)))
            stack.callback(stage.released.set)
        else:
            names = Names(lambda: stage.answer)
            connector = aiohttp.TCPConnector(resolver=names, use_dns_cache=how == "cache", ttl_dns_cache=1)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            stage = Named(server, middle, session=session)
        yield stage


def resolve_to(*addresses: str, **how: Any) -> Callable[[Named], Awaitable[None]]:
    """The connection is lost, and the name has these addresses from now on."""

    async def strike(stage: Named) -> None:
        stage.answer = Answer(addresses, **how)
        stage.middle.reset_all()

    return strike


async def resolves_well(stage: Named) -> None:
    stage.answer = Answer((stage.middle.host,))
    stage.released.set()
    if stage.mute is not None:
        await stage.mute.stop()


async def first_address_is_mute(stage: Named) -> None:
    """Whoever accepts has the attempt to himself."""
    mute = Middle(0, hang, host=MUTE)
    mute.port = stage.middle.port
    await mute.listen()
    stage.mute = mute
    stage.answer = Answer((MUTE, OLD))
    stage.middle.reset_all()


async def move(stage: Named) -> None:
    """The server moves to another address, and its name with it."""
    await stage.middle.stop()
    stage.middle.host = NEW
    stage.answer = Answer((NEW,))
    await stage.middle.listen()


def names(how: str, who: str) -> list[Fault]:
    """What can go wrong with a name, whoever is asked."""
    name = functools.partial(fault, "Names", stage=lambda: asked(how), heal=resolves_well)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    busy = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    unresolved = "the server's name does not resolve"
    return [
        name(f"{who} knows no such name", strike=resolve_to(error=unknown), says=unresolved),
        name(f"{who} cannot be reached", strike=resolve_to(error=busy), says=unresolved),
        name(f"{who} hangs", strike=resolve_to(seconds=FOREVER), **TOO_LATE),
        name(f"{who} takes its time", strike=resolve_to(OLD, seconds=0.3), says=LOST),
        name(f"{who} knows no address of the name", strike=resolve_to(), says="could not connect"),
        name(f"{who} fails in a way of its own",
             strike=resolve_to(error=RuntimeError("can't start new thread")), says="could not connect: RuntimeError"),
        name(f"{who} gives addresses where nobody listens", strike=resolve_to(*DEAD), says="Connection refused"),
        name(f"{who} gives addresses that fail in different ways",
             strike=resolve_to("::1", MULTICAST), says="none of the server's addresses"),
        name(f"{who} gives two dead addresses first", strike=resolve_to(*DEAD, OLD), says=LOST),
        name(f"{who} gives a dead IPv6 address first", strike=resolve_to("::1", OLD), says=LOST),
        name(f"{who} gives first an address that accepts and never answers",
             strike=first_address_is_mute, **TOO_LATE),
        name(f"{who} gives another address than before: the server has moved", strike=move, says=LOST),
    ]  # fmt: skip


NAMES = [
    *names("system", "the system's resolver"),
    *names("resolver", "a resolver of the user's own"),
    fault("Names", "the server has moved, and a connector of the user's own keeps the old address for a second",
          stage=lambda: asked("cache"), strike=move, says="Connection refused"),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- proxies


async def open_tunnel(tunnel: Tunnel) -> bool:
    """What a good proxy does (CONNECT)."""
    head = (await tunnel.reader.readuntil(b"\r\n\r\n")).decode()
    assert "Proxy-Authorization: Basic" in head
    tunnel.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    return True


def _credentials(middle: Middle) -> str:
    return f"http://user:{SECRET}@{HOST}:{middle.port}"


@asynccontextmanager
async def by_tunnel() -> AsyncIterator[Between]:
    """A stage whose client comes through the tunnel (CONNECT) of a proxy."""
    async with EmbeddedServer(ssl=server_side()) as server, Middle(server.port, open_tunnel) as middle:
        yield Between(server, middle, server.url, ssl=client_side(), proxy=_credentials(middle))


@asynccontextmanager
async def by_proxy() -> AsyncIterator[Between]:
    """A stage whose client asks a proxy to ask the server."""
    async with EmbeddedServer() as server, Middle(server.port) as middle:
        yield Between(server, middle, server.url, proxy=_credentials(middle))


def http(status: int) -> bytes:
    return f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()


async def tunnel_then_hang_up(tunnel: Tunnel) -> bool:
    await open_tunnel(tunnel)
    return False


async def tunnel_then_hang(tunnel: Tunnel) -> bool:
    await open_tunnel(tunnel)
    return await hang(tunnel)


@asynccontextmanager
async def by_environment() -> AsyncIterator[Served]:
    """A stage whose client is told of a proxy by the environment alone; nobody listens there."""
    dead = f"http://user:{SECRET}@{HOST}:{unused_port()}"
    async with EmbeddedServer() as server:
        with mock.patch.dict(os.environ, ws_proxy=dead, http_proxy=dead, no_proxy=""):
            yield Served(server)


async def stop_proxy(stage: Between) -> None:
    await stage.middle.stop()


async def start_proxy(stage: Between) -> None:
    await stage.middle.listen()


tunnel = functools.partial(fault, "Proxies", stage=by_tunnel, heal=greeting(open_tunnel))
proxy = functools.partial(fault, "Proxies", stage=by_proxy, heal=greeting(pass_on))

PROXIES = [
    *(tunnel(f"the proxy refuses a tunnel with HTTP {status}",
             strike=greeting(say(http(status))), says="the proxy refused") for status in (403, 407, 502, 503)),
    tunnel("the proxy never answers", strike=greeting(hang), **TOO_LATE),
    tunnel("the proxy hangs up (FIN)", strike=greeting(hang_up), says=HUNG_UP),
    tunnel("the proxy hangs up (RST)", strike=greeting(hang_up_hard), says="Connection reset by peer"),
    tunnel("the proxy speaks no HTTP", strike=greeting(say(b"SSH-2.0-no\r\n\r\n")), says=NO_SERVER),
    tunnel("nobody listens at the proxy's port", strike=stop_proxy, heal=start_proxy, says="Connection refused"),
    tunnel("the proxy opens a tunnel and hangs up", strike=greeting(tunnel_then_hang_up), says=HUNG_UP),
    tunnel("the proxy opens a tunnel that leads nowhere", strike=greeting(tunnel_then_hang), **TOO_LATE),
    tunnel("the tunnel is cut (FIN)", strike=to_tunnels(lambda each: each.writer.close()), says=LOST),
    tunnel("the tunnel is cut (RST)", strike=to_tunnels(Tunnel.reset), says=LOST),
    tunnel("nothing passes through the tunnel any more", strike=to_tunnels(lambda each: each.flowing.clear()),
           **NO_PONG),
    proxy("a proxy for ws:// answers HTTP 403", strike=greeting(say(http(403))), says="HTTP 403", **FATAL),
    *(proxy(f"a proxy for ws:// answers HTTP {status}", strike=greeting(say(http(status))), says=f"HTTP {status}")
      for status in (407, 502)),
    proxy("a proxy for ws:// never answers", strike=greeting(hang), **TOO_LATE),
    fault("Proxies", "the environment names a proxy that is dead (ws_proxy): it is not asked",
          stage=by_environment, strike=lose_connection, says=LOST),
]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- tests

PLAYED = [*PROCESSES, *STALLS, *NETWORK, *LIMITS, *PORTS, *UNIX, *TLS, *NAMES, *PROXIES]
FAULTS = [*PLAYED, *CLIENT_FAULTS]
NEED_CABLE = [*NETWORK, *PORTS]
SMALL_ONES = [PROCESSES[0], STALLS[-1], NETWORK[-1], LIMITS[0], UNIX[0], TLS[0], NAMES[0], PROXIES[0]]


def marked(fault: Fault) -> Any:
    """For pytest; what cannot be played on this machine says why."""
    why_not = namespaces.why_not() if fault in NEED_CABLE else None
    skip = [pytest.mark.skip(reason=why_not)] if why_not else []
    return pytest.param(fault, marks=skip, id=fault_id(fault))


@pytest.mark.parametrize("fault", [marked(fault) for fault in SMALL_ONES])
async def test_a_fault_of_each_group(fault: Fault) -> None:
    """What is declared about a fault is what happens."""
    await play(fault, LASTING)


@pytest.mark.proof
@pytest.mark.parametrize("fault", [marked(fault) for fault in PLAYED])
async def test_fault(fault: Fault, caplog: pytest.LogCaptureFixture, figures: Figures) -> None:
    """What is declared about a fault is what happens, and no log, however fine, tells a secret."""
    caplog.set_level(logging.DEBUG)
    await play(fault, DYING if fault in STALLS or not fault.harmless else LASTING)
    assert SECRET not in caplog.text
    count(fault, figures)


_counted: list[tuple[Fault, Figures]] = []


def count(fault: Fault, figures: Figures) -> None:
    """One line for all that this worker has played so far, and for the time since it began."""
    _counted.append((fault, figures))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    first = _counted[0][1]
    first(
        f"faults of the system, each with all that is declared about it (worker {worker})",
        kinds=len({fault.what for fault, _ in _counted}),
        groups=len({fault.group for fault, _ in _counted}),
        violations=0,
    )


# What happens to the client's own process

LONG_STOP: Final = 1.5 * (KEEPALIVE.interval + KEEPALIVE.timeout)  # seconds


@asynccontextmanager
async def client_process(server: EmbeddedServer) -> AsyncIterator[ClientProcess]:
    """A client in a process of its own that has joined, and gets pongs."""
    async with ClientProcess(server.url) as client:
        await client.until(lambda: client.rooms[-1:] == ["joined"] and client.pongs)
        yield client


@pytest.mark.proof
@pytest.mark.parametrize("fault", [STOPPED_SHORTLY, STOPPED_LONG], ids=fault_id)
async def test_the_client_is_stopped(fault: Fault, figures: Figures) -> None:
    """LIVE-2: no stall of our own is taken for the death of the other end, however long."""
    async with EmbeddedServer() as server, client_process(server) as client:
        server.freeze()
        await asyncio.sleep(KEEPALIVE.interval + 0.1)  # until a ping is under way
        client.signal(SIGSTOP)
        server.thaw()
        await asyncio.sleep(SHORT_STALL if fault is STOPPED_SHORTLY else LONG_STOP)
        client.signal(SIGCONT)
        pongs = client.pongs
        await client.until(lambda: client.pongs >= pongs + 3)
        assert client.statuses == ["connecting", fault.client]
        assert client.rooms == ["connecting", fault.room]
        assert server.stats.connects == 1
    count(fault, figures)


@pytest.mark.proof
@pytest.mark.parametrize("fault", [STOPPED_MEANWHILE, STOPPED_AND_SILENT], ids=fault_id)
async def test_the_client_is_stopped_and_the_server_is_gone(fault: Fault, figures: Figures) -> None:
    """LIVE-2: a stall of our own hides no death: one grace period, and it is noticed."""
    async with EmbeddedServer() as server, client_process(server) as client:
        client.signal(SIGSTOP)
        if fault is STOPPED_MEANWHILE:
            server.reset_all()
            await server.stop()
        else:
            server.freeze()
        await asyncio.sleep(LONG_STOP)
        client.signal(SIGCONT)
        await client.until(lambda: "reconnecting" in client.statuses)
        assert any(fault.says in each.get("reason", "") for each in client.said), client.said
        if fault is STOPPED_MEANWHILE:
            await server.start()
        else:
            server.thaw()
        paths = ["connecting", *fault.client.split(" → ")], ["connecting", *fault.room.split(" → ")]
        await client.until(lambda: (client.statuses, client.rooms) == paths)
    count(fault, figures)


@pytest.mark.proof
async def test_the_client_is_killed(figures: Figures) -> None:
    """A server hears of a client that is killed, and has all that it acknowledged; so has the next client."""
    async with EmbeddedServer() as server:
        async with client_process(server) as client:
            client.tell("write survives")
            await client.until(lambda: {"wrote": "survives"} in client.said)
            client.signal(SIGKILL)
            await until(lambda: server.connections == 0)
        async with client_process(server) as client:
            assert await client.text() == "survives"
            assert client.statuses == ["connecting", CLIENT_KILLED.client]
    count(CLIENT_KILLED, figures)
