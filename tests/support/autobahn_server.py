"""The fuzzing server of Autobahn|Testsuite: its cases, over autobahn's own WebSocket, on Python 3.

The suite itself is a Python 2 program; its cases are small classes in plain files. These are read from the installed
package, the few words that Python 3 knows no more are put into today's, and text stands for bytes, a character a byte
(latin-1), wherever a case looks. Run by the Python of a virtual environment that has both packages::

    python autobahn_server.py        # prints {"port": …, "cases": […]}, then a line of JSON for each case that ended

A client runs a case by opening ``/?case=1.1.1`` and echoing what it gets. The server ends when its stdin is closed.
"""

from __future__ import annotations

import array
import asyncio
import binascii
import importlib.util
import json
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

from autobahn.asyncio.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator

TO_PYTHON_3 = (
    (r"(?m)^(\s*)print\b.*$", r"\1pass"),
    (r"(?m)^\s*(from (case|autobahn)\S* import .*|import (binascii|array|pickle)\b.*)$", ""),
    (r"\(object, Case, \)", "(Case, )"),
    (r" / self\.p\.", " // self.p."),  # it was a division of whole numbers
    (r"\bxrange\b", "range"),
)


def load_cases() -> list[tuple[str, type[Any]]]:
    """The classes of all cases but those of compression, with their numbers, in the suite's order."""
    found = importlib.util.find_spec("autobahntestsuite")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "case"
    names: dict[str, Any] = {
        "WebSocketProtocol": WebSocketProtocol,
        "Utf8Validator": Validator,
        "binascii": types.SimpleNamespace(b2a_hex=lambda text: binascii.b2a_hex(octets(text)).decode()),
        "array": types.SimpleNamespace(
            array=lambda _, items: types.SimpleNamespace(tostring=array.array("B", items).tobytes)
        ),
        "__name__": "cases",
    }
    index = (folder / "__init__.py").read_text()
    for module in ["case", *re.findall(r"(?m)^from (case\w+) import", index)]:
        if not module.startswith(("case12", "case13", "case9_9")):  # the last is in no list of theirs
            source = (folder / f"{module}.py").read_text(encoding="latin-1")
            for old, new in TO_PYTHON_3:
                source = re.sub(old, new, source)
            exec(compile(source, module, "exec"), names)
    names["Case"].compare = lambda _, one, other: one == other  # two pickles of the same need not be the same
    listing = "\n".join(line for line in index.splitlines() if line.startswith("Cases") and "_X_X" not in line)
    exec(compile(listing, "cases", "exec"), names)
    cases = [*names["Cases"], *names["Case6_X_X"]]
    return [(case.__name__.removeprefix("Case").replace("_", "."), case) for case in cases]


def octets(text: str | bytes) -> bytes:
    """What a case means by a str."""
    return text if isinstance(text, bytes) else text.encode("latin-1")


class Validator(Utf8Validator):  # type: ignore[misc]  # it is not typed
    """autobahn's own, with which the suite finds out what is valid."""

    def validate(self, text: str | bytes) -> Any:
        return super().validate(octets(text))


class Fuzzer(WebSocketServerProtocol):  # type: ignore[misc]  # it is not typed
    """What a case knows as ``self.p``."""

    name = ""
    case: Any = None
    connectionWasOpen = False  # noqa: N815  # the suite's name, as are those below
    createWirelog = False  # noqa: N815

    def onConnect(self, request: Any) -> None:  # noqa: N802
        (self.name,) = request.params["case"]
        self.began = time.monotonic()
        self.txFrameStats: dict[int, int] = {}
        self.case = self.factory.cases[self.name](self)

    def onOpen(self) -> None:  # noqa: N802
        self.connectionWasOpen = True
        self.case.onOpen()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N802, N803
        self.case.onMessage(payload.decode("latin-1"), isBinary)

    def onPong(self, payload: bytes) -> None:  # noqa: N802
        self.case.onPong(payload.decode("latin-1"))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: N802, N803
        if self.case is not None:
            self.case.onClose(wasClean, code, reason)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.case is not None:
            self.case.onConnectionLost(self.failedByMe)
            told = {
                "case": self.name,
                "behavior": self.case.behavior,
                "behaviorClose": self.case.behaviorClose,
                "result": f"{self.case.result} {self.case.resultClose}",
                "remoteCloseCode": self.remoteCloseCode,
                "duration": round(time.monotonic() - self.began, 3),
            }
            print(json.dumps(told), flush=True)

    # What cases do

    def sendFrame(self, opcode: int, payload: str | bytes = b"", **options: Any) -> None:  # noqa: N802
        super().sendFrame(opcode, octets(payload), **options)

    def sendMessage(self, payload: str | bytes, isBinary: bool = False, **options: Any) -> None:  # noqa: N802, N803
        super().sendMessage(octets(payload), isBinary, **options)

    def sendMessageFrameData(self, payload: str | bytes, sync: bool = False) -> Any:  # noqa: N802
        return super().sendMessageFrameData(octets(payload), sync)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: Any = None, isReply: bool = False) -> None:  # noqa: N802, N803
        super().sendCloseFrame(code, None if reasonUtf8 is None else octets(reasonUtf8), isReply)

    def logTxFrame(self, frameHeader: Any, payload: Any, *_: object) -> None:  # noqa: N802, N803
        self.txFrameStats[frameHeader.opcode] = self.txFrameStats.get(frameHeader.opcode, 0) + 1

    def logRxFrame(self, frameHeader: Any, payload: Any) -> None:  # noqa: N802, N803
        """Nothing to count."""

    def enableWirelog(self, enable: bool) -> None:  # noqa: N802
        """There is none."""

    def continueLater(self, delay: float, do: Any, tag: str | None = None) -> None:  # noqa: N802
        self._later(delay, do)

    def killAfter(self, delay: float) -> None:  # noqa: N802
        self._later(delay * PATIENCE, self._fail_connection)

    def closeAfter(self, delay: float) -> None:  # noqa: N802
        self._later(delay * PATIENCE, self.sendClose)

    def _later(self, delay: float, do: Any) -> None:
        asyncio.get_running_loop().call_later(delay, lambda: self.state != self.STATE_CLOSED and do())


PATIENCE = 5  # times what the suite gives a client: the machine is shared


async def main() -> None:
    """Serve until stdin is closed."""
    cases = dict(load_cases())
    factory = WebSocketServerFactory()
    factory.protocol = Fuzzer
    factory.cases = cases
    factory.setProtocolOptions(failByDrop=False, openHandshakeTimeout=30, closeHandshakeTimeout=5)
    factory.logFrames = True
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1], "cases": list(cases)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
