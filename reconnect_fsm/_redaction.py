"""A server may say back to us what we told it: its words are shown and logged without our secrets (D-JUDGED).

They are judged as they came. Only what is really shown goes through here, so that is all that has to pay for it: to
learn a secret is to keep it. When words are first shown, one index is made of all secrets, in few passes over all of
their bytes: ten thousand rooms with a token each are usual, and no words of a server may stop the event loop.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias
from urllib.parse import unquote_plus, unquote_to_bytes

from reconnect_fsm.status import sanitized

__all__ = ["Redaction"]

SHORTEST: Final = 6  # bytes; what is shorter is no secret worth the name, and part of many a word
TELLING: Final = 16  # bytes; so much of a longer secret's beginning is taken for it
MOST: Final = 64  # secrets kept of each kind, the latest
MOST_RECENT: Final = 256  # secrets learned since the index was made; then it is made anew
READ: Final = 4096  # characters of what the server says; 200 of them are shown
INSTEAD: Final = "…"
SCHEMES: Final = {b"basic", b"bearer", b"digest", b"negotiate"}  # of an Authorization header: no secret
NAME: Final = re.compile(rb"[\w.$-]+")  # of a cookie or a parameter: what stands before the "="

Secret: TypeAlias = str | bytes
Span: TypeAlias = tuple[int, int]

BETWEEN: Final = b'\n \t\r\f\v;,"{}'  # what is between the parts of a secret
APART: Final = bytes.maketrans(BETWEEN, b"\n" * len(BETWEEN))
IN_PERCENT: Final = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
ONE_ESCAPE: Final = {  # most are single ones, and the JSON parser takes long to begin
    b"\\" + name: meant
    for name, meant in zip(
        (b'"', b"\\", b"/", b"b", b"f", b"n", b"r", b"t"),
        (b'"', b"\\", b"/", b"\b", b"\f", b"\n", b"\r", b"\t"),
        strict=True,
    )
}
IN_JSON: Final = re.compile(rb'(?:\\u[0-9A-Fa-f]{4}|\\["\\/bfnrt])+')


class Redaction:
    """Makes a server's words fit to be shown: `sanitized`, and without the secrets that it was told.

    There is one for each client, which knows all its secrets. For servers that echo, in capitals or not, not for those
    that hide what they echo: a secret that comes back reversed is not found.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[bytes, None]] = {}  # by kind; each remembers which came first
        self._providers: list[Callable[[], Iterable[Secret]]] = []
        self._index: _Index | None = None
        self._recent: dict[bytes, None] = {}  # not in that index yet
        self._recent_index: _Index | None = None

    def learn(self, secret: Secret | None, kind: str = "") -> None:
        """Remember a secret, and its parts if it has several: ``Bearer token``, ``a=token; b=token``.

        The latest of each ``kind`` are kept, so that many of one kind do not push out those of another.
        """
        if not secret or len(secret) < SHORTEST:
            return
        if isinstance(secret, str):
            secret = secret.encode(errors="replace")
        secrets = self._kept.setdefault(kind, {})
        if secret in secrets:
            del secrets[secret]  # so that it counts as the latest
        elif self._index is not None:
            self._recent[secret] = self._recent_index = None
            if len(self._recent) > MOST_RECENT:
                self._index = None
                self._recent.clear()
        secrets[secret] = None
        if len(secrets) > MOST:
            del secrets[next(iter(secrets))]

    def ask(self, provider: Callable[[], Iterable[Secret]]) -> None:
        """Ask this function for further secrets when the index is made: there may be too many to keep them twice.

        They are learned as well, so that those which come later are known.
        """
        self._providers.append(provider)

    def __call__(self, words: object) -> str:
        """The words as text: short, one line, no secrets."""
        text = words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")
        data = text[:READ].encode(errors="replace")
        if len(data) < SHORTEST:
            return sanitized(text)
        shown: list[bytes] = []
        at = 0
        for start, end in sorted(self._spans(data)):
            if start >= at:
                shown += [data[at:start], INSTEAD.encode()]
            at = max(at, end)
        # A secret that was cut there is not recognised if so little of it is left
        rest = data[at:] if len(text) <= READ - TELLING else data[at : len(data) - TELLING]
        return sanitized(b"".join([*shown, rest]))

    def _spans(self, data: bytes) -> Iterator[Span]:
        """Where secrets are, as they are or as URLs and JSON would write them."""
        for index in self._indices():
            for written, places in _readings(data):
                for start, end in index.spans(written):
                    yield (start, end) if places is None else (places[start], places[end])

    def _indices(self) -> Iterator[_Index]:
        if self._index is None:
            known = dict.fromkeys(secret for secrets in self._kept.values() for secret in secrets)
            for provider in self._providers:
                for secret in set(provider()):
                    known[secret.encode(errors="replace") if isinstance(secret, str) else secret] = None
            self._index = _Index(known)
        yield self._index
        if self._recent:
            self._recent_index = self._recent_index or _Index(self._recent)
            yield self._recent_index


