"""Recordings of what the machines did, as JSON lines, and their replay.

A client writes them: see `Connection.record`, `Connection.export` and `Connection.transitions`.
"""

from reconnect_fsm.recorder.recorder import (
    CLIENT,
    Divergence,
    File,
    Recording,
    Replay,
    Transition,
    UnreadableRecording,
    replay,
    transitions_in,
)

__all__ = [
    "CLIENT",
    "Divergence",
    "File",
    "Recording",
    "Replay",
    "Transition",
    "UnreadableRecording",
    "replay",
    "transitions_in",
]
