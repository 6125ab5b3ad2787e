"""Where the client learns whether this machine is online (OFF-1, OFF-2): a Protocol for sources, and the manual one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["ManualNetwork", "NetworkSource"]


@runtime_checkable
class NetworkSource(Protocol):
    """Something that knows whether there is a network."""

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        """Call ``report`` now with what is known, and again whenever it changes; True means online.

        It may be called from any thread. Returns a function that ends the subscription.
        """
        ...


class ManualNetwork:
    """A source that is set by the program; one may serve many clients."""

    def __init__(self, *, online: bool = True) -> None:
        self._online = online
        self._reports: dict[object, Callable[[bool], None]] = {}

    @property
    def online(self) -> bool:
        """What was said last."""
        return self._online

    def set_online(self, online: bool) -> None:
        """Say whether there is a network; every subscriber hears of it."""
        self._online = online
        for report in tuple(self._reports.values()):
            report(online)

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        """See `NetworkSource.subscribe`."""
        key = object()
        self._reports[key] = report
        report(self._online)

        def unsubscribe() -> None:
            self._reports.pop(key, None)

        return unsubscribe
