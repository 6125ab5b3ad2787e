"""The driver of the client's machine: what a user asks for, what they are told, and what is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import faulty
from faulty import Behaviour, Peer, Watch
from kit import PATIENCE, Statuses, now, until
from reconnect_fsm import (
    ClientFSM,
    ClientStatus,
    ClientStopped,
    Connection,
    Keepalive,
    RetryPolicy,
    StateChange,
    StatusChange,
    Unauthorized,
)
from reconnect_fsm._asyncio.connection import connection_driver_of
from reconnect_fsm.effects import Dial, Effect
from reconnect_fsm.machine import ANY, STAY, row
from reconnect_fsm.status import AttemptFailure, CloseInfo
from reconnect_fsm.testing import leaks, virtual_time

QUICK = RetryPolicy(base=0.01, cap=0.02, jitter=0.0)
EXACT = RetryPolicy(jitter=0.0)
LATER = RetryPolicy(base=1000.0, cap=1000.0, jitter=0.0)  # once lost, it waits
NO_PINGS = Keepalive(enabled=False)
NOBODY = "ws://127.0.0.1:1/"  # under virtual time, where only our own servers are


def interrupt(connection: Connection) -> None:
    """Offline and online again."""
    connection.set_online(False)
    connection.set_online(True)


def fatal(peer: Peer) -> Awaitable[None]:
    """Accepts, and closes for good."""
    return faulty.accept_then_close(1008, "go away")(peer)


def lose(peer: Peer) -> Awaitable[None]:
    """Accepts, and closes for now."""
    return faulty.accept_then_close(1012)(peer)


# ---------------------------------------------------------------------------------------------------------- connection


@pytest.mark.virtual_time
async def test_conn_1_the_status_is_one_of_five() -> None:
    """CONN-1: in a life with everything in it, the status is `connecting`, `connected`, `reconnecting`,
    `disconnected` or `error`, and every state of the machine shows as one of them."""
    urls: list[Any] = []

    async with faulty.server(lose, faulty.accept_then_close(1008, after=1.0)) as server:
        urls += [server.url, server.url, "no url"]
        connection = Connection(lambda: urls.pop(0), retry=EXACT)
        watch = Watch(connection)
        assert connection.status is ClientStatus.DISCONNECTED
        connection.start()
        await asyncio.sleep(10)
        connection.connect()
        await asyncio.sleep(10)
        assert watch.statuses == [
            "connecting", "connected", "reconnecting", "connected", "disconnected", "connecting", "error",
        ]  # fmt: skip
        assert {state.status for state in ClientFSM.states.values()} == set(ClientStatus)
        assert len(ClientStatus) == 5
        await connection.close()


async def test_conn_2_a_started_client_connects_at_once() -> None:
    """CONN-2: `start()` and `async with` begin at once and do not wait; to start what is started does nothing."""
    async with faulty.server() as server:
        connection = Connection(server.url)
        connection.start()
        assert connection.status == "connecting"
        connection.start()
        await until(lambda: connection.status == "connected")
        connection.start()
        await connection.close()
        assert server.connects == 1
        async with Connection(server.url) as connection:
            assert connection.status == "connecting"
            await until(lambda: connection.status == "connected")


async def test_conn_2_async_with_closes_also_when_its_body_raises() -> None:
    """CONN-2, CTRL-2: leaving the block closes the client, whatever happened in it."""
    async with faulty.server() as server:
        connection = Connection(server.url)

        async def body() -> None:
            async with connection:
                await connection.wait_connected()
                raise LookupError

        with pytest.raises(LookupError):
            await body()
        assert connection.status == "disconnected"
        await server.peer.gone.wait()
        assert server.peer.closed_with == (1000, "")


LOSSES: dict[str, Behaviour] = {
    "close 1000": faulty.accept_then_close(1000),
    "close 1001": faulty.accept_then_close(1001),
    "close 1011": faulty.accept_then_close(1011),
    "close without code": faulty.accept_then_close(None),
    "FIN": faulty.accept_then_hang_up,
    "RST": faulty.accept_then_reset,
    "FIN in the handshake": faulty.hang_up_in_handshake,
    "RST in the handshake": faulty.reset_in_handshake,
    "wrong accept": faulty.wrong_accept,
    "HTTP 500": faulty.answer(500),
    "no answer": faulty.never_answer,
    "half-open": faulty.deaf,
    "no pong": faulty.ignore_pings,
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_conn_3_any_loss_leads_to_reconnecting(loss: str) -> None:
    """CONN-3: however the connection is lost, or not made, the client is `reconnecting`, and then connected again."""
    async with faulty.server(LOSSES[loss], faulty.echo) as server:
        connection = Connection(
            server.url,
            retry=QUICK,
            keepalive=Keepalive(interval=0.05, timeout=0.1),
            connect_timeout=0.2 if loss == "no answer" else 5.0,
            close_timeout=0.05,
        )
        watch = Watch(connection)
        async with connection:
            await until(lambda: server.connects == 2 and connection.status == "connected")
            assert watch.statuses in (
                ["connecting", "reconnecting", "connected"],
                ["connecting", "connected", "reconnecting", "connected"],
            )


def no_token() -> str:
    raise Unauthorized


@pytest.mark.parametrize("what", ["close code", "close reason", "HTTP 401", "HTTP 403", "Unauthorized"])
async def test_conn_4_a_fatal_condition_leads_to_disconnected(what: str) -> None:
    """CONN-4, RETRY-3: permission and authentication failures, fatal close codes and reasons end in `disconnected`."""
    behaviour = {
        "close code": faulty.accept_then_close(4403),
        "close reason": faulty.accept_then_close(1000, "auth_failed"),
        "HTTP 401": faulty.answer(401),
        "HTTP 403": faulty.answer(403),
    }.get(what, faulty.echo)
    async with (
        faulty.server(behaviour) as server,
        Connection(no_token if what == "Unauthorized" else server.url, retry=QUICK) as connection,
    ):
        watch = Watch(connection)
        await until(lambda: connection.status == "disconnected")
        await asyncio.sleep(0.05)
        assert watch.statuses[-1] == "disconnected"
        assert server.connects == (0 if what == "Unauthorized" else 1)


async def test_conn_5_wait_connected_is_shared_and_renewed() -> None:
    """CONN-5: all who wait are woken by the next connection; after a loss the promise is a new one."""
    async with faulty.server() as server:
        connection = Connection(server.url, retry=QUICK)
        for round_number in (1, 2, 3):
            waiters = [asyncio.create_task(connection.wait_connected()) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(waiter.done() for waiter in waiters)
            connection.start()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*waiters)
            assert connection.status == "connected"
            assert server.connects == round_number
            await connection.close()


async def test_conn_5_a_reconnect_by_itself_renews_the_promise() -> None:
    """CONN-5: who begins to wait after the loss waits for the next connection, not the last."""
    release = asyncio.Event()

    async def late(peer: Peer) -> None:
        await release.wait()
        await faulty.echo(peer)

    async with faulty.server(lose, late) as server, Connection(server.url, retry=QUICK) as connection:
        seen = Statuses(connection)
        await seen.all_of("connected", "reconnecting")
        waiter = asyncio.create_task(connection.wait_connected())
        await until(lambda: server.connects == 2)
        await asyncio.sleep(0.02)
        assert not waiter.done()
        release.set()
        await waiter
        assert connection.status == "connected"


async def test_conn_5_at_once_while_connected() -> None:
    """CONN-5: while connected it does not even give the loop a turn."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        again = connection.wait_connected()
        with pytest.raises(StopIteration):
            again.send(None)
        assert server.connects == 1


