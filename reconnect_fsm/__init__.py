"""A WebSocket client that stays connected, declared as finite-state machines.

Start with `Client`, or with `Connection` for a server that does not speak the Loro syncing protocol. The machines are
`ClientFSM` and `RoomFSM`; subclass them for policies of your own.
"""

import logging

from reconnect_fsm._asyncio.client import Client
from reconnect_fsm._asyncio.connection import Connection
from reconnect_fsm._asyncio.room import Room
from reconnect_fsm.client_fsm import ClientFSM
from reconnect_fsm.errors import (
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
from reconnect_fsm.keepalive import Keepalive
from reconnect_fsm.network import ManualNetwork, NetworkSource
from reconnect_fsm.retry import RetryPolicy
from reconnect_fsm.room_fsm import RoomFSM
from reconnect_fsm.status import (
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

__version__ = "0.1.0"

logging.getLogger("reconnect_fsm").addHandler(logging.NullHandler())
