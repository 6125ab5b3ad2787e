"""Every bound that a server meets, as data: what it bounds, where it is set, what happens beyond, which test shows it.

No number is written here: each is read from the product (or from aiohttp, where that is what bounds it). The tests are
in test_hostile_server.py. ``python tests/bounds.py`` makes docs/bounds.md of it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "bounds.md"

__all__ = ["BOUNDS", "PAGE", "Bound", "page", "value"]


@dataclass(frozen=True)
class Bound:
    """One bound."""

    what: str
    where: str
    """``module.NAME`` or ``module.Class.NAME`` of a constant; ``module.name(parameter)`` of a parameter's default."""
    beyond: str
    test: str
    unit: str = ""
    """What is counted; "s" and "bytes" are written for people."""
    of: Callable[[Any], Any] = lambda value: value
    """The bound, where the constant is not the number itself."""

    @property
    def name(self) -> str:
        """The constant's or the parameter's own name."""
        return self.where.removesuffix(")").replace("(", ".").rpartition(".")[2]

    @property
    def value(self) -> Any:
        return self.of(_find(self.where))

    @property
    def shown(self) -> str:
        return _shown(self.value, self.unit)


def _find(where: str) -> Any:
    """The value of a constant, or of a parameter's default."""
    path, _, parameter = where.removesuffix(")").partition("(")
    names = path.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError:
            continue
        for name in names[count:]:
            found = getattr(found, name)
        return inspect.signature(found).parameters[parameter].default if parameter else found
    raise LookupError(f"there is no {where}")


def _shown(value: Any, unit: str) -> str:
    if isinstance(value, dict):
        return ", ".join(_shown(each, unit) for each in value.values())
    if unit == "bytes" and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20:,} MiB"
    if unit == "bytes" and value >= 1 << 10 and value % (1 << 10) == 0:
        return f"{value >> 10:,} KiB"
    number = f"{value:,g}" if isinstance(value, float) else f"{value:,}"
    return f"{number} {unit}".strip()


def value(name: str) -> Any:
    """The value of the bound whose constant or parameter has this name."""
    (found,) = {bound.value for bound in BOUNDS if bound.name == name}
    return found


CONNECTION: Final = "reconnect_fsm.Connection"
POLICY: Final = "reconnect_fsm.RetryPolicy"
ROOMS: Final = "reconnect_fsm._asyncio.room_driver"
SESSION: Final = "reconnect_fsm._asyncio.room_session"
ROOM: Final = "reconnect_fsm.RoomFSM"
FRAGMENTS: Final = "reconnect_fsm.loro_protocol.Reassembler"
TRANSPORT: Final = "reconnect_fsm._asyncio.transport.socket"
JAR: Final = "aiohttp.cookiejar"

