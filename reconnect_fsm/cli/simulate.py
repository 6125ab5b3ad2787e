"""``simulate``: what many clients do to one server that loses them all."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconnect_fsm.cli.common import (
    DONE,
    Commands,
    Unusable,
    add_command,
    count,
    load_fsm,
    loading,
    positive,
    seconds,
    use_utf8,
)

if TYPE_CHECKING:
    from reconnect_fsm.testing.herd import HerdRun, PolicyFactory

__all__ = ["add"]

NAMES: Final = ("ours", "reference", "after-cap", "full", "equal", "decorrelated")
COMPARED: Final = ("ours", "reference", "full", "equal")
MAX_OUTAGE: Final = 3000.0  # seconds of an outage
MAX_WIDTH: Final = 120  # characters; a wider picture shows no more

SIMULATE: Final = """\
Many clients are connected to one server, and lose it in the same moment. For a
while none gets in; then the server accepts so many a second. Shown are the
attempts to connect in each 100 ms, for one or several ways to wait between
them. Beside each name are the most attempts in 100 ms that the server meets
once it is back, and how long it then takes until 99 % of the clients are, too.

Every client is a real ClientFSM with its policy; the network and the time are
simulated, so it takes a second or two for each 10,000 clients and policy.
"""
EPILOG: Final = """\
policies (c is min(cap, base * 2^(n-1)), the wait before retry n):
  ours          the RetryPolicy of this package: c +- jitter, never above cap
  reference     the reference JavaScript client's: the jitter comes before the
                cap, so that in the end all wait equally long
  after-cap     c +- jitter, also above the cap
  full          anything from 0 to c
  equal         anything from c/2 to c
  decorrelated  anything from base to three times the wait before
  MODULE:CLASS  a subclass of RetryPolicy, your own

examples:
  reconnect-fsm simulate
      10,000 clients, an outage of 30 s, four policies
  reconnect-fsm simulate --clients 2000 --outage 0 --accepts 100 --policy ours
      a blip, and a server that accepts 100 a second
  reconnect-fsm simulate --policy ours --jitter 0.5 --svg herd.svg
      with more jitter, and as a picture, too
"""


def add(commands: Commands) -> None:
    simulate = add_command(
        commands, "simulate", _simulate, "what many clients do to a server that comes back", SIMULATE, EPILOG
    )
    simulate.add_argument("--clients", type=count, default=10_000, metavar="N", help="how many (default: 10000)")
    simulate.add_argument(
        "--outage", type=_outage, default=30.0, metavar="SECONDS", help="in which no client gets in (default: 30)"
    )
    simulate.add_argument(
        "--accepts",
        type=positive("number a second"),
        metavar="N",
        help="how many a second the server then accepts (default: all, at once)",
    )
    simulate.add_argument(
        "--backlog", type=count, default=128, metavar="N", help="how many may wait to be accepted (default: 128)"
    )
    simulate.add_argument(
        "--policy",
        action="append",
        dest="policies",
        metavar="NAME",
        help=f"which, see below; may be given several times (default: {', '.join(COMPARED)}); all: all",
    )
    simulate.add_argument("--base", type=seconds, metavar="SECONDS", help="the first wait (default: 0.5)")
    simulate.add_argument("--cap", type=seconds, metavar="SECONDS", help="the longest wait (default: 15)")
    simulate.add_argument("--jitter", type=float, metavar="FRACTION", help="how far it is spread (default: 0.25)")
    simulate.add_argument("--fsm", metavar="MODULE:CLASS", help="a subclass of ClientFSM for the clients' machines")
    simulate.add_argument("--seed", type=int, default=0, metavar="N", help="of all chance (default: 0)")
    simulate.add_argument("--svg", type=Path, metavar="FILE", help="draw it into this file, too")


def _outage(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) == 0:
            return 0.0
    outage = seconds(text)
    if outage > MAX_OUTAGE:
        raise argparse.ArgumentTypeError(f"the simulation ends after an hour: give at most {MAX_OUTAGE:g} seconds")
    return outage


def _simulate(arguments: argparse.Namespace) -> int:
    from reconnect_fsm.client_fsm import ClientFSM
    from reconnect_fsm.testing.herd import POLICIES, draw_svg, draw_text, simulate_herd

    wanted: list[str] = arguments.policies or list(COMPARED)
    if "all" in wanted:
        wanted = list(NAMES)
    settings = {name: getattr(arguments, name) for name in ("base", "cap", "jitter")}
    settings = {name: value for name, value in settings.items() if value is not None}
    fsm = ClientFSM if arguments.fsm is None else load_fsm(arguments.fsm, ClientFSM)
    runs: dict[str, HerdRun] = {}
    try:
        for name in dict.fromkeys(wanted):
            factory = POLICIES[name] if name in POLICIES else _own_policy(name)
            if sys.stderr.isatty():
                print(f"simulating {arguments.clients:,} clients: {name} …", end="\r", file=sys.stderr, flush=True)
            runs[name] = simulate_herd(
                _with(factory, settings),
                clients=arguments.clients,
                outage=arguments.outage,
                accepts_per_second=arguments.accepts,
                backlog=arguments.backlog,
                fsm=fsm,
                seed=arguments.seed,
            )
    except (ValueError, RuntimeError) as error:  # impossible numbers, a policy that does not wait
        raise Unusable(str(error)) from error
    finally:
        if sys.stderr.isatty():
            print("\x1b[K", end="", file=sys.stderr, flush=True)
    use_utf8()
    title = _title(arguments)
    print(title, draw_text(runs, width=min(shutil.get_terminal_size().columns, MAX_WIDTH)), sep="\n\n")
    if arguments.svg is not None:
        try:
            arguments.svg.write_text(draw_svg(runs, title=title), encoding="utf-8", newline="\n")
        except OSError as error:
            raise Unusable(f"cannot write {arguments.svg}: {error.strerror}") from error
    return DONE


def _title(arguments: argparse.Namespace) -> str:
    lost = f"down for {arguments.outage:g} s" if arguments.outage else "reset"
    then = "accepts all" if arguments.accepts is None else f"accepts {arguments.accepts:g} a second"
    return f"{arguments.clients:,} clients; the server is {lost}, then {then}"


def _with(factory: PolicyFactory, settings: dict[str, Any]) -> PolicyFactory:
    """The policies that it makes, with these settings."""
    return lambda random: dataclasses.replace(factory(random), **settings) if settings else factory(random)


def _own_policy(address: str) -> PolicyFactory:
    from reconnect_fsm.retry import RetryPolicy

    def find(address: str) -> type[RetryPolicy]:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", address):
            raise Unusable(f"there is no policy {address!r}; there are {', '.join(NAMES)}, all, and MODULE:CLASS")
        module, _, name = address.partition(":")
        found: Any = getattr(importlib.import_module(module), name, None)
        if not (isinstance(found, type) and issubclass(found, RetryPolicy)):
            raise Unusable(f"{address} is no subclass of RetryPolicy")
        return found

    make: Callable[..., RetryPolicy] = loading(address, find)
    return lambda random: make(random=random)
