"""What enters a document goes wherever it has to, and never back (D-ANYWAY); presence (D-PRESENCE): adaptors by hand.

A `Hub` stands for a server and a `Spoke` for a room, without a network: what is on its way is moved by `settle`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loro import ID, CounterSpan, EphemeralStore, ExportMode, IdSpan, LoroDoc, VersionVector

from documents import new_doc, text, write
from kit import until
from reconnect_fsm import Client
from reconnect_fsm.adaptors import EphemeralAdaptor, LoroAdaptor, ephemeral
from reconnect_fsm.adaptors import loro as of_loro
from reconnect_fsm.testing import EmbeddedServer

NOTHING = VersionVector()  # type: ignore[no-untyped-call]  # loro's stub


def put(doc: LoroDoc, key: str, value: Any) -> None:
    doc.get_map("map").insert(key, value)
    doc.commit()


def everything(doc: LoroDoc) -> bytes:
    return doc.export(ExportMode.Updates(NOTHING))


def saved(words: str, peer: int | None = None) -> bytes:
    doc = new_doc(peer)
    write(doc, words)
    return everything(doc)


class Hub:
    """A server's room: it passes on to the others what one sends."""

    def __init__(self) -> None:
        self.doc = new_doc()
        self.spokes: list[Spoke] = []
        self.batches = 0
        self.useless = 0
        """Batches that told it nothing new."""
        self.sizes: list[int] = []

    def take(self, update: bytes, sender: Spoke) -> None:
        self.batches += 1
        self.sizes.append(len(update))
        before = self.doc.oplog_vv
        status = self.doc.import_(update)
        assert status.pending is None, "what was sent needs what was not sent before"
        self.useless += before.includes_vv(self.doc.oplog_vv)
        for spoke in self.spokes:
            if spoke is not sender:
                spoke.inbox.append(update)


class Spoke:
    """A joined room. What the adaptor sends is looked at in a later turn, as a room does."""

    def __init__(self, hub: Hub, adaptor: LoroAdaptor, max_piece: int | None = None) -> None:
        self.hub, self.adaptor = hub, adaptor
        if max_piece is not None:
            adaptor.max_piece = max_piece
        self.outbox: list[bytes | None] = []
        self.inbox: list[bytes] = []
        self.detach = adaptor.attach(self.outbox.append)
        hub.spokes.append(self)
        self.join()

    def join(self) -> None:
        self.outbox.clear()
        self.inbox = [self.hub.doc.export(ExportMode.Updates(VersionVector.decode(self.adaptor.version())))]
        self._upload: Iterator[bytes] = iter(self.adaptor.missing_from(self.hub.doc.oplog_vv.encode()))

    def step(self) -> bool:
        """Move one message; False if there is none."""
        if self.inbox:
            self.adaptor.apply([self.inbox.pop(0)])
        elif (piece := next(self._upload, None)) is not None:
            self.hub.take(piece, self)
        elif self.outbox:
            update = self.outbox.pop(0)
            if update is None:
                self._upload = iter(self.adaptor.unsent())
            else:
                self.hub.take(update, self)
        else:
            return False
        return True

    def is_synced(self) -> bool:
        """Asked as a room asks: which looks whether something entered unseen."""
        self.adaptor.commit()
        is_all_passed = not self.adaptor.has_uncommitted() and not self.outbox
        return self.adaptor.covers(self.hub.doc.oplog_vv.encode()) and is_all_passed


def settle(*spokes: Spoke) -> None:
    for _ in range(10_000):
        moved = [spoke.step() for spoke in spokes]
        synced = [spoke.is_synced() for spoke in spokes]  # each is asked, for each finds its own
        if all(synced) and not any(moved):
            return
    raise AssertionError("there is no end of it")


def same(*docs: LoroDoc) -> bool:
    return all(doc.oplog_vv == docs[0].oplog_vv and doc.get_deep_value() == docs[0].get_deep_value() for doc in docs)


# ------------------------------------------------------------------------------------------------ what the program does


def import_plain(doc: LoroDoc, update: bytes) -> None:
    doc.import_(update)


def import_batch(doc: LoroDoc, update: bytes) -> None:
    doc.import_batch([update])


def import_with(doc: LoroDoc, update: bytes) -> None:
    doc.import_with(update, "a file")


def import_json(doc: LoroDoc, update: bytes) -> None:
    other = new_doc()
    other.import_(update)
    doc.import_json_updates(other.export_json_updates(NOTHING, other.oplog_vv))


def import_snapshot(doc: LoroDoc, update: bytes) -> None:
    other = new_doc()
    other.import_(update)
    doc.import_(other.export(ExportMode.Snapshot()))


def apply_diff(doc: LoroDoc, update: bytes) -> None:
    other = new_doc()
    other.import_(update)
    doc.apply_diff(other.diff(new_doc().oplog_frontiers, other.oplog_frontiers))
    doc.commit()


WAYS = [import_plain, import_batch, import_with, import_json, import_snapshot, apply_diff]


