"""Two machines of our own and the cable between them, for faults of the network itself.

    async with Cable() as cable:  # this thread is on the machine `here` now: what it dials, it dials from there
        with cable.there:
            await server.start()  # listens on the other machine
        ...
        cable.weather = blackhole

A machine is a network namespace, the cable a pair of TUN devices whose packets this process carries from one to the
other. So no packet leaves the process but as ``cable.weather`` says, a fault begins and ends between two packets, and
chance is a seeded `random.Random`. It needs neither netem nor a packet filter; only root, ``ip`` (Debian's iproute2)
and ``/dev/net/tun``. Nothing is left when the block ends, and nothing when the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

__all__ = [
    "Cable",
    "Machine",
    "Packet",
    "Weather",
    "answer_with",
    "blackhole",
    "clear",
    "corrupt",
    "delay",
    "drop_if",
    "duplicate",
    "lose",
    "narrow",
    "reorder",
    "reset",
    "unreachable",
    "why_not",
]

HERE, THERE, HERE_6, THERE_6 = "10.77.0.1", "10.77.0.2", "fd77::1", "fd77::2"  # on a cable of our own, seen by nobody
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
TUN: Final = Path("/dev/net/tun")
ICMP, TCP = 1, 6  # IANA, protocol numbers
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10  # RFC 9293, 3.1
LARGEST: Final = 1 << 16
COMMAND_TIMEOUT: Final = 10.0  # seconds
READS: Final = 64  # packets carried before the event loop gets its turn

_libc: Final = ctypes.CDLL(None, use_errno=True)


@functools.cache
def why_not() -> str | None:
    """Why there can be no namespaces and cables on this machine; None if there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip: install iproute2"
    if not TUN.exists():
        return f"a cable needs {TUN}"
    try:
        with Machine("probe") as machine:
            os.close(_tun("probe"))
        machine.close()
    except OSError as error:
        return f"this kernel or container makes no network namespaces: {error}"
    return None


# ------------------------------------------------------------------------------------------------------------- machines


class Machine:
    """A network namespace with nothing but its loopback. ``with`` it, the sockets this thread makes are its own.

    Raises OSError if the kernel refuses. After use you must call `close`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._left: list[int] = []
        before = _own_namespace()
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            self._namespace = _own_namespace()
            try:
                _run_ip("link", "set", "lo", "up")
            finally:
                _enter(before)
        finally:
            os.close(before)

    def __repr__(self) -> str:
        return f"<Machine {self.name}>"

    def __enter__(self) -> Self:
        self._left.append(_own_namespace())
        _enter(self._namespace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before = self._left.pop()
        _enter(before)
        os.close(before)

    def ip(self, *command: str) -> None:
        """Run ``ip`` of iproute2 on the machine. Raises CalledProcessError if it fails."""
        with self:
            _run_ip(*command)

    def sysctl(self, name: str, value: str) -> None:
        """Set one of the machine's kernel parameters, such as ``net.ipv4.tcp_retries2``."""
        with self:
            Path("/proc/sys", *name.split(".")).write_text(value)

    def close(self) -> None:
        """Let go of it; the kernel takes it down with the last socket."""
        os.close(self._namespace)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    _check(_libc.setns(namespace, CLONE_NEWNET))  # of this thread alone; os.setns came with Python 3.12


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run_ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, timeout=COMMAND_TIMEOUT, capture_output=True)


# -------------------------------------------------------------------------------------------------------------- weather


@dataclass(frozen=True)
class Packet:
    """One IP packet on the cable."""

    data: bytes
    outward: bool
    """Whether it goes from here to there."""

    @property
    def version(self) -> int:
        """Of IP: 4 or 6."""
        return self.data[0] >> 4

    @property
    def tcp(self) -> bytes:
        """What IPv4 carries, if that is TCP; else nothing."""
        return self.data[(self.data[0] & 0x0F) * 4 :] if self.version == 4 and self.data[9] == TCP else b""

    @property
    def flags(self) -> int:
        """Of TCP."""
        return self.tcp[13] if self.tcp else 0

    @property
    def port_here(self) -> int | None:
        """Which of our connections it belongs to."""
        return struct.unpack_from("!H", self.tcp, 0 if self.outward else 2)[0] if self.tcp else None


Weather: TypeAlias = Callable[[Packet], Iterable[tuple[float, bytes]]]
"""What becomes of a packet: the packets that come out at the other end, each after so many seconds."""


def clear(packet: Packet) -> Iterable[tuple[float, bytes]]:
    """Every packet arrives, at once."""
    return [(0.0, packet.data)]


def blackhole(packet: Packet) -> Iterable[tuple[float, bytes]]:
    """Nothing arrives, and nobody is told."""
    return []


def drop_if(condition: Callable[[Packet], object]) -> Weather:
    """The packets for which the condition holds do not arrive."""
    return lambda packet: [] if condition(packet) else clear(packet)


def lose(chance: random.Random, share: float) -> Weather:
    """This share of the packets does not arrive."""
    return drop_if(lambda _: chance.random() < share)


def delay(chance: random.Random, seconds: float, jitter: float = 0.0) -> Weather:
    """Every packet takes so long, more or less; with jitter they overtake each other."""
    return lambda packet: [(max(0.0, seconds + chance.uniform(-jitter, jitter)), packet.data)]


def reorder(chance: random.Random, share: float, seconds: float) -> Weather:
    """This share of the packets is overtaken by those behind them."""
    return lambda packet: [(seconds if chance.random() < share else 0.0, packet.data)]


