"""What the kernel has counted of one TCP connection: what has moved, and what waits (LIVE-2)."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from reconnect_fsm.keepalive import Counters

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = ["read_counters"]

TCP_INFO: Final = struct.Struct("=QQ16xI")  # linux/tcp.h, from 120: bytes_acked, bytes_received, …, data_segs_in
INT: Final = struct.Struct("i")
RECORD: Final = 30  # bytes of its own that a TLS record has, at the most


def read_counters(transport: asyncio.BaseTransport) -> Counters | None:
    """What the kernel has counted of this transport's connection; None if it tells nothing (LIVE-2).

    It counts what is on the wire, so TLS makes no difference, but that each TLS record has some bytes of its own.

    A transport that is no kernel's, a simulation's for instance, can tell by itself: its extra info
    ``reconnect_fsm.counters`` is then a function that returns `Counters`, of what has left asyncio's own buffers. (A
    loop gives its transports extra info in ``_make_socket_transport(…, extra=…)``; those of TLS pass it on.)
    """
    told: Callable[[], Counters | None] | None = transport.get_extra_info("reconnect_fsm.counters")
    if told is not None:
        return told()
    if sys.platform != "linux":
        return None
    sock = transport.get_extra_info("socket")
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        acked, received, segments = TCP_INFO.unpack_from(info, 120)
        descriptor = sock.fileno()
        waiting = INT.unpack(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
        unread = INT.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    except (AttributeError, OSError, TypeError, ValueError, struct.error):
        return None  # a socket in memory, a Unix socket, an old kernel, or it has just been closed
    if transport.get_extra_info("sslcontext") is not None:
        received -= RECORD * segments  # a byte now and then, in a record of its own, is no more than a byte
    return Counters(received, acked, waiting, unread)
