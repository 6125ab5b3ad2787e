"""The fixtures that the other tests rely on: leaks are found, virtual time is virtual, skips in CI fail."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pytest_aiohttp.plugin import AiohttpClient

from reconnect_fsm.testing import leaks, virtual_time

HERE = Path(__file__).parents[1]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project with the configuration and the conftest.py of this one."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{HERE / 'support'}")
    pytester.makepyprojecttoml((HERE.parent / "pyproject.toml").read_text().replace('testpaths = ["tests"]', ""))
    pytester.makeconftest((HERE / "conftest.py").read_text())
    return pytester


# ---------------------------------------------------------------------------------------------------------------- leaks

LEAKING_TESTS = """
import asyncio, os, pytest, socket, threading
kept, end = [], threading.Event()

@pytest.fixture
async def address():
    async with await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()

async def test_task():
    kept.append(asyncio.create_task(end_of_time()))

async def end_of_time():
    await asyncio.Event().wait()

async def test_timer():
    asyncio.get_running_loop().call_later(3600, print)

async def test_server():
    kept.append(await asyncio.start_server(print, "127.0.0.1", 0))

async def test_connection(address):
    kept.append(await asyncio.open_connection(*address))

@pytest.mark.virtual_time
async def test_virtual_server():
    kept.append(await asyncio.start_server(print, "127.0.0.1", 0))

async def test_socket():
    kept.append(socket.socket())

async def test_descriptor():
    os.dup(0)

async def test_thread():
    threading.Thread(target=end.wait, name="forgotten").start()

def test_socket_in_sync():
    kept.append(socket.socket())

def test_thread_in_sync():
    threading.Thread(target=end.wait, name="forgotten").start()

def test_clean_in_spite_of_what_others_left():
    end.set()
"""
FOUND = {
    "test_task": "task <Task pending *end_of_time*",
    "test_timer": "timer <TimerHandle *print*",
    "test_server": "watched by the loop: <*socket*",
    "test_connection": "transport <_SelectorSocketTransport * to ('127.0.0.1', *",
    "test_virtual_server": "watched by the loop: <*ListenSocket*",
    "test_socket": "file descriptor * -> socket:*",
    "test_descriptor": "file descriptor * -> */*",
    "test_thread": "thread forgotten",
    "test_socket_in_sync": "file descriptor * -> socket:*",
    "test_thread_in_sync": "thread forgotten",
}


def test_each_kind_of_leak_is_an_error_of_the_test_that_made_it(project: pytest.Pytester) -> None:
    """Every leaking test ends in an error that names what it left; the clean one beside them passes."""
    project.makepyfile(LEAKING_TESTS)
    result = project.runpytest_subprocess("-W", "ignore")  # or a ResourceWarning may be quicker to tell
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=len(FOUND) + 1, errors=len(FOUND))
    for test, what in FOUND.items():
        result.stdout.fnmatch_lines([f"*ERROR at teardown of {test} *", "* left over:", f"*{what}*"])
    result.stdout.no_fnmatch_line("*ERROR at teardown of test_clean*")


def test_what_was_dropped_unclosed_is_an_error_of_the_test_that_dropped_it(project: pytest.Pytester) -> None:
    """A ResourceWarning, which nobody can catch, fails its own test, even when only the garbage collector finds it."""
    project.makepyfile(
        """
        import aiohttp

        async def test_unclosed():
            cycle = [aiohttp.ClientSession()]
            cycle.append(cycle)

        async def test_clean():
            pass
        """
    )
    result = project.runpytest_subprocess()
    outcomes = result.parseoutcomes()  # the collector may also have run during the test
    assert outcomes.get("errors", 0) + outcomes.get("failed", 0) == 1
    result.stdout.fnmatch_lines(["*test_unclosed*", "*Unclosed client session*"])
    result.stdout.no_fnmatch_line("*teardown of test_clean*")


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_plugin_works_in_each_mode_of_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    """A user's project has a configuration of its own: leaks are found, time is virtual, and no warning is an error."""
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        asyncio_mode = "{mode}"
        asyncio_default_fixture_loop_scope = "function"
        filterwarnings = ["error"]
        """
    )
    pytester.makeconftest("pytest_plugins = ['reconnect_fsm.testing.pytest_plugin']")
    pytester.makepyfile(
        """
        import asyncio, pytest
        from reconnect_fsm import Client
        from reconnect_fsm.testing import EmbeddedServer
        kept = []

        @pytest.mark.asyncio
        async def test_leaks(no_leaks):
            kept.append(asyncio.create_task(asyncio.sleep(1000)))

        @pytest.mark.asyncio
        @pytest.mark.virtual_time
        async def test_virtual(no_leaks):
            async with EmbeddedServer() as server, Client(server.url) as client:
                await client.wait_connected()
                server.reset_all()
                await asyncio.sleep(3600)
                assert client.status == "connected"
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*", "* left over:", "  task <Task *"])