@pytest.mark.virtual_time
async def test_conn_5_it_never_fails() -> None:
    """CONN-5, D-STOP: through a fatal stop and a `close()` the promise goes on, and is kept after a start by hand."""
    async with faulty.server(faulty.answer(403), faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url)
        waiter = asyncio.create_task(connection.wait_connected())
        connection.start()
        await asyncio.sleep(100)
        assert connection.status == "disconnected"
        connection.connect()
        await connection.close()
        await asyncio.sleep(100)
        assert not waiter.done()
        connection.connect()
        await waiter
        await connection.close()


async def test_conn_5_a_cancelled_waiter_disturbs_no_other() -> None:
    """CONN-5: cancelling one who waits, before or in the turn in which it connects, leaves others and client alone."""
    async with faulty.server() as server:
        connection = Connection(server.url)
        first, second, third = (asyncio.create_task(connection.wait_connected()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        connection.on_transition(lambda step: step.new == "connected" and second.cancel())
        connection.start()
        await third
        assert connection.status == "connected"
        assert first.cancelled()
        await asyncio.wait([second])
        await connection.close()


# --------------------------------------------------------------------------------------------------------------- retry


@pytest.mark.virtual_time
async def test_retry_1_exponential_backoff_by_default() -> None:
    """RETRY-1: from 0.5 s, doubling, capped at 15 s, with 25 % jitter either way; on by default."""
    async with Connection(NOBODY) as connection:
        watch = Watch(connection)
        await asyncio.sleep(300)
        assert len(watch.waits) >= 15
        for number, wait in enumerate(watch.waits):
            middle = min(0.5 * 2**number, 12.0)
            assert 0.75 * middle <= wait <= 1.25 * middle
        assert watch.waited == pytest.approx(watch.waits[: len(watch.waited)], abs=1e-3)


@pytest.mark.virtual_time
async def test_retry_1_without_jitter() -> None:
    """RETRY-1: the plain series, and each attempt is made when its wait is over, not sooner, not later."""
    async with faulty.server(faulty.answer(500)) as server, Connection(server.url, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep(46)
        assert watch.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
        assert server.times == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 15.5, 30.5, 45.5], abs=0.01)


@pytest.mark.virtual_time
async def test_d_jitter_with_a_seeded_source() -> None:
    """D-JITTER: the waits are those of the policy with the given random source, to the last bit."""
    async with Connection(NOBODY, retry=RetryPolicy(random=random.Random(7))) as connection:
        watch = Watch(connection)
        await asyncio.sleep(600)
        source = random.Random(7)
        expected = [min(0.5 * 2.0**n, 15 / 1.25) * source.uniform(0.75, 1.25) for n in range(len(watch.waits))]
        assert len(expected) > 30
        assert watch.waits == expected
        assert max(watch.waits) <= 15.0
        assert len(set(watch.waits)) == len(watch.waits)  # no pile-up at the cap


@pytest.mark.virtual_time
@pytest.mark.parametrize("most", [0, 1, 3])
async def test_retry_2_max_attempts(most: int) -> None:
    """RETRY-2: the first attempt and ``max_attempts`` retries, then `disconnected`."""
    async with faulty.server(faulty.answer(500)) as server:
        connection = Connection(server.url, retry=RetryPolicy(max_attempts=most))
        with pytest.raises(ClientStopped, match="HTTP 500"):
            await connection.connect()
        assert connection.status == "disconnected"
        assert server.connects == 1 + most
        await asyncio.sleep(1000)
        assert server.connects == 1 + most
        with pytest.raises(ClientStopped):
            await connection.connect()
        assert server.connects == 2 * (1 + most)  # by hand: as many again


@pytest.mark.virtual_time
async def test_retry_2_for_ever_otherwise() -> None:
    """RETRY-2: without a limit it goes on; after hundreds of attempts it is still at it."""
    async with Connection(NOBODY, retry=RetryPolicy(base=15.0, cap=15.0)) as connection:
        watch = Watch(connection)
        await asyncio.sleep(3600)
        assert connection.status == "reconnecting"
        assert watch.steps[-1].attempt >= 3600 / 15


@pytest.mark.virtual_time
@pytest.mark.parametrize("behaviour", [faulty.answer(500), lose, faulty.deaf])
async def test_retry_1_switched_off(behaviour: Behaviour) -> None:
    """RETRY-1: with ``enabled=False`` a loss, a failed attempt or a missing pong is the end: `disconnected`."""
    async with faulty.server(behaviour) as server:
        connection = Connection(server.url, retry=RetryPolicy(enabled=False))
        connection.start()
        await asyncio.sleep(100)
        assert connection.status == "disconnected"
        assert server.connects == 1
        connection.connect()
        await asyncio.sleep(100)
        assert server.connects == 2
        await connection.close()


@pytest.mark.virtual_time
@pytest.mark.parametrize("behaviour", [fatal, faulty.answer(401)])
async def test_retry_4_a_fatal_stop_lasts(behaviour: Behaviour) -> None:
    """RETRY-4, RETRY-3: it stays `disconnected`, whatever the network does, until it is retried by hand."""
    async with faulty.server(behaviour, faulty.echo) as server:
        connection = Connection(server.url)
        connection.start()
        await asyncio.sleep(3600)
        connection.set_online(False)
        connection.set_online(True)
        await asyncio.sleep(3600)
        assert connection.status == "disconnected"
        assert server.connects == 1
        await connection.connect()
        assert connection.status == "connected"
        await connection.close()


# ------------------------------------------------------------------------------------------------------------- offline


async def test_off_1_offline_closes_the_socket_cleanly() -> None:
    """OFF-1: reported offline, the client pauses; the server sees a close frame that says so."""
    async with faulty.server() as server, Connection(server.url, retry=QUICK) as connection:
        await connection.wait_connected()
        connection.set_online(False)
        assert connection.state == "paused"
        assert connection.status == "reconnecting"
        assert connection.reason == "offline"
        await server.peer.gone.wait()
        assert server.peer.closed_with == (1001, "offline")
        await asyncio.sleep(0.1)
        assert server.connects == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("moment", ["dialling", "waiting", "connected", "retrying"])
async def test_off_1_retries_pause(moment: str) -> None:
    """OFF-1: from whatever it was doing, it pauses: no attempt, no timer, for as long as it is offline."""
    behaviours: dict[str, list[Behaviour]] = {
        "dialling": [faulty.never_answer, faulty.echo],
        "waiting": [faulty.answer(500), faulty.echo],
        "connected": [faulty.echo],
        "retrying": [faulty.answer(500), faulty.never_answer, faulty.echo],
    }
    async with faulty.server(*behaviours[moment]) as server, Connection(server.url, retry=EXACT) as connection:
        await asyncio.sleep(1.0 if moment == "retrying" else 0.1)
        assert connection.state == {"dialling": "connecting"}.get(moment, moment)
        connects = server.connects
        connection.set_online(False)
        assert connection.state == "paused"
        await asyncio.sleep(12 * 3600)
        assert server.connects == connects
        start = now()
        connection.set_online(True)
        await connection.wait_connected()
        assert server.times[-1] - start < 0.01


@pytest.mark.virtual_time
async def test_off_1_an_attempt_by_hand_that_fails_offline_pauses_again() -> None:
    """OFF-1, CTRL-1: offline, one attempt by hand is one attempt: when it fails, the pause goes on."""
    async with faulty.server(faulty.answer(500)) as server, Connection(server.url) as connection:
        connection.set_online(False)
        connection.connect()
        await asyncio.sleep(3600)
        assert connection.state == "paused"
        assert server.connects == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("reset", [True, False])
async def test_off_2_online_attempts_at_once_and_resets_the_backoff(reset: bool) -> None:
    """OFF-2: back online, an attempt is made at once; the backoff begins anew, unless that is switched off."""
    retry = RetryPolicy(jitter=0.0, reset_on_online=reset)
    async with faulty.server(faulty.answer(500)) as server, Connection(server.url, retry=retry) as connection:
        watch = Watch(connection)
        await asyncio.sleep(4)
        assert watch.waits == [0.5, 1.0, 2.0, 4.0]
        connection.set_online(False)
        await asyncio.sleep(1000)
        connection.set_online(True)
        await asyncio.sleep(0.01)
        assert server.times[-1] == pytest.approx(1004, abs=0.02)
        assert watch.waits[4:] == ([0.5] if reset else [8.0])


async def test_ok_1_retries_pause_offline_and_resume_promptly_online() -> None:
    """OK-1: on real sockets: nothing is attempted offline, and it is connected right after it is online again."""
    retry = RetryPolicy(base=0.01, cap=1000.0, jitter=0.0)  # OFF-2: nor twice within the base
    async with faulty.server() as server, Connection(server.url, retry=retry) as connection:
        for number in range(1, 4):
            await connection.wait_connected()
            assert server.connects == number
            connection.set_online(False)
            await asyncio.sleep(0.05)
            assert server.connects == number
            connection.set_online(True)


# ----------------------------------------------------------------------------------------------------------- by hand

BY_HAND: list[Callable[[Connection], Awaitable[None]]] = [Connection.connect, Connection.retry_now]


@pytest.mark.virtual_time
@pytest.mark.parametrize("ask", BY_HAND)
@pytest.mark.parametrize("after", ["fatal", "close", "offline", "backoff", "error", "attempts used up"])
async def test_ctrl_1_by_hand_it_connects_from_anywhere(
    after: str, ask: Callable[[Connection], Awaitable[None]]
) -> None:
    """CTRL-1, RETRY-4, D-ERROR: `connect()` and `retry_now()` attempt at once, also when stopped or offline."""
    first: Behaviour = {"fatal": fatal, "backoff": faulty.answer(500), "attempts used up": faulty.answer(500)}.get(
        after, faulty.echo
    )
    async with faulty.server(first, faulty.echo) as server:
        urls: list[Any] = [5, server.url] if after == "error" else [server.url, server.url]
        retry = RetryPolicy(base=10.0, max_attempts=0 if after == "attempts used up" else None)
        connection = Connection(lambda: urls.pop(0), retry=retry)
        connection.start()
        await asyncio.sleep(1)
        if after == "close":
            await connection.close()
        elif after == "offline":
            connection.set_online(False)
        expected = {"offline": "paused", "backoff": "waiting", "error": "error"}.get(after, "disconnected")
        assert connection.state == expected
        start = now()
        await ask(connection)
        assert connection.state == "connected"
        assert server.times[-1] - start < 0.01
        assert connection.reason == "connected"
        await connection.close()


@pytest.mark.virtual_time
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("moment", ["waiting", "dialling"])
async def test_ctrl_1_reset_backoff(moment: str, reset: bool) -> None:
    """CTRL-1: `connect(reset_backoff=True)` makes the waits begin anew; without it they go on where they were."""

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(1)
        peer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    async with faulty.server(slowly) as server, Connection(server.url, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep({"waiting": 1 + 0.5 + 1 + 1.0 + 1 + 0.1, "dialling": 1 + 0.5 + 1 + 1.0 + 0.5}[moment])
        assert connection.state == {"waiting": "waiting", "dialling": "retrying"}[moment]
        waits = len(watch.waits)
        connection.connect(reset_backoff=reset)
        await asyncio.sleep(1.1)
        assert watch.waits[waits] == (0.5 if reset else {"waiting": 4.0, "dialling": 2.0}[moment])


@pytest.mark.virtual_time
async def test_ctrl_1_retry_now_drops_a_dial_for_a_fresh_one() -> None:
    """CTRL-1: an attempt that hangs is given up for the fresh one, and nothing is left of it."""
    async with (
        faulty.server(faulty.never_answer, faulty.echo) as server,
        Connection(server.url) as connection,
    ):
        await asyncio.sleep(3)
        await connection.retry_now()
        assert server.times == pytest.approx([0, 3], abs=0.01)
        await asyncio.sleep(30)
        assert connection.status == "connected"
        assert server.connects == 2


@pytest.mark.virtual_time
async def test_ctrl_1_connect_waits_for_the_outcome_and_shares_it() -> None:
    """CTRL-1: several who ask await the same outcome, through failed attempts; a cancelled one disturbs no other."""
    async with faulty.server(faulty.answer(500), faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url, retry=EXACT)

        async def ask() -> float:
            await connection.connect()
            return now()

        first = asyncio.create_task(ask())
        await asyncio.sleep(0)
        second, third = asyncio.create_task(ask()), asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        second.cancel()
        assert await first == await third
        assert second.cancelled()
        await connection.close()


async def test_ctrl_1_not_awaiting_is_fine(caplog: pytest.LogCaptureFixture) -> None:
    """CTRL-1: nobody need await `connect()`, `retry_now()` or `close()`: they act at once, and nothing warns."""
    async with faulty.server(faulty.answer(403)) as server:
        connection = Connection(server.url)
        connection.connect()
        connection.retry_now()
        await until(lambda: connection.status == "disconnected")
        connection.close()
        gc.collect()
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_ctrl_1_asked_from_a_listener_after_a_close() -> None:
    """CTRL-1, D-LISTEN: who closes and connects within a listener may await the outcome of that connect."""
    asked: list[Awaitable[None]] = []

    def restart(change: StatusChange[ClientStatus]) -> None:
        if not asked:
            connection.close()
            asked.append(connection.connect())

    async with faulty.server() as server:
        connection = Connection(server.url)
        connection.on_status(restart)
        connection.start()
        try:
            await connection.wait_connected()
            await asked[0]
        finally:
            await connection.close()


@pytest.mark.parametrize("moment", ["dialling", "waiting", "retrying", "connected", "paused", "disconnected", "error"])
async def test_ctrl_2_close_from_anywhere(moment: str) -> None:
    """CTRL-2: `close()` acts at once, leads to `disconnected` from every state, and leaves nothing whatsoever."""
    behaviours: dict[str, list[Behaviour]] = {
        "dialling": [faulty.never_answer],
        "waiting": [faulty.answer(500)],
        "retrying": [faulty.answer(500), faulty.never_answer],
        "disconnected": [fatal],
    }
    async with faulty.server(*behaviours.get(moment, [faulty.echo])) as server:
        before = leaks.in_loop() | leaks.in_process()
        retry = QUICK if moment == "retrying" else LATER
        connection = Connection((lambda: "no url") if moment == "error" else server.url, retry=retry)
        watch = Watch(connection)
        connection.start()
        if moment == "dialling":
            await until(lambda: server.connects)
        elif moment == "paused":
            await connection.wait_connected()
            connection.set_online(False)
        else:
            await until(lambda: connection.state == moment and (moment != "retrying" or server.connects == 2))
        closed = connection.close()
        assert connection.status == "disconnected"
        await closed
        for peer in server.peers:
            peer.abort()  # what the server's behaviour would keep open
        await server.quiet()
        assert await leaks.left_over(before) == []
        assert watch.statuses[-1] == "disconnected"
        connects = server.connects
        await asyncio.sleep(0.05)
        assert server.connects == connects


@pytest.mark.virtual_time
async def test_ctrl_2_nothing_but_a_person_starts_it_again() -> None:
    """CTRL-2: closed is closed, whatever the network reports; `connect()` starts it again, as good as new."""
    async with faulty.server(faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url, retry=EXACT)
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(0.1)
        await connection.close()
        connection.set_online(False)
        connection.set_online(True)
        await asyncio.sleep(3600)
        assert watch.statuses == ["connecting", "reconnecting", "disconnected"]
        assert server.connects == 1
        await connection.connect()
        await connection.close()
        await connection.close()
        assert watch.statuses[3:] == ["connecting", "connected", "disconnected"]


async def test_ctrl_2_close_before_the_start() -> None:
    """CTRL-2: closing what never started is nothing."""
    connection = Connection("ws://127.0.0.1/")
    watch = Watch(connection)
    await connection.close()
    assert connection.status == "disconnected"
    assert watch.steps == []


async def test_ctrl_2_a_cancelled_close_is_a_close() -> None:
    """CTRL-2: cancelling who awaits `close()` changes nothing; awaiting another one waits for the rest."""
    async with faulty.server(faulty.deaf) as server:
        connection = Connection(server.url, close_timeout=0.1)
        await connection.connect()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connection.close()
        assert connection.status == "disconnected"
        await connection.close()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("reconnect_fsm")] == []
        assert server.connects == 1


async def test_ctrl_2_a_hundred_cycles_leak_nothing() -> None:
    """CTRL-2: connecting and closing a hundred times leaves no task, timer, transport, descriptor or thread."""
    async with faulty.server() as server:
        connection = Connection(server.url)
        before = leaks.in_loop() | leaks.in_process()
        for _ in range(100):
            await connection.connect()
            await connection.close()
        await server.quiet()
        assert server.connects == 100
        assert await leaks.left_over(before) == []


async def test_ctrl_2_a_hundred_reconnects_leak_nothing() -> None:
    """CTRL-2: the same for a client that loses its connection a hundred times."""
    async with faulty.server(*[faulty.accept_then_hang_up] * 100, faulty.echo) as server:
        before = leaks.in_loop() | leaks.in_process()
        connection = Connection(server.url, retry=RetryPolicy(base=0.001, cap=0.001))
        connection.start()
        await until(lambda: server.connects == 101 and connection.status == "connected")
        await connection.close()
        await server.quiet()
        assert await leaks.left_over(before) == []


async def test_d_force_connect_while_connected_does_nothing() -> None:
    """D-FORCE: `connect()` while connected returns at once; the socket is the same."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        watch = Watch(connection)
        await connection.connect()
        await connection.connect(reset_backoff=True)
        assert watch.steps == []
        assert server.connects == 1


@pytest.mark.parametrize("behaviour", [faulty.echo, faulty.deaf], ids=["healthy", "half-open"])
async def test_d_force_retry_now_drops_the_socket(behaviour: Behaviour) -> None:
    """D-FORCE: `retry_now()` while connected dials afresh at once, and does not wait for a half-open peer."""
    async with (
        faulty.server(behaviour, faulty.echo) as server,
        Connection(server.url, close_timeout=0.3, retry=LATER) as connection,
    ):
        await connection.wait_connected()
        watch = Watch(connection)
        asked = connection.retry_now()
        assert connection.status == "connecting"
        await asked
        assert watch.states == ["connecting", "connected"]
        assert server.connects == 2
        assert await connection.ping() > 0
        if behaviour is faulty.echo:
            await server.peers[0].gone.wait()
            assert server.peers[0].closed_with == (1000, "reconnecting")


async def test_ok_3_fatal_closes_stop_and_a_manual_retry_works() -> None:
    """OK-3: on real sockets: a fatal close is the end of it, until somebody retries by hand."""
    async with faulty.server(fatal, fatal, faulty.echo) as server:
        connection = Connection(server.url, retry=QUICK)
        for number, ask in enumerate((Connection.connect, Connection.retry_now), 1):
            ask(connection)
            await until(lambda: connection.reason == "closed with code 1008: go away")
            assert connection.status == "disconnected"
            await asyncio.sleep(0.05)
            assert server.connects == number
        await connection.retry_now()
        assert connection.status == "connected"
        await connection.close()


# --------------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.virtual_time
async def test_obs_1_the_status_listener() -> None:
    """OBS-1: each change tells old and new status, the reason, the attempt and the wait; until it is taken out."""
    async with faulty.server(lose, faulty.answer(500), faulty.echo) as server:
        changes: list[StatusChange[ClientStatus]] = []
        connection = Connection(server.url, retry=EXACT)
        unsubscribe = connection.on_status(changes.append)
        connection.connect()
        await asyncio.sleep(60)
        s = ClientStatus
        assert changes == [
            StatusChange(s.DISCONNECTED, s.CONNECTING, "asked to connect"),
            StatusChange(s.CONNECTING, s.CONNECTED, "connected"),
            StatusChange(s.CONNECTED, s.RECONNECTING, "closed with code 1012", attempt=1, retry_in=0.5),
            StatusChange(s.RECONNECTING, s.CONNECTED, "connected"),
        ]
        unsubscribe()
        await connection.close()
        assert len(changes) == 4


@pytest.mark.virtual_time
async def test_obs_1_the_transition_listener_sees_failed_attempts() -> None:
    """OBS-1: `on_transition` is finer: it tells of each failed attempt, by event, states, attempt and wait."""
    async with faulty.server(faulty.answer(500), faulty.answer(502), faulty.echo) as server:
        steps: list[StateChange] = []
        connection = Connection(server.url, retry=EXACT)
        unsubscribe = connection.on_transition(steps.append)
        connection.connect()
        await asyncio.sleep(60)
        unsubscribe()
        await connection.close()
        assert [(each.event, each.old, each.new, each.reason, each.attempt, each.retry_in) for each in steps] == [
            ("connect_requested", "disconnected", "connecting", "asked to connect", 0, None),
            ("dial_failed", "connecting", "waiting", "the server answered HTTP 500", 1, 0.5),
            ("timer_fired", "waiting", "retrying", "the server answered HTTP 500", 1, None),
            ("dial_failed", "retrying", "waiting", "the server answered HTTP 502", 2, 1.0),
            ("timer_fired", "waiting", "retrying", "the server answered HTTP 502", 2, None),
            ("socket_opened", "retrying", "connected", "connected", 2, None),
        ]
        assert [each.status for each in steps][1:3] == [ClientStatus.RECONNECTING] * 2


async def test_obs_3_the_latency_callback() -> None:
    """OBS-3: fed by ping round trips, of the periodic pings and of `ping()` alike."""
    round_trips: list[float] = []
    keepalive = Keepalive(interval=0.02, timeout=5.0)
    async with faulty.server() as server, Connection(server.url, keepalive=keepalive) as connection:
        connection.on_latency(round_trips.append)
        await until(lambda: len(round_trips) >= 3)
        assert await connection.ping() in round_trips
        assert connection.latency == round_trips[-1]
        assert server.connects == 1


# ---------------------------------------------------------------------------------------------------- D-LISTEN


@pytest.mark.virtual_time
async def test_d_listen_after_the_transition_and_in_order() -> None:
    """D-LISTEN: listeners hear of a change when it is complete, in the order in which they were added."""
    heard: list[tuple[str, str, str]] = []
    async with faulty.server(lose, faulty.echo) as server:
        connection = Connection(server.url, retry=EXACT)
        for name in "ab":
            connection.on_status(
                lambda change, name=name: heard.append((name, change.new.value, connection.status.value))  # type: ignore[misc]
            )
        connection.start()
        await asyncio.sleep(10)
        await connection.close()
    assert heard == [
        (name, status, status)
        for status in ("connecting", "connected", "reconnecting", "connected", "disconnected")
        for name in "ab"
    ]


async def test_d_listen_one_that_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """D-LISTEN: callbacks of every kind may raise: it is logged, and everything goes on."""

    def broken(_: object) -> None:
        raise LookupError("my fault")

    heard: list[str | bytes] = []
    async with faulty.server() as server:
        connection = Connection(server.url)
        for add in (connection.on_status, connection.on_transition, connection.on_latency, connection.on_message):
            add(broken)
        connection.on_message(heard.append)
        await connection.connect()
        await connection.ping()
        server.peer.send("hello")
        await until(lambda: heard == ["hello"])
        await connection.close()
    for kind in ("on_status", "on_transition", "on_latency", "on_message"):
        assert f"a callback of {kind} raised" in caplog.text
    assert caplog.text.count("LookupError: my fault") >= 4


async def test_d_listen_one_that_raises_cancelled_error_harms_nothing() -> None:
    """D-LISTEN: also CancelledError, which a plain function gets from the ``result()`` of a cancelled task."""
    heard: list[str | bytes] = []

    def broken(data: str | bytes) -> None:
        heard.append(data)
        raise asyncio.CancelledError

    async with faulty.server() as server, Connection(server.url, close_timeout=0.1) as connection:
        connection.on_message(broken)
        await connection.wait_connected()
        server.peer.send("one")
        server.peer.send("two")
        await asyncio.sleep(0.1)
        assert heard == ["one", "two"]


ACTS: dict[str, Callable[[Connection], object]] = {
    "close": Connection.close,
    "connect": Connection.connect,
    "retry_now": Connection.retry_now,
    "offline": lambda connection: connection.set_online(False),
    "offline and online": interrupt,
    "close and connect": lambda connection: (connection.close(), connection.connect()),
    "start": Connection.start,
}
ENDS = {"close": "disconnected", "offline": "paused"}


@pytest.mark.virtual_time
@pytest.mark.parametrize("moment", ["connecting", "connected", "reconnecting"])
@pytest.mark.parametrize("act", ACTS)
async def test_d_listen_one_that_acts_is_safe(act: str, moment: str) -> None:
    """D-LISTEN: a listener may close, connect, retry, pause: the transition it hears of is complete, nothing re-enters,
    and no status is told twice in a row."""
    acted: list[str] = []

    def listener(change: StatusChange[ClientStatus]) -> None:
        if change.new == moment and not acted:
            acted.append(connection.state)
            ACTS[act](connection)

    async with faulty.server(faulty.accept_then_close(1012, after=1.0), faulty.echo) as server:
        connection = Connection(server.url, retry=EXACT)
        connection.on_status(listener)
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(60)
        assert acted == [{"reconnecting": "waiting"}.get(moment, moment)]
        assert connection.state == ENDS.get(act, "connected")
        for old, new in zip(watch.changes, watch.changes[1:], strict=False):
            assert old.new == new.old
            assert new.old != new.new
        for before, after in zip(watch.steps, watch.steps[1:], strict=False):
            assert before.new == after.old
        assert len({id(peer) for peer in server.peers}) <= 4
        await connection.close()


@pytest.mark.parametrize("act", ["close", "retry_now"])
async def test_d_listen_a_message_listener_that_acts_is_safe(act: str) -> None:
    """D-LISTEN: messages that were read before the listener closed, and wait behind it, are not delivered after it."""
    heard: list[tuple[str | bytes, str]] = []

    def listener(data: str | bytes) -> None:
        heard.append((data, connection.state))
        if len(heard) == 2:
            ACTS[act](connection)

    async def talk(peer: Peer) -> None:
        await peer.upgrade()
        for number in range(200):
            peer.send(str(number))
        await peer.answer_frames()

    async with faulty.server(talk, faulty.echo) as server:
        connection = Connection(server.url)
        connection.on_message(listener)
        connection.start()
        await until(lambda: len(heard) >= 2 and (act == "close" or server.connects == 2))
        await asyncio.sleep(0.02)
        assert heard == [("0", "connected"), ("1", "connected")]
        await connection.close()


async def test_d_listen_a_coroutine_function_is_refused() -> None:
    """D-LISTEN: nobody would await it: TypeError at once, from every kind of listener."""

    async def callback(_: object) -> None: ...

    connection = Connection("ws://127.0.0.1/")
    for add in (connection.on_status, connection.on_transition, connection.on_latency, connection.on_message):
        with pytest.raises(TypeError, match=r"takes a plain function, but .*callback.* is a coroutine function"):
            add(callback)


# ---------------------------------------------------------------------------------------------------- D-STOP, D-STABLE


@pytest.mark.parametrize("ask", BY_HAND)
@pytest.mark.parametrize("stop", ["close", "fatal", "attempts used up", "error"])
async def test_d_stop_operations_that_wait_raise_client_stopped(
    stop: str, ask: Callable[[Connection], Awaitable[None]]
) -> None:
    """D-STOP: `await connect()` and `await retry_now()` raise ClientStopped, with the reason, however it stops."""
    reasons = {
        "close": "closed by this program",
        "fatal": "the server answered HTTP 403",
        "attempts used up": "the server answered HTTP 500",
        "error": "the url must begin with ws:// or wss://, and this one has no scheme",
    }
    behaviour = {"fatal": faulty.answer(403), "attempts used up": faulty.answer(500)}.get(stop, faulty.never_answer)
    retry = RetryPolicy(base=0.01, max_attempts=1)
    async with faulty.server(behaviour) as server:
        connection = Connection((lambda: "no url") if stop == "error" else server.url, retry=retry)
        forever = asyncio.create_task(connection.wait_connected())
        asked = ask(connection)
        other = connection.connect()
        if stop == "close":
            await until(lambda: server.connects)
            connection.close()
        for each in (asked, other, asked):
            with pytest.raises(ClientStopped, match=reasons[stop]) as raised:
                await each
            assert raised.value.reason == reasons[stop]
        assert connection.status == ("error" if stop == "error" else "disconnected")
        await asyncio.sleep(0.02)
        assert not forever.done()  # no operation, but the promise of CONN-5
        forever.cancel()
        await connection.close()


@pytest.mark.virtual_time
async def test_d_stable_accept_then_close_is_not_hammered() -> None:
    """D-STABLE: a server that accepts and drops does not reset the backoff: the waits grow up to the cap."""
    async with faulty.server(lose) as server, Connection(server.url, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep(60)
        assert watch.waits[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
        assert "connected" in watch.statuses
        assert server.connects == 8


@pytest.mark.virtual_time
@pytest.mark.parametrize(("lasts", "expected"), [(5.01, [0.5] * 4), (4.99, [0.5, 1.0, 2.0, 4.0])])
async def test_d_stable_a_connection_that_lasted_resets_the_backoff(lasts: float, expected: list[float]) -> None:
    """D-STABLE: once a connection has lasted 5 s the waits begin anew; a little less does not count."""
    behaviour = faulty.accept_then_close(1012, after=lasts)
    async with faulty.server(behaviour) as server, Connection(server.url, retry=EXACT) as connection:
        watch = Watch(connection)
        await asyncio.sleep(60)
        assert watch.waits[:4] == expected
        assert server.connects > 4


@pytest.mark.virtual_time
async def test_d_stable_the_time_is_policy() -> None:
    """D-STABLE: ``stable_after`` may be another time."""
    retry = RetryPolicy(jitter=0.0, stable_after=0.1)
    behaviour = faulty.accept_then_close(1012, after=0.2)
    async with faulty.server(behaviour) as server, Connection(server.url, retry=retry) as connection:
        watch = Watch(connection)
        await asyncio.sleep(10)
        assert set(watch.waits) == {0.5}
        assert server.connects >= 14


@pytest.mark.virtual_time
async def test_d_stable_the_time_may_be_none() -> None:
    """D-STABLE: with ``stable_after=0`` every connection counts, however short."""
    retry = RetryPolicy(jitter=0.0, stable_after=0.0)
    async with faulty.server(lose) as server, Connection(server.url, retry=retry) as connection:
        watch = Watch(connection)
        await asyncio.sleep(10)
        assert set(watch.waits) == {0.5}
        assert server.connects >= 19


@pytest.mark.virtual_time
async def test_d_stable_counts_for_max_attempts() -> None:
    """D-STABLE, RETRY-2: attempts of a server that accepts and drops are used up like any others."""
    async with faulty.server(lose) as server:
        connection = Connection(server.url, retry=RetryPolicy(max_attempts=2))
        connection.start()
        await asyncio.sleep(100)
        assert connection.status == "disconnected"
        assert server.connects == 3


# -------------------------------------------------------------------------------------------------------------- D-ERROR


class BrokenDelay(RetryPolicy):
    def delay(self, attempt: int) -> float:
        raise LookupError("my policy")


class BrokenVerdict(RetryPolicy):
    def is_fatal_close(self, info: CloseInfo) -> bool:
        raise LookupError("my policy")


class BrokenFailureVerdict(RetryPolicy):
    def is_fatal_failure(self, failure: AttemptFailure) -> bool:
        raise LookupError("my policy")


class BrokenGuard(ClientFSM):
    __slots__ = ()

    def are_attempts_used_up(self) -> bool:
        raise LookupError("my guard")


class BrokenStop(ClientFSM):
    """Its way to ``error`` is broken as well."""

    __slots__ = ()

    def is_fatal_close(self) -> bool:
        raise LookupError("my guard")

    def stop(self) -> None:
        raise LookupError("my action")


@pytest.mark.parametrize(
    ("options", "behaviour"),
    [
        ({"retry": BrokenDelay()}, faulty.answer(500)),
        ({"retry": BrokenDelay()}, lose),
        ({"retry": BrokenVerdict()}, lose),
        ({"retry": BrokenFailureVerdict()}, faulty.answer(500)),
        ({"fsm": BrokenGuard}, lose),
        ({"fsm": BrokenStop}, lose),
    ],
    ids=["delay, dial", "delay, loss", "is_fatal_close", "is_fatal_failure", "guard", "guard and faulted"],
)
async def test_d_error_a_policy_or_guard_that_raises(
    options: dict[str, Any], behaviour: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    """D-ERROR: a fault in the user's own policy or machine ends in `error`: logged, told, with nothing left over;
    operations that wait raise ClientStopped, and `retry_now()` starts it again."""
    async with faulty.server(behaviour) as server:
        before = leaks.in_loop() | leaks.in_process()
        connection = Connection(server.url, **options)
        watch = Watch(connection)
        connection.start()
        await until(lambda: connection.status == "error")
        name = options["fsm"].__name__ if "fsm" in options else "ClientFSM"
        assert connection.reason == f"the machine {name} raised LookupError; the log tells where"
        assert "LookupError: my" in caplog.text
        await server.quiet()
        assert await leaks.left_over(before) == []
        asked = connection.retry_now()
        await until(lambda: watch.states.count("error") == 2)
        assert server.connects == 2
        if behaviour is not lose:
            with pytest.raises(ClientStopped, match="LookupError"):
                await asked


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"retry": BrokenDelay()}, id="delay"),
        pytest.param({"fsm": BrokenGuard}, id="guard"),
        pytest.param({"fsm": BrokenStop}, id="guard and faulted"),
    ],
)
async def test_d_error_listeners_hear_of_it(options: dict[str, Any]) -> None:
    """D-ERROR, D-LISTEN: status listeners are told of `error`, as a change from the status that they were told last."""
    async with faulty.server(lose) as server:
        connection = Connection(server.url, **options)
        watch = Watch(connection)
        connection.start()
        await until(lambda: connection.status == "error")
        assert watch.statuses == ["connecting", "connected", "error"]
        assert [change.old.value for change in watch.changes] == ["disconnected", "connecting", "connected"]
        assert server.connects == 1


class BrokenTwice(ClientFSM):
    """Whatever it is told while in error breaks it, and that in turn."""

    __slots__ = ()

    def is_in_error(self) -> bool:
        if self.state == "error" and len(seen_in_error) < 1:
            seen_in_error.append(self.pending_reason)
            raise LookupError("my guard")
        return False

    went_offline = ClientFSM.went_offline.first(row(ANY, to=STAY, when="explodes"))
    faulted = ClientFSM.faulted.first(row(ANY, to=STAY, when="is_in_error"))

    def explodes(self) -> bool:
        raise LookupError("my guard")


seen_in_error: list[str] = []


async def test_d_error_one_that_breaks_again_while_in_error_repeats_nothing() -> None:
    """D-ERROR, D-LISTEN: a second fault in `error` is logged, and no status is told twice in a row."""
    seen_in_error.clear()
    async with faulty.server() as server:
        connection = Connection(server.url, fsm=BrokenTwice)
        watch = Watch(connection)
        await connection.connect()
        connection.set_online(False)
        assert connection.status == "error"
        connection.set_online(False)
        assert len(seen_in_error) == 1
        assert watch.statuses == ["connecting", "connected", "error"]
        await connection.retry_now()
        assert connection.status == "connected"
        await connection.close()
        assert server.connects == 2


class Extra(Effect):
    """An effect of a machine of one's own."""


class WithExtra(ClientFSM):
    __slots__ = ()

    def begin_session(self) -> None:
        super().begin_session()
        self.emit(Extra())


class RunsExtra(Connection):
    ran: list[Effect]

    def run_effect(self, effect: Effect) -> None:
        if isinstance(effect, Extra):
            self.ran.append(effect)
        else:
            super().run_effect(effect)


async def test_effects_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """A subclass of the machine may ask for effects of its own, which a subclass of the driver runs; a driver that
    does not know them says so in the log, and goes on."""
    async with faulty.server() as server:
        knowing = RunsExtra(server.url, fsm=WithExtra)
        knowing.ran = []
        await knowing.connect()
        await knowing.close()
        assert [type(effect) for effect in knowing.ran] == [Extra]
        assert "run_effect" not in caplog.text
        unknowing = Connection(server.url, fsm=WithExtra)
        await unknowing.connect()
        assert "is no effect that Connection knows how to run: override run_effect" in caplog.text
        await unknowing.ping()
        await unknowing.close()


class BrokenDial(Connection):
    def run_effect(self, effect: Effect) -> None:
        if isinstance(effect, Dial):
            raise LookupError("my effect")
        super().run_effect(effect)


async def test_d_error_an_effect_of_ones_own_that_raises() -> None:
    """D-ERROR: when `run_effect` of a subclass raises, the client is in `error`, not wedged in a state of nothing."""
    connection = BrokenDial("ws://127.0.0.1:1/")
    connection.start()
    try:
        await asyncio.sleep(0.02)
        assert connection.status == "error"
    finally:
        await connection.close()


# ------------------------------------------------------------------------------------------- the driver's other laws


def flood(connection: Connection, jobs: int) -> None:
    """Put so many jobs in the driver's queue that it takes several turns of the loop to get behind them.

    For listeners: what they ask for queues up behind the news that they hear.
    """
    for _ in range(jobs):
        connection.set_online(True)


class Told(ClientFSM):
    """Notes whenever it is told that the retry timer ran out."""

    __slots__ = ()

    def note(self) -> bool:
        told.append(self.state)
        return False

    timer_fired = ClientFSM.timer_fired.first(row(ANY, to=STAY, when=note))


told: list[str] = []


@pytest.mark.virtual_time
@pytest.mark.parametrize("then", ["close", "retry_now"])
async def test_law_2_a_timer_that_is_no_longer_current_is_dropped(then: str) -> None:
    """Law 2: a retry timer that runs out while the order to stop it is in the queue leads to nothing."""

    def listener(change: StatusChange[ClientStatus]) -> None:
        if change.new == "reconnecting" and not flooded:
            flooded.append(True)
            flood(connection, 2000)
            ACTS[then](connection)

    told.clear()
    flooded: list[bool] = []
    async with faulty.server(faulty.answer(500), faulty.echo) as server:
        connection = Connection(server.url, retry=RetryPolicy(base=1e-9, cap=1e-9), fsm=Told)
        connection.on_status(listener)
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(60)
        assert [state for state in told if state != "connected"] == []  # there it is D-STABLE's
        assert (
            watch.states
            == {
                "close": ["connecting", "waiting", "disconnected"],
                "retry_now": ["connecting", "waiting", "connecting", "connected"],
            }[then]
        )
        assert server.connects == {"close": 1, "retry_now": 2}[then]
        await connection.close()


@pytest.mark.virtual_time
@pytest.mark.parametrize("then", ["close", "retry_now"])
@pytest.mark.parametrize("behaviour", [faulty.echo, faulty.answer(500)], ids=["succeeds", "fails"])
async def test_law_2_a_dial_that_is_no_longer_current_is_dropped(behaviour: Behaviour, then: str) -> None:
    """Law 2: a dial that ends while the order to drop it is in the queue is nobody's: its socket is let go of."""

    def listener(change: StatusChange[ClientStatus]) -> None:
        if not flooded:
            flooded.append(True)
            flood(connection, 20_000)
            ACTS[then](connection)

    flooded: list[bool] = []
    async with faulty.server(behaviour, faulty.echo) as server:
        before = leaks.in_loop()
        connection = Connection(server.url)
        connection.on_status(listener)
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(1)
        assert server.connects == {"close": 1, "retry_now": 2}[then]
        assert (
            watch.states
            == {
                "close": ["connecting", "disconnected"],
                "retry_now": ["connecting", "connected"],  # the second "connecting" is no other state
            }[then]
        )
        await asyncio.sleep(5)
        assert server.peers[0].gone.is_set()
        assert server.peers[0].frames == []  # it was never anybody's
        await connection.close()
        await server.quiet()
        assert [each for each in leaks.in_loop() if each not in before] == []


@pytest.mark.virtual_time
async def test_law_2_a_loss_that_is_no_longer_current_is_dropped() -> None:
    """Law 2: that the old socket is gone is no news once a fresh one was ordered."""

    def listener(change: StatusChange[ClientStatus]) -> None:
        if change.new == "connected" and not flooded:
            flooded.append(True)
            flood(connection, 20_000)
            connection.retry_now()

    flooded: list[bool] = []
    async with faulty.server(lose, faulty.echo) as server:
        connection = Connection(server.url, retry=LATER)
        connection.on_status(listener)
        watch = Watch(connection)
        connection.start()
        await asyncio.sleep(10)
        assert watch.states == ["connecting", "connected", "connecting", "connected"]
        assert server.connects == 2
        await connection.close()


@pytest.mark.virtual_time
async def test_law_2_a_ping_that_falls_due_after_the_end_is_not_sent() -> None:
    """Law 2: the keepalive's timer that runs out while a `close()` is in the queue leads to nothing."""

    def listener(change: StatusChange[ClientStatus]) -> None:
        if change.new == "connected":
            flood(connection, 2000)
            connection.close()

    async with faulty.server() as server:
        connection = Connection(server.url, keepalive=Keepalive(interval=1e-9))
        connection.on_status(listener)
        connection.start()
        await asyncio.sleep(10)
        assert connection.status == "disconnected"
        assert server.peer.messages == []
        assert [opcode for opcode, _ in server.peer.frames] == [faulty.CLOSE]


@pytest.mark.virtual_time
async def test_law_4_after_close_everybody_has_heard_of_it() -> None:
    """Law 4: when `await close()` returns, all listeners have been told, however long the queue before their news."""
    connection = Connection(NOBODY)
    unsubscribe = connection.on_status(lambda change: flood(connection, 1000))
    watch = Watch(connection)
    connection.start()
    unsubscribe()
    # Long work, which the news of it will come behind
    connection_driver_of(connection).dispatcher.schedule(iter(range(20_000)))
    closed = connection.close()
    assert connection.status == "disconnected"  # D-NOW
    assert watch.statuses == ["connecting"]
    await closed
    assert watch.statuses == ["connecting", "disconnected"]


async def test_two_connections_in_one_loop() -> None:
    """Each has its own machine, socket, timers and backoff: what happens to one is nothing to the other."""
    async with faulty.server() as good, faulty.server(faulty.accept_then_close(4403)) as bad:
        first, second = Connection(good.url, retry=QUICK), Connection(bad.url, retry=QUICK)
        watch = Watch(first)
        async with first, second:
            await first.wait_connected()
            await until(lambda: second.reason == "closed with code 4403")
            await first.send("still here")
            await until(lambda: good.peer.messages == ["still here"])
            await second.close()
            assert watch.states == ["connecting", "connected"]
            assert first.status == "connected"


def test_start_outside_a_loop_is_an_error() -> None:
    """Making a client needs no loop; starting it does, and the error says what to do."""
    connection = Connection("ws://127.0.0.1/")
    for ask in (connection.start, connection.connect, connection.retry_now):
        with pytest.raises(RuntimeError, match="needs a running event loop: start it inside a coroutine"):
            ask()
    assert connection.status == "disconnected"


async def test_a_client_runs_in_one_loop() -> None:
    """While it runs in one loop, another one is refused; nothing happens to the connection."""
    async with faulty.server() as server, Connection(server.url) as connection:
        await connection.wait_connected()
        errors: list[str] = []

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="runs in another event loop") as raised:
                connection.connect()
            errors.append(str(raised.value))

        other = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        other.start()
        await until(lambda: not other.is_alive())
        other.join()
        assert errors
        assert await connection.ping() > 0


