"""A server may say back to us what we told it: its words are shown and logged without our secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from os.path import commonprefix
from typing import Final
from urllib.parse import unquote_plus

from .status import presentable

__all__ = ["Redaction"]

SHORTEST: Final = 6  # characters; what is shorter is no secret worth the name, and part of many a word
TELLING: Final = 16  # characters; so much of a longer secret's beginning is taken for it
MOST: Final = 64  # secrets kept, the latest
PARTS: Final = 64  # of one secret
READ: Final = 4096  # characters of what the server says; 200 of them are shown
INSTEAD: Final = "…"
SCHEMES: Final = {"basic", "bearer", "digest", "negotiate"}  # of an Authorization header: no secret


class Redaction:
    """Makes a server's words fit to be shown: `presentable`, and without the secrets that it was told.

    For servers that echo, not for those that hide what they echo: a secret that comes back reversed is not found.
    ``also`` is one that knows further secrets.
    """

    def __init__(self, also: Redaction | None = None) -> None:
        self._also = also
        self._secrets: dict[str | bytes, None] = {}  # a set that remembers which came first

    def learn(self, secret: str | bytes | None) -> None:
        """Remember a secret, and its parts if it has several: ``Bearer token``, ``a=token; b=token``."""
        if not secret or len(secret) < SHORTEST:
            return
        self._secrets.pop(secret, None)  # so that it counts as the latest
        self._secrets[secret] = None
        if len(self._secrets) > MOST:
            del self._secrets[next(iter(self._secrets))]

    def __call__(self, words: object, told: bytes = b"") -> str:
        """The words as text: short, one line, no secrets; nor what the server was ``told`` besides."""
        text = _text(words)[:READ]
        secrets = _forms(_text(told)).union(*self._known())
        shown: list[str] = []
        at = 0
        for start, end in sorted(span for secret in secrets for span in _spans(text, secret)):
            if start >= at:
                shown += [text[at:start], INSTEAD]
            at = max(at, end)
        rest = text[at : READ - TELLING]  # a secret that was cut there is not recognised if so little of it is left
        return presentable("".join([*shown, rest]))

    def _known(self) -> list[frozenset[str]]:
        """The forms in which they may come back, worked out when words are shown: secrets are learnt far more often."""
        return [*map(_forms, map(_text, self._secrets)), *(self._also._known() if self._also is not None else ())]


def _text(words: object) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")


def _forms(text: str) -> frozenset[str]:
    """As it is, unquoted, and its parts; of ``name=value`` the value. Each also as JSON would write it."""
    parts = [part.partition("=") for part in re.split(r'[\s;,"{}]+', text, maxsplit=PARTS)]
    values = [value or name for name, _, value in parts if name.lower() not in SCHEMES]
    forms = [each for each in (text, unquote_plus(text), *values) if len(each) >= SHORTEST]
    return frozenset((*forms, *(json.dumps(each)[1:-1] for each in forms)))


def _spans(text: str, secret: str) -> Iterator[tuple[int, int]]:
    """Where the secret is in the text, or the beginning of it if it was cut short."""
    start, end = -1, 0
    while (start := text.find(secret[:TELLING], end)) >= 0:
        end = start + len(commonprefix([text[start : start + len(secret)], secret]))  # noqa: RUF071  # they are no paths
        yield start, end
