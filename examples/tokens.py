"""Tokens that expire: they are asked for at each attempt and at each join, so none is ever stale."""

import asyncio
import itertools
import time

from loro import LoroDoc

from reconnect_fsm import Client, JoinRefused, RetryPolicy, Unauthorized
from reconnect_fsm.adaptors import LoroAdaptor
from reconnect_fsm.testing import EmbeddedServer

LIFETIME = 1.0  # second; an hour, in earnest


class Identity:
    """Stands for your identity service."""

    def __init__(self):
        self._numbers = itertools.count(1)
        self._expiry = {}
        self.is_signed_in = True

    async def token(self):
        """A fresh token. `Unauthorized` says: asking again is of no use; anything else is tried again."""
        if not self.is_signed_in:
            raise Unauthorized("signed out")
        token = f"token-{next(self._numbers)}"
        self._expiry[token] = time.monotonic() + LIFETIME
        return token

    def knows(self, token):
        return self._expiry.get(token, 0) > time.monotonic()


async def main():
    identity = Identity()

    def authenticate(room_id, crdt, auth):  # the server's side
        good = identity.knows(auth.decode())
        print(f"the server was shown {auth.decode()}: {'good' if good else 'no'}")
        return "write" if good else None

    async def auth():  # for a room: bytes
        return (await identity.token()).encode()

    async with EmbeddedServer(authenticate=authenticate) as server:

        async def url():  # for the connection: an address
            return f"{server.url}?token={await identity.token()}"

        async with Client(url, retry=RetryPolicy(base=0.05)) as client:
            room = await client.join("notes", LoroAdaptor(LoroDoc()), auth=auth)
            await asyncio.sleep(2 * LIFETIME)  # the token that let us in has expired
            server.reset_all()  # and now the connection is lost
            while room.status == "joined":
                await asyncio.sleep(0.01)
            await room
            print("joined again with a fresh one")

            identity.is_signed_in = False
            try:
                await client.join("diary", LoroAdaptor(LoroDoc()), auth=auth)
            except JoinRefused as refused:
                print(refused.message)


if __name__ == "__main__":
    asyncio.run(main())