class _Index:
    """Finds secrets in words in a time that depends on the words, hardly on how many secrets there are."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        # As text has them: of what is none, the server can say back no more than that
        entries = {(each if each.isascii() else each.decode(errors="replace").encode()).lower() for each in secrets}
        for each in [each for each in entries if b"%" in each and each.isascii()]:
            entries.add(unquote_plus(each.decode(), errors="replace").encode().lower())
        whole = b"\n".join(entries)
        apart = whole.translate(APART)
        if apart.count(b"\n") >= len(entries):
            parts = set(apart.split(b"\n"))
            for part in [part for part in parts if b"=" in part]:
                name, _, value = part.partition(b"=")
                if value.strip(b"="):  # else it is base64, which ends so, and no name of anything
                    if NAME.fullmatch(name):
                        parts.discard(part)
                    parts.add(value)
            entries |= parts
        elif b"=" in whole:
            entries.update(each.partition(b"=")[2] for each in [*entries] if b"=" in each)
        if b"\\" in whole:  # told in JSON, and said as it is meant
            for each in [each for each in entries if b"\\" in each]:
                entries.add(bytes(_without(IN_JSON, each, _of_json)[0]).lower())
        entries -= SCHEMES
        self._entries = entries
        self._beginnings = {entry[:SHORTEST] for entry in entries if len(entry) >= SHORTEST}
        self._sorted: dict[bytes, list[bytes]] = {}  # by how they begin, where words have asked for them

    def spans(self, data: bytes) -> Iterator[Span]:
        """Where a secret is in the words, or the beginning of one that was cut short."""
        beginnings, data = self._beginnings, data.lower()
        for start in range(len(data) - SHORTEST + 1):
            beginning = data[start : start + SHORTEST]
            if beginning in beginnings and (length := self._length(data[start:], beginning)):
                yield start, start + length

    def _length(self, data: bytes, beginning: bytes) -> int:
        """How much of the words' beginning is one of a secret's."""
        alike = self._sorted.get(beginning)
        if alike is None:
            alike = self._sorted[beginning] = sorted(each for each in self._entries if each.startswith(beginning))
        longest = max(
            (size for size in range(SHORTEST, min(TELLING, len(data) + 1)) if data[:size] in self._entries), default=0
        )
        place = bisect_left(alike, data)
        for entry in alike[max(place - 1, 0) : place + 1]:  # none has more in common with the words than its neighbours
            common = _in_common(data, entry)
            if common >= min(TELLING, len(entry)):
                longest = max(longest, common)
        return longest


def _in_common(one: bytes, other: bytes) -> int:
    """How many bytes they begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _readings(data: bytes) -> Iterator[tuple[bytes, list[int] | None]]:
    """The words as they are, and with what is escaped in them; and where in the words each byte of it is from."""
    yield data, None
    if b"%" in data:
        yield _without(IN_PERCENT, data, unquote_to_bytes)
    if b"+" in data:
        yield _without(IN_PERCENT, data.replace(b"+", b" "), unquote_to_bytes)
    if b"\\" in data:
        yield _without(IN_JSON, data, _of_json)


def _of_json(found: bytes) -> bytes:
    return ONE_ESCAPE.get(found) or str(json.loads(b'"%b"' % found)).encode(errors="replace")


def _without(escaped: re.Pattern[bytes], data: bytes, decode: Callable[[bytes], bytes]) -> tuple[bytes, list[int]]:
    plain, places, at = bytearray(), list[int](), 0
    for found in escaped.finditer(data):
        (start, end), decoded = found.span(), decode(found[0])
        plain += data[at:start] + decoded
        places += range(at, start)
        # Within a run of escapes it is known well enough: each takes as much room
        size = (end - start) / max(len(decoded), 1)
        places += [start] if len(decoded) == 1 else [start + int(size * each) for each in range(len(decoded))]
        at = end
    return bytes(plain + data[at:]), [*places, *range(at, len(data) + 1)]