def test_a_closed_client_may_start_in_another_loop() -> None:
    """Nothing of the old loop is left after `close()`, so it serves in the next one."""
    urls: list[str] = []
    connection = Connection(lambda: urls[-1])

    async def main() -> int:
        async with faulty.server() as server:
            urls.append(server.url)
            await connection.connect()
            await connection.ping()
            await connection.close()
            return server.connects

    assert [asyncio.run(main()), asyncio.run(main())] == [1, 1]


@pytest.mark.parametrize("moment", ["waiting", "paused"])
def test_a_client_whose_loop_ended_under_it_starts_in_another(moment: str) -> None:
    """A loop that ended without `close()` has ended everything in it; in the next one the client connects anew."""
    urls = [f"ws://127.0.0.1:{faulty.unused_port()}/"]
    connection = Connection(lambda: urls[-1], retry=LATER)
    watch: list[str] = []
    connection.on_status(lambda change: watch.append(change.new.value))

    async def forgetful() -> None:
        connection.set_online(moment != "paused")
        connection.start()
        await until(lambda: connection.state == moment)

    async def main() -> int:
        async with faulty.server() as server:
            urls.append(server.url)
            async with asyncio.timeout(PATIENCE):
                await connection.connect()
                await connection.ping()
            await connection.close()
            return server.connects

    asyncio.run(forgetful())
    assert asyncio.run(main()) == 1
    assert watch[-4:] == ["disconnected", "connecting", "connected", "disconnected"]