@pytest.mark.parametrize("bring", WAYS)
def test_d_anyway_what_the_program_imports_is_sent(bring: Callable[[LoroDoc, bytes], None]) -> None:
    """D-ANYWAY: each way in which content enters, before an edit, between edits not committed, and after one."""
    hub, doc, theirs = Hub(), new_doc(), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc)), Spoke(hub, LoroAdaptor(theirs))
    bring(doc, saved("[first]"))
    settle(ours, others)
    assert text(theirs) == "[first]"
    doc.get_text("text").insert(0, "[not committed]")
    bring(doc, saved("[second]"))
    write(doc, "[edit]")
    settle(ours, others)
    assert same(doc, theirs, hub.doc)
    for words in ("[first]", "[second]", "[edit]", "[not committed]"):
        assert words in text(theirs)
    assert hub.useless == 0


@pytest.mark.parametrize("bring", [import_plain, import_batch, import_with, import_json])
def test_d_anyway_an_import_that_changes_no_value_is_sent(bring: Callable[[LoroDoc, bytes], None]) -> None:
    """D-ANYWAY: a map value that lost, a text that was deleted again: loro has no event, the next look finds them."""
    lost, hub, doc, theirs = new_doc(1), Hub(), new_doc(9), new_doc(8)
    put(lost, "key", "lost")
    write(lost, "deleted")
    lost.get_text("text").delete(0, 7)
    lost.commit()
    put(doc, "key", "won")
    put(doc, "key", "won again")
    put(doc, "key", "won for good")
    ours, others = Spoke(hub, LoroAdaptor(doc)), Spoke(hub, LoroAdaptor(theirs))
    settle(ours, others)
    events: list[object] = []
    subscription = doc.subscribe_root(events.append)
    bring(doc, everything(lost))
    assert events == [], "loro has an event for it now: look again"
    subscription.unsubscribe()
    write(doc, "an edit that is not sent before what it depends on ")
    settle(ours, others)
    assert same(doc, theirs, hub.doc)
    assert hub.useless == 0


@pytest.mark.parametrize("end", ["synced", "edit", "update", "checkout"])
def test_d_anyway_an_import_while_checked_out_is_sent(end: str) -> None:
    """D-ANYWAY: a document that is looked at as it was; loro tells of nothing that enters it."""
    hub, doc, theirs = Hub(), new_doc(1), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc)), Spoke(hub, LoroAdaptor(theirs))
    write(doc, "one ")
    early = doc.oplog_frontiers
    write(doc, "two ")
    settle(ours, others)
    doc.checkout(early)
    doc.import_(saved("three "))
    if end == "edit":
        doc.set_detached_editing(True)
        write(doc, "four ")
    elif end == "update":
        write(theirs, "four ")
        settle(others)
        assert ours.step()
    elif end == "checkout":
        doc.checkout_to_latest()
    if end != "synced":
        assert None in ours.outbox, "it was noticed"
    settle(ours, others)
    doc.checkout_to_latest()
    assert same(doc, theirs, hub.doc)
    assert "three" in text(theirs)
    assert hub.useless == 0


def test_d_anyway_one_document_checked_out_in_two_rooms() -> None:
    """D-ANYWAY: what one room brings goes to the other at once, though loro has no event for it."""
    left, right, doc, theirs = Hub(), Hub(), new_doc(1), new_doc()
    write(doc, "one ")
    here, there, friend = (
        Spoke(left, LoroAdaptor(doc)),
        Spoke(right, LoroAdaptor(doc)),
        Spoke(left, LoroAdaptor(theirs)),
    )
    settle(here, there, friend)
    doc.checkout(new_doc().oplog_frontiers)
    write(theirs, "two ")
    while friend.step() or here.step():
        pass
    assert there.outbox == [None]
    settle(here, there, friend)
    assert text(right.doc) == "two one "
    assert left.useless == right.useless == 0


@pytest.mark.parametrize("who", ["program", "server"])
def test_d_anyway_what_had_to_wait_is_sent_when_it_becomes_part(who: str) -> None:
    """D-ANYWAY: the program imports what depends on something else; that comes later, by itself or from the server."""
    hub, doc, theirs, source = Hub(), new_doc(1), new_doc(2), new_doc(3)
    ours, others = Spoke(hub, LoroAdaptor(doc)), Spoke(hub, LoroAdaptor(theirs))
    write(source, "first ")
    first, version = everything(source), source.oplog_vv
    write(source, "second ")
    settle(ours, others)
    doc.import_(source.export(ExportMode.Updates(version)))
    settle(ours, others)
    assert hub.batches == 0
    (doc if who == "program" else theirs).import_(first)
    settle(ours, others)
    assert text(theirs) == text(hub.doc) == "second first "
    assert hub.useless == 0


def test_d_anyway_what_the_server_sent_too_early_is_not_sent_back() -> None:
    """D-ANYWAY: an update of the server's waits; the program imports what it waits for: only that is sent."""
    hub, doc, source = Hub(), new_doc(1), new_doc(3)
    ours = Spoke(hub, LoroAdaptor(doc))
    settle(ours)
    put(source, "a", 1)
    first, version = everything(source), source.oplog_vv
    put(source, "b", 2)
    assert ours.adaptor.apply([source.export(ExportMode.Updates(version))]) is False
    hub.doc.import_(everything(source))
    doc.import_(first)
    (piece,) = ours.adaptor.unsent()
    meta = LoroDoc.decode_import_blob_meta(piece, False)
    assert (meta.partial_start_vv, meta.partial_end_vv) == (NOTHING, source.oplog_vv) or len(piece) <= len(first)
    assert same(doc, source)