def duplicate(chance: random.Random, share: float) -> Weather:
    """This share of the packets arrives twice."""
    return lambda packet: [(0.0, packet.data)] * (2 if chance.random() < share else 1)


def corrupt(chance: random.Random, share: float) -> Weather:
    """This share of the packets arrives with one bit flipped."""

    def weather(packet: Packet) -> Iterable[tuple[float, bytes]]:
        data = bytearray(packet.data)
        if chance.random() < share:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return [(0.0, bytes(data))]

    return weather


def answer_with(cable: Cable, answer: Callable[[Packet], bytes], condition: Callable[[Packet], object]) -> Weather:
    """Of what goes out, the packets for which the condition holds are answered on the way, and go no further."""

    def weather(packet: Packet) -> Iterable[tuple[float, bytes]]:
        if not (packet.outward and condition(packet)):
            return clear(packet)
        cable.inject(answer(packet), outward=False)
        return []

    return weather


def narrow(bytes_per_second: float) -> Weather:
    """So many bytes a second pass, each way; the others queue, without bound."""
    free_at = {True: 0.0, False: 0.0}

    def weather(packet: Packet) -> Iterable[tuple[float, bytes]]:
        now = asyncio.get_running_loop().time()
        free_at[packet.outward] = max(free_at[packet.outward], now) + len(packet.data) / bytes_per_second
        return [(free_at[packet.outward] - now, packet.data)]

    return weather


# What somebody in between sends back, as if the other end had.


def reset(packet: Packet) -> bytes:
    """A TCP reset that its sender believes."""
    source, destination, number, acknowledged = struct.unpack_from("!HHII", packet.tcp)
    begin = acknowledged if packet.flags & ACK else 0
    head = struct.pack("!HHIIBBHHH", destination, source, begin, number + 1, 5 << 4, RST | ACK, 0, 0, 0)
    addresses = packet.data[16:20] + packet.data[12:16]
    check = _checksum(addresses + struct.pack("!HH", TCP, len(head)) + head)
    return _ip(addresses, TCP, head[:16] + struct.pack("!H", check) + head[18:])


def unreachable(packet: Packet, code: int) -> bytes:
    """An ICMP message that says why the packet cannot be delivered (RFC 792): 0 net, 1 host, 3 port, 13 prohibited."""
    quoted = packet.data[:28]
    check = _checksum(struct.pack("!BBHI", 3, code, 0, 0) + quoted)
    return _ip(packet.data[16:20] + packet.data[12:16], ICMP, struct.pack("!BBHI", 3, code, check, 0) + quoted)


def _ip(addresses: bytes, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + addresses
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# ---------------------------------------------------------------------------------------------------------------- cable


class Cable:
    """Two machines, `here` and `there`, joined by a cable. An async context manager; the thread is ``here`` inside."""

    def __init__(self, mtu: int = 1500) -> None:
        self.weather: Weather = clear
        """What becomes of the packets from now on."""
        self.carried = 0
        """Packets that came to an end of the cable, delivered or not."""
        self._mtu = mtu
        self._tuns: tuple[int, int] = (-1, -1)
        self._under_way: set[asyncio.TimerHandle] = set()
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.here = _closing(stack, Machine("here"))
            self.there = _closing(stack, Machine("there"))
            near = self._plug_in(stack, self.here, HERE, HERE_6)
            far = self._plug_in(stack, self.there, THERE, THERE_6)
            self._tuns = (near, far)
            loop = asyncio.get_running_loop()
            for tun, outward in ((near, True), (far, False)):
                loop.add_reader(tun, self._carry, tun, outward)
                stack.callback(loop.remove_reader, tun)
            stack.callback(self._drop_all)
            stack.enter_context(self.here)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _plug_in(self, stack: contextlib.ExitStack, machine: Machine, address: str, address_6: str) -> int:
        with machine:
            tun = _tun("wire")
            stack.callback(os.close, tun)
            _run_ip("addr", "add", f"{address}/24", "dev", "wire")
            _run_ip("link", "set", "wire", "up", "mtu", str(self._mtu))
            _run_ip("addr", "add", f"{address_6}/64", "dev", "wire", "nodad")
        return tun

    def inject(self, data: bytes, *, outward: bool) -> None:
        """Have a packet come out at an end as if somebody in between had sent it."""
        self._deliver(outward, data)

    def _carry(self, tun: int, outward: bool) -> None:
        loop = asyncio.get_running_loop()
        for data in _packets(tun):
            self.carried += 1
            for seconds, what in self.weather(Packet(data, outward)):
                if seconds == 0:
                    self._deliver(outward, what)
                    continue
                self._under_way = {handle for handle in self._under_way if handle.when() > loop.time()}
                self._under_way.add(loop.call_later(seconds, self._deliver, outward, what))

    def _deliver(self, outward: bool, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the link at the other end is down: lost
            os.write(self._tuns[1 if outward else 0], data)

    def _drop_all(self) -> None:
        for handle in self._under_way:
            handle.cancel()


def _closing(stack: contextlib.ExitStack, machine: Machine) -> Machine:
    stack.callback(machine.close)
    return machine


def _tun(name: str) -> int:
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(tun)
        raise
    return tun


def _packets(tun: int) -> Iterator[bytes]:
    for _ in range(READS):
        try:
            yield os.read(tun, LARGEST)
        except OSError:  # none are left, or the link is down
            return