async def test_law_5_cancelling_a_caller_never_harms_the_connection() -> None:
    """Law 5: whoever is cancelled while waiting for anything, the connection goes on."""
    async with faulty.server() as server, Connection(server.url) as connection:
        for begin in (
            connection.wait_connected,
            lambda: connection.send("x"),
            connection.ping,
            lambda: _awaited(connection.connect()),
        ):
            task: asyncio.Task[Any] = asyncio.create_task(begin())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await connection.wait_connected()
        await connection.ping()
        assert server.connects == 1


async def _awaited(outcome: Awaitable[None]) -> None:
    await outcome


def test_law_7_a_run_with_a_seeded_source_can_be_repeated_to_the_byte() -> None:
    """Law 7: under virtual time the same seed gives the same transcript, times and all; another seed another one."""

    def transcript(seed: int) -> str:
        async def main() -> str:
            lines: list[str] = []
            servers: list[Behaviour] = [
                faulty.answer(500), lose, faulty.answer(503, "Retry-After: 3"), faulty.hang_up_in_handshake,
                faulty.deaf, faulty.accept_then_close(1001, after=7.0), faulty.never_answer, fatal, faulty.echo,
            ]  # fmt: skip
            async with faulty.server(*servers) as server:
                connection = Connection(server.url, retry=RetryPolicy(random=random.Random(seed)))
                connection.on_transition(lambda step: lines.append(f"{now():.6f} {step}"))
                connection.on_latency(lambda seconds: lines.append(f"{now():.6f} {seconds}"))
                connection.start()
                await asyncio.sleep(150)
                connection.retry_now()
                await asyncio.sleep(60)
                connection.set_online(False)
                connection.set_online(True)
                await asyncio.sleep(60)
                await connection.close()
            return "\n".join(lines).replace(str(server.port), "port")

        return virtual_time.run(main)

    first = transcript(1)
    assert first.count("\n") > 25
    assert "close_requested" in first
    assert transcript(1) == first
    assert transcript(2) != first


