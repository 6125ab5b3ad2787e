"""Mutation testing of the pure half: the runner works, and its list is current."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mutants
from figures import Figures, soak

HERE = Path(__file__).parents[1]
FEW = 10
OF = ("client_fsm.py", "retry.py", "status.py")  # whose tests take no time
SAMPLE = 40  # half a minute on a quiet machine; all of them: make mutants
SEED = 20


def run(*arguments: str) -> str:
    """What the runner, or another program of Python's, prints in a process of its own; it must end well."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=HERE, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nagain: python {' '.join(arguments)}"
    return done.stdout


def counts(printed: str) -> dict[str, int]:
    """The last line's."""
    told: dict[str, int] = json.loads(printed.splitlines()[-1].partition(" s: ")[2])
    return told


mutants_of = cache(mutants.mutants_of)


# ------------------------------------------------------------------------------------------------------ what is changed

DOOR = '''
class Door(FSM[str]):
    """A machine."""

    shut = state("closed", enter="bang")
    ajar = state("open", doc="a hand's breadth")
    initial = shut

    @event(
        row(shut, to=ajar, when=is_hard, do=grunt, clause="DOOR-1"),
        ignore(OTHERWISE, because="there is nothing to push"),
    )
    def pushed(self, force: float) -> None:
        """The door was pushed."""
        self.force = force
'''


