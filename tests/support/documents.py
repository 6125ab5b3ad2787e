"""Loro documents of tests: what is written and read is the one text in them."""

from __future__ import annotations

from loro import LoroDoc

__all__ = ["new_doc", "text", "write"]


def new_doc(peer: int | None = None) -> LoroDoc:
    doc = LoroDoc()  # type: ignore[no-untyped-call]  # loro's stub
    if peer is not None:
        doc.peer_id = peer
    return doc


def write(doc: LoroDoc, words: str) -> None:
    """Put words at the front of the document, and commit."""
    doc.get_text("text").insert(0, words)
    doc.commit()


def text(doc: LoroDoc) -> str:
    return doc.get_text("text").to_string()
