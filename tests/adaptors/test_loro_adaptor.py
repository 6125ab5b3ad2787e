"""The adaptors by themselves, with real documents; and one of a user's own, with a server."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loro import ID, EphemeralStore, ExportMode, LoroDoc, VersionVector

from documents import new_doc, text, write
from kit import Statuses, until
from reconnect_fsm import Client, Keepalive, RetryPolicy, adaptors
from reconnect_fsm.adaptors import Adaptor, EphemeralAdaptor, LoroAdaptor
from reconnect_fsm.adaptors import loro as of_loro
from reconnect_fsm.adaptors.history import MAX_PIECE
from reconnect_fsm.loro_protocol import CrdtType, UpdateStatusCode
from reconnect_fsm.testing import EmbeddedServer

NOTHING = VersionVector()  # type: ignore[no-untyped-call]  # loro's stub
DENIED = UpdateStatusCode.PERMISSION_DENIED


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer() as server:
        yield server


def client_of(url: str) -> Client:
    return Client(url, retry=RetryPolicy(base=0.01, cap=0.02), keepalive=Keepalive(enabled=False))


def write_all(doc: LoroDoc, all_words: Sequence[str]) -> None:
    for words in all_words:
        write(doc, words)


def update_of(words: str) -> bytes:
    """An update that no other depends on."""
    doc = new_doc()
    write(doc, words)
    return doc.export(ExportMode.Updates(NOTHING))


# ---------------------------------------------------------------------------------------------------------- LoroAdaptor


def test_loro_the_version_is_the_version_vector_of_all_there_is() -> None:
    """The version can be decoded, and counts edits that were not committed yet."""
    doc = new_doc(1)
    adaptor = LoroAdaptor(doc)
    assert VersionVector.decode(adaptor.version()) == NOTHING
    write(doc, "four")
    assert VersionVector.decode(adaptor.version()) == doc.oplog_vv
    doc.get_text("text").insert(0, "pending")
    version = VersionVector.decode(adaptor.version())
    assert version.includes_vv(doc.oplog_vv)
    assert version.get_last(1) == len("fourpending") - 1


def test_loro_there_is_no_alternative_version() -> None:
    """D-VERSION: loro has one format of version, so the empty version is next."""
    assert LoroAdaptor(new_doc()).alternative_version(b"") is None
    assert LoroAdaptor(new_doc()).alternative_version(b"\x00") is None


def test_loro_missing_from_is_what_that_version_lacks() -> None:
    """D-ACK: nothing for a server that has it all, the difference for one that is behind, everything for an unknown."""
    doc = new_doc()
    adaptor = LoroAdaptor(doc)
    assert adaptor.missing_from(b"") == ()
    write(doc, "old " * 100)
    old, behind = doc.export(ExportMode.Updates(NOTHING)), adaptor.version()
    write(doc, "new ")
    assert adaptor.missing_from(adaptor.version()) == ()
    for version, held in ((behind, old), (b"", None), (b"\xffjunk", None)):
        copy = new_doc()
        if held is not None:
            copy.import_(held)
        LoroAdaptor(copy).apply(tuple(adaptor.missing_from(version)))
        assert text(copy) == text(doc)
    assert sum(map(len, adaptor.missing_from(behind))) < sum(map(len, adaptor.missing_from(b"")))


def test_loro_missing_from_a_server_that_is_ahead_elsewhere() -> None:
    """Versions are a partial order: a server with other peers' edits still lacks ours."""
    ours, theirs = new_doc(), new_doc()
    write(ours, "ours")
    write(theirs, "theirs")
    (missing,) = LoroAdaptor(ours).missing_from(theirs.oplog_vv.encode())
    theirs.import_(missing)
    assert sorted(text(theirs)) == sorted("ourstheirs")


def test_loro_covers_a_version_once_it_holds_all_of_it() -> None:
    """A server that tells nothing, or nothing that can be read, is not waited for."""
    ours, theirs = new_doc(), new_doc()
    write(theirs, "theirs")
    write(ours, "ours")
    adaptor = LoroAdaptor(ours)
    assert adaptor.covers(b"")
    assert adaptor.covers(b"\xffjunk")
    assert not adaptor.covers(theirs.oplog_vv.encode())
    adaptor.apply([theirs.export(ExportMode.Updates(NOTHING))])
    assert adaptor.covers(theirs.oplog_vv.encode())


