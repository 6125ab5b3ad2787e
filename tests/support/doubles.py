"""Test doubles of adaptors: one that holds nothing, and one that writes down what it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode

__all__ = ["EmptyAdaptor", "Notebook"]


class EmptyAdaptor:
    """The least adaptor: a document with nothing in it, which ignores what it is told."""

    crdt_type = CrdtType.ELO

    def version(self) -> bytes:
        return b""

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return ()

    def covers(self, server_version: bytes) -> bool:
        return True

    def apply(self, updates: Sequence[bytes]) -> None: ...

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        return self._detach

    def _detach(self) -> None: ...

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None: ...


class Notebook:
    """An adaptor that writes down what it is told, and raises where it is told to."""

    crdt_type = CrdtType.ELO

    def __init__(self, *, alternative: bytes | None = None, missing: Sequence[bytes] = ()) -> None:
        self.alternative = alternative
        self.missing = missing
        self.applied: list[bytes] = []
        self.refusals: list[tuple[tuple[bytes, ...], UpdateStatusCode]] = []
        self.asked: Counter[str] = Counter()
        self.raises: dict[str, BaseException] = {}
        self.edit: Callable[[bytes], None] = self._not_attached
        self.attached = False

    def _not_attached(self, update: bytes) -> None: ...

    def _called(self, name: str) -> None:
        self.asked[name] += 1
        if name in self.raises:
            raise self.raises[name]

    def version(self) -> bytes:
        self._called("version")
        return b"current"

    def alternative_version(self, server_version: bytes) -> bytes | None:
        self._called("alternative_version")
        return self.alternative

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        self._called("missing_from")
        return self.missing

    def covers(self, server_version: bytes) -> bool:
        self._called("covers")
        return True

    def apply(self, updates: Sequence[bytes]) -> None:
        self._called("apply")
        self.applied += updates

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self._called("attach")
        self.edit, self.attached = send, True
        return self._detach

    def _detach(self) -> None:
        self.attached = False
        self._called("detach")

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        self.refusals.append((tuple(updates), status))
        self._called("refused")
