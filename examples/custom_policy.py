"""A policy of your own: the server closes with code 4503 while it is being updated, and clients then stay away."""

import asyncio

from reconnect_fsm import Client, ClientFSM, ClientStatus, RetryPolicy
from reconnect_fsm.effects import StartTimer
from reconnect_fsm.machine import row, state
from reconnect_fsm.testing import EmbeddedServer


class PatientFSM(ClientFSM):
    """Stays away for a minute while the server is being updated."""

    update_takes = 60.0  # seconds; a subclass may say otherwise

    def is_being_updated(self) -> bool:
        return self.loss.code == 4503

    def wait_for_the_update(self) -> None:
        self.retry_in = self.update_takes
        self.emit(StartTimer(self.retry_in))

    updating = state(
        ClientStatus.RECONNECTING,
        enter=wait_for_the_update,
        exit=ClientFSM.stop_retry_timer,
        like=ClientFSM.waiting,  # it shares the rows of `waiting`, not its actions
        doc="one timer, of a minute",
    )
    socket_closed = ClientFSM.socket_closed.first(
        row(
            ClientFSM.connected,
            to=updating,
            when=is_being_updated,
            do=ClientFSM.count_attempt,
            after=ClientFSM.is_offline,  # the attempt limit, fatal closes and being offline still win
        )
    )


class HastyFSM(PatientFSM):
    """The same, for this demonstration."""

    update_takes = 0.3


async def main():
    async with EmbeddedServer() as server, Client(server.url, fsm=HastyFSM, retry=RetryPolicy(base=0.05)) as client:
        client.on_transition(lambda change: print(f"{change.old} → {change.new} - {change.reason}"))
        await client.wait_connected()
        await server.close_all(4503, "update")
        while client.status == "connected":
            await asyncio.sleep(0.01)
        await client.wait_connected()


if __name__ == "__main__":
    asyncio.run(main())
