"""A WebSocket client that stays connected, declared as finite-state machines.

Start with `Client`, or with `Connection` for a server that does not speak the Loro syncing protocol. The machines are
`ClientFSM` and `RoomFSM`; subclass them for policies of your own.
"""

import logging

from .client import Client
from .client_fsm import ClientFSM
from .connection import Connection
from .errors import (
    ClientStopped,
    InvalidURL,
    JoinRefused,
    MachineDefinitionError,
    NotConnected,
    ProtocolError,
    ReconnectError,
    RoomLeft,
    Unauthorized,
    UpdatesRefused,
)
from .keepalive import Keepalive
from .network import ManualNetwork, NetworkSource
from .retry import RetryPolicy
from .room_fsm import RoomFSM
from .rooms import Room
from .status import (
    AttemptFailure,
    ClientStatus,
    CloseInfo,
    FailureKind,
    FaultKind,
    RoomStatus,
    StateChange,
    StatusChange,
    StopKind,
)

__all__ = [
    "AttemptFailure",
    "Client",
    "ClientFSM",
    "ClientStatus",
    "ClientStopped",
    "CloseInfo",
    "Connection",
    "FailureKind",
    "FaultKind",
    "InvalidURL",
    "JoinRefused",
    "Keepalive",
    "MachineDefinitionError",
    "ManualNetwork",
    "NetworkSource",
    "NotConnected",
    "ProtocolError",
    "ReconnectError",
    "RetryPolicy",
    "Room",
    "RoomFSM",
    "RoomLeft",
    "RoomStatus",
    "StateChange",
    "StatusChange",
    "StopKind",
    "Unauthorized",
    "UpdatesRefused",
]

logging.getLogger("reconnect_fsm").addHandler(logging.NullHandler())