# --------------------------------------------------------------------------------------------------- several rooms


def test_d_anyway_a_document_on_two_servers_is_a_bridge() -> None:
    """D-ANYWAY: each server gets each batch once; the one it came from does not get it back."""
    left, right = Hub(), Hub()
    doc, here, there = new_doc(), new_doc(), new_doc()
    spokes = [Spoke(left, LoroAdaptor(doc)), Spoke(right, LoroAdaptor(doc))]
    spokes += [Spoke(left, LoroAdaptor(here)), Spoke(right, LoroAdaptor(there))]
    settle(*spokes)
    for number in range(3):
        write(here, f"left {number} ")
        write(there, f"right {number} ")
        settle(*spokes)
    write(doc, "bridge ")
    settle(*spokes)
    assert same(doc, here, there, left.doc, right.doc)
    assert (left.batches, right.batches) == (7, 7)
    assert left.useless == right.useless == 0


@pytest.mark.parametrize("size", [2, 3, 4])
def test_d_anyway_a_ring_of_servers_comes_to_rest(size: int) -> None:
    """D-ANYWAY: documents link servers in a circle: no endless echo, and no server gets a batch three times."""
    hubs, docs = [Hub() for _ in range(size)], [new_doc() for _ in range(size)]
    spokes = []
    for number, doc in enumerate(docs):
        for hub in (hubs[number], hubs[(number + 1) % size]):
            spokes.append(Spoke(hub, LoroAdaptor(doc)))
    settle(*spokes)
    write(docs[0], "hello ")
    settle(*spokes)
    assert same(*docs, *(hub.doc for hub in hubs))
    assert all(hub.batches <= 2 for hub in hubs)
    count = sum(hub.batches for hub in hubs)
    settle(*spokes)
    assert sum(hub.batches for hub in hubs) == count


def test_d_anyway_the_same_adaptor_in_two_rooms() -> None:
    """D-ANYWAY: it cannot tell whose update it applies, but each room gets all there is, and it comes to rest."""
    left, right, doc, here, there = Hub(), Hub(), new_doc(), new_doc(), new_doc()
    both = LoroAdaptor(doc)
    spokes = [Spoke(left, both), Spoke(right, both), Spoke(left, LoroAdaptor(here)), Spoke(right, LoroAdaptor(there))]
    settle(*spokes)
    write(here, "left ")
    settle(*spokes)
    write(there, "right ")
    settle(*spokes)
    doc.import_(saved("import "))
    settle(*spokes)
    write(doc, "edit ")
    settle(*spokes)
    assert same(doc, here, there, left.doc, right.doc)
    assert len(text(doc)) == len("left right import edit ")
    spokes[0].detach()
    del spokes[0], left.spokes[0]
    write(doc, "one room less ")
    settle(*spokes)
    assert same(doc, there, right.doc)
    assert text(left.doc) != text(doc)


LINKS = {
    "line": [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)],
    "ring": [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 0)],
    "star": [(0, 0), (1, 0), (2, 0)],
}
"""Which document is in a room of which server."""
ACTIONS = [
    "edit",
    "leave_open",
    "bring",
    "lose",
    "bring_early",
    "check_out",
    "go_to_latest",
    "step",
    "settle",
    "rejoin",
]


class Program:
    """Three documents, up to three servers, and what is done with them."""

    def __init__(self, links: list[tuple[int, int]]) -> None:
        self.hubs, self.docs = [Hub() for _ in range(3)], [new_doc(10 + number) for number in range(3)]
        self.spokes = [Spoke(self.hubs[hub], LoroAdaptor(self.docs[doc]), max_piece=300) for doc, hub in links]
        self.used = [self.hubs[number] for number in sorted({hub for _, hub in links})]
        self._early = [doc.oplog_frontiers for doc in self.docs]
        self._late: list[tuple[LoroDoc, bytes]] = []
        self._peers = itertools.count(100)

    def edit(self, number: int) -> None:
        if not self.docs[number % 3].is_detached():
            write(self.docs[number % 3], f"{number} " * (number + 1) ** 3)

    def leave_open(self, number: int) -> None:
        if not self.docs[number % 3].is_detached():
            self.docs[number % 3].get_text("text").insert(0, "not committed ")

    def bring(self, number: int) -> None:
        self.docs[number % 3].import_(saved("import ", next(self._peers)))

    def lose(self, number: int) -> None:
        loser = new_doc(next(self._peers))
        put(loser, "key", 1)
        self.docs[number % 3].import_(everything(loser))

    def bring_early(self, number: int) -> None:
        """What it depends on comes in the end, and into another document."""
        source = new_doc(next(self._peers))
        write(source, "first ")
        self._late.append((self.docs[(number + 1) % 3], everything(source)))
        version = source.oplog_vv
        write(source, "second ")
        self.docs[number % 3].import_(source.export(ExportMode.Updates(version)))

    def check_out(self, number: int) -> None:
        self.docs[number % 3].checkout(self._early[number % 3])

    def go_to_latest(self, number: int) -> None:
        self.docs[number % 3].checkout_to_latest()
        self._early[number % 3] = self.docs[number % 3].oplog_frontiers

    def step(self, number: int) -> None:
        self.spokes[number % len(self.spokes)].step()

    def settle(self, _: int) -> None:
        settle(*self.spokes)

    def rejoin(self, number: int) -> None:
        self.spokes[number % len(self.spokes)].join()

    def end(self) -> None:
        for doc, update in self._late:
            doc.import_(update)
        settle(*self.spokes)
        for doc in self.docs:
            doc.checkout_to_latest()


