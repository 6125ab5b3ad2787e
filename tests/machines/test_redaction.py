"""A server's words are shown without what it was told: URL, headers, cookies, credentials, auth bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

import pytest

import reconnect_fsm._redaction as redaction_module
from reconnect_fsm._redaction import MOST, MOST_RECENT, READ, Redaction

SECRET = "s3cr3t-t0ken"


def redaction(*secrets: str | bytes) -> Redaction:
    made = Redaction()
    for each in secrets:
        made.learn(each)
    return made


@pytest.mark.parametrize(
    ("told", "said", "shown"),
    [
        (SECRET, f"no such token: {SECRET}!", "no such token: …!"),
        (SECRET.encode(), f"{SECRET}{SECRET}".encode(), "……"),
        (f"Bearer {SECRET}", f"unknown {SECRET}", "unknown …"),
        (f"Bearer {SECRET}", f"Bearer {SECRET}", "…"),
        (f"a=1; session={SECRET}", f"bad session {SECRET}", "bad session …"),
        (f'Digest username="me", response="{SECRET}"', f"Digest of me: {SECRET}", "Digest of me: …"),
        (f'{{"token": "{SECRET}"}}', f"unknown {SECRET}", "unknown …"),
        ("Basic bWU6c2VjcmV0==", "bad bWU6c2VjcmV0==", "bad …"),
        (f"Bearer {SECRET}", f"unknown {SECRET.upper()}", "unknown …"),
        (SECRET.upper(), f"unknown {SECRET}", "unknown …"),
        (SECRET.upper(), f"unknown {quote(SECRET + '!').lower()}", "unknown …%21"),
        (json.dumps({"token": "päss/w+rd=42"}), "unknown päss/w+rd=42", "unknown …"),
        ('{"token": "pa\\/ss+word=42"}', "unknown pa/ss+word=42", "unknown …"),
        ("two words!", "you said two%20words%21", "you said …"),
        ("two%20words%21", "you said: two words!", "you said: …"),
        ("short", "a short word is no secret", "a short word is no secret"),
        (b"\xff\xfe\xfd\xfc\xfb\xfa", b"echo \xff\xfe\xfd\xfc\xfb\xfa", "echo …"),
        ("", "words", "words"),
        (SECRET, None, ""),
    ],
)
def test_a_secret_is_replaced(told: str | bytes, said: object, shown: str) -> None:
    """Whole or in words, as text or bytes, quoted as in a URL or not."""
    assert redaction(told)(said) == shown


def test_a_secret_is_replaced_before_the_words_are_cut() -> None:
    """What is shown is short; a secret across the cut does not show its first half."""
    words = "x" * 195 + SECRET
    assert redaction(SECRET)(words) == "x" * 195 + "…"
    assert len(redaction(SECRET)("x" * 10_000)) == 200


def test_the_beginning_of_a_secret_is_replaced() -> None:
    """A close reason has room for 123 bytes, so a server that echoes a long token cuts it short."""
    token = "".join(f"{number:03}" for number in range(200))
    assert redaction(token)(f"bad token {token}"[:123]) == "bad token …"
    assert redaction(token)(f"bad {token[:16]}!") == "bad …!"
    assert redaction(token)(f"bad {token[:15]}!") == f"bad {token[:15]}!"


def test_of_a_flood_of_words_only_the_beginning_is_read() -> None:
    """Neither a secret that the limit cuts in two is shown, nor one of very many parts searched for at length."""
    assert redaction(SECRET)("x" * (READ - 8) + SECRET) == "x" * 200
    assert redaction(SECRET * 2)((SECRET * 2 + "…") * READ) == "…" * 200
    known = redaction(" ".join(f"word{number:06}" for number in range(20_000)))
    assert known("word02, word019999, word000000") == "word02, …, …"


def test_d_judged_a_provider_is_asked_when_words_are_shown() -> None:
    """What rooms told the server is known without being kept twice, however many rooms there are."""
    known = redaction(SECRET)
    rooms = [f"room-token-{number:05}".encode() for number in range(10_000)] + [b'{"token": "in-json"}', b"short"]
    asked = []
    known.ask(lambda: asked.append(1) or rooms)  # type: ignore[func-returns-value]
    known.learn("learned before")
    assert not asked
    assert known("room-token-00000, room-token-09999 and room-token-1") == "…, … and room-token-1"
    assert known("in-json, in short, learned before") == "…, in short, …"
    for number in range(10_000, 10_000 + MOST_RECENT):
        known.learn(f"room-token-{number:05}", "room")
    assert known(f"room-token-00000 {SECRET} room-token-{9_999 + MOST_RECENT}") == "… … …"
    assert len(asked) == 1
    rooms[0] = b"room-token-1000000"
    known.learn("one too many")
    assert known("room-token-00000, room-token-1000000, one too many") == "room-token-00000, …, …"
    assert len(asked) == 2


def test_d_judged_the_index_is_made_when_words_are_shown_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Showing words is what costs, learning does not, and no secret costs twice."""
    made: list[int] = []

    class Counting(redaction_module._Index):
        def __init__(self, secrets: Iterable[bytes]) -> None:
            listed = list(secrets)
            made.append(len(listed))
            super().__init__(listed)

    monkeypatch.setattr(redaction_module, "_Index", Counting)
    known = redaction(*(f"secret{number:04}" for number in range(MOST)))
    assert (known(""), known("short")) == ("", "short")  # there is no room for a secret
    assert made == []
    for _ in range(10):
        assert known(f"{SECRET} secret0001") == f"{SECRET} …"
        known.learn("secret0001")  # it is known
    assert made == [MOST]
    known.learn(SECRET)
    for _ in range(10):
        assert known(f"{SECRET} secret0001") == "… …"
    assert made == [MOST, 1]


