"""``python -m reconnect_fsm.testing.simulation``."""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from reconnect_fsm.testing.simulation.nemesis import plan
from reconnect_fsm.testing.simulation.report import Report, Violation
from reconnect_fsm.testing.simulation.setting import PLUGGABLE, Setting
from reconnect_fsm.testing.simulation.world import World

__all__ = ["main", "shrink"]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m reconnect_fsm.testing.simulation``. Returns 0, or 1 after a violation."""
    parser = argparse.ArgumentParser(
        prog="python -m reconnect_fsm.testing.simulation",
        description="Simulate clients, a server and a bad network in virtual time; exit with 1 if an invariant breaks.",
    )
    add = parser.add_argument
    add("--seed", type=int, default=0, help="all that happens is a function of it (default: 0)")
    add("--hours", type=float, default=10.0, help="simulated hours a seed (default: 10)")
    add("--seeds", type=int, default=1, help="so many seeds, one after another (default: 1)")
    add("--until-stopped", action="store_true", help="seed after seed, until Ctrl-C")
    add("--for", type=float, default=float("inf"), dest="seconds", help="begin no seed after so many real seconds")
    add("--clients", type=int, default=2, help="how many clients there are (default: 2)")
    for name, what in PLUGGABLE.items():
        add(
            f"--{name.replace('_', '-')}",
            type=_found,
            default=what,
            metavar="MODULE:NAME",
            help=f"instead of {what.__name__}",
        )
    add("--episode", type=int, help="run the storm with this number alone")
    add("--only", type=lambda text: [int(each) for each in text.split(",") if each], help="only these steps of it")
    add("--trace", type=argparse.FileType("w"), help="write every event to this file")
    add("--no-shrink", action="store_true", help="do not look for a shorter way to the violation")
    given = parser.parse_args(arguments)
    chosen = {name: getattr(given, name) for name in ("hours", "clients", "episode", "only", *PLUGGABLE)}
    total, began = Report(), time.monotonic()
    last = None if given.until_stopped else given.seed + given.seeds
    with suppress(KeyboardInterrupt):
        for seed in itertools.count(given.seed):
            if seed == last or time.monotonic() - began > given.seconds:
                break
            try:
                setting = Setting(seed=seed, **chosen)
            except (TypeError, ValueError) as error:
                parser.error(str(error))
            try:
                report = World(setting, given.trace).run()
            except Violation as violation:
                _say(str(total))
                _say(f"seed {seed}: VIOLATION of {violation}")
                if not given.no_shrink and (smaller := shrink(setting, violation)) is not violation:
                    _say(f"\nThe same, made shorter: {smaller}")
                return 1
            total.add(report)
            _say(
                f"seed {seed}: {report.digest}, {report.hours:.1f} h, {report.faults.total()} faults; "
                f"{total.hours:,.0f} h in all, no violation, {time.monotonic() - began:.0f} s"
            )
    _say(str(total))
    return 0


def shrink(setting: Setting, violation: Violation, patience: float = 60.0) -> Violation:
    """Look for a shorter way to break the same invariant: one storm alone, then as few of its steps as will do.

    Gives up after ``patience`` seconds on the clock on the wall; returns the smallest that was found.
    """
    until = time.monotonic() + patience

    def fails(only: Collection[int] | None) -> Violation | None:
        try:
            World(replace(setting, hours=0.0, episode=violation.episode, only=only)).run()
        except Violation as found:
            return found if found.invariant == violation.invariant else None
        return None

    if setting.episode is None:
        smallest = fails(None)
        if smallest is None:  # it takes what came before
            return violation
    else:
        smallest = violation
    steps = plan(Random(f"{setting.seed}: storm {violation.episode}"))
    needed = [step.index for step in steps] if setting.only is None else sorted(setting.only)
    size = max(len(needed) // 2, 1)
    while time.monotonic() < until:
        for start in range(0, len(needed), size):
            fewer = needed[:start] + needed[start + size :]
            if (found := fails(fewer)) is not None:
                needed, smallest = fewer, found
                break
        else:
            if size == 1:
                break
            size = max(size // 2, 1)
    return smallest


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    if not name:
        raise argparse.ArgumentTypeError(f"{place!r} is not MODULE:NAME: say what of the module, after a colon")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{place!r} is not MODULE:NAME of something that exists: {error}") from None
    return found


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
