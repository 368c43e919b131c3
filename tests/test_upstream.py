"""Faults of TorchRL and tensordict, by the programs of ``qmix_trl/UPSTREAM.md``.

A test fails when its fault is mended: then the workaround that the page names can go.
"""

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "qmix_trl" / "UPSTREAM.md").read_text(encoding="utf-8")
FAULTS = dict(re.findall(r"^### ([^\n]+)\n+```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
PRINTED = re.compile(r"^ *print\(.*\)  # (.+?)(?:; should be (.+))?$", re.MULTILINE)
PROCESSES = "MultiSyncCollector"  # a program that starts processes is slow


def missing_packages(program: str) -> list[str]:
    """Return the packages that a program imports and that are not installed."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE))
    return sorted(name for name in imported if importlib.util.find_spec(name) is None)


def parameters():
    """Return the faults, those that take seconds marked as slow."""
    return [
        pytest.param(name, marks=pytest.mark.slow if PROCESSES in program else ())
        for name, program in FAULTS.items()
    ]


def test_every_fault_of_the_page_has_a_program_that_shows_it():
    assert list(FAULTS) == re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(FAULTS) >= 9
    for program in FAULTS.values():
        assert any(right for _, right in PRINTED.findall(program))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", parameters())
def test_a_fault_is_still_there(name, capsys):
    program = FAULTS[name]
    missing = missing_packages(program)
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    exec(compile(program, name, "exec"), {"__name__": "__main__"})
    expected = [now for now, _ in PRINTED.findall(program)]
    assert capsys.readouterr().out.splitlines() == expected, (
        f"'{name}' has changed, perhaps it is mended: see its workaround in qmix_trl/UPSTREAM.md"
    )
