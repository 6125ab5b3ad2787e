"""Show in words, and always truly, how the connection fares; here through an outage of a server in this process."""

import asyncio

from reconnect_fsm import Client, ClientStatus, RetryPolicy
from reconnect_fsm.testing import EmbeddedServer

SHOWN = {
    ClientStatus.CONNECTING: "… connecting",
    ClientStatus.CONNECTED: "● online",
    ClientStatus.RECONNECTING: "○ offline, your changes are kept",
    ClientStatus.DISCONNECTED: "✕ disconnected",
    ClientStatus.ERROR: "✕ not set up correctly",
}


class StatusLine:
    """What a status bar, a tray icon or a window's title would show."""

    def __init__(self, client):
        self._remove = [client.on_status(self._changed), client.on_transition(self._moved)]
        self.show(client.status)

    def _changed(self, change):  # one of the five statuses: the colour of the lamp
        self.show(change.new, "" if change.new is ClientStatus.CONNECTED else change.reason)

    def _moved(self, change):  # a failed attempt changes no status, but a countdown wants to know of it
        if change.new == "waiting":
            print(f"    attempt {change.attempt} in {change.retry_in:.1f} s")

    def show(self, status, why=""):
        print(SHOWN[status], f"({why})" if why else "")

    def close(self):
        for remove in self._remove:
            remove()


async def main():
    async with EmbeddedServer() as server, Client(server.url, retry=RetryPolicy(base=0.1)) as client:
        line = StatusLine(client)
        await client.wait_connected()
        await server.stop()
        await asyncio.sleep(0.5)  # people notice a lamp that turned
        await server.start()
        await client.wait_connected()
        line.close()


if __name__ == "__main__":
    asyncio.run(main())
