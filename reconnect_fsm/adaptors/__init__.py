"""Adaptors bind a document to a room. `LoroAdaptor` and `EphemeralAdaptor` need the extra ``loro``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from reconnect_fsm.adaptors.base import Adaptor

if TYPE_CHECKING:
    from reconnect_fsm.adaptors.ephemeral import EphemeralAdaptor
    from reconnect_fsm.adaptors.loro import LoroAdaptor

__all__ = ["Adaptor", "EphemeralAdaptor", "LoroAdaptor"]


_MODULES = {"EphemeralAdaptor": "ephemeral", "LoroAdaptor": "loro"}


def __getattr__(name: str) -> object:
    # Imported when first used: the core runs without loro, and starts faster.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"reconnect_fsm.adaptors.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} needs the loro package, which is not installed: pip install 'reconnect-fsm[loro]'"
        ) from error
    return getattr(module, name)