@pytest.mark.parametrize("junk", [b"", b"junk", b"loro" + bytes(50)])
def test_loro_a_bad_update_among_good_ones_loses_only_itself(junk: bytes) -> None:
    """Every good update is applied, whatever stands before it; then one ValueError says how many were bad."""
    doc = new_doc()
    with pytest.raises(ValueError, match="2 of 4 updates cannot be applied"):
        LoroAdaptor(doc).apply([junk, update_of("one "), junk, update_of("two ")])
    assert sorted(text(doc).split()) == ["one", "two"]


def test_loro_a_damaged_update_is_refused() -> None:
    """One flipped bit is noticed by loro's checksum, and told as a ValueError."""
    doc, damaged = new_doc(), bytearray(update_of("x"))
    damaged[-1] ^= 1
    with pytest.raises(ValueError, match="1 of 1 updates"):
        LoroAdaptor(doc).apply([bytes(damaged)])
    assert text(doc) == ""


def test_loro_applying_twice_does_no_harm() -> None:
    """The same update again, or one's own, changes nothing and is told to no subscriber."""
    doc, events = new_doc(), list[object]()
    subscription = doc.subscribe_root(events.append)
    adaptor = LoroAdaptor(doc)
    theirs = update_of("theirs ")
    adaptor.apply([theirs, theirs])
    adaptor.apply([theirs])
    adaptor.apply(tuple(adaptor.missing_from(b"")))
    assert (text(doc), len(events)) == ("theirs ", 1)
    subscription.unsubscribe()


def test_loro_an_update_whose_dependency_is_missing_waits_for_it() -> None:
    """loro keeps it pending, so it is no error; once the dependency comes both show."""
    source = new_doc()
    write(source, "first ")
    first, version = source.export(ExportMode.Updates(NOTHING)), source.oplog_vv
    write(source, "second ")
    doc = new_doc()
    adaptor = LoroAdaptor(doc)
    second = source.export(ExportMode.Updates(version))
    assert adaptor.apply([second]) is False
    assert text(doc) == ""
    assert not adaptor.covers(source.oplog_vv.encode())
    assert adaptor.apply([first]) is True
    assert LoroAdaptor(new_doc()).apply([second, first]) is True
    assert text(doc) == "second first "
    assert adaptor.covers(source.oplog_vv.encode())


def test_loro_attach_passes_on_every_local_commit_until_detached() -> None:
    """Local commits go out as updates, one by one; after detaching nothing does, and nothing is told."""
    doc, sent = new_doc(), list[bytes | None]()
    adaptor = LoroAdaptor(doc)
    detach = adaptor.attach(sent.append)
    write(doc, "one ")
    write(doc, "two ")
    detach()
    write(doc, "three ")
    doc.import_(update_of("four "))
    adaptor.apply([update_of("five ")])
    detach()
    copy = new_doc()
    for update in sent:
        assert update is not None
        copy.import_(update)
    assert text(copy) == "two one "
    assert id(doc) not in of_loro._FIRST


def test_loro_a_callback_that_raises_never_panics_commit(caplog: pytest.LogCaptureFixture) -> None:
    """commit() returns, the edit is kept, the fault is logged, and the next commit is passed on all the same."""
    doc, sent = new_doc(), list[bytes]()

    def send(update: bytes) -> None:
        sent.append(update)
        raise ZeroDivisionError("a fault of the sender's own")

    detach = LoroAdaptor(doc).attach(send)
    write(doc, "one ")
    write(doc, "two ")
    detach()
    assert (text(doc), len(sent)) == ("two one ", 2)
    assert caplog.text.count("ZeroDivisionError: a fault of the sender's own") == 2


# What the server lacks, in pieces


def operations(update: bytes) -> int:
    """How many operations an update holds."""
    meta = LoroDoc.decode_import_blob_meta(update, False)
    spans = meta.partial_end_vv.sub_iter(meta.partial_start_vv)
    return sum(span.counter.end - span.counter.start for span in spans)