@given(
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=30),
    shape=st.sampled_from(sorted(LINKS)),
)
@settings(max_examples=150, deadline=None)
def test_d_anyway_whatever_is_done_all_hold_the_same_in_the_end(actions: list[tuple[str, int]], shape: str) -> None:
    """D-ANYWAY: random programs; in the end all documents and servers are the same, and nothing is on its way.

    No server gets what it has, but in a ring, after a rejoin, and where updates wait for others.
    """
    program = Program(LINKS[shape])
    for what, number in actions:
        getattr(program, what)(number)
    program.end()
    assert same(*program.docs, *(hub.doc for hub in program.used))
    before = [hub.batches for hub in program.hubs]
    program.settle(0)
    assert before == [hub.batches for hub in program.hubs]
    if shape != "ring" and not {"rejoin", "bring_early"} & {what for what, _ in actions}:
        assert [hub.useless for hub in program.hubs] == [0, 0, 0]


@pytest.mark.parametrize("size", [2, 3])
async def test_d_anyway_real_servers_in_a_ring(size: int) -> None:
    """D-ANYWAY: over real sockets: all are the same, every room is synced, and no server gets a batch three times."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(EmbeddedServer()) for _ in range(size)]
        docs, rooms = [new_doc() for _ in range(size)], []
        for number, doc in enumerate(docs):
            for server in (servers[number], servers[(number + 1) % size]):
                client = await stack.enter_async_context(Client(server.url))
                rooms.append(await client.join("notes", LoroAdaptor(doc)))
        write(docs[0], "hello ")
        docs[-1].import_(saved("a file "))
        await until(lambda: same(*docs, *(server.document("notes") for server in servers)))
        for room in rooms:
            await room.synced()
        assert sorted(text(docs[0]).split()) == ["a", "file", "hello"]
        assert all(server.stats.updates <= 4 for server in servers)


async def test_d_anyway_real_rooms_of_one_server() -> None:
    """D-ANYWAY: one document in two rooms, with an adaptor for each, and with one for both."""
    async with EmbeddedServer() as server, Client(server.url) as client, Client(server.url) as other:
        doc, theirs = new_doc(), new_doc()
        await client.join("a", LoroAdaptor(doc))
        await client.join("b", LoroAdaptor(doc))
        await other.join("a", LoroAdaptor(theirs))
        write(theirs, "one ")
        await until(lambda: text(server.document("b")) == "one ")
        write(doc, "two ")
        await until(lambda: text(theirs) == text(server.document("b")) == "two one ")
        assert server.stats.updates == 4
        both = LoroAdaptor(doc)
        await client.join("c", both)
        await client.join("d", both)
        doc.import_(saved("three "))
        for room in "abcd":
            await until(lambda room=room: len(text(server.document(room))) == len("one two three "))


class Wrapped:
    """An adaptor of a user's, round one of ours, that knows nothing but what every adaptor has."""

    def __init__(self, doc: LoroDoc) -> None:
        inner = self.inner = LoroAdaptor(doc)
        self.crdt_type, self.version, self.covers = inner.crdt_type, inner.version, inner.covers
        self.alternative_version, self.missing_from = inner.alternative_version, inner.missing_from
        self.apply, self.attach, self.refused = inner.apply, inner.attach, inner.refused


async def test_d_anyway_an_adaptor_wrapped_in_one_that_knows_less() -> None:
    """D-ANYWAY: it has no `unsent`: versions are compared instead, and edits go on being sent."""
    async with EmbeddedServer() as server, Client(server.url) as client:
        doc = new_doc()
        room = await client.join("notes", Wrapped(doc))
        write(doc, "one ")
        doc.import_(saved("two "))
        write(doc, "three ")
        await until(lambda: same(doc, server.document("notes")))
        write(doc, "x" * 400_000)
        write(doc, "four ")
        await room.synced()
        assert same(doc, server.document("notes"))


async def test_d_resync_a_single_operation_above_16_mib_arrives() -> None:
    """D-RESYNC: it cannot be cut; it goes in fragments, and what is written after it arrives, too."""
    async with EmbeddedServer() as server, Client(server.url) as client, Client(server.url) as other:
        doc, theirs = new_doc(), new_doc()
        room = await client.join("notes", LoroAdaptor(doc))
        await other.join("notes", LoroAdaptor(theirs))
        put(doc, "large", "v" * 17_000_000)
        write(doc, "small")
        await asyncio.wait_for(room.synced(), 60)
        assert same(server.document("notes"), doc)
        await until(lambda: same(theirs, doc))