async def test_servers_of_other_fixtures_are_no_leak(aiohttp_client: AiohttpClient) -> None:
    """What a fixture closes after the test is not held against the test."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="pong")

    app = web.Application()
    app.router.add_get("/", answer)
    client = await aiohttp_client(app)
    assert await (await client.get("/")).text() == "pong"
    assert await leaks.left_over({}) != []  # it is open now, and the fixtures that look after this test must not mind


async def test_the_default_executor_is_no_leak() -> None:
    """A thread in which a name was looked up belongs to the loop."""
    before = leaks.in_loop() | leaks.in_process()
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    await asyncio.to_thread(threading.current_thread)
    assert await leaks.left_over(before) == []


async def test_what_is_on_its_way_out_is_no_leak() -> None:
    """A cancelled task and a closed connection are given the passes of the loop that they need."""
    before = leaks.in_loop() | leaks.in_process()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    task = asyncio.create_task(asyncio.Event().wait())
    timer = asyncio.get_running_loop().call_later(3600, print)
    await asyncio.sleep(0)
    assert len(await leaks.left_over(before)) >= 4
    writer.close()
    server.close()
    task.cancel()
    timer.cancel()
    assert await leaks.left_over(before) == []


def test_without_a_loop_descriptors_and_threads_are_found() -> None:
    """What a plain function opens is found, and no longer found once it is closed."""
    before = leaks.in_process()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    thread.start()
    copy = os.dup(0)
    with socket.socket():
        left = leaks.left_over_without_loop(before)
    assert len(left) == 3
    assert "thread forgotten" in left
    end.set()
    thread.join()
    os.close(copy)
    assert leaks.left_over_without_loop(before) == []


# --------------------------------------------------------------------------------------------------------- virtual time


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"{message.data} to you")
    return socket


@pytest.mark.virtual_time
async def test_time_jumps() -> None:
    """An hour of waiting takes an hour of the loop's time and none of ours."""
    loop = asyncio.get_running_loop()
    began, really_began = loop.time(), time.monotonic()
    await asyncio.sleep(3600)
    assert loop.time() - began == pytest.approx(3600)
    assert time.monotonic() - really_began < (loop.time() - began) / 60
    assert loop.get_debug()


@pytest.mark.virtual_time
async def test_timeouts_fire_in_virtual_time() -> None:
    """asyncio.timeout ends a wait for what never happens, when it is due."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await asyncio.Event().wait()
    assert loop.time() - began == pytest.approx(10)


@pytest.mark.virtual_time
async def test_a_real_client_talks_to_a_real_server() -> None:
    """aiohttp's WebSocket client and server work in memory, hours apart, and use no descriptor."""
    before = leaks.in_process()
    async with (
        virtual_time.serving(echo) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as socket,
    ):
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello to you"
        await asyncio.sleep(3600)
        await socket.send_bytes(b"x" * 200_000)  # more than the buffers in memory hold
        assert len(await socket.receive_str()) > 200_000
        assert leaks.in_process() == before
        assert len(leaks.in_loop()) >= 3


@pytest.mark.virtual_time
async def test_a_refused_connection_is_refused_as_by_the_kernel() -> None:
    """Where nobody listens, aiohttp raises what it raises on a real network."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="Connect call failed") as refused:
            await session.ws_connect("ws://127.0.0.1:9/")
    assert isinstance(refused.value.os_error, ConnectionRefusedError)


@pytest.mark.virtual_time
async def test_a_lost_connection_is_seen_by_both_sides() -> None:
    """An aborted transport ends the other side's reading, as a reset does."""
    async with (
        virtual_time.serving(echo) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as socket,
    ):
        response: Any = socket._response
        response.connection.transport.abort()
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSED


async def test_serving_works_under_real_time_too() -> None:
    """The same server listens on a real loopback socket when the test is not marked."""
    async with (
        virtual_time.serving(echo) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(url) as socket,
    ):
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello to you"


@given(st.floats(min_value=0, max_value=80_000))
def test_runs_are_independent_of_each_other(delay: float) -> None:
    """Each run has a clock of its own that starts at nought, so that it can be repeated exactly."""

    async def scenario() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(delay)
        return began, loop.time()

    began, ended = virtual_time.run(scenario)
    assert began == 0
    assert ended == pytest.approx(delay, abs=2e-6)


def test_a_run_that_leaves_something_fails() -> None:
    """run() looks for leaks by itself: a Hypothesis test has one fixture for all its examples."""

    async def scenario() -> None:
        asyncio.get_running_loop().call_later(1, print)

    with pytest.raises(pytest.fail.Exception, match="timer <TimerHandle"):
        virtual_time.run(scenario)


# ----------------------------------------------------------------------------------------------------------- real parts

NEEDS_A_PART = """
import pytest

@pytest.mark.node
def test_node():
    pytest.skip("no server")

@pytest.mark.dot
@pytest.mark.skipif(True, reason="no picture")
def test_dot():
    pass

@pytest.mark.node
@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_anything():
    pytest.skip("not today")
"""


@pytest.mark.parametrize(("ci", "outcomes"), [("", {"skipped": 3}), ("true", {"failed": 1, "errors": 1, "skipped": 1})])
def test_in_ci_a_skipped_real_part_is_a_failure(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, outcomes: dict[str, int]
) -> None:
    """Only in CI, and only for the marked tests, is a skip a failure, which is listed."""
    monkeypatch.setenv("CI", ci)
    project.makepyfile(NEEDS_A_PART)
    result = project.runpytest_subprocess()
    result.assert_outcomes(xfailed=1, **outcomes)
    if ci:
        result.stdout.fnmatch_lines(
            ["ERROR *::test_dot*needs dot: *no picture", "FAILED *::test_node*needs node: *no server"]
        )


def test_in_ci_a_skipped_file_is_a_failure(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole file that is skipped might hold tests of a real part."""
    monkeypatch.setenv("CI", "true")
    project.makepyfile("import pytest\npytest.importorskip('no_such_module')")
    result = project.runpytest_subprocess()
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*skipped in CI*no_such_module*"])


def test_without_the_programs_their_tests_are_skipped(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without node or dot, the tests marked so are skipped by themselves."""
    monkeypatch.setenv("PATH", "")
    project.makepyfile(
        """
        import pytest

        @pytest.mark.node
        def test_node():
            pass

        @pytest.mark.dot
        def test_dot():
            pass
        """
    )
    project.runpytest_subprocess().assert_outcomes(skipped=2)
