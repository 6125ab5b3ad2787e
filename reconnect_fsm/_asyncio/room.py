"""The handle of a room: what `Client.join` returns, and all that a program sees of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from reconnect_fsm._asyncio.awaitables import LazyCoroutine
from reconnect_fsm.adaptors.base import Adaptor
from reconnect_fsm.errors import ReconnectError
from reconnect_fsm.loro_protocol import CrdtType, Permission
from reconnect_fsm.status import RoomStatus, StatusChange

if TYPE_CHECKING:
    from reconnect_fsm._asyncio.room_driver import RoomDriver

__all__ = ["Room", "driver_of"]


class Room:
    """One document, shared through a room of the server. Made by `Client.join`; await it to wait until it is joined."""

    __slots__ = ("_driver",)

    def __init__(self, driver: RoomDriver) -> None:
        self._driver = driver

    def __repr__(self) -> str:
        return f"<Room {self.id!r} {self.crdt_type} {self.status.value}>"

    @property
    def id(self) -> str:
        """The room's id, at most 128 bytes as UTF-8."""
        return self._driver.name

    @property
    def adaptor(self) -> Adaptor:
        """What binds the document."""
        return self._driver.adaptor

    @property
    def crdt_type(self) -> CrdtType:
        """The kind of document in it."""
        return self._driver.crdt_type

    @property
    def status(self) -> RoomStatus:
        """One of the five statuses (JOIN-3)."""
        return self._driver.fsm.status

    @property
    def state(self) -> str:
        """The machine's state, finer than the status: `RoomFSM` has them all."""
        return self._driver.fsm.state

    @property
    def reason(self) -> str:
        """Why it is in its present state, in words that hold no secrets."""
        return self._driver.fsm.reason

    @property
    def permission(self) -> Permission | None:
        """What the server lets us do, "read" or "write"; None while not joined."""
        session = self._driver.session
        return None if session is None else session.permission

    @property
    def extra(self) -> bytes:
        """What the server's last answer to a join carried besides: the application's own (JoinResponseOk.extra)."""
        return self._driver.extra

    @property
    def is_synced(self) -> bool:
        """Whether the server has all that the document holds, and the document all that the server had (D-RESYNC).

        That is: it is joined, every update of ours has its Ack and none was refused since versions were last compared,
        nothing waits to be sent or committed, and nothing of the server's is known to be missing.
        """
        return self._driver.is_synced

    # Listening

    def on_status(self, callback: Callable[[StatusChange[RoomStatus]], object]) -> Callable[[], None]:
        """Call the function on every change of the room's status (OBS-2). Returns one that ends it."""
        return self._driver.on_status(callback)

    def on_synced(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Call the function on every change of `is_synced`, in the loop's next turn. Returns one that ends it.

        Of edits it hears when they are committed.
        """
        return self._driver.on_synced(callback)

    def on_error(self, callback: Callable[[ReconnectError], object]) -> Callable[[], None]:
        """Call the function with what goes wrong with the room for good. Returns one that ends it.

        It is given the `JoinRefused` with which the room ends, one that this program brought about itself included (an
        adaptor that raised), and each `UpdatesRefused`, after which the room goes on.
        """
        return self._driver.on_error(callback)

    # Waiting

    def __await__(self) -> Generator[Any, None, Room]:
        """Wait until it is joined. Raises JoinRefused, RoomLeft or, if the client stops or is stopped, ClientStopped.

        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        return self._wait_until_joined().__await__()

    async def _wait_until_joined(self) -> Room:
        await self._driver.wait_until(lambda: self.status is RoomStatus.JOINED)
        return self

    async def synced(self) -> None:
        """Wait until it `is_synced`, across reconnects too; edits that are not committed are committed first.

        Raises UpdatesRefused if the server lacks something of the document and refuses it for good. Raises JoinRefused,
        RoomLeft or, if the client stops or is stopped, ClientStopped; RuntimeError in another thread or event loop than
        the client's (D-THREAD).
        """
        await self._driver.wait_until_synced()

    async def resync(self) -> None:
        """Compare versions with the server now, in the session that there is, then wait as `synced` does (D-RESYNC).

        The server sends what the document lacks, and is sent what it lacks itself. While the room is not joined this
        waits for the join, which does the same. Raises as `synced` does.
        """
        await self._driver.resync()

    def leave(self) -> Awaitable[None]:
        """Leave the room (D-LEAVE): it is untracked at once, online or not.

        Await the result to know that the server has been told, if it can be. Leaving what was left does nothing.
        Raises RuntimeError in another thread or event loop than the client's (D-THREAD).
        """
        self._driver.leave()
        return LazyCoroutine(self._driver.rooms.written)


def driver_of(room: Room) -> RoomDriver:
    """What drives the room: for the inspector, telemetry and the tests of this package."""
    return room._driver
