"""``replay``: the events of a recording, fired in the machines as they are now."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from reconnect_fsm.cli.common import DONE, FAILED, Commands, Unusable, add_command, load_fsm, use_utf8

__all__ = ["add"]

REPLAY: Final = """\
Fire the events of a recording in the machines as they are now, and say where
they behave differently: to reproduce a report, to see what a change of a
machine would have done, or to draw the run. A recording is what
client.record() or client.export() wrote, or 'watch --record': JSON lines.
"""
EPILOG: Final = """\
examples:
  reconnect-fsm replay run.jsonl
      whether this version would have done the same
  reconnect-fsm replay run.jsonl --fsm my_app.machines:MyClientFSM
      whether a machine of yours would have
  reconnect-fsm replay run.jsonl --svg run.svg
      and a picture of the run: states and events along time

exit codes:
  0    it would have done the same
  1    it behaves differently; the differences are on standard output
  2    the file cannot be read, or is no recording
"""


def add(commands: Commands) -> None:
    replay = add_command(commands, "replay", _replay, "fire a recorded run in the machines", REPLAY, EPILOG)
    replay.add_argument("file", type=Path, metavar="FILE", help="a recording")
    replay.add_argument("--fsm", metavar="MODULE:CLASS", help="for the client, instead of ClientFSM")
    replay.add_argument("--room-fsm", metavar="MODULE:CLASS", help="for its rooms, instead of RoomFSM")
    replay.add_argument("--svg", type=Path, metavar="FILE", help="draw the run into this file, too")


def _replay(arguments: argparse.Namespace) -> int:
    from reconnect_fsm.client_fsm import ClientFSM
    from reconnect_fsm.recorder.recorder import UnreadableRecording, replay
    from reconnect_fsm.room_fsm import RoomFSM

    fsm = ClientFSM if arguments.fsm is None else load_fsm(arguments.fsm, ClientFSM)
    room_fsm = RoomFSM if arguments.room_fsm is None else load_fsm(arguments.room_fsm, RoomFSM)
    file: Path = arguments.file
    try:
        with file.open(encoding="utf-8") as lines:
            replayed = replay(lines, fsm=fsm, room_fsm=room_fsm)
        if arguments.svg is not None:
            _draw(file, arguments.svg)
    except UnreadableRecording as error:
        raise Unusable(f"{file} is no recording that can be read: {error}") from error
    except UnicodeDecodeError as error:
        raise Unusable(f"{file} is no recording: it is not UTF-8") from error
    except OSError as error:
        raise Unusable(f"cannot read {file}: {error.strerror or error}") from error
    use_utf8()
    print(replayed)
    return FAILED if replayed.divergences else DONE


def _draw(recording: Path, picture: Path) -> None:
    from reconnect_fsm.diagrams import sequence
    from reconnect_fsm.recorder.recorder import transitions_in

    with recording.open(encoding="utf-8") as lines:
        drawn = sequence(transitions_in(lines), title=recording.name)
    try:
        picture.write_text(drawn, encoding="utf-8", newline="\n")
    except OSError as error:
        raise Unusable(f"cannot write {picture}: {error.strerror or error}") from error
