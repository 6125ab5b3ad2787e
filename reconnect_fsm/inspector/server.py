"""The server behind the page: its files, and a WebSocket to each viewer.

It answers only what `Access` allows: the names in `FILES`, the pictures of the client's machine, and the WebSocket.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from inspect import isawaitable
from types import TracebackType
from typing import Final, Self

from aiohttp import hdrs, web

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm._asyncio.connection import Connection, observation_of
from reconnect_fsm._asyncio.user_code import UserCodeFailed, await_user, call_user
from reconnect_fsm.diagrams import Machine, cards, picture
from reconnect_fsm.inspector.access import Access, check_host
from reconnect_fsm.inspector.observer import Observer
from reconnect_fsm.inspector.room_counts import RoomCounts
from reconnect_fsm.inspector.viewer import Viewer

__all__ = ["Inspector", "inspect"]


MAX_VIEWERS: Final = 8  # at the same time
SCRIPTS: Final = ("main", "link", "dom", "machine", "timeline", "latency", "rooms", "controls")
FILES: Final = {
    "": ("index.html", "text/html"),
    "inspector.css": ("inspector.css", "text/css"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
"""The name in the address: the file in ``page/``, and its type."""


class Inspector:
    """Serves a page that shows a client live, on this machine only.

    ::

        async with Inspector(client) as inspector:
            print(inspector.url)        # open it in a browser; it holds a token, so do not log it

    Parameters:
        client: a Client or a Connection. Only the buttons of the page start or close it.
        host: the loopback address to listen on.
        port: the port; 0 for any free one.
        faults: buttons that do something to a test server: functions, plain or async, by the words on the button.

    Raises ValueError at once for a host that is not this machine. Start and use it in the event loop of the client.
    """

    def __init__(
        self,
        client: Connection,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        if not isinstance(client, Connection):
            raise TypeError(f"the inspector shows a Client or a Connection, not {client!r}")
        self._client = client
        self._host = check_host(host)
        self._port = port
        self._faults = dict(faults or {})
        self._running: dict[str, asyncio.Task[None]] = {}  # faults that are under way
        self._access: Access | None = None
        self._runner: web.ServerRunner | None = None
        self._observer: Observer | None = None
        self._room_counts = RoomCounts(client) if isinstance(client, Client) else None
        self._viewers: set[Viewer] = set()
        self._drawings: tuple[str, str, str] | None = None

    @property
    def url(self) -> str:
        """The address of the page. It holds a token, so show it only to users who may control the client.

        Raises RuntimeError while the inspector is not started.
        """
        if self._access is None:
            raise RuntimeError("the inspector has no address before it is started: await start(), or use async with")
        return self._access.url

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, and begin to observe the client. Each start has a token of its own.

        Raises RuntimeError if it is started already or the client runs in another event loop; OSError if the port is
        taken.
        """
        if self._runner is not None:
            raise RuntimeError("the inspector is started already")
        loop = asyncio.get_running_loop()
        theirs = observation_of(self._client).loop
        if theirs is not None and theirs is not loop and not theirs.is_closed():
            raise RuntimeError("the client runs in another event loop: start the inspector in that one")
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=1.0)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self._host, self._port).start()
            self._observer = Observer(self._client, self._wake)
            self._access = Access(self._host, self._runner.addresses[0][1])
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop observing the client, and disconnect all viewers. Does nothing if it is not started."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._access = None
        if self._observer is not None:
            self._observer.stop()
        for task in self._running.values():
            task.cancel()
        for viewer in self._viewers:
            viewer.leave()
        await runner.cleanup()
        if self._running:
            await asyncio.wait(self._running.values())
        self._observer = None

    # Requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever it is."""
        access = self._access
        if access is None:
            return web.Response(status=503)
        refusal = access.refusal(request)
        if refusal is None:
            _, slash, name = request.path.removeprefix("/").partition("/")
            if not slash:  # what the page loads is beside it
                response = web.Response(status=308, headers={hdrs.LOCATION: f"{request.path}/"})
                return access.protected(request, response)
            if name == "live" and hdrs.UPGRADE in request.headers:
                if len(self._viewers) < MAX_VIEWERS:
                    return await self._view(request)
                refusal = 503, f"there are {MAX_VIEWERS} viewers already: close one of their pages"
            elif (found := await self._file(name)) is not None:
                text, kind = found
                return access.protected(request, web.Response(text=text, content_type=kind, charset="utf-8"))
            else:
                refusal = 404, "there is no such page"
        status, why = refusal
        return access.protected(request, web.Response(status=status, text=f"{why}\n"))

    async def _file(self, name: str) -> tuple[str, str] | None:
        """The text of a file of the page, and its type; None if there is none of this name."""
        if name in FILES:
            file, kind = FILES[name]
            return _shipped(file), kind
        if name in ("machine.svg", "machine-cards.svg", "machine.css"):
            # Graphviz takes its time: not in the event loop
            if self._drawings is None:
                self._drawings = await asyncio.to_thread(_drawn, type(observation_of(self._client).fsm))
            drawing, small, style = self._drawings
            if name == "machine.css":
                return style, "text/css"
            return (drawing if name == "machine.svg" else small), "image/svg+xml"
        return None

    async def _view(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._observer is not None
        viewer = Viewer(self, self._observer, self._room_counts)
        self._viewers.add(viewer)
        try:
            return await viewer.serve(request)
        finally:
            self._viewers.discard(viewer)
            if self._room_counts is not None and not self._viewers:
                self._room_counts.forget()

    # What viewers ask for

    @property
    def viewers(self) -> int:
        """The number of open pages."""
        return len(self._viewers)

    def faults(self) -> list[tuple[str, bool]]:
        """The words on each button for a fault, and whether it is under way."""
        return [(name, name in self._running) for name in self._faults]

    def cause(self, name: str) -> None:
        """Press the button of a fault; while it is under way this does nothing. Raises KeyError if there is none."""
        fault = self._faults[name]
        if name not in self._running:
            task = asyncio.create_task(self._run(name, fault), name=f"inspector fault: {name}")
            self._running[name] = task
            task.add_done_callback(lambda _: self._ended(name))
            self._wake()

    async def _run(self, name: str, fault: Callable[[], object]) -> None:
        what = f"the fault {name!r}"
        try:
            result = call_user(what, fault)
            if isawaitable(result):
                await await_user(what, result)
        except UserCodeFailed as failed:
            for viewer in self._viewers:
                viewer.notice(f"{name}: raised {type(failed.error).__name__}; the log tells where")

    def _ended(self, name: str) -> None:
        del self._running[name]
        self._wake()

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.changed.set()


def inspect(
    client: Connection, *, port: int = 0, faults: Mapping[str, Callable[[], object]] | None = None
) -> Inspector:
    """The one line for a program of yours: ``async with inspect(client): …`` prints the page's address, to stderr.

    See `Inspector` for the parameters and for what it raises.
    """
    return _Announced(client, port=port, faults=faults)


class _Announced(Inspector):
    async def start(self) -> None:
        await super().start()
        if sys.stderr is not None:
            sys.stderr.write(f"inspector: open {self.url} in a browser on this machine\n")
            sys.stderr.flush()


@cache
def _shipped(name: str) -> str:
    return (files("reconnect_fsm.inspector") / "page" / name).read_text(encoding="utf-8")


def _drawn(cls: Machine) -> tuple[str, str, str]:
    """The machine as a picture and, for narrow screens, as cards; and the style sheet of both.

    The page's policy allows no styles inside of elements, so they are taken out of the pictures.
    """
    styles: list[str] = []

    def without_style(svg: str) -> str:
        styles.extend(re.findall(r"<style>(.*?)</style>", svg, re.DOTALL))
        return re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)

    drawing, small = without_style(picture(cls)), without_style(cards(cls))
    return drawing, small, "\n".join(dict.fromkeys(styles))