SECTIONS: Final[dict[str, tuple[Bound, ...]]] = {
    "The handshake": (
        Bound(
            "time from the first byte sent to the last byte of the answer",
            f"{CONNECTION}(connect_timeout)",
            "the attempt has failed; backoff",
            "test_a_handshake_byte_by_byte_ends_with_the_attempt",
            "s",
        ),
        Bound(
            "the length of a header line of the answer",
            "aiohttp.ClientSession(max_field_size)",
            "the attempt has failed",
            "test_an_answer_without_end_costs_no_memory",
            "bytes",
        ),
        Bound(
            "the number of header lines",
            "aiohttp.ClientSession(max_headers)",
            "the attempt has failed",
            "test_an_answer_without_end_costs_no_memory",
            "lines",
        ),
        Bound(
            "cookies that are kept, of one host",
            f"{JAR}._MAX_COOKIES_PER_DOMAIN",
            "no more are taken",
            "test_cookies_do_not_pile_up",
            "cookies",
        ),
        Bound(
            "cookies that are sent back",
            f"{JAR}._MAX_COOKIE_HEADER_LENGTH",
            "the rest is left out",
            "test_cookies_do_not_pile_up",
            "bytes",
        ),
        Bound(
            "the wait that `Retry-After` asks for",
            f"{POLICY}(max_retry_after)",
            "it is cut to this; the jitter then adds up to half of it",
            "test_retry_after_is_clamped",
            "s",
        ),
        Bound(
            "the first wait between attempts, which doubles",
            f"{POLICY}(base)",
            "–",
            "test_a_server_that_drops_when_stable_is_not_hammered",
            "s",
        ),
        Bound(
            "the longest wait between attempts, jitter included",
            f"{POLICY}(cap)",
            "it grows no longer, hence so many attempts an hour and no more",
            "test_a_server_that_accepts_and_drops_is_not_hammered",
            "s",
        ),
        Bound(
            "how long a connection lasts before the backoff begins anew",
            f"{POLICY}(stable_after)",
            "a shorter one counts as a failed attempt",
            "test_a_server_that_drops_when_stable_is_not_hammered",
            "s",
        ),
    ),
    "The connection": (
        Bound(
            "the size of a message, in one frame or in fragments, inflated if compression was asked for",
            "reconnect_fsm._asyncio.connection.MAX_MSG_SIZE",
            "the connection is closed with 1009; `max_msg_size=` sets another",
            "test_what_is_too_large_ends_the_connection",
            "bytes",
        ),
        Bound(
            "messages handled before the event loop gets its turn",
            f"{TRANSPORT}.BURST",
            "other tasks, timers and sockets have theirs first",
            "test_a_flood_of_texts_at_a_slow_listener",
            "messages",
        ),
        Bound(
            "facts of the driver that run before the event loop gets its turn",
            "reconnect_fsm._asyncio.event_queue.EventQueue.SLICE",
            "the rest waits for the next turn, and no more is read meanwhile",
            "test_a_flood_of_updates_at_a_slow_adaptor",
            "facts",
        ),
        Bound(
            "bytes written before the event loop gets its turn",
            f"{TRANSPORT}.BURST_BYTES",
            "the rest waits for the next turn",
            "test_a_server_that_lets_in_and_never_reads_does_not_fill_the_send_queue",
            "bytes",
        ),
        Bound(
            "what aiohttp counts for each message that it holds, beside its bytes, before it stops to read",
            "aiohttp._websocket.reader_py.MSG_SIZE_OVERHEAD",
            "TCP slows the server down",
            "test_a_flood_of_small_frames_to_a_client_whose_answers_are_not_read",
            "bytes",
        ),
        Bound(
            "answers to its PING frames that wait to be written",
            f"{TRANSPORT}.PONGS",
            "only the latest are answered; of the text `ping` only one (RFC 6455, 5.5.3)",
            "test_a_flood_of_small_frames_to_a_client_whose_answers_are_not_read",
            "answers",
        ),
        Bound(
            "time between pings",
            "reconnect_fsm.Keepalive(interval)",
            "a ping goes out",
            "test_what_never_becomes_a_message_is_no_sign_of_life",
            "s",
        ),
        Bound(
            "time for anything whole to come after a ping, or for bytes to move",
            "reconnect_fsm.Keepalive(timeout)",
            "the connection is dead",
            "test_what_never_becomes_a_message_is_no_sign_of_life",
            "s",
        ),
        Bound(
            "bytes a second that are a sign of life before they become a message",
            "reconnect_fsm.keepalive.MIN_RATE",
            "fewer are none: whoever drips them is dead",
            "test_what_never_becomes_a_message_is_no_sign_of_life",
            "bytes",
        ),
        Bound(
            "time that a close may take, whatever the server sends or does not read",
            f"{CONNECTION}(close_timeout)",
            "the transport is aborted",
            "test_a_server_that_chatters_through_the_close_does_not_delay_it",
            "s",
        ),
    ),
    "Rooms": (
        Bound(
            "the size of a message of the protocol",
            "reconnect_fsm.loro_protocol.MAX_MESSAGE_SIZE",
            "it is dropped unread, with a warning",
            "test_the_largest_update_frames",
            "bytes",
        ),
        Bound(
            "time to answer a JoinRequest",
            f"{ROOM}.join_timeout",
            "the room asks again, on a backoff of its own",
            "test_joins_that_are_never_answered_are_asked_again_with_a_backoff",
            "s",
        ),
        Bound(
            "JoinRequests for one join that is answered with *version unknown*",
            "reconnect_fsm.room_fsm.NEXT_VERSION",
            "the room is in `error`",
            "test_version_unknown_is_asked_three_times_in_all",
            "requests",
            lambda following: len(following) + 1,
        ),
        Bound(
            "time between rejoins that the server causes: suggestions, batches that never come whole",
            f"{ROOM}.rejoin_interval",
            "one rejoin when the time is over; what comes meanwhile changes nothing",
            "test_a_storm_does_not_make_a_storm_of_requests",
            "s",
        ),
        Bound(
            "fragments of a batch",
            f"{FRAGMENTS}.MAX_FRAGMENTS",
            "refused: `PAYLOAD_TOO_LARGE`",
            "test_a_fragment_that_lies_costs_one_refusal",
            "fragments",
        ),
        Bound(
            "bytes of a batch; nothing is allocated for what a header claims",
            f"{FRAGMENTS}.MAX_BATCH_BYTES",
            "refused: `PAYLOAD_TOO_LARGE`",
            "test_a_fragment_that_lies_costs_one_refusal",
            "bytes",
        ),
        Bound(
            "batches under way in one room",
            f"{FRAGMENTS}.MAX_BATCHES",
            "refused: `RATE_LIMITED`; the room rejoins, see above",
            "test_batches_that_never_end_are_bounded_in_number_and_time",
            "batches",
        ),
        Bound(
            "rooms with batches under way",
            f"{SESSION}.MAX_FRAGMENTED_ROOMS",
            "refused: `RATE_LIMITED`; the room rejoins, see above",
            "test_batches_that_never_end_are_bounded_in_number_and_time",
            "rooms",
        ),
        Bound(
            "bytes of the batches under way in all rooms together",
            f"{SESSION}.MAX_FRAGMENT_BYTES",
            "refused: `RATE_LIMITED`; the room rejoins, see above",
            "test_half_received_batches_of_all_rooms_together_are_bounded",
            "bytes",
        ),
        Bound(
            "time for a batch to come whole",
            f"{FRAGMENTS}.TIMEOUT",
            "refused: `FRAGMENT_TIMEOUT`; the room rejoins, see above",
            "test_batches_that_never_end_are_bounded_in_number_and_time",
            "s",
        ),
        Bound(
            "ids of batches that are over, remembered in a room so that each is refused once",
            f"{FRAGMENTS}.MAX_SETTLED",
            "the oldest is forgotten",
            "test_a_server_that_sends_anything",
            "ids",
        ),
        Bound(
            "frames that wait to be written when a refusal is added",
            f"{SESSION}.MAX_REPLIES",
            "no more refusals are sent to a server that does not read them",
            "test_an_adaptor_that_raises_at_each_update",
            "frames",
        ),
        Bound(
            "updates of ours that wait for an Ack, in one room",
            f"{SESSION}.MAX_UNACKED_UPDATES",
            "the room rejoins; the version exchange supersedes them",
            "test_a_server_that_never_acks_is_not_sent_the_document_with_each_edit",
            "updates",
        ),
        Bound(
            "bytes of ours that wait for an Ack, in one room",
            f"{SESSION}.MAX_UNACKED_BYTES",
            "likewise",
            "test_a_server_that_never_acks_is_not_sent_the_document_with_each_edit",
            "bytes",
        ),
    ),
    "What is said of it": (
        Bound(
            "warnings about the server's messages, on one connection",
            f"{ROOMS}.MAX_COMPLAINTS",
            "the rest is logged at DEBUG",
            "test_malformed_messages_cost_a_few_log_lines_a_connection",
            "lines",
        ),
        Bound(
            "characters of the server's own words in a reason, an error or the log; each of them printable",
            "reconnect_fsm.status.sanitized(most)",
            "cut off",
            "test_a_servers_words_cannot_forge_the_log",
            "characters",
        ),
    ),
}

