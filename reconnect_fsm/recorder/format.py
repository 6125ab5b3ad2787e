"""The format of recordings: any value as JSON, and back.

Values of the types that events and effects hold are restored as they were. Of a value of any other type only the type
is written, marked as opaque, so that a machine of the user's own can be recorded, too. Everything is bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from enum import Enum
from math import isfinite
from typing import Any, Final, NamedTuple, TypeAlias, cast

from reconnect_fsm import effects as _effects
from reconnect_fsm import status as _status
from reconnect_fsm.errors import ClientStopped, JoinRefused, RoomLeft, UpdatesRefused
from reconnect_fsm.loro_protocol import JoinErrorCode, UpdateStatusCode
from reconnect_fsm.loro_protocol.messages import RoomErrorCode

__all__ = [
    "CLIENT",
    "FORMAT",
    "MAX_ITEMS",
    "MAX_TEXT",
    "SECRET",
    "Json",
    "Opaque",
    "Transition",
    "address",
    "as_list",
    "as_object",
    "decoded",
    "encoded",
    "in_words",
    "is_too_deep",
    "is_whole",
    "private",
    "same",
    "shortened",
]

FORMAT: Final = 1
CLIENT: Final = "client"
"""What the client is called among the machines of a recording; all others are rooms."""
MAX_TEXT: Final = 1000  # characters of a text
MAX_BYTES: Final = 200  # of a value of bytes: as many as a redaction looks through
MAX_ITEMS: Final = 100  # of a list; of a list in another, far fewer
MAX_DEPTH: Final = 6  # of nested values
MAX_LEVELS: Final = 4 + 2 * MAX_DEPTH  # of lists and objects: 3 around a header's codes, 2 for a value, 1 for the last

Json: TypeAlias = Any


class Transition(NamedTuple):
    """One transition of one machine; `diagrams.sequence` draws them."""

    time: float
    """When, in seconds of the event loop's clock; a picture counts from the first."""
    machine: str
    """``"client"``, or a room's id."""
    event: str
    """The event that led to it; empty where only a change of status is known."""
    old: str
    """The state before."""
    new: str
    """The state afterwards."""
    status: str
    """The public status afterwards."""
    reason: str = ""
    """Why, in words."""
    attempt: int = 0
    """The number of the retry; 0: none."""
    retry_in: float | None = None
    """Seconds until the next attempt, where one is scheduled."""


class Opaque(str):
    """Stands for a value of which only the type was recorded."""

    __slots__ = ()


SECRET: Final = frozenset({"extra"})
"""Fields that are never written: ``JoinResponseOk.extra`` is the application's own, and may be a token."""

# Written in full, and restored when read. Exactly these classes: a subclass may hold anything.
FIELDS: Final[dict[type, tuple[str, ...]]] = {
    value: tuple(each.name for each in dataclasses.fields(value))
    for module in (_status, _effects)
    for name in module.__all__
    if isinstance(value := getattr(module, name), type) and dataclasses.is_dataclass(value)
}
FIELDS[_status.CloseInfo] = tuple(
    name for name in FIELDS[_status.CloseInfo] if name != "shown"
)  # `shown` is derived from the others
FIELDS[_effects.Synchronise] = tuple(name for name in FIELDS[_effects.Synchronise] if name not in SECRET)
LEFT_OUT: Final = frozenset({"cause", "stop", "fault", "is_redacted", "server_version"})  # if empty, as most are
ERRORS: Final[dict[type, tuple[str, ...]]] = {
    ClientStopped: ("reason", "cause", "stop"),
    JoinRefused: ("code", "message", "app_code"),
    RoomLeft: (),
    UpdatesRefused: ("status",),
}
ENUMS: Final[tuple[type[Enum], ...]] = (
    _status.ClientStatus,
    _status.RoomStatus,
    _status.FailureKind,
    _status.FaultKind,
    _status.StopKind,
    _effects.VersionChoice,
    UpdateStatusCode,
    JoinErrorCode,
    RoomErrorCode,
)
NAMED: Final[dict[str, Any]] = {each.__name__: each for each in (*FIELDS, *ERRORS, *ENUMS)}


def encoded(value: Any, text: Callable[[Any], Json], depth: int = 0) -> Json:
    """Any value as JSON, bounded in size. ``text`` converts str and bytes. Raises nothing, unless ``text`` does."""
    kind = cast("type[object]", type(value))
    if kind is str:
        return text(shortened(value, MAX_TEXT))
    if kind is bytes:
        return _bytes(value, text)
    if value is None or kind is bool or (kind is int and abs(value) < 2**64):
        return value
    if kind is float:
        return value if isfinite(value) else {"is": "float", "value": repr(value)}
    if kind in ENUMS:
        return {"is": kind.__name__, "name": value.name}
    if depth < MAX_DEPTH:
        if kind in FIELDS:
            return _value(value, text, depth)
        if kind in ERRORS:
            words = encoded(str(value), text)
            return {"is": kind.__name__, "words": words, **_inside(value, ERRORS[kind], text, depth)}
        if kind in (list, tuple) and len(value) <= MAX_ITEMS >> 3 * depth:
            items = [encoded(each, text, depth + 1) for each in value]
            return items if kind is list else {"is": "tuple", "items": items}
    return {"opaque": str(value) if kind is Opaque else _described(value, kind, depth)}