async def test_d_presence_with_a_real_server() -> None:
    """D-PRESENCE: set in a burst, left, joined again, closed, connected again; one who left offline stays away."""
    async with EmbeddedServer() as server, Client(server.url) as bob, Client(server.url) as eve:
        theirs, eves = EphemeralStore(60_000), EphemeralStore(60_000)
        await bob.join("presence", EphemeralAdaptor(theirs))
        leaving = await eve.join("presence", EphemeralAdaptor(eves))
        eves.set("eve", 1)
        async with Client(server.url) as ada:
            ours = EphemeralStore(60_000)
            adaptor = EphemeralAdaptor(ours)
            room = await ada.join("presence", adaptor)
            for number in range(30):
                ours.set("ada", number)
            await until(lambda: states(theirs) == {"ada": 29, "eve": 1} == states(ours))
            ada.set_online(False)
            await leaving.leave()
            await until(lambda: states(theirs) == {"ada": 29})
            ada.set_online(True)
            await ada.connect()
            await room
            await until(lambda: "eve" not in states(ours))
            await room.leave()
            await until(lambda: states(theirs) == {})
            await ada.join("presence", adaptor)
            await until(lambda: states(theirs) == {"ada": 29})
            await ada.close()
            await until(lambda: states(theirs) == {})
            await ada.connect()
            await until(lambda: states(theirs) == {"ada": 29})
        await until(lambda: states(theirs) == {})
        assert states(ours) == {"ada": 29}


# ------------------------------------------------------------------------------------------------------ large updates


def text_of(size: int) -> Callable[[LoroDoc], None]:
    return lambda doc: write(doc, "x" * size)


def other_letters(size: int) -> Callable[[LoroDoc], None]:
    return lambda doc: write(doc, "😀é" * (size // 6))


def list_of(size: int) -> Callable[[LoroDoc], None]:
    def edit(doc: LoroDoc) -> None:
        for number in range(size // 1000):
            doc.get_list("list").push(str(number) * 200)
        doc.commit()

    return edit


def map_of(size: int) -> Callable[[LoroDoc], None]:
    def edit(doc: LoroDoc) -> None:
        for number in range(size // 1000):
            doc.get_map("map").insert(str(number), "v" * 1000)
        doc.commit()

    return edit


def text_deleted(size: int) -> Callable[[LoroDoc], None]:
    def edit(doc: LoroDoc) -> None:
        doc.get_text("text").insert(0, "x" * size)
        doc.get_text("text").delete(3, size - 6)
        doc.get_text("text").mark(0, 4, "bold", True)
        doc.commit()

    return edit


@pytest.mark.parametrize("make", [text_of, other_letters, list_of, map_of, text_deleted])
def test_a_commit_that_is_too_large_for_a_message_goes_in_pieces(
    make: Callable[[int], Callable[[LoroDoc], None]],
) -> None:
    """D-RESYNC, D-TOOBIG: each piece fits, and both ends hold the same; so does what is written after it."""
    hub, doc, theirs = Hub(), new_doc(), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc), 20_000), Spoke(hub, LoroAdaptor(theirs))
    make(500_000)(doc)
    assert ours.outbox == [None]
    write(doc, "and a small one ")
    assert ours.outbox == [None], "it is not sent before what it depends on"
    settle(ours, others)
    assert same(doc, theirs, hub.doc)
    assert max(hub.sizes) <= 20_000
    write(doc, "and another ")
    assert len(ours.outbox) == 1
    settle(ours, others)
    assert same(doc, theirs, hub.doc)


def test_a_single_operation_that_is_too_large_is_one_piece() -> None:
    """D-TOOBIG: what cannot be cut is sent as it is, and the rest in pieces."""
    hub, doc, theirs = Hub(), new_doc(), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc), 20_000), Spoke(hub, LoroAdaptor(theirs))
    put(doc, "large", "v" * 100_000)
    write(doc, "x" * 50_000)
    settle(ours, others)
    assert same(doc, theirs, hub.doc)
    assert len([size for size in hub.sizes if size > 20_000]) == 1


def test_max_piece_counts_from_the_next_pieces_on() -> None:
    """D-TOOBIG: the room halves it, and asks again."""
    doc = new_doc()
    write(doc, "x" * 200_000)
    adaptor = LoroAdaptor(doc)
    for limit in (50_000, 16_384):
        adaptor.max_piece = limit
        assert max(map(len, adaptor.missing_from(b""))) <= limit
    assert LoroAdaptor.max_piece > 50_000


# --------------------------------------------------------------------------------------------------------------- loro


def test_apply_in_parts_tells_what_waits() -> None:
    """D-RESYNC: False for a part that is in want of a later one; the bad ones of a part lose only themselves."""
    source, doc = new_doc(), new_doc()
    parts = []
    for number in range(4):
        version = source.oplog_vv
        write(source, f"{number} ")
        parts.append(source.export(ExportMode.Updates(version)))
    adaptor = LoroAdaptor(doc)
    detach = adaptor.attach(lambda _: pytest.fail("nothing is sent back"))
    assert adaptor.apply([parts[1], parts[0]]) is True
    assert adaptor.apply([parts[3]]) is False
    assert adaptor.apply([]) is True
    with pytest.raises(ValueError, match="1 of 2 updates"):
        adaptor.apply([b"junk", parts[2]])
    assert same(doc, source)
    assert not adaptor.has_uncommitted()
    detach()


