"""Which secrets a client learns from its URL, options and session, so that they are never shown (D-JUDGED)."""

from __future__ import annotations

import base64

import aiohttp
import pytest
from yarl import URL

from reconnect_fsm._asyncio.transport.secrets import learn_secrets
from reconnect_fsm._redaction import Redaction

SECRET = "s3cr3t-t0ken"


@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated")
async def test_the_address_the_options_and_the_session_are_searched_for_secrets() -> None:
    """Whatever can carry credentials: URL, headers, those of the proxy, BasicAuth, params, cookies."""
    options = {
        "headers": {"X-Token": "in-headers"},
        "proxy_headers": [("X-Token", "in-proxy-headers")],
        "auth": aiohttp.BasicAuth("me", "in-basic-auth"),
        "proxy_auth": aiohttp.BasicAuth("me", "in-proxy-auth"),
        "proxy": URL("http://me:in-proxy-url@127.0.0.1:1/"),
        "params": {"token": "in-params"},
    }
    url = URL("ws://me:in-password@127.0.0.1/?access_token=in%20query&in-no-pair&room_id=server")
    known = Redaction()
    async with aiohttp.ClientSession(headers={"X-Token": "in-session"}, cookies={"a": "in-cookies"}) as session:
        learn_secrets(known, url, options, session)
    found = ["in-headers", "in-proxy-headers", "in-basic-auth", "in-proxy-auth", "in-proxy-url", "in-params"]
    found += ["in-session", "in-cookies", "in-password", "in query", "in%20query", "in-no-pair"]
    found += [base64.b64encode(pair).decode() for pair in (b"me:in-basic-auth", b"me:in-proxy-url", b"me:in-password")]
    assert [known(each) for each in found] == ["…"] * len(found)
    words = "access_token expired: a Bearer for this room_id"
    assert known(words) == words  # names are no secrets


def test_d_judged_a_password_of_basic_auth_is_known_as_the_server_reads_it() -> None:
    """D-JUDGED: the header holds base64, the server has the password. What is no base64 is learned as it is."""
    made = Redaction()
    basic = base64.b64encode(f"someone:{SECRET}".encode()).decode()
    learn_secrets(made, URL(), {"headers": {"Authorization": f"Basic {basic}", "X-Other": "basic =no-base64"}})
    assert made(f"bad password {SECRET} of someone, {basic}, =no-base64") == "bad password … of …, …, …"


async def test_where_nothing_is_given_nothing_is_learned() -> None:
    """No credentials, no secrets."""
    known = Redaction()
    async with aiohttp.ClientSession() as session:
        learn_secrets(known, URL("ws://127.0.0.1/path"), {}, session)
    assert known("anything at all: /path 127.0.0.1") == "anything at all: /path 127.0.0.1"
