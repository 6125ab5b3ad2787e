"""`Connection` with a server that isn't Loro: a feed in JSON, subscribed to again after each reconnect."""

import asyncio
import contextlib
import json

from aiohttp import web
from aiohttp.test_utils import TestServer

from reconnect_fsm import ClientStatus, Connection, Keepalive, NotConnected, RetryPolicy


async def feed(request):
    """A server that knows nothing of us: it wants a subscription first, says one price, and hangs up."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    topic = (await ws.receive_json())["subscribe"]
    await ws.send_json({"topic": topic, "price": 42})
    await asyncio.sleep(0.2)
    return ws


class Prices:
    """A feed that outlives its connections."""

    def __init__(self, url, topic):
        self.topic = topic
        self.prices = asyncio.Queue(maxsize=1_000)
        # The server does not answer the text "ping": say so, or each connection counts as dead after half a minute.
        self.connection = Connection(url, keepalive=Keepalive(enabled=False), retry=RetryPolicy(base=0.1))
        self.connection.on_message(self._message)

    def _message(self, data):
        if not self.prices.full():  # bounded: decide what a reader that is too slow misses
            self.prices.put_nowait(json.loads(data)["price"])

    async def run(self):
        """Subscribe on every connection, for ever."""
        connected = asyncio.Event()
        self.connection.on_status(lambda change: change.new is ClientStatus.CONNECTED and connected.set())
        async with self.connection:
            while True:
                await connected.wait()
                connected.clear()
                with contextlib.suppress(NotConnected):  # lost in this very moment: the next connection's turn
                    await self.connection.send(json.dumps({"subscribe": self.topic}))


async def main():
    app = web.Application()
    app.router.add_get("/", feed)
    async with TestServer(app) as server:
        prices = Prices(server.make_url("/"), "tea")
        running = asyncio.create_task(prices.run())
        for number in (1, 2, 3):  # three connections' worth
            print(f"price {number}:", await asyncio.wait_for(prices.prices.get(), 10))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