def test_uncommitted_edits_are_told_and_committed() -> None:
    """Contract of `synced()`: an edit that was not committed is known of, and `commit` sends it."""
    doc, sent = new_doc(), list[bytes | None]()
    adaptor = LoroAdaptor(doc)
    adaptor.attach(sent.append)
    assert not adaptor.has_uncommitted()
    doc.get_text("text").insert(0, "edit")
    assert adaptor.has_uncommitted()
    assert sent == []
    adaptor.commit()
    assert not adaptor.has_uncommitted()
    assert len(sent) == 1


def test_a_peer_id_that_changes_under_an_edit() -> None:
    """loro commits what was written under the old id; it is sent like any other edit."""
    hub, doc, theirs = Hub(), new_doc(1), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc)), Spoke(hub, LoroAdaptor(theirs))
    doc.get_text("text").insert(0, "old ")
    doc.peer_id = 2
    write(doc, "new ")
    settle(ours, others)
    assert same(doc, theirs, hub.doc)


def test_an_upload_that_is_given_up_is_made_up_for() -> None:
    """D-ACK: the connection is lost amid the pieces; the next join sends what that server lacks, and edits go on."""
    hub, doc, theirs = Hub(), new_doc(), new_doc()
    ours, others = Spoke(hub, LoroAdaptor(doc), 1000), Spoke(hub, LoroAdaptor(theirs))
    doc.import_(saved("x" * 10_000))
    for _ in range(3):
        ours.step()
    write(doc, "meanwhile ")
    ours.join()
    settle(ours, others)
    write(doc, "later ")
    assert len(ours.outbox) == 1
    settle(ours, others)
    assert same(doc, theirs, hub.doc)


def test_a_piece_needs_only_what_went_before() -> None:
    """Half an insert is an insert: cut anywhere, in any number of parts."""
    doc = new_doc(1)
    write(doc, "abcdefghij")
    for cut in range(1, 10):
        copy = new_doc()
        for start, end in ((0, cut), (cut, 10)):
            spans = [IdSpan(1, CounterSpan(start, end))]
            assert copy.import_(doc.export(ExportMode.UpdatesInRange(spans))).pending is None
            assert copy.oplog_vv.includes_id(ID(1, end - 1))
        assert same(copy, doc)


@pytest.mark.parametrize("error", [ZeroDivisionError, BaseException])
def test_d_guard_a_sender_that_raises_harms_no_commit_and_no_import(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """D-GUARD: loro would panic; the fault is logged, and what was done is done."""
    doc, calls = new_doc(), list[bytes | None]()

    def send(update: bytes | None) -> None:
        calls.append(update)
        raise error

    detach = LoroAdaptor(doc).attach(send)
    write(doc, "edit ")
    doc.import_(saved("import "))
    assert sorted(text(doc).split()) == ["edit", "import"]
    assert [update is None for update in calls] == [False, True]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    detach()


def test_an_adaptor_that_is_dropped_is_collected_with_its_document() -> None:
    """loro holds its callbacks out of the garbage collector's sight; they hold neither the adaptor nor the sender."""

    class Sender:
        def send(self, update: bytes | None) -> None:
            raise AssertionError

    sender, doc, store = Sender(), new_doc(), EphemeralStore(1000)
    adaptors = [LoroAdaptor(doc), EphemeralAdaptor(store)]
    for adaptor in adaptors:
        adaptor.attach(sender.send)
    refs = [weakref.ref(each) for each in (sender, *adaptors)]
    del sender, adaptor, adaptors
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]
    write(doc, "edit")
    store.set("key", 1)
    assert id(doc) not in of_loro._FIRST


# ------------------------------------------------------------------------------------------------------------ presence


class Presence:
    """A client with a store in a presence room, and what it was asked to send."""

    def __init__(self, server: EphemeralStore, timeout_ms: int = 60_000, **options: Any) -> None:
        options.setdefault("timeout", timeout_ms / 1000)
        self.server = server
        self.store = EphemeralStore(timeout_ms)
        self.adaptor = EphemeralAdaptor(self.store, **options)
        self.sent: list[bytes | None] = []
        self.detach: Callable[[], None] = lambda: None

    def join(self) -> None:
        self.detach()
        self.sent.clear()
        self.detach = self.adaptor.attach(self._send)
        missing = self.adaptor.missing_from(b"")
        self.adaptor.apply([self.server.encode_all()])
        self.take(missing)

    def _send(self, update: bytes | None) -> None:
        assert update is not None
        self.sent.append(update)
        self.server.apply(update)

    def take(self, updates: Sequence[bytes]) -> None:
        for update in updates:
            self.server.apply(update)

    def leave(self) -> None:
        self.take(self.adaptor.take_back())
        self.detach()

    def hear(self) -> None:
        self.adaptor.apply([self.server.encode_all()])


