"""From clause to code to test and back: every clause of the specification has all three."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CLAUSES = [
    *(f"CONN-{n}" for n in range(1, 6)),
    *(f"RETRY-{n}" for n in range(1, 5)),
    *(f"LIVE-{n}" for n in range(1, 3)),
    *(f"OFF-{n}" for n in range(1, 3)),
    *(f"JOIN-{n}" for n in range(1, 4)),
    *(f"REJOIN-{n}" for n in range(1, 4)),
    *(f"CTRL-{n}" for n in range(1, 3)),
    *(f"OBS-{n}" for n in range(1, 4)),
    *(f"OK-{n}" for n in range(1, 5)),
    *("D-ERROR", "D-STOP", "D-HTTP", "D-CODES", "D-JITTER", "D-STABLE", "D-TIMEOUT", "D-FORCE", "D-INTENT"),
    *("D-DEDUPE", "D-LEAVE", "D-ROOMERR", "D-VERSION", "D-ACK", "D-LISTEN", "D-CAUSE", "D-JUDGED", "D-ORDER", "D-NOW"),
    *("D-GUARD", "D-RESYNC", "D-ANYWAY", "D-JOINERR", "D-PRESENCE", "D-SEND", "D-THREAD", "D-URL", "D-WORDS"),
    *("D-SESSION", "D-HEARD", "D-TOOBIG", "NET-ADDR", "NET-DNS", "ANY-TELL"),
]
MENTION = re.compile(
    r"(?<![A-Z0-9-])(?:D-[A-Z]+|(?:NET|ANY)-[A-Z]+|(?:CONN|RETRY|LIVE|OFF|JOIN|REJOIN|CTRL|OBS|OK)-[0-9]+)(?![A-Z0-9])"
)


def by_clause() -> dict[str, list[str]]:
    """The tests whose name or docstring carries a clause's id."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parents[1].rglob("test_*.py")):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                name = node.name.upper().replace("_", "-")
                said = name + " " + (ast.get_docstring(node) or "")
                for clause in CLAUSES:
                    if re.search(rf"(?<![A-Z]){clause}(?![A-Z0-9])", said):
                        found.setdefault(clause, []).append(f"{path.name}::{node.name}")
    return found


TESTS = by_clause()


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_clause_has_code_and_a_test(clause: str) -> None:
    """The id stands in the package, beside what answers it, and in the name or docstring of a test."""
    modules = (ROOT / "reconnect_fsm").rglob("*.py")
    assert any(clause in MENTION.findall(path.read_text("utf-8")) for path in modules), (
        f"no module of the package mentions {clause}"
    )
    assert TESTS.get(clause), f"no test is named for {clause}"


def test_no_clause_is_made_up() -> None:
    """Every id that the package mentions is one of the specification's."""
    mentioned = {
        each for path in (ROOT / "reconnect_fsm").rglob("*.py") for each in MENTION.findall(path.read_text("utf-8"))
    }
    assert mentioned <= set(CLAUSES)