def changes(source: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> dict[str, str]:
    """All mutants of a module with that source, by what they change, without white space."""
    (directory / "one.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(mutants, "PACKAGE", directory)
    monkeypatch.setattr(mutants, "source_of", lambda module: (directory / module).read_bytes())
    return {each.what: "".join(each.source().decode().split()) for each in mutants.mutants_of("one.py")}


def test_tables_are_changed_row_by_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each row and refusal, and what each state does; but no clause, no reason and no doc."""
    found = changes(DOOR, monkeypatch, tmp_path)
    assert set(found) == {
        "`initial = shut` → `initial = None`",
        'shut is "open", not "closed"',
        "shut without enter",
        'ajar is "closed", not "open"',
        "row 1 removed",
        "row 1 swapped with the next",
        "row 1 in OTHERWISE, not shut",
        "row 1 without when=is_hard",
        "row 1 unless is_hard",
        "row 1 without do=grunt",
        "row 1 leads to shut, not ajar",
        "row 1 leads to STAY, not ajar",
        "row 1 ignores",
        "row 2 removed",
        "row 2 leads to shut",
        "row 2 leads to ajar",
        "`self.force = force` → `self.force = None`",
        "`self.force = force` → `pass`",
    }
    assert 'row(shut,to=ajar,do=grunt,clause="DOOR-1"),' in found["row 1 without when=is_hard"]
    assert (
        "def_not_is_hard(self):returnnotself.is_hard()@event(row(shut,to=ajar,when='_not_is_hard'"
        in (found["row 1 unless is_hard"])
    )
    assert "row(OTHERWISE,to=ajar)" in found["row 2 leads to ajar"]
    assert 'ajar=state("closed",doc=' in found['ajar is "closed", not "open"']


def test_what_is_said_to_people_is_not_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docstrings, annotations, texts of errors, imports."""
    source = '''
        """Text."""
        import this
        __all__ = ["f"]
        T = TypeVar("T", bound=int)

        def f(x: "int" = ...) -> "str":
            """Text."""
            raise ValueError(f"{x or 1} is wrong")
    '''
    found = changes("\n".join(line[8:] for line in source.splitlines()), monkeypatch, tmp_path)
    assert list(found) == ['`raise ValueError(f"{x or 1} is wrong")` → `pass`']


def test_ordinary_changes_are_mutmuts_and_a_few_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numbers, comparisons, arithmetic, conditions, statements, results, elements."""
    source = "@d\ndef f(x):\n    while x < 1 and x:\n        g(x)\n    return x, 2\n"
    assert set(changes(source, monkeypatch, tmp_path)) >= {
        "`@d` → `nothing`",
        "`x < 1 and x` → `False`",
        "`x < 1 and x` → `x < 1 or x`",
        "`x < 1 and x` → `x`",
        "`< 1` → `<= 1`",
        "`1` → `2`",
        "`g(x)` → `pass`",
        "`g(x)` → `g(None)`",
        "`x, 2` → `None`",
        "`x, 2` → `x,`",
    }


def test_every_module_of_the_pure_half_is_mutated_or_says_why_not() -> None:
    """The list stands in pyproject.toml; this one follows it."""
    assert sorted(mutants.FILES) == sorted([*mutants.TESTS, *mutants.NOT_MUTATED])
    assert all(len(reason) > 20 for reason in mutants.NOT_MUTATED.values())


@pytest.mark.parametrize("module", mutants.TESTS)
def test_every_module_has_mutants_each_of_a_name_of_its_own(module: str) -> None:
    """The list of survivors goes by the names."""
    found = mutants_of(module)
    assert len(found) >= 20
    assert len({each.name for each in found}) == len(found)
    for each in found[::50]:
        assert compile(each.source(), module, "exec") is not None
        assert each.source() != mutants.source_of(module)


# --------------------------------------------------------------------------------------------------------- the verdicts

JUDGED = """
import json
import mutants
from mutants import Mutant, source_of

def change(what, old, new, module="keepalive.py", kind="ordinary"):
    at = source_of(module).index(old.encode())
    return Mutant(module, "", what, kind, at, at + len(old), new)

TABLE = '            ignore(disconnected, because="disconnected already"),\\n'
verdicts = {}
mutants.PATIENCE = 1
mutants.warm_up()
mutants.judge_all(
    [
        change("a comment", "from typing", "# nothing\\nfrom typing"),
        change("a wrong result", "return max(MIN_RATE", "return 0.25 * max(MIN_RATE"),
        change("an endless loop", "return max(MIN_RATE * seconds, MIN_BYTES)", "while True: pass"),
        change("no module", "from typing", "raise ImportError\\nfrom typing"),
        change("an exit", "return max(MIN_RATE * seconds, MIN_BYTES)", "import os; os._exit(0)"),
        change("a table that says the same", "to=error, ", "to='error', ", "client_fsm.py", "tables"),
        change("a table that says less", "to=error, ", "to=paused, ", "client_fsm.py", "tables"),
        change("a table that is refused", "to=error, ", "to='terror', ", "client_fsm.py", "tables"),
    ],
    2,
    lambda mutant, verdict, said: verdicts.update({mutant.what: verdict}),
)
print(json.dumps(verdicts))
"""


def test_a_mutant_is_killed_by_a_test_a_check_or_a_limit() -> None:
    """And survives where nothing is different: what the tests ran with was the mutant, and nothing else."""
    assert json.loads(run("-c", JUDGED)) == {
        "a comment": "survived",
        "a wrong result": "killed",
        "an endless loop": "killed",
        "no module": "killed",
        "an exit": "killed",
        "a table that says the same": "same",
        "a table that says less": "killed",
        "a table that is refused": "killed",
    }


def test_the_list_of_survivors_is_held_against_the_verdicts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a survivor without a reason, nor a reason without a survivor."""
    listed, other = (mutants.Mutant("retry.py", "f", what, "ordinary", 0, 0, "") for what in ("a", "b"))
    monkeypatch.setattr(mutants, "known", lambda: {listed.name: "It makes no difference."})
    report = mutants.Report()
    report.note(listed, "survived", "")
    report.note(other, "killed", "")
    report.scores(50.0)
    assert report.faults == 0
    report.note(listed, "killed", "")
    report.note(other, "survived", "")
    report.scores(50.1)
    assert report.faults == 3
    printed = capsys.readouterr().out
    assert "listed as a survivor, but killed: retry.py f: a\n" in printed
    assert "survived: retry.py f: b\n" in printed
    assert "retry.py: 50.0 % is less than 50.1 %\n" in printed
    page = mutants.page(report)
    assert "| retry.py | 4 | 0 | 2 | 2 | 50.0 % | 50.0 % |" in page
    assert "- It makes no difference.\n  - `retry.py` `f`: a\n" in page
    assert "write a test.**\n  - `retry.py` `f`: b\n" in page


def test_every_survivor_on_the_list_is_a_mutant_with_a_reason() -> None:
    """A change of the package, or of the runner, may have done away with it."""
    listed = mutants.known()
    assert listed.keys() <= {each.name for module in mutants.TESTS for each in mutants_of(module)}
    assert all(len(reason) > 20 for reason in listed.values())


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_few_mutants() -> None:
    """The runner ends well only if each survivor among them is on the list, and none that was killed."""
    told = counts(run("mutants.py", *OF, "--sample", str(FEW), "--seed", str(SEED)))
    assert sum(told.values()) == FEW
    assert told["survived"] == FEW // 10


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_a_sample_of_all_mutants(figures: Figures) -> None:
    """The same with more; all of them: ``make mutants``."""
    told = counts(run("mutants.py", "--sample", str(SAMPLE * soak()), "--seed", str(SEED)))
    assert sum(told.values()) == SAMPLE * soak()
    assert told["survived"] >= SAMPLE // 10
    figures("mutants: a seeded sample of what `make mutants` runs", seed=SEED, **told)
