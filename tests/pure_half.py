"""The pure half: the modules that decide. Which they are stands in pyproject.toml, once, as an import contract.

    python tests/pure_half.py       their files as globs, from the package's root, for coverage's --include

Every branch of them is covered by a test (Makefile), and mutants of them are killed (mutants.py).
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRACT = "The deciding half knows no loop, no network and no clock"


@cache
def pure_half() -> tuple[Path, ...]:
    """The files and folders of the contract's modules, from the root."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = [each for each in project["tool"]["importlinter"]["contracts"] if each["name"] == CONTRACT]
    paths = [Path(*module.split(".")) for module in contract["source_modules"]]
    return tuple(path if (ROOT / path).is_dir() else path.with_suffix(".py") for path in paths)


def files() -> list[Path]:
    """Every file of it, from the root."""
    return [
        file.relative_to(ROOT)
        for path in pure_half()
        for file in (sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path])
    ]


if __name__ == "__main__":
    print(",".join(f"{path}/*" if (ROOT / path).is_dir() else str(path) for path in pure_half()))
