"""Pages looked at in Debian's Chromium, which must not complain, nor ask anything of anybody else."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Page

__all__ = ["WIDTHS", "looking_at"]

PROGRAM: Final = "chromium"
FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS: Final = (360, 830, 1440)
"""A phone's, a tablet's and a desk's, in pixels."""
PATIENCE: Final = 60_000  # milliseconds, for what must show


@asynccontextmanager
async def looking_at(address: str, *, width: int = 1440, dark: bool = False, still: bool = True) -> AsyncIterator[Page]:
    """A page, not yet led anywhere. Fails if it complained, or asked anything that does not begin with this address."""
    playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")
    program = shutil.which(PROGRAM)
    if program is None:
        pytest.skip(f"needs {PROGRAM}")
    complaints: list[str] = []
    asked: list[str] = []
    async with playwright.async_playwright() as play:
        browser = await play.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE)
        try:
            page = await browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce" if still else "no-preference",
            )
            page.set_default_timeout(PATIENCE)
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.on("websocket", lambda ws: asked.append(ws.url.replace("ws:", "http:", 1)))
            yield page
        finally:
            await browser.close()
    assert not complaints
    assert len(asked) > 3
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
