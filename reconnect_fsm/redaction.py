"""A server may say back to us what we told it: its words are shown and logged without our secrets."""

from __future__ import annotations

import re
from os.path import commonprefix
from typing import Final
from urllib.parse import unquote_plus

from .status import presentable

__all__ = ["Redaction"]

SHORTEST: Final = 6  # characters; what is shorter is no secret worth the name, and part of many a word
TELLING: Final = 16  # characters; so much of a longer secret's beginning is taken for it
MOST: Final = 64  # secrets kept, the latest
INSTEAD: Final = "…"


class Redaction:
    """Makes a server's words fit to be shown: `presentable`, and without the secrets that it was told.

    For servers that echo, not for those that hide what they echo: a secret that comes back reversed is not found.
    ``also`` is one that knows further secrets.
    """

    def __init__(self, also: Redaction | None = None) -> None:
        self._also = also
        self._secrets: dict[str, None] = {}

    def learn(self, secret: str | bytes | None) -> None:
        """Remember a secret, and its words if it has several: ``Bearer token``, ``a=token; b=token``."""
        for each in _forms(secret):
            self._secrets[each] = None
        while len(self._secrets) > MOST:
            del self._secrets[next(iter(self._secrets))]

    def __call__(self, words: object, told: bytes = b"") -> str:
        """The words as text: short, one line, no secrets; nor what the server was ``told`` besides."""
        text = words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")
        for secret in sorted({*self._known(), *_forms(told)}, key=len, reverse=True):
            text = _without(text, secret)
        return presentable(text)

    def _known(self) -> list[str]:
        return [*self._secrets, *(self._also._known() if self._also is not None else ())]


def _forms(secret: str | bytes | None) -> list[str]:
    text = secret.decode(errors="replace") if isinstance(secret, bytes) else secret or ""
    forms = (text, unquote_plus(text), *re.split(r"[\s;,=&]+", text))
    return [each for each in forms if len(each) >= SHORTEST]


def _without(text: str, secret: str) -> str:
    """The text without the secret, and without the beginning of one that was cut short."""
    beginning = secret[:TELLING]
    shown, at = [], 0
    while (found := text.find(beginning, at)) >= 0:
        shown += [text[at:found], INSTEAD]
        at = found + len(commonprefix([text[found : found + len(secret)], secret]))  # noqa: RUF071  # they are no paths
    return "".join([*shown, text[at:]])
