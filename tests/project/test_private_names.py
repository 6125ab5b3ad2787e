"""Private names stay private: an attribute with a leading underscore is used by the class or module that defines it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "reconnect_fsm"
FILES = sorted(PACKAGE.rglob("*.py"))

OF_LIBRARIES = {
    "_args": "asyncio.Handle: the explorer of schedules tells handles apart",
    "_callback": "asyncio.Handle: likewise",
    "_fields": "a named tuple's, and public in spite of its underscore",
    "_get_running_loop": "asyncio: costs a tenth of get_running_loop() where there is none",
    "_middlewares": "aiohttp.ClientSession: what it cannot lend is refused (D-SESSION)",
    "_replace": "likewise",
    "_scheduled": "a loop's timers: no test may leave any, and the demonstration counts them",
    "_selector": "a loop's: no test may leave a file descriptor in it",
    "_ssock": "a loop's: the one descriptor that is its own",
    "_threads": "an executor's: none may be left",
    "_trace_configs": "aiohttp.ClientSession: they are lent (D-SESSION)",
    "_transports": "a loop's: none may be left",
    "_ws_response_class": "aiohttp.ClientSession: as given (D-SESSION)",
}
"""Private names of the standard library and of aiohttp that have no public one, and what they are needed for."""


def defined(tree: ast.Module) -> set[str]:
    """The attributes that a module defines: names in class bodies, slots, and what is assigned to ``self``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(body=body):
                for each in body:
                    names |= names_bound(each)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def names_bound(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            slots = [each.value for each in ast.walk(statement.value) if isinstance(each, ast.Constant)]
            named = {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
            return named | ({str(each) for each in slots} if "__slots__" in named else set())
    return set()


def foreign(source: str) -> list[str]:
    """The private attributes of others that a module uses, as ``line: text``."""
    tree = ast.parse(source)
    own = defined(tree) | OF_LIBRARIES.keys()
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ] + [
        f"{node.lineno}: from {node.module} import {each.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "reconnect_fsm"
        for each in node.names
        if each.name.startswith("_")
    ]


def test_what_counts_as_foreign() -> None:
    """Neither one's own attributes, nor those of another instance of a class of this module."""
    source = """
from reconnect_fsm.other import _hidden, shown
class A:
    __slots__ = ("_slot",)
    def __init__(self, other):
        self._own = self._unknown = other
        other._own, other._slot, other.__dict__, other._foreign, other.public._foreign = 1, 2, 3, 4, 5
        self._inherited()
"""
    assert [each.partition(": ")[2] for each in foreign(source)] == [
        "other._foreign",
        "other.public._foreign",
        "from reconnect_fsm.other import _hidden",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_uses_private_attributes_of_another(path: Path) -> None:
    """The owner gives what others need a public name."""
    found = foreign(path.read_text("utf-8"))
    assert not found, "\n".join(found)
