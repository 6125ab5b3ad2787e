"""What is measured of `python-socketio`: its namespaces, against a stub of Socket.IO's protocol."""

from __future__ import annotations

import asyncio

import measure
import socketio
from measure import DELAY, Stopwatch, begin


async def usable(url: str, count: int) -> None:
    """The server is back → all namespaces are connected again."""
    client = socketio.AsyncClient(reconnection_delay=DELAY, reconnection_delay_max=DELAY, randomization_factor=0)
    connected: set[int] = set()
    done, lost = asyncio.Event(), asyncio.Event()

    def listen(number: int) -> str:
        namespace = f"/room{number}"

        def on_connect() -> None:
            connected.add(number)
            if len(connected) == count:
                done.set()

        def on_disconnect(reason: str) -> None:
            connected.discard(number)
            done.clear()
            lost.set()

        client.on("connect", on_connect, namespace=namespace)
        client.on("disconnect", on_disconnect, namespace=namespace)
        return namespace

    namespaces = [listen(number) for number in range(count)]
    await client.connect(url, transports=["websocket"], namespaces=namespaces, wait_timeout=measure.TIMEOUT)
    await done.wait()
    begin("usable")
    watch = Stopwatch()
    await lost.wait()
    await done.wait()
    watch.end("usable")
    await client.disconnect()


if __name__ == "__main__":
    measure.main(usable)
