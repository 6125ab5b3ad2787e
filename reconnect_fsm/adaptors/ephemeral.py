"""The adaptor of a `loro.EphemeralStore`: presence, cursors, whatever need not outlive the moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, cast

from loro import EphemeralStore, EphemeralStoreEvent

from reconnect_fsm.adaptors._sending import OnRefused, Send, SendingAdaptor, call_back
from reconnect_fsm.errors import is_fault
from reconnect_fsm.loro_protocol.messages import CrdtType

if TYPE_CHECKING:  # only loro's stub has it
    from loro import LoroValue

__all__ = ["EphemeralAdaptor"]

TEN_YEARS: Final = 10 * 365 * 86_400_000  # milliseconds
DELETED: Final = object()
NO_ENTRIES: Final = b"\0"  # as a store encodes them
MAX_TRIES: Final = 10_000  # to get the next millisecond; a clock that was set back is not waited for


class EphemeralAdaptor(SendingAdaptor):
    """Binds a `loro.EphemeralStore` to a room: presence, cursors, what need not outlive the moment.

    The entries that the program sets are its own, until it deletes them or another client sets the same key. While the
    room is joined they are renewed before they time out. A rejoin sends them again, also those that timed out here
    while there was no connection, and deletes at the other clients what the program deleted meanwhile. When the room is
    left or the client is closed, the other clients are told to remove them; the store stays as it is (D-PRESENCE).
    Entries of other clients are never sent: that would bring back clients that have gone. So give each client its own
    keys.

    ``timeout`` is the timeout of the store, in seconds, which loro does not tell. With None nothing is renewed, and
    what has timed out is not sent again. With ``take_back=False`` the other clients keep the entries until they time
    out. What the store holds when the adaptor is made counts as the program's own, so keep the adaptor as long as the
    store.

    ``on_refused(updates, status)`` is called with updates that the server refused (D-ACK).
    Raises TypeError if ``store`` is not an EphemeralStore, and ValueError for a timeout that is not above 0.
    """

    crdt_type = CrdtType.EPHEMERAL

    renew_interval: float | None
    """The seconds after which a joined room renews our entries."""

    # loro orders entries by the millisecond of the wall clock. Of two with the same one it keeps the first: the other
    # clients would lose the second. So each update is tried first, and gets a later date if they would not take it.

    def __init__(
        self,
        store: EphemeralStore,
        *,
        timeout: float | None = 30.0,
        take_back: bool = True,
        on_refused: OnRefused | None = None,
    ) -> None:
        if not isinstance(store, EphemeralStore):
            raise TypeError(f"EphemeralAdaptor takes a loro.EphemeralStore, not {type(store).__name__}")
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and 0 < timeout < float("inf")):
            raise ValueError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}")
        super().__init__(on_refused)
        self.store = store
        self.renew_interval = None if timeout is None else timeout / 3
        self._timeout = timeout
        self._takes_back = take_back
        store.remove_outdated()
        self._own: dict[str, LoroValue] = store.get_all_states()
        self._told: dict[str, bytes] = {key: store.encode(key) for key in self._own}
        """The last update of each key that was sent: it is set, or deleted."""
        self._deletion = b""  # the update of the deletion under way
        self._imported: set[str] = set()  # keys that other clients have written, and that were not looked at yet
        self._is_quiet = False
        self._has_taken_back = False
        # From now on, with or without a room: what is set and deleted offline is the program's own, too.
        us = weakref.ref(self)
        self._subscriptions = (
            store.subscribe_local_updates(lambda update: call_back(us, EphemeralAdaptor._on_local_update, update)),
            store.subscribe(lambda event: call_back(us, EphemeralAdaptor._on_event, event)),
        )

    def version(self) -> bytes:
        """Ephemeral stores have no versions."""
        return b""

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        """The program's own entries, renewed, and the deletions that it made."""
        self._settle()
        if self.renew_interval is not None or self._has_taken_back:
            self._is_quiet = True
            try:
                self.renew()
            finally:
                self._is_quiet = False
        else:
            self._remove_outdated()
            self._forget(self._own.keys() - set(self.store.keys()))
        everything = _store_of(self._told.values()).encode_all()
        return (everything,) if self._told else ()

    def covers(self, server_version: bytes) -> bool:
        """Always: there is nothing to wait for."""
        return True

    def apply(self, updates: Sequence[bytes]) -> None:
        """Apply the updates."""
        try:
            _each(self.store.apply, updates)
        finally:
            self._settle()

    def attach(self, send: Send) -> Callable[[], None]:
        """Pass every local change to ``send``."""
        return self._add_send(send)

    def renew(self) -> None:
        """Set the program's own entries again, so that they do not time out at other clients."""
        self._settle()
        self._has_taken_back = False
        for key, value in tuple(self._own.items()):
            self.store.set(key, value)
        self._remove_outdated()

    def take_back(self) -> Sequence[bytes]:
        """Updates that remove the program's own entries at the other clients; they stay in the store."""
        self._settle()
        if not self._takes_back:
            return ()
        self._has_taken_back = True
        return [self._tell(key, _entry(key, DELETED), DELETED) for key in self._own]

    def _settle(self) -> None:
        """Drop the keys that another client has written. loro's callback could not: it must not read the store."""
        imported, self._imported = self._imported & self._own.keys(), set()
        for key in imported:
            here, told = self.store.encode(key) or NO_ENTRIES, self._told[key]
            if _store_of((told, here)).encode(key) != told:
                self._forget((key,))
            elif self._has_taken_back:
                if key not in set(self.store.keys()):  # our own removal came back
                    self.store.set(key, self._own[key])
            elif here != told:  # older than what was sent last
                self.store.apply(told)

    def _forget(self, keys: Iterable[str]) -> None:
        for key in tuple(keys):
            del self._own[key], self._told[key]

    def _remove_outdated(self) -> None:
        """Forget old deletions, too: at the other clients they have timed out."""
        self.store.remove_outdated()
        deleted = self._told.keys() - self._own.keys()
        kept = _store_of((self._told[key] for key in deleted), self._timeout)
        kept.remove_outdated()
        for key in deleted:
            if kept.encode(key) in (b"", NO_ENTRIES):
                del self._told[key]

    def _on_local_update(self, update: bytes) -> None:
        alone = _store_of((update,))
        states = alone.get_all_states()
        if not states:  # a deletion; `_on_event` learns of which key, if it was there
            self._deletion = update
            for key in [key for key in self._own if alone.encode(key) != NO_ENTRIES]:
                del self._own[key]
                update = self._tell(key, update, DELETED)
        for key, value in states.items():
            self._own[key] = value
            self._imported.discard(key)
            update = self._tell(key, update, value)
        if not self._is_quiet:
            self._send_to_all(update)

    def _on_event(self, event: EphemeralStoreEvent) -> None:
        if event.by == "Import":
            self._imported.update(event.added, event.updated, event.removed)
        elif event.by == "Local":
            for key in event.removed:
                self._told.setdefault(key, self._deletion)

    def _tell(self, key: str, update: bytes, value: LoroValue | object) -> bytes:
        """Remember this update of a key as sent. Return it, with a later date if other clients would not take it."""
        told = self._told.get(key, NO_ENTRIES)
        others = _store_of((told,))
        others.apply(update)
        if others.encode(key) != update:
            update = _dated_after(update, told)
            for _ in range(MAX_TRIES):
                others.apply(update)
                if others.encode(key) == update:
                    break
                update = _entry(key, value)  # loro writes dates in another way: wait for the next millisecond
        self._told[key] = update
        return update