def import_in_pieces(doc: LoroDoc, pieces: Iterable[bytes]) -> None:
    """Import one by one; none may be in want of a later one."""
    for piece in pieces:
        assert doc.import_(piece).pending is None


def same(one: LoroDoc, other: LoroDoc) -> bool:
    """Whether two documents hold the same, of the same version."""
    return bool(one.oplog_vv == other.oplog_vv and one.get_deep_value() == other.get_deep_value())


WORDS = st.text(alphabet="aé☃🦜 ", min_size=1, max_size=40)
EDITS = st.one_of(
    st.tuples(st.just("write"), WORDS),
    st.tuples(st.just("delete"), st.integers(1, 30)),
    st.tuples(st.just("put"), st.binary(max_size=400)),
    st.tuples(st.just("push"), st.integers(0, 9)),
    st.tuples(st.just("pull"), st.integers(0, 3)),
)
HISTORIES = st.lists(st.tuples(st.integers(0, 3), EDITS, st.booleans()), max_size=60)


def edit(doc: LoroDoc, what: str, value: Any) -> None:
    words = doc.get_text("text")
    match what:
        case "write":
            words.insert(value.__hash__() % (words.len_unicode + 1), value)
        case "delete":
            words.delete(0, min(value, words.len_unicode))
        case "put":
            doc.get_map("map").insert(str(len(value) % 3), value)
        case "push":
            doc.get_list("list").insert(0, value)


def four_documents(history: Sequence[tuple[int, tuple[str, Any], bool]]) -> tuple[list[LoroDoc], list[VersionVector]]:
    """Documents that were edited and synced as the history says, and versions that they had on the way."""
    docs, versions = [new_doc(peer) for peer in (1, 2, 3, 4)], [NOTHING]
    for who, (what, value), commit in history:
        doc = docs[who]
        if what == "pull":
            doc.import_(docs[value].export(ExportMode.Updates(doc.oplog_vv)))
        else:
            edit(doc, what, value)
        if commit:
            doc.commit()
            versions.append(doc.oplog_vv)
    for doc in docs:
        docs[0].import_(doc.export(ExportMode.Updates(NOTHING)))
    return docs, versions


@given(history=HISTORIES, which=st.integers(0, 99), limit=st.sampled_from([60, 200, 1000]))
@settings(max_examples=200, deadline=None)
def test_loro_the_pieces_make_the_same_document_as_one_export(history: Any, which: int, limit: int) -> None:
    """Random histories, random versions of the receiver: same document and version, no piece in want of a later one."""
    docs, versions = four_documents(history)
    source, theirs = docs[0], versions[which % len(versions)]
    behind = source.fork_at(source.vv_to_frontiers(theirs))
    whole = behind.fork()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reconnect_fsm.adaptors.history.MAX_RUNS", 7)
        adaptor = LoroAdaptor(source)
        adaptor.max_piece = limit
        pieces = list(adaptor.missing_from(theirs.encode()))
    import_in_pieces(behind, pieces)
    whole.import_(source.export(ExportMode.Updates(theirs)))
    assert same(behind, whole)
    assert same(behind, source)
    assert all(len(piece) <= limit or operations(piece) == 1 for piece in pieces)


@given(history=HISTORIES, ends=st.dictionaries(st.integers(1, 6), st.integers(0, 300)))
@settings(max_examples=100, deadline=None)
def test_loro_a_version_that_makes_no_sense_gets_what_one_export_gives(history: Any, ends: dict[int, int]) -> None:
    """Versions no document ever had, of peers unknown, from the future: the pieces hold what one export holds."""
    source = four_documents(history)[0][0]
    theirs = VersionVector()  # type: ignore[no-untyped-call]  # loro's stub
    for peer, end in ends.items():
        theirs.set_end(ID(peer, end))
    adaptor = LoroAdaptor(source)
    adaptor.max_piece = 100
    pieces = list(adaptor.missing_from(theirs.encode()))
    in_pieces, whole = new_doc(8), new_doc(9)
    for piece in pieces:
        in_pieces.import_(piece)
    whole.import_(source.export(ExportMode.Updates(theirs)))
    assert in_pieces.oplog_vv == whole.oplog_vv
    known = source.fork_at(source.vv_to_frontiers(source.oplog_vv.intersection(theirs)))
    for each in (in_pieces, whole):  # what was pending there is so no longer
        each.import_(known.export(ExportMode.Updates(NOTHING)))
    assert same(in_pieces, whole)