@pytest.mark.parametrize("escape", [quote, quote_plus, lambda word: json.dumps(word)[1:-1], str])
@pytest.mark.parametrize("secret", ['two words + é/ü=\\"', "simple-token", "a" * 15 + "é", "\U0001f511-and-\n-more"])
def test_d_judged_however_it_is_escaped(escape: Callable[[str], str], secret: str) -> None:
    """As it is, as in a path, a query or JSON; what is around it stays."""
    said = f"é%é+ {escape(secret)}; more +"
    shown = redaction(secret)(said)
    assert shown.startswith("é%é+ …")
    assert shown.endswith("; more +")
    assert len(shown) <= len("é%é+ …; more +") + 1


@pytest.mark.parametrize(
    "said", [b"\xff\xfe" * 40, "\ud800" * 40, "\\" * 40, "%" * 40, "\\u12" * 9, "\\ud83d \\u0000", "+" * 9]
)
def test_d_judged_words_that_are_no_text(said: str | bytes) -> None:
    """Whatever a server says, and whatever was told, is shown somehow."""
    known = redaction(b"\xff\xfe\xfd" * 9, "\ud800" * 9, "\\ud83d" * 2, "%%%%%%%", SECRET)
    assert len(known(said)) <= 200
    assert known(f"{SECRET} {SECRET}") == "… …"


def test_d_judged_secrets_that_overlap() -> None:
    """Of two that are said in one another nothing is left."""
    assert redaction("abcdefgh", "efghijklmn")("say abcdefghijklmn") == "say …"


def test_a_longer_secret_is_replaced_before_a_shorter_one_within_it() -> None:
    """Else the rest of the longer one would show."""
    assert redaction("secret", "secret-and-more")("secret-and-more") == "…"


def test_two_tokens_that_begin_alike_are_both_replaced() -> None:
    """All JSON Web Tokens of an issuer begin with the same words; the one that was told before hides none of this."""
    head = "eyJhbGciOiJIUzI1NiJ9"
    old, new = f"{head}.old-payload-that-is-longer.signature", f"{head}.new-payload.signed"
    assert redaction(old, new)(f"bad token {new}!") == "bad token …!"
    assert redaction(new, old)(f"bad token {new}!") == "bad token …!"


def test_a_secret_that_is_told_again_counts_as_the_latest() -> None:
    """A static header outlives any number of tokens that are renewed."""
    known = Redaction()
    for number in range(10 * MOST):
        known.learn(SECRET)
        known.learn(f"secret{number:04}")
    assert known(SECRET) == "…"


def test_a_secret_of_many_words_is_one_secret() -> None:
    """A long header does not push out the others."""
    known = redaction(SECRET, " ".join(f"word{number:04}" for number in range(10 * MOST)))
    assert known(f"{SECRET} word0001") == "… …"


def test_the_latest_secrets_are_kept() -> None:
    """Tokens that are renewed for ever do not fill the memory."""
    secrets = [f"secret{number:04}" for number in range(10 * MOST)]
    known = redaction(*secrets)
    assert known(secrets[-1]) == "…"
    assert known(secrets[-MOST]) == "…"
    assert known(secrets[0]) == secrets[0]


def test_secrets_of_one_kind_do_not_push_out_those_of_another() -> None:
    """Tokens of many rooms, and one of the connection."""
    known = redaction(SECRET)
    for number in range(10 * MOST):
        known.learn(f"secret{number:04}", "room")
    assert known(f"{SECRET} secret{10 * MOST - 1:04} secret0001") == "… … secret0001"


def test_a_secret_that_comes_back_as_json_is_replaced() -> None:
    """Quotes, backslashes and other alphabets are escaped there."""
    known = Redaction()
    secret = 'pä"ss\\word'
    known.learn(secret)
    said = json.dumps({"denied": secret})
    assert secret not in said
    assert known(said) == '{"denied": "…"}'


def test_d_judged_the_value_of_a_pair_is_a_secret() -> None:
    """D-JUDGED: a header that is `name=value` and nothing else may come back as its value alone."""
    known = Redaction()
    known.learn(f"session={SECRET}")
    assert known(f"no such session: {SECRET}") == "no such session: …"
