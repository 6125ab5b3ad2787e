"""A `Connection` plus rooms: the client of the Loro syncing protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reconnect_fsm._asyncio.awaitables import Completion
from reconnect_fsm._asyncio.connection import STOPPED, Connection
from reconnect_fsm._asyncio.dispatcher import Dispatcher
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm._asyncio.room_driver import MAX_UPDATE_SIZE, MIN_PIECE, Auth, RoomDriver, RoomOptions, Rooms
from reconnect_fsm._asyncio.transport.sessions import Session
from reconnect_fsm._asyncio.transport.socket import Data, Socket
from reconnect_fsm._asyncio.transport.url import UrlSource
from reconnect_fsm._redaction import Redaction
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import NotifyRooms
from reconnect_fsm.errors import ClientStopped, ProtocolError
from reconnect_fsm.keepalive import PING, PONG, Keepalive
from reconnect_fsm.loro_protocol import MAX_MESSAGE_SIZE
from reconnect_fsm.network import NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import CloseInfo, RoomStatus, StatusChange

if TYPE_CHECKING:
    from random import Random

    from reconnect_fsm.recorder.recorder import Recorder

__all__ = ["Client"]

MESSAGE_TOO_BIG = 1009


class Client(Connection):
    """A client that stays connected, and whose rooms stay joined.

    ::

        async with Client("wss://example.org") as client:
            room = await client.join("notes", LoroAdaptor(doc))
            ...                                   # edit doc: it is synced, across every outage
            await room.synced()

    Takes what `Connection` takes, and

    Parameters:
        room_fsm: the class of the rooms' machines, a subclass of `RoomFSM`.
        max_concurrent_joins: the most join requests without an answer; further rooms wait for their turn, those of a
            higher priority first. Rejoins that the server asks for itself do not wait. None: no limit.
        max_piece: the most bytes of a message that rooms send. It is halved, down to 16 KiB, each time the server or a
            gateway closes the connection with 1009 while updates are on their way (D-TOOBIG).
        max_update_size: the most bytes of one update, sent or received; larger ones are refused. As much again is held
            at most of updates that come in fragments, in all rooms together.
    """

    def __init__(
        self,
        url: UrlSource,
        *,
        retry: RetryPolicy | None = None,
        keepalive: Keepalive | None = None,
        network: NetworkSource | None = None,
        session: Session | None = None,
        connect_timeout: float = 10.0,
        close_timeout: float = 2.0,
        fsm: type[ClientFSM] = ClientFSM,
        room_fsm: type[RoomFSM] = RoomFSM,
        max_concurrent_joins: int | None = 512,
        max_piece: int = MAX_MESSAGE_SIZE,
        max_update_size: int = MAX_UPDATE_SIZE,
        **options: Any,
    ) -> None:
        super().__init__(
            url,
            retry=retry,
            keepalive=keepalive,
            network=network,
            session=session,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            fsm=fsm,
            **options,
        )
        if not (isinstance(room_fsm, type) and issubclass(room_fsm, RoomFSM)):
            raise TypeError(f"room_fsm must be a subclass of RoomFSM (the class, not an instance), not {room_fsm!r}")
        if max_concurrent_joins is not None and (type(max_concurrent_joins) is not int or max_concurrent_joins < 1):
            raise ValueError(
                f"max_concurrent_joins must be a number of rooms, or None for no bound, not {max_concurrent_joins!r}"
            )
        for name, size in (("max_piece", max_piece), ("max_update_size", max_update_size)):
            if type(size) is not int or size < MIN_PIECE:
                raise ValueError(f"{name} must be a number of bytes, at least {MIN_PIECE}, not {size!r}")
        self._rooms = Rooms(
            _ConnectionOfRooms(
                self._dispatcher,
                self._redaction,
                self._retry.random,
                own_task=self._own_task,
                stopped_error=self._stopped_error,
                check_loop=self._check_loop,
            ),
            lambda: room_fsm(self._retry),
            RoomOptions(max_concurrent_joins, max_piece, max_update_size),
        )

    @property
    def rooms(self) -> tuple[Room, ...]:
        """The tracked rooms (REJOIN-1), in the order in which they were joined."""
        return self._rooms.handles

    def join(
        self,
        room_id: str,
        adaptor: Adaptor,
        *,
        auth: Auth = b"",
        priority: int = 0,
        on_status: Callable[[StatusChange[RoomStatus]], object] | None = None,
    ) -> Room:
        """Join a room, now or as soon as there is a connection (JOIN-1), and again after each reconnect (REJOIN-2).

        Returns the room at once; await it to wait until it is joined. A room that is tracked already, with the same
        adaptor, is returned as it is: ``on_status`` is added, and ``auth`` and ``priority`` count from the next request
        on if they are given (D-DEDUPE). The number of rooms has no bound (JOIN-2).

        Parameters:
            room_id: at most 128 bytes as UTF-8.
            adaptor: what binds the document, such as ``LoroAdaptor(doc)``.
            auth: what the server asks for: bytes, or a function, plain or async, that is asked at each (re)join
                (D-INTENT). If it raises `Unauthorized` the room goes to ``error``; after anything else it is tried
                again.
            priority: the higher, the sooner it is asked for when many rooms are (see ``max_concurrent_joins``).
            on_status: called with every change of the room's status (JOIN-3, OBS-2).

        Raises TypeError or ValueError at once for arguments that cannot work, such as another adaptor than that of the
        tracked room, and RuntimeError in another thread or event loop than the client's (D-THREAD). Awaiting it raises
        JoinRefused, RoomLeft or, if the client stops or is stopped, ClientStopped (D-STOP); the room stays tracked
        then. With a client that was never started, awaiting it waits for the start.
        """
        return self._rooms.join(room_id, adaptor, auth, priority, on_status)

    # What a connection does, done for rooms too

    def _recorder(self, hide_rooms: bool) -> Recorder:
        from reconnect_fsm.recorder.recorder import Recorder

        self._learn_secrets()
        data = self._header_data(type(self._rooms.make_fsm()))
        return Recorder(data, self._redaction, hide_rooms=hide_rooms, rooms=[room.id for room in self.rooms])

    def _all_rooms(self) -> Collection[RoomDriver]:
        return tuple(self._rooms)

    def _bind(self) -> None:
        super()._bind()
        self._rooms.bind(asyncio.get_running_loop())

    def _outlive_loop(self) -> None:
        was_stopped = self.status in STOPPED
        self._rooms.outlive_loop()
        super()._outlive_loop()
        if was_stopped:  # the loop may have ended before all rooms were told; those that were ignore it
            self._notify_rooms(NotifyRooms("client_stopped", self.reason, self.cause, self._fsm.stop_kind))

    def _close_requested(self, completion: Completion) -> None:
        self._rooms.end_presence()
        super()._close_requested(completion)

    def _socket_closed(self, socket: Socket, info: CloseInfo) -> None:
        if self._is_current(socket) and info.code == MESSAGE_TOO_BIG and info.fault is None:
            self._rooms.too_big()
        super()._socket_closed(socket, info)

    def _notify_rooms(self, effect: NotifyRooms) -> None:
        link = self._socket if effect.event == "connection_opened" else None
        self._rooms.notify(effect, link)

    def _received(self, data: Data) -> Iterator[object] | None:
        """Binary messages are the protocol's; text other than its ping and pong is passed on."""
        if isinstance(data, bytes):
            if len(data) > MAX_MESSAGE_SIZE:
                self._rooms.warn_limited(
                    "dropped a message of %d bytes: the protocol's limit is %d", len(data), MAX_MESSAGE_SIZE
                )
                return None
            try:
                return self._rooms.received(data)
            except ProtocolError as error:
                # Nothing else is lost by it: the connection and its rooms go on.
                self._rooms.warn_limited("dropped a malformed message of %d bytes: %s", len(data), error)
        elif data == PING:
            if self._socket is not None:
                self._socket.send_urgent(PONG)
        elif data != PONG:
            super()._received(data)
        return None


@dataclass(frozen=True, slots=True)
class _ConnectionOfRooms:
    """What the rooms use of the connection."""

    dispatcher: Dispatcher
    redaction: Redaction
    random: Random
    own_task: Callable[[asyncio.Task[Any]], None]
    stopped_error: Callable[[], ClientStopped | None]
    check_loop: Callable[[], None]
