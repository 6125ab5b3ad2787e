"""Share the text of a room with all others in it: python share.py [URL]"""

import asyncio
import sys

from loro import LoroDoc

from reconnect_fsm import Client
from reconnect_fsm.adaptors import LoroAdaptor


async def main(url):
    doc = LoroDoc()
    text = doc.get_text("text")
    subscription = doc.subscribe_root(lambda event: print(f"-----\n{text.to_string()}", end="", flush=True))

    async with Client(url) as client:
        client.on_status(lambda change: print(f"[{change.new}] {change.reason}", flush=True))
        room = await client.join("notes", LoroAdaptor(doc))
        await room.synced()  # now the text holds what the server had

        text.insert(text.len_unicode, "Hello from Python\n")
        doc.commit()  # from here on it is the client's business that it arrives

        await asyncio.Event().wait()  # until Ctrl-C
    subscription.unsubscribe()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8787"))
    except KeyboardInterrupt:
        print("closed")
