"""A page in your browser that shows a client live: its machine, rooms, history and latency; with buttons to control it.

One line in a program of yours::

    async with inspect(client):     # prints an address; open it in a browser on the same machine
        ...

It is off unless asked for, and for this machine only: it listens on a loopback address, the address of the page holds a
token that every request needs, and requests that another site makes a browser send are refused. No secret is shown. It
costs the client's event loop nothing while no page is open, and a bounded share while one is.

`Inspector` is the same without printing. `run` and `run_demo` are what the command line calls.
"""

from reconnect_fsm.inspector.demo import demo_inspector, run, run_demo
from reconnect_fsm.inspector.server import Inspector, inspect

__all__ = ["Inspector", "demo_inspector", "inspect", "run", "run_demo"]