def _dated_after(entry: bytes, earlier: bytes) -> bytes:
    """The same entry, one millisecond later than the earlier one.

    loro writes the date last, in milliseconds since 1970, as a zigzag varint: 6 bytes until 2039, then 7.
    """

    def start_of_date(entry: bytes) -> int:
        return len(entry) - next(length for length in (6, 7) if entry[-length] & 0x80 and length < len(entry))

    zigzag = 0
    for byte in reversed(earlier[start_of_date(earlier) :]):
        zigzag = zigzag << 7 | byte & 0x7F
    zigzag += 2
    date = bytearray()
    while zigzag > 0x7F:
        date.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return entry[: start_of_date(entry)] + bytes((*date, zigzag))


def _entry(key: str, value: LoroValue | object) -> bytes:
    store = _store_of(())
    if value is DELETED:
        store.delete(key)
    else:
        store.set(key, cast("LoroValue", value))
    return store.encode(key)


def _store_of(updates: Iterable[bytes], timeout: float | None = None) -> EphemeralStore:
    store = EphemeralStore(TEN_YEARS if timeout is None else max(1, int(timeout * 1000)))
    for update in updates:
        store.apply(update)
    return store


def _each(apply: Callable[[bytes], object], updates: Sequence[bytes]) -> None:
    """Apply every update, then raise ValueError if there was a bad one."""
    bad = 0
    for update in updates:
        try:
            apply(update)
        except BaseException as error:
            if not is_fault(error):
                raise
            bad += 1
    if bad:
        raise ValueError(f"{bad} of {len(updates)} updates cannot be applied")
