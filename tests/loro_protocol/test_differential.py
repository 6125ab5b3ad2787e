"""Our codec and the reference's.

Every message must become the same bytes here as in npm ``loro-protocol``, and every frame the same message; what one
refuses the other refuses. There are three differences, all of them wanted, and none that is not in this table:

=================  ============================================  =====================================================
class              what differs                                  why
=================  ============================================  =====================================================
long number        we refuse a varuint of more than 5 bytes or   The reference takes a sixth byte and drops, or shifts
                   32 bits, it takes some                        into other places, the bits above 32: what it reads is
                                                                 not what anybody wrote.
mark               it drops a byte order mark at the beginning   Two room ids that differ on the wire by a mark would
                   of a text, we keep it                         be one: an answer would reach the wrong room. No text
                                                                 of ours is lost either.
marked permission  it takes ``read`` and ``write`` with a mark   Who writes a permission with a mark meant another.
                   before them, we do not
=================  ============================================  =====================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

import pytest

from figures import Figures, soak
from fuzz import BLOCK, Frames, Messages
from node_peers import NodePeer, requires_node, skip_without_node
from reconnect_fsm.errors import ProtocolError
from reconnect_fsm.loro_protocol import (
    MAX_MESSAGE_SIZE,
    Ack,
    CrdtType,
    DocUpdate,
    DocUpdateFragment,
    DocUpdateFragmentHeader,
    JoinError,
    JoinRequest,
    JoinResponseOk,
    Leave,
    Message,
    RoomError,
    decode,
    encode,
)

MESSAGES = 100_000
FRAMES = 300_000
MARK = "\ufeff"

pytestmark = requires_node


class Codec(NodePeer):
    """The reference's encode and decode, in a Node process."""

    script = "codec.mjs"

    async def encode(self, messages: list[dict[str, Any]]) -> list[str | None]:
        """The frames, in hex; None for each that is refused."""
        return list(await self.call("encode", messages=messages))

    async def decode(self, frames: list[bytes]) -> list[dict[str, Any] | None]:
        """The messages; None for each frame that is refused."""
        return list(await self.call("decode", frames=[frame.hex() for frame in frames]))


def theirs(message: Message) -> dict[str, Any]:
    """A message of ours as the reference has it, with bytes in hex. Fields that are None are left out, as there."""
    fields: dict[str, Any] = {}
    match message:
        case JoinRequest():
            fields = {"auth": message.auth.hex(), "version": message.version.hex()}
        case JoinResponseOk():
            fields = {"permission": message.permission, "version": message.version.hex()}
            fields["extra"] = None if message.extra is None else message.extra.hex()
        case JoinError():
            fields = {"code": message.code, "message": message.message, "appCode": message.app_code}
            fields["receiverVersion"] = None if message.receiver_version is None else message.receiver_version.hex()
        case DocUpdate():
            fields = {"updates": [update.hex() for update in message.updates], "batchId": _id(message.batch_id)}
        case DocUpdateFragmentHeader():
            fields = {"fragmentCount": message.fragment_count, "totalSizeBytes": message.total_size_bytes}
            fields["batchId"] = _id(message.batch_id)
        case DocUpdateFragment():
            fields = {"index": message.index, "fragment": message.fragment.hex(), "batchId": _id(message.batch_id)}
        case RoomError():
            fields = {"code": message.code, "message": message.message}
        case Ack():
            fields = {"refId": _id(message.ref_id), "status": message.status}
        case Leave():
            pass
    fields = {name: value for name, value in fields.items() if value is not None}
    return {"type": int(message.type), "crdt": message.crdt.value, "roomId": message.room_id, **fields}


def _id(number: int) -> str:
    return f"0x{number:016x}"


def without_marks(message: dict[str, Any]) -> dict[str, Any]:
    """What the reference makes of a message whose texts begin with a byte order mark."""
    texts = ("roomId", "message", "appCode")
    return {name: value.removeprefix(MARK) if name in texts else value for name, value in message.items()}


def differs(frame: bytes, reference: dict[str, Any] | None) -> str | None:
    """The class of the difference between the two decoders; None if there is none.

    Raises AssertionError for a difference that is not in the table.
    """
    try:
        message = decode(frame)
    except ProtocolError as error:
        why = str(error)
        if reference is None:
            return None
        if why.endswith("the number has more than 5 bytes or 32 bits"):
            return "long number"
        if why.startswith("JoinResponseOk.permission") and MARK.encode() in frame:
            return "marked permission"
        raise AssertionError(f"only the reference takes {frame.hex()}: {reference}; we say: {why}") from error
    ours = theirs(message)
    if reference == ours:
        return None
    if reference == without_marks(ours):
        return "mark"
    raise AssertionError(f"{frame.hex()} is {ours} here, and {reference} there")


def batches(total: int) -> Iterator[int]:
    """So many, in batches."""
    for done in range(0, total, BLOCK):
        yield min(BLOCK, total - done)


