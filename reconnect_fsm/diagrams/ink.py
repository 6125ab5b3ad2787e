"""What all pictures share: colours by meaning, light and dark, the width of text, and the frame of an SVG.

A picture is drawn in its light colours; the style sheet in it names the dark ones, and the reader's browser chooses.
That works in an ``<img>`` too, so one file serves both. In both, each colour is legible where it is used (WCAG AA).
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "BORDER", "BOX", "COLOURS", "FAINT", "INK", "MARK", "PAPER", "SPARE",
    "Colour", "colours_of", "document", "escaped", "fitting", "style_sheet", "text_width", "wrapped",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Colour:
    """A fill, and a line or text that is legible on it and on the paper; and what both become on a dark page."""

    fill: str
    line: str
    dark_fill: str
    dark_line: str


PAPER: Final = "#ffffff"
BORDER: Final = "#afb8c1"
INK: Final = Colour("#f6f8fa", "#1f2328", "#161b22", "#e6edf3")
FAINT: Final = Colour("#f6f8fa", "#59636e", "#161b22", "#a2adb9")
BOX: Final = INK.fill
MARK: Final = Colour("#fbdff0", "#a31d6e", "#451233", "#ff8ccf")
"""What a subclass adds or overrides."""
GREEN: Final = Colour("#d6f5df", "#187a43", "#0f3220", "#5fd38d")
BLUE: Final = Colour("#dbeafe", "#1d5fd0", "#102a52", "#7fb4ff")
AMBER: Final = Colour("#fdebc8", "#a04c08", "#3d2906", "#f2b05a")
RED: Final = Colour("#fde0de", "#b9261c", "#47171a", "#ff9a91")
COLOURS: Final = {
    "connecting": BLUE,
    "connected": GREEN,
    "joined": GREEN,
    "reconnecting": AMBER,
    "disconnected": Colour("#e6e8ec", "#57606a", "#2a313a", "#adb8c4"),
    "error": RED,
    "alive": GREEN,
    "asked": BLUE,
    "doubted": AMBER,
    "dead": RED,
}
"""By status."""
SPARE: Final = (Colour("#ebe3fd", "#6a3fc8", "#2d2050", "#bfa5ff"), Colour("#d3f2f0", "#0d6f69", "#0b3432", "#55d3c8"))
"""For statuses that only a user's own machine has."""

DARK: Final = {
    PAPER: "#0d1117",
    BORDER: "#3d444d",
    **{light: dark for each in (INK, FAINT, MARK, *COLOURS.values(), *SPARE)
       for light, dark in ((each.fill, each.dark_fill), (each.line, each.dark_line))},
}  # fmt: skip
"""The dark colour for each light one."""

FONT: Final = "Arial, 'Liberation Sans', Helvetica, sans-serif"


def colours_of(statuses: Iterable[str]) -> dict[str, Colour]:
    """A colour for each status: by its meaning, or a spare one."""
    unknown = [status for status in dict.fromkeys(statuses) if status not in COLOURS]
    return COLOURS | {status: SPARE[number % len(SPARE)] for number, status in enumerate(unknown)}


# ----------------------------------------------------------------------------------------------------------------- text

# Of Helvetica, which Arial and Liberation Sans share: thousandths of the font's size, for the characters from space on.
# fmt: off
_WIDTHS: Final = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278,
    556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556,
    1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778,
    667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556,
    333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556,
    556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
)
# fmt: on
_WIDE: Final = 1000
_NOT_IN_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """The approximate width of a text; characters that are not in the table count as wide."""
    codes = (ord(each) - 32 for each in text)
    units = sum(_WIDTHS[code] if 0 <= code < len(_WIDTHS) else _WIDE for code in codes)
    return units * size / 1000 * (1.07 if bold else 1)


def fitting(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis; empty if nothing would be left."""
    if text_width(text, size, bold=bold) <= width:
        return text
    room = width - text_width("…", size, bold=bold)
    kept = 0
    while kept < len(text) and text_width(text[: kept + 1], size, bold=bold) <= room:
        kept += 1
    return f"{text[:kept].rstrip()}…" if kept > 2 else ""


def wrapped(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """The text in lines of at most ``width``; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size, bold=bold) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def balanced(text: str, width: int) -> list[str]:
    """The text in as few lines as ``width`` characters allow, all about as long."""
    fewest = len(textwrap.wrap(text, width, break_long_words=False))
    candidates = (textwrap.wrap(text, narrow, break_long_words=False) for narrow in range(1, width + 1))
    return next(lines for lines in candidates if len(lines) <= fewest)


def escaped(text: object) -> str:
    """A text for the inside of an element or of an attribute; what XML cannot hold is replaced."""
    return html.escape(_NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", str(text)))


# ------------------------------------------------------------------------------------------------------------------ SVG


def style_sheet(kind: str) -> str:
    """Dark colours for a dark page; for SVGs of the class ``kind`` only, because a page may hold others."""
    rules = "".join(
        f'.{kind} [fill="{light}"]{{fill:{dark}}}.{kind} [stroke="{light}"]{{stroke:{dark}}}'
        for light, dark in DARK.items()
    )
    # Labels of arrows have a halo, so that they stay legible where they meet a line.
    halo = f".{kind} .edge text{{paint-order:stroke;stroke-width:3px;stroke-linejoin:round;stroke:{PAPER}}}"
    dark_halo = f".{kind} .edge text{{stroke:{DARK[PAPER]}}}"
    return f"{halo}@media (prefers-color-scheme:dark){{{rules}{dark_halo}}}"


def document(
    kind: str, size: tuple[float, float], title: str, description: str, body: Sequence[str], data: str = ""
) -> str:
    """A whole SVG, ``size`` in pixels: named and described for those who cannot see it."""
    width, height = (f"{each:.0f}" for each in size)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" aria-labelledby="title desc" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONT}"{data}>',
        f'<title id="title">{escaped(title)}</title>',
        f'<desc id="desc">{escaped(description)}</desc>',
        f"<style>{style_sheet(kind)}</style>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *body,
        "</svg>",
    ]) + "\n"  # fmt: skip
