"""Adaptors: what binds a document to a room. `LoroAdaptor` and `EphemeralAdaptor` need the extra ``loro``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconnect_fsm.adaptors.base import Adaptor

if TYPE_CHECKING:
    from reconnect_fsm.adaptors.loro import EphemeralAdaptor, LoroAdaptor

__all__ = ["Adaptor", "EphemeralAdaptor", "LoroAdaptor"]


def __getattr__(name: str) -> object:
    # Imported when first used: the core runs without loro, and starts faster.
    if name in ("EphemeralAdaptor", "LoroAdaptor"):
        try:
            from reconnect_fsm.adaptors import loro
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{name} needs the loro package, which is not installed: pip install 'reconnect-fsm[loro]'"
            ) from error
        return getattr(loro, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
