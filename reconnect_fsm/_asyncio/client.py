"""A `Connection` plus rooms: the client of the Loro syncing protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from reconnect_fsm._asyncio.client_driver import ClientDriver
from reconnect_fsm._asyncio.connection import Connection
from reconnect_fsm._asyncio.connection_driver import ConnectionDriver, ConnectionSettings
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm._asyncio.room_driver import MAX_UPDATE_SIZE, MIN_PIECE, Auth, RoomOptions, Rooms
from reconnect_fsm._asyncio.transport.sessions import Session
from reconnect_fsm._asyncio.transport.url import UrlSource
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.loro_protocol import MAX_MESSAGE_SIZE
from reconnect_fsm.network import NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import RoomStatus, StatusChange

__all__ = ["Client", "rooms_of"]


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

    __slots__ = ("_room_fsm", "_room_options", "_rooms")

    _driver_type: ClassVar[type[ClientDriver]] = ClientDriver  # pyright: ignore[reportIncompatibleVariableOverride]

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
        if not (isinstance(room_fsm, type) and issubclass(room_fsm, RoomFSM)):
            raise TypeError(f"room_fsm must be a subclass of RoomFSM (the class, not an instance), not {room_fsm!r}")
        if max_concurrent_joins is not None and (type(max_concurrent_joins) is not int or max_concurrent_joins < 1):
            raise ValueError(
                f"max_concurrent_joins must be a number of rooms, or None for no bound, not {max_concurrent_joins!r}"
            )
        for name, size in (("max_piece", max_piece), ("max_update_size", max_update_size)):
            if type(size) is not int or size < MIN_PIECE:
                raise ValueError(f"{name} must be a number of bytes, at least {MIN_PIECE}, not {size!r}")
        self._room_fsm = room_fsm
        self._room_options = RoomOptions(max_concurrent_joins, max_piece, max_update_size)
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

    def _make_driver(self, settings: ConnectionSettings, fsm: ClientFSM) -> ConnectionDriver:
        driver = self._driver_type(self, settings, fsm, self._room_fsm, self._room_options)
        self._rooms = driver.rooms
        return driver

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


def rooms_of(client: Client) -> Rooms:
    """What drives the rooms: for tests."""
    return client._rooms