def test_loro_a_large_document_goes_in_pieces_that_need_no_fragments() -> None:
    """Twelve megabytes of small, middling and large operations: each piece fits a frame, but for single operations."""
    doc, chance = new_doc(1), Random(1)
    for number in range(8):
        write(doc, "word " * 100_000)
        for each in range(500):
            doc.get_map("map").insert(f"{number}.{each}", chance.randbytes(1000))
        doc.get_map("map").insert(f"large {number}", chance.randbytes(500_000))
    pieces = list(LoroAdaptor(doc).missing_from(b""))
    assert sum(map(len, pieces)) > 12_000_000
    large = [piece for piece in pieces if len(piece) > MAX_PIECE]
    assert [operations(piece) for piece in large] == [1] * 8
    assert len(pieces) < 250
    copy = new_doc()
    import_in_pieces(copy, pieces)
    assert same(copy, doc)


def test_loro_pieces_are_exported_as_they_are_asked_for() -> None:
    """What is edited meanwhile is in the last pieces, after all that it depends on; later edits go out as all do."""
    doc, copy, sent = new_doc(1), new_doc(), list[bytes | None]()
    for _ in range(20):
        write(doc, "word " * 20_000)
    adaptor = LoroAdaptor(doc)
    detach = adaptor.attach(sent.append)
    pieces = iter(adaptor.missing_from(b""))
    import_in_pieces(copy, [next(pieces)])
    before = copy.oplog_vv
    write(doc, "edited meanwhile ")
    import_in_pieces(copy, pieces)
    assert not before.includes_vv(copy.oplog_vv)
    assert same(copy, doc)
    assert sent == []
    write(doc, "later ")
    detach()
    (later,) = sent
    assert later is not None
    import_in_pieces(copy, [later])
    assert same(copy, doc)


def many_peers(count: int) -> LoroDoc:
    """A document that so many peers have made one edit to."""
    updates = []
    for peer in range(1, count + 1):
        one = new_doc(peer)
        one.get_map("map").insert(str(peer), peer)
        one.commit()
        updates.append(one.export(ExportMode.Updates(NOTHING)))
    doc = new_doc()
    doc.import_batch(updates)
    return doc


def test_loro_many_peers_with_few_edits_cost_a_small_factor_of_one_export() -> None:
    """Ten thousand peers, one edit each: a few pieces, not one a peer, within ten times the work of one export."""
    doc = many_peers(10_000)
    adaptor, ratios = LoroAdaptor(doc), []
    for _ in range(3):
        began = time.thread_time()
        doc.export(ExportMode.Updates(NOTHING))
        one = time.thread_time() - began
        pieces = list(adaptor.missing_from(b""))
        ratios.append((time.thread_time() - began - one) / one)
    assert len(pieces) < 12
    assert sorted(ratios)[1] < 10


def test_loro_a_trimmed_document_reaches_a_server_that_has_nothing() -> None:
    """The state at which its history begins goes first, then the history."""
    long = new_doc(1)
    write_all(long, ["first "] * 50)
    middle = long.oplog_frontiers
    write_all(long, ["second "] * 50)
    doc, blank = new_doc(2), new_doc(3)
    doc.import_(long.export(ExportMode.ShallowSnapshot(middle)))
    write(doc, "third ")
    import_in_pieces(blank, LoroAdaptor(doc).missing_from(b""))
    assert same(blank, doc)