def a_moment() -> None:
    """So long that the wall clock, in milliseconds, goes on."""
    time.sleep(0.002)


def states(store: EphemeralStore) -> dict[str, Any]:
    store.remove_outdated()
    return dict(store.get_all_states())


@pytest.fixture
def server() -> EphemeralStore:
    return EphemeralStore(60_000)


def test_d_presence_only_our_own_entries_are_sent(server: EphemeralStore) -> None:
    """D-PRESENCE: neither a join nor a renewal nor a goodbye touches what others set."""
    ada, bob = Presence(server), Presence(server)
    ada.store.set("ada", "here")
    ada.join()
    bob.join()
    bob.store.set("bob", "there")
    ada.hear()
    assert states(ada.store) == {"ada": "here", "bob": "there"}
    bob.leave()
    assert states(server) == {"ada": "here"}
    ada.adaptor.renew()  # ada has not heard of it, and must not bring bob back
    ada.join()
    assert states(server) == {"ada": "here"}
    ada.leave()
    assert states(server) == {}
    assert states(ada.store) == {"ada": "here"}


def test_d_presence_a_goodbye_and_a_return_within_one_millisecond(server: EphemeralStore) -> None:
    """D-PRESENCE: loro keeps the first of two entries of one millisecond; the later one counts all the same."""
    ada = Presence(server)
    ada.join()
    for number in range(50):
        ada.store.set("ada", number)
        assert states(server) == {"ada": number}
        ada.leave()
        assert states(server) == {}
        ada.join()
        assert states(server) == {"ada": number}


def test_d_ack_what_is_set_twice_within_one_millisecond_arrives(server: EphemeralStore) -> None:
    """D-ACK: the second value counts, also that a key is deleted, and set again."""
    ada = Presence(server)
    ada.join()
    for number in range(50):
        ada.store.set("cursor", number)
    assert states(server) == {"cursor": 49}
    for _ in range(20):
        ada.store.delete("cursor")
        assert states(server) == {}
        ada.store.set("cursor", 7)
        assert states(server) == {"cursor": 7}
    bob = Presence(server)
    bob.join()
    assert states(bob.store) == {"cursor": 7}
    ada.join()
    ada.hear()  # its own entry, dated later than it is here, is still its own
    ada.leave()
    assert states(server) == {}


def test_a_date_is_where_loro_has_it() -> None:
    """The adaptor dates entries anew where loro's clock is too coarse; when loro writes dates otherwise, look again."""
    for value in (None, 7, "x" * 300, b"\x80" * 9, {"a": [1, 2.5]}):
        one, other = EphemeralStore(60_000), EphemeralStore(60_000)
        one.set("key", value)
        entry = one.encode("key")
        for _ in range(300):
            later = ephemeral._dated_after(entry, entry)
            other.apply(entry)
            other.apply(later)
            assert other.encode("key") == later != entry
            assert other.get_all_states() == {"key": value}
            entry = later


def test_d_presence_a_clock_that_is_set_back(server: EphemeralStore) -> None:
    """D-PRESENCE: what was told last is dated ahead of the clock: what comes after it counts all the same."""
    ada = Presence(server)
    ada.join()
    ada.store.set("ada", 1)
    ahead = ada.adaptor._told["ada"]
    for _ in range(5_000):
        ahead = ephemeral._dated_after(ahead, ahead)
    server.apply(ahead)
    ada.adaptor._told["ada"] = ahead
    ada.store.set("ada", 2)
    assert states(server) == {"ada": 2}
    ada.leave()
    assert states(server) == {}


@pytest.mark.parametrize("other_keys", [(), ("name",)])
def test_d_ack_a_key_deleted_offline_is_deleted(server: EphemeralStore, other_keys: Sequence[str]) -> None:
    """D-ACK: the last key, or not the last one; and what others set since then stays."""
    ada, bob = Presence(server), Presence(server)
    bob.join()
    ada.join()
    for key in ("cursor", "mine", *other_keys):
        ada.store.set(key, 1)
    ada.detach()
    a_moment()
    ada.store.delete("cursor")
    ada.store.delete("mine")
    a_moment()
    bob.store.set("mine", "bob's now")
    ada.join()
    assert states(server) == dict.fromkeys(other_keys, 1) | {"mine": "bob's now"}
    ada.hear()
    ada.leave()
    assert states(server) == {"mine": "bob's now"}


def test_d_ack_what_others_set_can_be_deleted_offline(server: EphemeralStore) -> None:
    """D-ACK: a program that deletes another's key means it, online or not."""
    ada, bob = Presence(server), Presence(server)
    bob.join()
    bob.store.set("bob", 1)
    ada.join()
    ada.detach()
    a_moment()
    ada.store.delete("bob")
    ada.join()
    assert states(server) == {}
    bob.hear()
    bob.adaptor.renew()
    assert states(server) == {}, "bob was told, and does not insist"


