"""A client inside a FastAPI service: it begins and ends with the application's lifespan."""

import asyncio
import os
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from loro import LoroDoc

from reconnect_fsm import Client
from reconnect_fsm.adaptors import LoroAdaptor


@asynccontextmanager
async def lifespan(app):
    """Before the yield: start. After it: stop. The service does not wait for the connection in order to start."""
    app.state.notes = LoroDoc()
    async with Client(os.environ["SYNC_URL"]) as app.state.client:
        room = app.state.client.join("notes", LoroAdaptor(app.state.notes))
        yield
        try:
            async with asyncio.timeout(5):
                await room.synced()
        except TimeoutError:
            print("some edits were not acknowledged in time")


app = FastAPI(lifespan=lifespan)


@app.post("/notes")
async def add(request: Request):  # async: edits belong to the thread of the event loop
    """An edit succeeds, connected or not: it is kept, and synced when it can be."""
    notes = request.app.state.notes
    text = notes.get_text("text")
    text.insert(text.len_unicode, (await request.body()).decode() + "\n")
    notes.commit()
    return Response(text.to_string(), media_type="text/plain")


@app.get("/ready")
async def ready(request: Request, response: Response):
    """For a load balancer. A client that reconnects is no reason to restart the service: 200, and the words."""
    client = request.app.state.client
    if client.status in ("disconnected", "error"):
        response.status_code = 503
    return {"status": client.status, "reason": client.reason}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