BOUNDS: Final = tuple(bound for bounds in SECTIONS.values() for bound in bounds)

HEAD: Final = """# What a server can do to a client, at most

Generated by `python tests/bounds.py` from the constants themselves; `tests/system/test_hostile_server.py` holds a test
for each line. A constant of a class can be lowered in a subclass, a parameter where the object is made.
"""

NEVER: Final = """
## What a server never gets

- The same credentials at another origin: redirects are refused, whatever their number
  (`test_a_redirect_is_never_followed`).
- An answer, memory, or a line in the log at INFO for rooms that were never joined
  (`test_messages_about_rooms_never_joined_are_held_nowhere`).
- Another room, or the connection, for an update that an adaptor cannot take
  (`test_what_an_import_does_to_an_adaptor_costs_its_room_only`).
- Lines of its own in the log (`test_a_servers_words_cannot_forge_the_log`).
- Our secrets shown: tokens, headers, cookies and auth bytes that it says back are taken out of its words, whole or cut
  short (`test_a_secret_that_the_server_reflects_is_shown_nowhere`).
- The whole document in the send queue more than once or twice, though it reads slowly or not at all
  (`test_a_server_that_reads_slowly_does_not_fill_the_send_queue`).
- A connection on which it talks and reads nothing (`test_a_server_that_talks_and_never_reads_is_dead_too`).

## What has no bound, by design

- The document itself: what a server puts in it, the adaptor keeps. That is the CRDT's business.
- The number of rooms (JOIN-2), and how often *you* join and leave.
- What you hand to `Connection.send` without awaiting it; who awaits it has one message in the queue.
- How long `room.synced()` waits for a version that the server claims and never sends: put a timeout around it.
- How long a callback or an adaptor of yours takes for one message: it runs in the event loop.
- Log lines at DEBUG.
- With `max_msg_size=0` the size of a message; with `Keepalive(enabled=False)` the life of a dead connection.
"""


def page() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    for section, found in SECTIONS.items():
        parts += [f"## {section}\n", "| bounded | at most | set by | beyond it |", "|---|---:|---|---|"]
        parts += [f"| {bound.what} | {bound.shown} | {_setter(bound)} | {bound.beyond} |" for bound in found]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n" + NEVER


def _setter(bound: Bound) -> str:
    path, _, parameter = bound.where.removesuffix(")").partition("(")
    return f"`{parameter}=` of `{path}`" if parameter else f"`{path}`"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))