async def compare_messages(codec: Codec, seed: int | str, total: int) -> Counter[str]:
    """Encode random messages on both sides and decode the other's frames; counts what was done, by type."""
    source, counted = Messages(Random(seed)), Counter[str]()
    for number in batches(total):
        messages = list(islice(source, number))
        frames = [encode(message) for message in messages]
        there = await codec.encode([theirs(message) for message in messages])
        back = await codec.decode(frames)
        for message, frame, frame_there, decoded in zip(messages, frames, there, back, strict=True):
            assert frame.hex() == frame_there, f"seed {seed!r}: {message!r}"
            assert decode(bytes.fromhex(frame_there)) == message
            assert decoded == without_marks(theirs(message)), f"seed {seed!r}: {message!r}"
            counted[type(message).__name__] += 1
    return counted


async def compare_frames(codec: Codec, seed: int | str, total: int) -> Counter[str]:
    """Decode random, mutated and built frames on both sides; counts what was done, and the differences by class."""
    frames, counted = Frames(seed), Counter[str]()
    while counted["frames"] < total:
        block = frames.block()
        for frame, reference in zip(block, await codec.decode(block), strict=True):
            try:
                difference = differs(frame, reference)
            except AssertionError as error:
                error.add_note(f"seed {seed!r}")
                raise
            counted["frames"] += 1
            counted["taken by both"] += difference is None and reference is not None
            if difference is not None:
                counted[difference] += 1
    return counted


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_messages(figures: Figures) -> None:
    """Random messages of all types become the same bytes on both sides, and the same messages again."""
    skip_without_node()
    async with Codec() as codec:
        counted = await compare_messages(codec, 0, MESSAGES * soak())
    assert len(counted) == 9
    figures(
        "random messages, encoded on both sides to the same bytes, each decoded on the other",
        messages=counted.total(),
        types=len(counted),
        seeds="0",
        violations=0,
    )


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_frames(figures: Figures) -> None:
    """Any bytes are the same message on both sides, or refused on both, but for the differences in the table."""
    skip_without_node()
    async with Codec() as codec:
        counted = await compare_frames(codec, 0, FRAMES * soak())
    figures(
        "random, mutated, crossed and grammar-built frames, decoded on both sides",
        **{name.replace(" ", "_"): number for name, number in sorted(counted.items())},
        seeds="0",
        violations=0,
    )


async def test_messages_briefly() -> None:
    """The same, for a moment."""
    skip_without_node()
    async with Codec() as codec:
        assert len(await compare_messages(codec, "brief", 2_000)) == 9


async def test_frames_briefly() -> None:
    """The same, for a moment; enough is taken by both, so that more than refusals are compared."""
    skip_without_node()
    async with Codec() as codec:
        counted = await compare_frames(codec, "brief", 5_000)
    assert counted["taken by both"] > 1_000


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"%LOR\x81\x80\x80\x80\x80\x00r\x07", "long number"),
        (b"%LOR\x81\x80\x80\x80\x10r\x07", "long number"),
        (b"%LOR\x04\xef\xbb\xbfr\x07", "mark"),
        (b"%LOR\x01r\x01\x07\xef\xbb\xbfread\0\0", "marked permission"),
        (b"%LOR\x81\x80\x80\x80\x00r\x07", None),
        (b"%LOR\x01\xff\x07", None),
    ],
)
async def test_the_table(frame: bytes, expected: str | None) -> None:
    """Each class of difference is there, and is named."""
    skip_without_node()
    async with Codec() as codec:
        (reference,) = await codec.decode([frame])
    assert differs(frame, reference) == expected


async def test_both_have_the_same_limit() -> None:
    """The largest message that one writes is the largest that the other writes."""
    skip_without_node()
    sizes = range(MAX_MESSAGE_SIZE - 24, MAX_MESSAGE_SIZE - 10)
    messages = [DocUpdate(CrdtType.LORO, "r", (bytes(size),), 1) for size in sizes]
    async with Codec() as codec:
        there = await codec.encode([theirs(message) for message in messages])
    verdicts = set()
    for message, frame_there in zip(messages, there, strict=True):
        try:
            assert encode(message).hex() == frame_there
        except ProtocolError:
            assert frame_there is None
        verdicts.add(frame_there is None)
    assert verdicts == {True, False}


def test_a_difference_that_is_not_in_the_table_is_found() -> None:
    """Another text, a field that is missing, a frame that only one side takes."""
    leave = Leave(CrdtType.LORO, "r")
    frame = encode(leave)
    assert differs(frame, theirs(leave)) is None
    for reference in (None, {**theirs(leave), "roomId": "s"}, {"type": 7, "crdt": "%LOR"}):
        with pytest.raises(AssertionError, match="here, and"):
            differs(frame, reference)
    with pytest.raises(AssertionError, match="only the reference takes"):
        differs(frame[:-1], theirs(leave))
