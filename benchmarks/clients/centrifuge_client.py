"""What is measured of `centrifuge-python`: its channels, against a stub of Centrifugo's JSON protocol."""

from __future__ import annotations

import asyncio

import measure
from centrifuge import Client, SubscribedContext, SubscriptionEventHandler, UnsubscribedContext
from centrifuge.contexts import SubscribingContext
from measure import DELAY, Stopwatch, begin


class Subscribed(SubscriptionEventHandler):
    """Counts the channels that are subscribed."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._subscribed: set[int] = set()
        self.done = asyncio.Event()
        self.lost = asyncio.Event()

    def of(self, channel: int) -> SubscriptionEventHandler:
        """The handler of one channel."""
        all_of_them = self

        class Handler(SubscriptionEventHandler):
            async def on_subscribed(self, ctx: SubscribedContext) -> None:
                all_of_them._subscribed.add(channel)
                if len(all_of_them._subscribed) == all_of_them._count:
                    all_of_them.done.set()

            async def on_subscribing(self, ctx: SubscribingContext) -> None:
                all_of_them._subscribed.discard(channel)
                all_of_them.done.clear()
                all_of_them.lost.set()

            async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
                raise AssertionError(f"channel {channel}: {ctx.reason}")

        return Handler()


async def usable(url: str, count: int) -> None:
    """The server is back → all channels are subscribed again."""
    client = Client(url, min_reconnect_delay=DELAY, max_reconnect_delay=DELAY, proxy=None)
    subscribed = Subscribed(count)
    for number in range(count):
        subscription = client.new_subscription(
            f"room{number}", subscribed.of(number), min_resubscribe_delay=DELAY, max_resubscribe_delay=DELAY
        )
        await subscription.subscribe()
    await client.connect()
    await subscribed.done.wait()
    subscribed.lost.clear()
    begin("usable")
    watch = Stopwatch()
    await subscribed.lost.wait()
    await subscribed.done.wait()
    watch.end("usable")
    await client.disconnect()


if __name__ == "__main__":
    measure.main(usable)
