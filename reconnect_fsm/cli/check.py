"""``check``: whether there is anything wrong with a machine of yours."""

from __future__ import annotations

import argparse
from typing import Final

from reconnect_fsm.cli.common import DONE, FAILED, Commands, Unusable, add_command, load, use_utf8

__all__ = ["add"]

CHECK: Final = """\
Explore a machine from its declaration alone: every event in every state that
can be reached, with every answer that its guards could give. It finds actions
and guards that raise, states that cannot be reached or cannot be left, rows
that never fire, events that are ignored in every state, and broken rules: one
dial, socket or timer at a time and none after a stop, each change of status
reported once. Each fault comes with the shortest list of events that leads to
it.

It takes seconds. The arguments of your own events are made up from their
annotations. Where that is not possible, call
reconnect_fsm.testing.check_machine
in a test of yours, and pass them.
"""
EPILOG: Final = """\
examples:
  reconnect-fsm check reconnect_fsm.client_fsm:ClientFSM
      the machine of a client, as this package declares it
  reconnect-fsm check my_app.machines:MyClientFSM
      your subclass of it

exit codes:
  0    nothing was found
  1    there are faults; they are on standard output
  2    there is no such machine, or an event takes arguments that are unknown
"""


def add(commands: Commands) -> None:
    check = add_command(commands, "check", _check, "look for faults in a machine of your own", CHECK, EPILOG)
    check.add_argument("machine", metavar="MODULE:CLASS", help="a subclass of ClientFSM, RoomFSM or FSM")


def _check(arguments: argparse.Namespace) -> int:
    machine = load(arguments.machine)
    from reconnect_fsm.testing import MachineFault, check_machine

    use_utf8()
    try:
        found = check_machine(machine)
    except MachineFault as fault:
        print(fault)
        return FAILED
    except (TypeError, ValueError) as error:
        raise Unusable(f"{machine.__name__} cannot be explored: {error}") from error
    print(
        f"{machine.__name__}: no fault found; {len(found.paths)} states, {len(machine.events)} events, "
        f"{len(found.fired)} rows that fire"
    )
    return DONE
