"""What a test leaves behind: tasks, timers, transports, file descriptors, threads.

The fixture ``no_leaks`` checks a test with these functions; a test may also call them itself::

    before = leaks.in_process() | leaks.in_loop()
    ...
    assert await leaks.left_over(before) == []

The functions return a plain dict from each thing to a description, so what is left over is the difference of two of
them. The attributes of the loop that they read are private, but stable: all of CPython's selector loops, and the
virtual one, have them. Of other loops only the tasks are checked. File descriptors are checked where there is ``/proc``
or ``/dev/fd``.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Hashable, Iterable
from typing import Any, Final

__all__ = ["describe", "in_loop", "in_process", "left_over", "left_over_without_loop"]

Found = dict[Hashable, str]

PASSES: Final = 20  # a closed transport is gone after one pass of the loop, a cancelled chain of tasks after a few
PAUSES: Final = 50  # only for what the kernel has to end, such as the pipes of a process
PAUSE: Final = 0.01  # seconds

PROC: Final = "/proc/self/fd"
DESCRIPTORS: Final = next((path for path in (PROC, "/dev/fd") if os.path.isdir(path)), None)


def in_process() -> Found:
    """The open file descriptors of this process, and its threads that are not daemons.

    The threads of the running loop's default executor are no leak: they live as long as the loop, which ends them.
    """
    found: Found = {}
    for name in os.listdir(DESCRIPTORS) if DESCRIPTORS else ():
        try:
            target = os.readlink(f"{DESCRIPTORS}/{name}") if DESCRIPTORS == PROC else _kind_of(int(name))
        except OSError:  # the descriptor that listed the directory
            continue
        found["fd", name, target] = f"file descriptor {name} -> {target}"
    expected = {threading.main_thread(), *_executor_threads()}
    for thread in threading.enumerate():
        if not thread.daemon and thread not in expected:
            found["thread", thread] = f"thread {thread.name}"
    return found


def in_loop() -> Found:
    """The tasks, timers and transports of the running loop, and what else it watches; not the calling task."""
    loop: Any = asyncio.get_running_loop()
    found: Found = {}
    for task in asyncio.all_tasks(loop):
        if task is not asyncio.current_task():
            found["task", task] = f"task {task!r}"
    for timer in getattr(loop, "_scheduled", ()):
        if not timer.cancelled():
            found["timer", timer] = f"timer {timer!r}"
    if not hasattr(loop, "_transports"):
        return found
    transports = {fd: each for fd, each in loop._transports.items() if not each.is_closing()}
    for transport in transports.values():
        found["transport", transport] = f"transport {transport!r} to {transport.get_extra_info('peername')}"
    for key in loop._selector.get_map().values():
        if key.fd not in transports and key.fileobj is not loop._ssock:
            found["watched", key.fileobj] = f"watched by the loop: {getattr(key.fileobj, 'socket', key.fileobj)!r}"
    return found


async def left_over(before: Found) -> list[str]:
    """Descriptions of what is there now and was not there before, once what is about to end has ended.

    The loop gets a few passes, in which no time passes: what a timer or a task would end later is a leak. File
    descriptors and threads get half a second more, as the kernel or another thread may have to end them.
    """
    in_loop_still = _new(before, in_loop())
    for _ in range(PASSES):
        if not in_loop_still:
            break
        await asyncio.sleep(0)
        in_loop_still = _new(before, in_loop())
    for _ in range(PAUSES):
        if not _new(before, in_process()):
            break
        await asyncio.sleep(PAUSE)
    return [*in_loop_still.values(), *_new(before, in_process()).values()]


def left_over_without_loop(before: Found) -> list[str]:
    """The same where no loop runs: file descriptors and threads."""
    for _ in range(PAUSES):
        if not _new(before, in_process()):
            break
        time.sleep(PAUSE)
    return list(_new(before, in_process()).values())


def describe(left: list[str]) -> str:
    """The message of a failing test."""
    return "\n  ".join([f"{len(left)} left over:", *left])


def _executor_threads() -> Iterable[threading.Thread]:
    loop: Any = asyncio._get_running_loop()
    executor = getattr(loop, "_default_executor", None)
    return executor._threads if executor else ()


def _kind_of(descriptor: int) -> str:
    return f"{stat.S_IFMT(os.fstat(descriptor).st_mode):#o} {os.fstat(descriptor).st_ino}"


def _new(before: Found, now: Found) -> Found:
    return {identity: text for identity, text in now.items() if identity not in before}
