"""A program that ends well: on SIGTERM or Ctrl-C it waits a moment for what it sent, and leaves nothing behind.

python shut_down.py [URL]
"""

import asyncio
import signal
import sys

from loro import LoroDoc

from reconnect_fsm import Client, ReconnectError
from reconnect_fsm.adaptors import LoroAdaptor


async def main(url):
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)  # Unix; on Windows leave it to KeyboardInterrupt

    notes = LoroDoc()
    async with Client(url, close_timeout=2.0) as client:
        room = client.join("notes", LoroAdaptor(notes))
        notes.get_text("text").insert(0, "the last words")
        notes.commit()
        print("running", flush=True)
        await stop.wait()
        try:
            async with asyncio.timeout(5):
                await room.synced()  # the server acknowledged every edit
            print("all is saved")
        except (TimeoutError, ReconnectError) as error:
            print("not everything could be sent:", error or "no answer in time")
    # closed: no task, timer, socket or descriptor is left


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8787"))