def test_loro_a_trimmed_document_sends_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    """A server with the trimmed history gets the rest; one that lacks it too is warned of, and gets it as pending."""
    long = new_doc(1)
    write_all(long, ["zeroth "] * 50)
    early = long.fork()
    write_all(long, ["first "] * 50)
    middle, behind = long.oplog_frontiers, long.fork()
    write_all(long, ["second "] * 50)
    doc = new_doc(2)
    doc.import_(long.export(ExportMode.ShallowSnapshot(middle)))
    write(doc, "third ")
    adaptor = LoroAdaptor(doc)
    import_in_pieces(behind, adaptor.missing_from(behind.oplog_vv.encode()))
    assert same(behind, doc)
    assert not caplog.records
    for piece in adaptor.missing_from(early.oplog_vv.encode()):
        assert early.import_(piece).pending is not None
    assert "lacks history that was trimmed" in caplog.text
    early.import_(long.export(ExportMode.Updates(early.oplog_vv)))
    assert same(early, doc)


def test_loro_takes_nothing_but_a_document() -> None:
    """A TypeError at once, naming what was given."""
    wrong: Any = EphemeralStore(1000)
    with pytest.raises(TypeError, match=r"takes a loro\.LoroDoc, not EphemeralStore"):
        LoroAdaptor(wrong)


# ----------------------------------------------------------------------------------------------------- EphemeralAdaptor


def new_store() -> EphemeralStore:
    return EphemeralStore(60_000)


def test_ephemeral_there_are_no_versions() -> None:
    """An ephemeral JoinResponseOk carries no version; nothing is waited for and nothing asked again."""
    adaptor = EphemeralAdaptor(new_store())
    assert (adaptor.version(), adaptor.alternative_version(b"")) == (b"", None)
    assert adaptor.covers(b"")
    assert adaptor.covers(b"whatever")


def test_ephemeral_everything_is_sent_at_a_join() -> None:
    """D-ACK: all that is there goes out at each join, and nothing if there is nothing."""
    store, copy = new_store(), new_store()
    adaptor = EphemeralAdaptor(store)
    assert adaptor.missing_from(b"") == ()
    store.set("cursor", 7)
    store.set("name", "ada")
    (everything,) = adaptor.missing_from(b"")
    EphemeralAdaptor(copy).apply([everything])
    assert copy.get_all_states() == {"cursor": 7, "name": "ada"}


def test_ephemeral_what_has_expired_is_not_sent() -> None:
    """A store whose entries have run out has nothing to say."""
    store = EphemeralStore(1)
    store.set("cursor", 7)
    while store.get("cursor") is not None:
        threading.Event().wait(0.005)
        store.remove_outdated()
    assert EphemeralAdaptor(store).missing_from(b"") == ()


def test_ephemeral_a_bad_update_among_good_ones_loses_only_itself() -> None:
    """Every good update is applied; then one ValueError says how many were bad."""
    source, copy = new_store(), new_store()
    source.set("cursor", 7)
    with pytest.raises(ValueError, match="1 of 2 updates cannot be applied"):
        EphemeralAdaptor(copy).apply([b"junk", source.encode_all()])
    assert copy.get_all_states() == {"cursor": 7}


def test_ephemeral_attach_passes_on_every_local_change_until_detached(caplog: pytest.LogCaptureFixture) -> None:
    """Local changes go out, also if the sender raises; what was applied does not; after detaching nothing does."""
    store, copy, sent = new_store(), new_store(), list[bytes]()

    def send(update: bytes) -> None:
        sent.append(update)
        raise ZeroDivisionError

    detach = EphemeralAdaptor(store).attach(send)
    store.set("cursor", 7)
    store.apply(other_store("name", "ada").encode_all())
    store.delete("cursor")
    assert len(sent) == 2
    detach()
    store.set("cursor", 8)
    assert len(sent) == 2
    EphemeralAdaptor(copy).apply(sent[:1])
    assert copy.get_all_states() == {"cursor": 7}
    assert "ZeroDivisionError" in caplog.text


def other_store(key: str, value: str) -> EphemeralStore:
    store = new_store()
    store.set(key, value)
    return store


def test_ephemeral_takes_nothing_but_a_store() -> None:
    """A TypeError at once, naming what was given."""
    wrong: Any = new_doc()
    with pytest.raises(TypeError, match=r"takes a loro\.EphemeralStore, not LoroDoc"):
        EphemeralAdaptor(wrong)


# ------------------------------------------------------------------------------------------------- what both have


