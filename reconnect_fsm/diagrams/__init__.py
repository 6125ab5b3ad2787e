"""Pictures and tables of any machine, drawn from its declaration: DOT, Mermaid, SVG, cards, and a Markdown matrix.

How to read a picture. A coloured box is a state; a dashed frame holds the states of one public status. An arrow is an
event that leads to one state. Where an event can lead to several states, it is a small table: a cell for each guard,
coloured like its target; the first guard that passes wins. What most states lead to is the end of one arrow that
says so; elsewhere it is named in the tables instead of being pointed at. What changes no state is left out of the
overview; the full picture lists it in the state's box. Ignored events are in the matrix only. A + marks what a subclass
adds, a ≠ what it overrides. Cards show the same without arrows, in one column, for narrow screens.

DOT, Mermaid, Markdown and cards need nothing but this package, and are the same on every run. `svg` needs the
``graphviz`` package and Graphviz' program ``dot``; `picture` takes what there is.

`sequence` draws a recorded run along time.
"""

from reconnect_fsm.diagrams.as_cards import cards
from reconnect_fsm.diagrams.as_dot import CannotDraw, digest, dot, svg
from reconnect_fsm.diagrams.as_markdown import matrix
from reconnect_fsm.diagrams.as_mermaid import mermaid
from reconnect_fsm.diagrams.as_statuses import statuses_dot, statuses_svg
from reconnect_fsm.diagrams.files import load, main_machines, picture, write
from reconnect_fsm.diagrams.plan import Detail, Machine
from reconnect_fsm.diagrams.timeline import sequence

__all__ = [
    "CannotDraw",
    "Detail",
    "Machine",
    "cards",
    "digest",
    "dot",
    "load",
    "main_machines",
    "matrix",
    "mermaid",
    "picture",
    "sequence",
    "statuses_dot",
    "statuses_svg",
    "svg",
    "write",
]
