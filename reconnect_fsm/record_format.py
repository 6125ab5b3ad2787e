"""The format of recordings: any value as JSON, and back.

Values of the types that facts and effects are made of come back as they were. What is of any other type is written as
its ``repr`` and marked as opaque, so that a machine of the user's own can be recorded, too. Everything is bounded.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias, cast

from . import effects as _effects
from . import status as _status
from .errors import ClientStopped, JoinRefused, RoomLeft
from .loro_protocol import JoinErrorCode, UpdateStatusCode
from .loro_protocol.messages import RoomErrorCode

__all__ = [
    "CLIENT",
    "ERRORS",
    "FORMAT",
    "LONGEST",
    "MOST_ITEMS",
    "Foreign",
    "Json",
    "Opaque",
    "Transition",
    "address",
    "as_list",
    "as_object",
    "decoded",
    "encoded",
    "same",
    "shortened",
]

FORMAT: Final = 1
CLIENT: Final = "client"
"""What the client is called among the machines of a recording; all others are rooms."""
LONGEST: Final = 1000  # characters of a text
MOST_ITEMS: Final = 100  # of a list
DEEPEST: Final = 6

Json: TypeAlias = Any


class Transition(NamedTuple):
    """One transition of one machine: ``diagrams.Step(*transition)`` makes of it what `diagrams.sequence` draws."""

    time: float
    """When, in seconds of the event loop's clock."""
    machine: str
    """``"client"``, or a room's id."""
    event: str
    """The fact that led to it."""
    old: str
    new: str
    status: str
    """The public status afterwards."""
    reason: str
    attempt: int
    retry_in: float | None
    """Seconds until the next attempt, where one is scheduled."""


class Opaque(str):
    """Stands for a value that was recorded as its ``repr``."""

    __slots__ = ()


class Foreign(Exception):
    """Stands for an exception that this package does not define: only its class's name and its message are known."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(words)
        self.name = name


# What is written in full, and made again when it is read. Of exactly these classes: a subclass may hold anything.
DATA: Final[dict[str, Any]] = {
    name: value
    for module in (_status, _effects)
    for name in module.__all__
    if isinstance(value := getattr(module, name), type) and dataclasses.is_dataclass(value)
}
ENUMS: Final[dict[str, type[Enum]]] = {
    each.__name__: each
    for each in (
        _status.ClientStatus,
        _status.RoomStatus,
        _status.FailureKind,
        _effects.VersionChoice,
        UpdateStatusCode,
        JoinErrorCode,
        RoomErrorCode,
    )
}
ERRORS: Final[dict[str, type[Exception]]] = {each.__name__: each for each in (ClientStopped, JoinRefused, RoomLeft)}


def encoded(value: Any, text: Callable[[str], str], hide: Callable[[object], str], depth: int = 0) -> Json:
    """Any value as JSON, bounded in size. ``text`` is what becomes of a str, ``hide`` of one that may hold a secret.

    Raises nothing, unless one of the two does.
    """
    kind = cast("type[object]", type(value))
    if value is None or kind is bool or (kind is int and abs(value) < 2**64):
        return value
    if kind is str:
        return shortened(text(value), LONGEST)
    if kind is float:
        return value if abs(value) < float("inf") else {"is": "float", "value": repr(value)}
    if depth < DEEPEST and (parts := _parts(value, kind)) is not None:
        name, inside = parts
        inner = {key: encoded(each, text, hide, depth + 1) for key, each in inside.items()}
        return list(inner.values()) if name == "list" else {"is": name, **inner}
    if isinstance(value, BaseException):
        return {"error": value.name if isinstance(value, Foreign) else kind.__name__, "words": hide(_words(value, str))}
    return {"opaque": str(value) if kind is Opaque else hide(_words(value, repr))}


def _parts(value: Any, kind: type) -> tuple[str, dict[str, Any]] | None:
    """What a value is made of, if it is of exactly one of the types that are written in full."""
    name = kind.__name__
    if kind is list and len(value) <= MOST_ITEMS:
        return name, {str(number): each for number, each in enumerate(value)}
    if kind is tuple and len(value) <= MOST_ITEMS:
        return name, {"items": list(value)}
    if ENUMS.get(name) is kind:
        return name, {"name": value.name}
    if DATA.get(name) is kind:
        return name, {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if ERRORS.get(name) is kind:
        told = cast("dict[str, Any]", vars(value))
        return name, {"words": str(value), **{key: each for key, each in told.items() if key != "__notes__"}}
    return None


def _words(value: object, tell: Callable[[object], str]) -> str:
    try:
        return re.sub(r" at 0x[0-9a-fA-F]+", "", tell(value))  # an address says nothing, and is another each time
    except Exception as error:
        return f"<a {type(value).__name__} whose {tell.__name__}() raises {type(error).__name__}>"


def decoded(value: Json) -> Any:
    """What `encoded` made JSON of. Raises ValueError for what it never makes."""
    if (items := as_list(value)) is not None:
        return [decoded(each) for each in items]
    told = as_object(value)
    if told is None:
        return value
    if "is" not in told and "opaque" in told:
        return Opaque(told["opaque"])
    if "is" not in told and "error" in told:
        return Foreign(str(told["error"]), str(told.get("words", "")))
    try:
        return _made(str(told.get("is")), {key: each for key, each in told.items() if key != "is"})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no value can be made of {shortened(json.dumps(value))}") from error


def _made(name: str, told: dict[str, Json]) -> Any:
    if name == "tuple":
        return tuple(decoded(told["items"]))
    if name == "float":
        return float(told["value"])
    if name in ENUMS:
        return ENUMS[name][told["name"]]
    if name in ERRORS:
        error = ERRORS[name].__new__(ERRORS[name], told.pop("words"))
        vars(error).update({key: decoded(each) for key, each in told.items()})
        return error
    known = {each.name for each in dataclasses.fields(DATA[name])}  # what an older version did not have, has a default
    return DATA[name](**{key: decoded(each) for key, each in told.items() if key in known})


def same(text: str) -> str:
    """The text as it is."""
    return text


def address(kind: type) -> str:
    """Where a class is found."""
    return f"{kind.__module__}:{kind.__qualname__}"


def as_object(value: Json) -> dict[str, Json] | None:
    """The value, if it is a JSON object."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def as_list(value: Json) -> list[Json] | None:
    """The value, if it is a JSON array."""
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType]


def shortened(text: str, most: int = 120) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
