"""A client inside an aiohttp.web service: it begins and ends with the application."""

import asyncio
import os

from aiohttp import web
from loro import LoroDoc

from reconnect_fsm import Client
from reconnect_fsm.adaptors import LoroAdaptor

CLIENT = web.AppKey("client", Client)
NOTES = web.AppKey("notes", LoroDoc)


async def sync(app):
    """Before the yield: start. After it: stop. The service does not wait for the connection in order to start."""
    app[NOTES] = LoroDoc()
    async with Client(os.environ["SYNC_URL"]) as app[CLIENT]:
        room = app[CLIENT].join("notes", LoroAdaptor(app[NOTES]))
        yield
        try:
            async with asyncio.timeout(5):
                await room.synced()
        except TimeoutError:
            print("some edits were not acknowledged in time")


async def add(request):
    """An edit succeeds, connected or not: it is kept, and synced when it can be."""
    notes = request.app[NOTES]
    text = notes.get_text("text")
    text.insert(text.len_unicode, await request.text() + "\n")
    notes.commit()
    return web.Response(text=text.to_string())


async def ready(request):
    """For a load balancer. A client that reconnects is no reason to restart the service: 200, and the words."""
    client = request.app[CLIENT]
    stopped = client.status in ("disconnected", "error")
    return web.json_response({"status": client.status, "reason": client.reason}, status=503 if stopped else 200)


def make_app():
    app = web.Application()
    app.cleanup_ctx.append(sync)
    app.router.add_post("/notes", add)
    app.router.add_get("/ready", ready)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