def test_d_presence_the_last_to_set_a_key_owns_it(server: EphemeralStore) -> None:
    """D-PRESENCE: one who was overwritten neither renews nor takes back; one who sets it again does."""
    ada, bob = Presence(server), Presence(server)
    ada.join()
    bob.join()
    ada.store.set("speaker", "ada")
    bob.hear()
    a_moment()
    bob.store.set("speaker", "bob")
    ada.hear()
    ada.adaptor.renew()
    ada.join()
    ada.leave()
    assert states(server) == {"speaker": "bob"}
    ada.join()
    a_moment()
    ada.store.set("speaker", "ada again")
    bob.hear()
    bob.leave()
    assert states(server) == {"speaker": "ada again"}
    ada.leave()
    assert states(server) == {}


def test_d_presence_renewed_entries_outlive_the_timeout() -> None:
    """D-PRESENCE: renewed each `renew_interval`, they time out nowhere; others' do."""
    server = EphemeralStore(300)
    ada, bob = Presence(server, 300), Presence(server, 300)
    assert ada.adaptor.renew_interval == pytest.approx(0.1)
    ada.join()
    bob.join()
    bob.store.set("bob", 1)
    ada.store.set("ada", 1)
    ada.hear()
    began = time.monotonic()
    while time.monotonic() - began < 0.4:
        time.sleep(0.02)
        ada.adaptor.renew()
    assert states(server) == {"ada": 1}
    assert states(ada.store) == {"ada": 1}


def test_d_presence_an_outage_longer_than_the_timeout() -> None:
    """D-PRESENCE: what the program set, and did not delete, is there again; what it deleted stays away."""
    ada = Presence(EphemeralStore(200), 200)
    ada.join()
    ada.store.set("ada", {"name": "Ada", "at": [1, 2.5, None, b"x"]})
    ada.store.set("cursor", 1)
    ada.store.set("gone", 1)
    ada.detach()
    time.sleep(0.22)
    assert states(ada.store) == states(ada.server) == {}
    ada.store.delete("gone")  # the store has it no more: loro has no event for that
    ada.server = EphemeralStore(60_000)
    ada.join()
    expected = {"ada": {"name": "Ada", "at": [1, 2.5, None, b"x"]}, "cursor": 1}
    assert states(ada.server) == expected
    assert ada.store.get_all_states() == expected
    assert sorted(ada.adaptor._own) == ["ada", "cursor"]


def test_d_presence_nothing_is_renewed_without_a_timeout() -> None:
    """D-PRESENCE: None: no interval, and what has timed out is not sent at a rejoin, but goodbyes are said."""
    ada = Presence(EphemeralStore(200), 200, timeout=None)
    assert ada.adaptor.renew_interval is None
    ada.join()
    ada.store.set("ada", 1)
    time.sleep(0.22)
    ada.server = EphemeralStore(60_000)
    ada.store.set("eve", 1)
    ada.join()
    assert states(ada.server) == ada.store.get_all_states() == {"eve": 1}
    ada.leave()
    assert states(ada.server) == {}
    ada.join()
    assert states(ada.server) == {"eve": 1}


def test_d_presence_goodbyes_can_be_switched_off(server: EphemeralStore) -> None:
    """D-PRESENCE: ``take_back=False`` leaves the entries with the others until they time out."""
    ada = Presence(server, take_back=False)
    ada.join()
    ada.store.set("ada", 1)
    ada.leave()
    assert states(server) == {"ada": 1}
    assert EphemeralAdaptor(EphemeralStore(1000)).take_back() == []


def test_d_presence_deleted_keys_are_forgotten_in_time() -> None:
    """Keys that are used once must not fill the memory: once it has timed out at the others, a deletion is no news."""
    server = EphemeralStore(20)
    ada = Presence(server, 20)
    ada.join()
    for number in range(100):
        ada.store.set(f"selection {number}", 1)
        ada.store.delete(f"selection {number}")
    time.sleep(0.03)
    ada.adaptor.renew()
    assert ada.adaptor._told == {}
    assert ada.adaptor.missing_from(b"") == ()


def test_d_presence_our_goodbye_that_comes_back_to_us(server: EphemeralStore) -> None:
    """D-PRESENCE: left and joined again: the server sends our own goodbye before it has our entry."""
    ada = Presence(server)
    ada.join()
    ada.store.set("ada", 1)
    ada.leave()
    ada.hear()
    assert states(ada.store) == {"ada": 1}
    ada.join()
    assert states(server) == {"ada": 1}


def test_d_presence_what_was_set_before_the_adaptor_was_made_is_ours(server: EphemeralStore) -> None:
    """D-PRESENCE: `store.set(…)`, then `join(…, EphemeralAdaptor(store))`, is how programs begin."""
    store = EphemeralStore(60_000)
    store.set("ada", 1)
    adaptor = EphemeralAdaptor(store)
    sent = list[bytes | None]()
    detach = adaptor.attach(sent.append)
    a_moment()
    adaptor.renew()
    assert len(sent) == 1
    (goodbye,) = adaptor.take_back()
    server.apply(store.encode_all())
    server.apply(goodbye)
    assert states(server) == {}
    detach()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "30", True])
def test_d_presence_a_timeout_that_makes_no_sense(timeout: Any) -> None:
    """ValueError at once, in words."""
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0, or None"):
        EphemeralAdaptor(EphemeralStore(1000), timeout=timeout)