@pytest.mark.parametrize(
    "make", [lambda **o: LoroAdaptor(new_doc(), **o), lambda **o: EphemeralAdaptor(new_store(), **o)]
)
def test_both_pass_refusals_on_or_log_them(make: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """D-ACK: `on_refused` gets the updates and the code; without one the log has their number and size, no content."""
    refusals: list[tuple[Sequence[bytes], UpdateStatusCode]] = []
    make(on_refused=lambda updates, status: refusals.append((updates, status))).refused((b"content",), DENIED)
    assert refusals == [((b"content",), DENIED)]
    assert caplog.records == []
    make().refused((b"content", b"more"), DENIED)
    (record,) = caplog.records
    assert record.getMessage().startswith("the server refused 2 update(s) of 11 bytes: PERMISSION_DENIED")


class PanicException(BaseException):
    """What pyo3 raises when Rust panics has this name, and cannot be imported."""


def raising(error: type[BaseException]) -> Any:
    """Stands for the store, and for loro's VersionVector: neither can be subclassed."""

    class Raising:
        @staticmethod
        def apply(data: bytes) -> None:
            raise error

        decode = apply

    return Raising


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_both_let_through_what_ends_programs(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """loro's errors are bare BaseExceptions: Ctrl-C and the like must not be taken for one of them."""
    adaptor = EphemeralAdaptor(new_store())
    adaptor.store = raising(error)
    with pytest.raises(error):
        adaptor.apply([b"x"])
    document = LoroAdaptor(new_doc())
    monkeypatch.setattr("reconnect_fsm.adaptors.history.VersionVector", raising(error))
    with pytest.raises(error):
        document.covers(b"x")


@pytest.mark.parametrize("error", [BaseException, ValueError, PanicException])
def test_both_take_what_loro_raises_for_an_error_of_the_update(error: type[BaseException]) -> None:
    """Bare BaseExceptions and the panics of Rust are faults of the update, and are told as a ValueError."""
    adaptor = EphemeralAdaptor(new_store())
    adaptor.store = raising(error)
    with pytest.raises(ValueError, match="2 of 2 updates"):
        adaptor.apply([b"x", b"y"])


def test_both_meet_the_protocol_and_documents_do_not() -> None:
    """isinstance tells an adaptor from a document, which is what `join` goes by."""
    assert isinstance(LoroAdaptor(new_doc()), Adaptor)
    assert isinstance(EphemeralAdaptor(new_store()), Adaptor)
    assert isinstance(Register(), Adaptor)
    for other in (new_doc(), new_store(), object()):
        assert not isinstance(other, Adaptor)


def test_without_loro_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core imports without loro; only naming one of its adaptors needs the extra."""
    monkeypatch.setitem(sys.modules, "loro", None)
    for name, module in (("LoroAdaptor", "loro"), ("EphemeralAdaptor", "ephemeral")):
        monkeypatch.delitem(sys.modules, f"reconnect_fsm.adaptors.{module}")
        monkeypatch.delattr(adaptors, module, raising=False)
        with pytest.raises(ImportError, match=rf"{name} needs the loro package.*pip install 'reconnect-fsm\[loro\]'"):
            getattr(adaptors, name)
    assert adaptors.Adaptor is Adaptor


def test_other_names_are_plain_attribute_errors() -> None:
    """A misspelt name does not end in talk about loro."""
    with pytest.raises(AttributeError, match="has no attribute 'LoroAdapter'"):
        getattr(adaptors, "LoroAdapter")  # noqa: B009 - a type checker would object to the plain form


# ------------------------------------------------------------------------------------------------------- edits, threads


async def test_d_ack_edits_from_another_thread_arrive(server: EmbeddedServer) -> None:
    """D-ACK: commit() calls the subscription in the committing thread; it is the loop's thread that sends."""
    doc, threads = new_doc(), set[threading.Thread]()

    class Watching(LoroAdaptor):
        def covers(self, server_version: bytes) -> bool:
            threads.add(threading.current_thread())
            return super().covers(server_version)

    async with client_of(server.url) as client:
        room = await client.join("r", Watching(doc))
        # Only while no other thread touches the document: loro's lock and Python's would wait for each other.
        await asyncio.to_thread(write_all, doc, [f"[{number}]" for number in range(20)])
        await room.synced()
        assert text(server.document("r")) == text(doc) == "".join(f"[{number}]" for number in reversed(range(20)))
        assert threads == {threading.main_thread()}


def test_d_ack_an_edit_after_the_loop_is_gone_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """D-ACK: the loop is closed and the edit made in another thread: it stays in the document, and nothing raises."""
    doc, client = new_doc(), client_of("ws://127.0.0.1:1")

    async def short_life() -> None:
        client.start()
        client.join("r", LoroAdaptor(doc))
        await client.close()

    asyncio.run(short_life())
    editor = threading.Thread(target=write, args=(doc, "late"))
    editor.start()
    editor.join()
    assert text(doc) == "late"
    assert "could not be sent" not in caplog.text


async def test_ephemeral_stores_of_two_clients_are_the_same(server: EmbeddedServer) -> None:
    """Presence goes both ways, and is sent again after a drop."""
    ours, theirs = new_store(), new_store()
    async with client_of(server.url) as one, client_of(server.url) as two:
        mine, others = one.join("r", EphemeralAdaptor(ours)), two.join("r", EphemeralAdaptor(theirs))
        await asyncio.gather(mine, others)
        ours.set("a", 1)
        theirs.set("b", 2)
        await until(lambda: ours.get_all_states() == theirs.get_all_states() == {"a": 1, "b": 2})
        server.reset_all()
        server.forget()
        ours.set("a", 3)
        await until(lambda: ours.get_all_states() == theirs.get_all_states() == {"a": 3, "b": 2})


# ------------------------------------------------------------------------------------------------- a user's own adaptor


class Register:
    """A last-writer-wins register: an update is a counter of 8 bytes, and the value."""

    crdt_type = CrdtType.ELO

    def __init__(self) -> None:
        self.state = (0, b"")
        self._send: Callable[[bytes], None] | None = None

    def write(self, value: bytes) -> None:
        self.state = (self.state[0] + 1, value)
        if self._send is not None:
            self._send(self._encoded())

    def _encoded(self) -> bytes:
        return self.state[0].to_bytes(8, "big") + self.state[1]

    def version(self) -> bytes:
        return self.state[0].to_bytes(8, "big")

    def alternative_version(self, server_version: bytes) -> bytes | None:
        return None

    def missing_from(self, server_version: bytes) -> Sequence[bytes]:
        return [self._encoded()] if self.state[0] else []

    def covers(self, server_version: bytes) -> bool:
        return self.state[0] >= int.from_bytes(server_version, "big")

    def apply(self, updates: Sequence[bytes]) -> None:
        for update in updates:
            if len(update) < 8:
                raise ValueError("too short")
            self.state = max(self.state, (int.from_bytes(update[:8], "big"), update[8:]))

    def attach(self, send: Callable[[bytes], None]) -> Callable[[], None]:
        self._send = send
        return self.detach

    def detach(self) -> None:
        self._send = None

    def refused(self, updates: Sequence[bytes], status: UpdateStatusCode) -> None:
        logging.getLogger(__name__).warning("refused: %s", status.name)


async def test_an_adaptor_of_ones_own_makes_the_round_trip(server: EmbeddedServer) -> None:
    """A register of thirty lines is joined, synced both ways, across a drop and an edit made offline."""
    ours, theirs = Register(), Register()
    async with client_of(server.url) as one, client_of(server.url) as two:
        mine, others = one.join("r", ours), two.join("r", theirs)
        await asyncio.gather(mine, others)
        ours.write(b"first")
        await until(lambda: theirs.state == (1, b"first"))
        seen = Statuses(others)
        server.reset_all()
        await seen.all_of("reconnecting")
        theirs.write(b"offline")
        await until(lambda: ours.state == (2, b"offline"))
        await asyncio.gather(mine.synced(), others.synced())
        await mine.leave()
        ours.write(b"private")
        assert theirs.state == (2, b"offline")


def test_loro_still_raises_bare_base_exceptions() -> None:
    """The adaptor relies on loro raising bare BaseException; when it no longer does, look again."""
    with pytest.raises(BaseException, match="Decode") as caught:
        VersionVector.decode(b"")
    assert type(caught.value) is BaseException