def _bytes(value: bytes, text: Callable[[Any], Json]) -> Json:
    if not value:
        return same(value)
    return text(value) if len(value) <= MAX_BYTES else private(value)


def _value(value: Any, text: Callable[[Any], Json], depth: int) -> Json:
    """A value of a class of this package. A CloseInfo is written redacted, and says whether anything was redacted."""
    if not isinstance(value, _status.CloseInfo):
        return {"is": type(value).__name__, **_inside(value, FIELDS[type(value)], text, depth)}
    shown = value.redacted()
    fields = {"is": "CloseInfo", **_inside(shown, FIELDS[_status.CloseInfo], text, depth)}
    return fields | ({"is_redacted": True} if fields["reason"] != shown.reason else {})


def _inside(value: Any, names: Iterable[str], text: Callable[[Any], Json], depth: int) -> dict[str, Json]:
    inside = {name: getattr(value, name, None) for name in names}
    return {name: encoded(each, text, depth + 1) for name, each in inside.items() if each or name not in LEFT_OUT}


def private(value: Any) -> Json:
    """Converts a text that only a machine of the user's knows: it may be a secret that the redaction does not know."""
    return {"opaque": f"<{type(value).__name__}>"}


def _described(value: Any, kind: type[object], depth: int) -> str:
    """The type of a value, without its contents. Of a dataclass, such as an effect of the user's, also the numbers."""
    if issubclass(kind, Enum):
        return f"{kind.__name__}.{value.name}"
    if dataclasses.is_dataclass(kind) and depth < MAX_DEPTH:
        inside = _inside(value, [each.name for each in dataclasses.fields(kind)], private, depth)
        return shortened(in_words({"is": kind.__name__, **inside}), MAX_TEXT)
    return f"<{kind.__name__}>"


def in_words(value: Json) -> str:
    """A recorded value in words."""
    if (items := as_list(value)) is not None:
        return f"[{', '.join(map(in_words, items))}]"
    if (fields := as_object(value)) is None:
        return repr(value)
    name = str(fields.get("is", "?"))
    if name in ("?", "tuple"):
        return str(fields["opaque"]) if "opaque" in fields else in_words(fields.get("items"))
    if fields.keys() == {"is", "name"}:
        return str(fields["name"])
    inner = ", ".join(in_words(each) for key, each in fields.items() if key != "is" and each != "")
    return f"{name}({inner})" if inner else name


def decoded(value: Json) -> Any:
    """The value that `encoded` was given. Raises ValueError for JSON that `encoded` never makes."""
    if (items := as_list(value)) is not None:
        return [decoded(each) for each in items]
    fields = as_object(value)
    if fields is None:
        return value
    if "is" not in fields and "opaque" in fields:
        return Opaque(fields["opaque"])
    try:
        return _restored(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no value can be made of {shortened(repr(value))}") from error


def _restored(fields: dict[str, Json]) -> Any:
    name = fields["is"]
    if name == "tuple":
        return tuple(decoded(fields["items"]))
    if name == "float":
        return float(fields["value"])
    if name == "bytes":
        return bytes.fromhex(fields["hex"])
    kind = NAMED[name]
    if kind in ENUMS:
        return kind[fields["name"]]
    inside = {key: decoded(fields[key]) for key in (*FIELDS.get(kind, ()), *ERRORS.get(kind, ())) if key in fields}
    if kind in FIELDS:
        return kind(**inside)  # a field that an older version did not write has a default
    error: Exception = kind.__new__(kind, fields["words"])
    vars(error).update(inside)
    return error


def is_whole(value: Json) -> bool:
    """Whether all of a value was written, with nothing opaque in it."""
    if (fields := as_object(value)) is not None:
        return "opaque" not in fields and all(map(is_whole, fields.values()))
    return all(map(is_whole, as_list(value) or ()))


def is_too_deep(line: Json) -> bool:
    """Whether its nesting is deeper than a recorder writes; Python's own recursion is limited, too."""
    level: list[Json] = [line]
    for _ in range(MAX_LEVELS + 1):
        if not level:
            return False
        level = [each for some in level for each in as_list(some) or (as_object(some) or {}).values()]
    return bool(level)


def same(value: Any) -> Any:
    """A text as it is, and bytes with all that is in them."""
    return {"is": "bytes", "hex": value.hex()} if isinstance(value, bytes) else value


def address(kind: type) -> str:
    """The address of a class: ``module:Class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def as_object(value: Json) -> dict[str, Json] | None:
    """The value, if it is a JSON object."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def as_list(value: Json) -> list[Json] | None:
    """The value, if it is a JSON array."""
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType]


def shortened(text: str, limit: int = 120) -> str:
    """The text, or its beginning if it is longer than the limit."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
