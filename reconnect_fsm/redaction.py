"""A server may say back to us what we told it: its words are shown and logged without our secrets (D-JUDGED).

They are judged as they came. Only what is really shown goes through here, so that is all that has to pay for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from os.path import commonprefix
from typing import Final
from urllib.parse import quote, unquote_plus

from .status import presentable

__all__ = ["Redaction"]

SHORTEST: Final = 6  # characters; what is shorter is no secret worth the name, and part of many a word
TELLING: Final = 16  # characters; so much of a longer secret's beginning is taken for it
MOST: Final = 64  # secrets kept of each kind, the latest
PARTS: Final = 64  # of one secret
READ: Final = 4096  # characters of what the server says; 200 of them are shown
INSTEAD: Final = "…"
SCHEMES: Final = {"basic", "bearer", "digest", "negotiate"}  # of an Authorization header: no secret
SIMPLE: Final = re.compile(r"[A-Za-z0-9._~-]+")  # has one form only: nothing in it is ever escaped, or set apart

Secret = str | bytes


class Redaction:
    """Makes a server's words fit to be shown: `presentable`, and without the secrets that it was told.

    There is one for each client, which knows all its secrets. For servers that echo, not for those that hide what they
    echo: a secret that comes back reversed is not found.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[Secret, frozenset[str] | None]] = {}  # by kind, each remembers which came first
        self._providers: list[Callable[[], Iterable[Secret]]] = []

    def learn(self, secret: Secret | None, kind: str = "") -> None:
        """Remember a secret, and its parts if it has several: ``Bearer token``, ``a=token; b=token``.

        The latest of each ``kind`` are kept, so that many of one kind do not push out those of another.
        """
        if not secret or len(secret) < SHORTEST:
            return
        secrets = self._kept.setdefault(kind, {})
        secrets[secret] = secrets.pop(secret, None)  # so that it counts as the latest
        if len(secrets) > MOST:
            del secrets[next(iter(secrets))]

    def ask(self, provider: Callable[[], Iterable[Secret]]) -> None:
        """Ask this function for further secrets whenever words are shown: there may be too many to keep them twice."""
        self._providers.append(provider)

    def __call__(self, words: object) -> str:
        """The words as text: short, one line, no secrets."""
        text = _text(words)[:READ]
        if len(text) < SHORTEST:
            return presentable(text)
        shown: list[str] = []
        at = 0
        for start, end in sorted(span for secret in self._forms() for span in _spans(text, secret)):
            if start >= at:
                shown += [text[at:start], INSTEAD]
            at = max(at, end)
        rest = text[at : READ - TELLING]  # a secret that was cut there is not recognised if so little of it is left
        return presentable("".join([*shown, rest]))

    def _forms(self) -> set[str]:
        """The forms in which secrets may come back. Of those that are kept they are worked out once."""
        found: set[str] = set()
        for secrets in self._kept.values():
            for secret, forms in secrets.items():
                if forms is None:
                    forms = secrets[secret] = _forms(_text(secret))
                found |= forms
        for provider in self._providers:
            for secret in set(provider()):
                text = _text(secret)
                if not SIMPLE.fullmatch(text):
                    found |= _forms(text)
                elif len(text) >= SHORTEST:
                    found.add(text)
        return found


def _text(words: object) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words or "")


def _forms(text: str) -> frozenset[str]:
    """As it is, quoted and unquoted, and its parts; of ``name=value`` the value. Each also as JSON would write it."""
    parts = [(part, *part.partition("=")) for part in re.split(r'[\s;,"{}]+', text, maxsplit=PARTS)]
    # Base64 ends with "=", which makes no name of it
    values = [value if value.strip("=") else part for part, name, _, value in parts if name.lower() not in SCHEMES]
    forms = [each for each in (text, unquote_plus(text), *values) if len(each) >= SHORTEST]
    forms += [quoted for each in forms if (quoted := quote(each, safe="", errors="replace")) != each]
    return frozenset((*forms, *(json.dumps(each)[1:-1] for each in forms)))


def _spans(text: str, secret: str) -> Iterator[tuple[int, int]]:
    """Where the secret is in the text, or the beginning of it if it was cut short."""
    start, end = -1, 0
    while (start := text.find(secret[:TELLING], end)) >= 0:
        end = start + len(commonprefix([text[start : start + len(secret)], secret]))  # noqa: RUF071  # they are no paths
        yield start, end