# ------------------------------------------------------------------------------------- what a close reading has found


class NoTime(RetryPolicy):
    def delay(self, attempt: int) -> float:
        return float("nan")


async def test_d_error_a_delay_that_is_no_time() -> None:
    """D-ERROR: a policy that returns NaN would wait for ever in silence; it is told what it returned."""
    async with faulty.server(lose) as server, Connection(server.url, retry=NoTime()) as connection:
        await until(lambda: connection.status == "error")
        assert "ValueError" in connection.reason


async def test_a_url_function_that_asks_a_cancelled_task() -> None:
    """D-INTENT: it is a failed attempt, and the reason says whose."""

    def cancelled() -> str:
        raise asyncio.CancelledError

    async with Connection(cancelled, retry=LATER) as connection:
        await until(lambda: connection.state == "waiting")
        assert connection.reason == "the url function raised CancelledError"


@pytest.mark.parametrize("size", [-1, None, "x", 1.5])
def test_a_limit_that_is_none_is_refused(size: Any) -> None:
    """max_msg_size=-1 would be no limit at all."""
    with pytest.raises(ValueError, match="max_msg_size must be a number of bytes"):
        Connection("ws://127.0.0.1:1/", max_msg_size=size)


async def test_ping_is_sent_again_once_its_pong_is_overdue() -> None:
    """A pong that was lost does not make every later `ping()` wait for it."""

    async def forgetful(peer: Peer) -> None:
        await peer.upgrade()
        await peer.receive()
        await peer.answer_frames()

    lax = Keepalive(enabled=False, timeout=0.05)
    async with faulty.server(forgetful) as server, Connection(server.url, keepalive=lax) as connection:
        await connection.wait_connected()
        with pytest.raises(TimeoutError):
            await connection.ping(timeout=0.1)
        assert await connection.ping(timeout=5.0) < 5.0
