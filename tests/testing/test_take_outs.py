"""Faults that were mended, with their fixes taken out again: which proof finds each, and how soon

The simulation is worth what it finds. Each fault here is one that users met; see `take_outs`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from figures import Figures
from reconnect_fsm.testing.simulation import Violation, simulate
from take_outs import NAMED, TAKE_OUTS

SEEDS = 300  # of a few storms each, within which every one of them is found
HOURS = 0.1
TESTS = Path(__file__).parents[1]


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # what a broken client leaves behind
@pytest.mark.parametrize("name", TAKE_OUTS)
def test_what_is_taken_out_is_found(name: str, monkeypatch: pytest.MonkeyPatch, figures: Figures) -> None:
    """The simulation breaks an invariant, which it does with no seed of the same while the fix is there."""
    taken_out = TAKE_OUTS[name]
    with monkeypatch.context() as patch:
        taken_out.undo(patch)
        seed, found = next(((seed, found) for seed in range(SEEDS) if (found := violation(seed))), (SEEDS, None))
    assert found is not None, f"{taken_out.fault}: no invariant was broken in {SEEDS} seeds"
    assert violation(seed) is None
    figures(f"{name} ({taken_out.clause}): {taken_out.fault}", found_by=f"`{found.invariant}`", after_seeds=seed + 1)


def violation(seed: int) -> Violation | None:
    try:
        simulate(seed, HOURS)
    except Violation as found:
        return found
    return None


@pytest.mark.proof
def test_the_others_are_found_by_tests(figures: Figures) -> None:
    """Faults for which the simulation is not the right tool, and the test that fails with each."""
    for name, test in NAMED.items():
        figures(name, found_by=f"`tests/{test}`")


@pytest.mark.parametrize("name", NAMED)
def test_the_tests_that_are_named_exist(name: str) -> None:
    """So that the table stays true."""
    file, _, test = NAMED[name].partition("::")
    assert re.search(rf"^(async )?def {re.escape(test)}\(", (TESTS / file).read_text(), re.MULTILINE)
