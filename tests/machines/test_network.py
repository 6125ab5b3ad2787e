"""Where online and offline come from: the manual source, sources of one's own, and threads (OFF-1, OFF-2)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

import faulty
from faulty import Watch
from kit import PATIENCE, until
from reconnect_fsm import ClientStopped, Connection, ManualNetwork, NetworkSource, RetryPolicy

LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)


class Source:
    """A source of one's own: no base class, just the one method."""

    def __init__(self) -> None:
        self.report: Callable[[bool], None] | None = None
        self.subscriptions = 0

    def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
        self.report = report
        self.subscriptions += 1
        return self._end

    def _end(self) -> None:
        self.report = None


def test_a_source_is_whatever_has_the_method() -> None:
    """`NetworkSource` is a Protocol; a client refuses what does not have it."""
    assert isinstance(ManualNetwork(), NetworkSource)
    assert isinstance(Source(), NetworkSource)
    with pytest.raises(TypeError, match="network must be a NetworkSource"):
        Connection("ws://127.0.0.1/", network=object())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- with a connection


async def test_off_1_a_source_pauses_and_resumes() -> None:
    """OFF-1, OFF-2: what the source reports pauses the client, and makes it connect again at once."""
    network = ManualNetwork()
    async with faulty.server(faulty.echo) as server, Connection(server.url, network=network, retry=LATER) as connection:
        await connection.wait_connected()
        network.set_online(False)
        assert connection.state == "paused"
        await server.peer.gone.wait()
        assert server.peer.closed_with == (1001, "offline")
        network.set_online(True)
        assert connection.state == "retrying"
        await connection.wait_connected()


@pytest.mark.virtual_time
async def test_off_1_offline_from_the_beginning() -> None:
    """OFF-1: with a source that reports offline at once, nothing is dialled until it reports online."""
    network = ManualNetwork(online=False)
    async with faulty.server(faulty.echo) as server, Connection(server.url, network=network) as connection:
        await asyncio.sleep(3600)
        assert connection.state == "paused"
        assert server.connects == 0
        network.set_online(True)
        await connection.wait_connected()
        assert server.times == pytest.approx([3600], abs=0.01)


@pytest.mark.virtual_time
async def test_ctrl_1_connect_instead_of_start_overrides_a_source_that_is_offline_from_the_beginning() -> None:
    """CTRL-1: `connect()` is a person's word: one attempt is made all the same; when it fails, the client pauses."""
    network = ManualNetwork(online=False)
    async with faulty.server(faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url, network=network)
        connection.connect()
        await asyncio.sleep(3600)
        assert connection.state == "paused"
        assert server.connects == 1
        await connection.connect()
        assert server.connects == 2
        await connection.close()


async def test_a_source_is_subscribed_to_only_while_the_client_runs() -> None:
    """CTRL-2: nothing is asked of the source before the start, nor after `close()`; a new start asks anew."""
    source = Source()
    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=source)
        assert source.subscriptions == 0
        connection.start()
        await connection.wait_connected()
        assert source.report is not None
        await connection.close()
        assert source.report is None
        connection.start()
        await connection.wait_connected()
        assert source.subscriptions == 2
        await connection.close()
        assert source.report is None


async def test_the_source_is_not_subscribed_to_twice() -> None:
    """A client that reconnects by itself, or by hand, keeps its one subscription."""
    source = Source()
    async with faulty.server(faulty.echo) as server, Connection(server.url, network=source) as connection:
        for _ in range(3):
            await connection.retry_now()
        assert source.subscriptions == 1


async def test_what_was_missed_while_closed_is_made_up_for() -> None:
    """OFF-2: a client that was closed offline and starts again online knows so at once."""
    network = ManualNetwork()
    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=network, retry=LATER)
        connection.start()
        await connection.wait_connected()
        network.set_online(False)
        await connection.close()
        network.set_online(True)
        connection.start()
        await connection.wait_connected()
        network.set_online(False)
        assert connection.state == "paused"
        await connection.close()


async def test_ctrl_1_connect_by_hand_overrides_a_source_that_went_offline_while_closed() -> None:
    """CTRL-1: `connect()` after `close()` makes an attempt, also if the source says offline."""
    network = ManualNetwork()
    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=network, retry=LATER)
        await connection.connect()
        await connection.close()
        network.set_online(False)
        asked = connection.connect()
        try:
            async with asyncio.timeout(PATIENCE):
                await asked
        finally:
            await connection.close()


# -------------------------------------------------------------------------------------------------- set_online, threads


