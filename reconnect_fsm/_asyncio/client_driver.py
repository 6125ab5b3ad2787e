"""Drives a connection that has rooms: passes on to them what happens to it, and what comes over it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator

from reconnect_fsm._asyncio.awaitables import Completion
from reconnect_fsm._asyncio.connection_driver import STOPPED, ConnectionDriver, ConnectionSettings, Handle, TrackedRoom
from reconnect_fsm._asyncio.room_driver import RoomOptions, Rooms
from reconnect_fsm._asyncio.transport.socket import Data
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.effects import NotifyRooms
from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.keepalive import PING, PONG
from reconnect_fsm.loro_protocol import MAX_MESSAGE_SIZE
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import CloseInfo

__all__ = ["ClientDriver"]

MESSAGE_TOO_BIG = 1009


class ClientDriver(ConnectionDriver):
    """The driver of a `Client`: a connection and its rooms."""

    __slots__ = ("_room_fsm", "rooms")

    def __init__(
        self,
        handle: Handle,
        settings: ConnectionSettings,
        fsm: ClientFSM,
        room_fsm: type[RoomFSM],
        room_options: RoomOptions,
    ) -> None:
        super().__init__(handle, settings, fsm)
        self._room_fsm = room_fsm
        self.rooms = Rooms(self, lambda: room_fsm(settings.retry), room_options)

    @property
    def room_fsm(self) -> type[RoomFSM]:
        """The class of the rooms' machines."""
        return self._room_fsm

    @property
    def tracked_rooms(self) -> Collection[TrackedRoom]:
        """The tracked rooms (REJOIN-1)."""
        return tuple(self.rooms)

    def bind(self) -> None:
        """As that of a connection; the rooms too."""
        super().bind()
        self.rooms.bind(asyncio.get_running_loop())

    def outlive_loop(self) -> None:
        """As that of a connection; the rooms too."""
        was_stopped = self.fsm.status in STOPPED
        self.rooms.outlive_loop()
        super().outlive_loop()
        if was_stopped:  # the loop may have ended before all rooms were notified; those that were ignore it
            fsm = self.fsm
            self.notify_rooms(NotifyRooms("client_stopped", fsm.reason, fsm.cause, fsm.stop_kind))

    def close_requested(self, completion: Completion) -> None:
        """The program closes the client: what others see of it is taken back first (D-PRESENCE)."""
        self.rooms.end_presence()
        super().close_requested(completion)

    def socket_closed(self, info: CloseInfo) -> None:
        """The connection was lost: for a message that was too big, if the server says so (D-TOOBIG)."""
        if info.code == MESSAGE_TOO_BIG and info.fault is None:
            self.rooms.too_big()
        super().socket_closed(info)

    def notify_rooms(self, effect: NotifyRooms) -> None:
        """All rooms are notified, in slices (law 3)."""
        socket = self.socket.content if effect.event == "connection_opened" else None
        self.rooms.notify(effect, socket)

    def received(self, data: Data) -> Iterator[object] | None:
        """Binary messages are the protocol's; text is passed on, except for its ping and pong."""
        if isinstance(data, bytes):
            if len(data) > MAX_MESSAGE_SIZE:
                self.rooms.warn_limited(
                    "dropped a message of %d bytes: the protocol's limit is %d", len(data), MAX_MESSAGE_SIZE
                )
                return None
            try:
                return self.rooms.received(data)
            except ProtocolError as error:
                # Nothing else is lost by it: the connection and its rooms go on.
                self.rooms.warn_limited("dropped a malformed message of %d bytes: %s", len(data), error)
        elif data == PING:
            if (socket := self.socket.content) is not None:
                socket.send_urgent(PONG)
        elif data != PONG:
            super().received(data)
        return None