async def test_set_online_from_another_thread() -> None:
    """`set_online` may be called from any thread: it takes effect in the loop's own."""
    here, seen = threading.get_ident(), []
    async with faulty.server(faulty.echo) as server, Connection(server.url, retry=LATER) as connection:
        watch = Watch(connection)
        connection.on_transition(lambda _: seen.append(threading.get_ident()))
        await connection.wait_connected()
        for online, state in ((False, "paused"), (True, "connected")):
            monitor = threading.Thread(target=connection.set_online, args=(online,))
            monitor.start()
            monitor.join()
            await until(lambda state=state: connection.state == state)  # type: ignore[misc]
        assert watch.states == ["connected", "paused", "retrying", "connected"]
        assert set(seen) == {here}


async def test_a_source_may_report_from_a_thread() -> None:
    """OFF-1: a source with a thread of its own needs no care."""
    source = Source()
    async with faulty.server(faulty.echo) as server, Connection(server.url, network=source, retry=LATER) as connection:
        await connection.wait_connected()
        assert source.report is not None
        await asyncio.to_thread(source.report, False)
        await until(lambda: connection.state == "paused")


def test_set_online_before_there_is_a_loop() -> None:
    """OFF-1: reported before the start, also by another thread, offline is remembered: the start pauses at once."""
    connection = Connection(f"ws://127.0.0.1:{faulty.unused_port()}/", retry=LATER)
    monitor = threading.Thread(target=connection.set_online, args=(False,))
    monitor.start()
    monitor.join()

    async def main() -> str:
        connection.start()
        state = connection.state
        await connection.close()
        return state

    assert asyncio.run(main()) == "paused"


def test_set_online_after_the_loop_has_ended() -> None:
    """A monitor's thread that outlives the loop hurts nobody."""
    connection = Connection(f"ws://127.0.0.1:{faulty.unused_port()}/", retry=LATER)

    async def main() -> None:
        connection.start()
        await connection.close()

    asyncio.run(main())
    monitor = threading.Thread(target=connection.set_online, args=(False,))
    monitor.start()
    monitor.join()
    assert connection.state == "disconnected"


@pytest.mark.parametrize("online", [True, False])
async def test_a_report_that_is_no_news_changes_nothing(online: bool) -> None:
    """Reported twice, heard once: nothing happens and no status is repeated."""
    async with faulty.server(faulty.echo) as server, Connection(server.url, retry=LATER) as connection:
        await connection.wait_connected()
        connection.set_online(online)
        before, watch = connection.state, Watch(connection)
        connection.set_online(online)
        await asyncio.sleep(0.02)
        assert connection.state == before
        assert watch.steps == []
        assert watch.changes == []


# ---------------------------------------------------------------------------------------------------- sources that fail


async def test_d_error_a_source_that_cannot_be_subscribed_to() -> None:
    """D-ERROR: a source of the user's own that raises puts the client in ``error``; nothing hangs."""

    class Broken:
        def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
            raise OSError("no such service")

    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=Broken())
        with pytest.raises(ClientStopped, match="the network source raised OSError"):
            async with asyncio.timeout(PATIENCE):
                await connection.connect()
        assert connection.status == "error"
        assert server.connects == 0
        await connection.close()
        assert connection.status == "disconnected"


async def test_d_stop_a_source_that_cannot_be_subscribed_to_twice() -> None:
    """D-STOP, D-ERROR: a second attempt by hand that meets the same fault hangs nobody either."""

    class Broken:
        def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
            raise OSError("no such service")

    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=Broken())
        for _ in range(2):
            with pytest.raises(ClientStopped, match="the network source raised OSError"):
                async with asyncio.timeout(PATIENCE):
                    await connection.connect()
        await connection.close()
        assert server.connects == 0


async def test_a_source_that_raises_when_left_hangs_nobody() -> None:
    """CTRL-2: `close()` ends, and the client is disconnected, though ending the subscription raises."""

    class Broken:
        def subscribe(self, report: Callable[[bool], None]) -> Callable[[], None]:
            def end() -> None:
                end_calls.append(1)
                raise OSError("no such service")

            return end

    end_calls: list[int] = []
    async with faulty.server(faulty.echo) as server:
        connection = Connection(server.url, network=Broken())
        connection.start()
        await connection.wait_connected()
        async with asyncio.timeout(PATIENCE):
            await connection.close()
        assert connection.status == "disconnected"
        await server.peer.gone.wait()
        assert server.peer.closed_with == (1000, "")
        assert end_calls == [1]
