"""The notebook: its code runs at a small size, and it is kept without outputs."""

import json

import matplotlib.pyplot as plt
import pytest
from recipe_tools import RECIPES

NOTEBOOK = json.loads((RECIPES / "quickstart.ipynb").read_text("utf-8"))
SIZES = "N_ENVS, N_BATCHES, N_UPDATES, N_TEST = 150, 16, 100, 100"


def code_cells():
    """Return the sources of the code cells."""
    return ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_and_draws_what_it_learned(monkeypatch, capsys):
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("Agg")
    code = "\n".join(code_cells())
    assert code.count(SIZES) == code.count("        seed=seed,") == 1
    code = code.replace(SIZES, SIZES.replace("150, 16, 100, 100", "16, 2, 3, 4"))
    names = {}
    exec(code.replace("        seed=seed,", '        seed=seed, engine="eager",'), names)
    assert names["frames"] == [0, 1600, 3200]
    (learned, nothing) = plt.gca().lines
    assert learned.get_xdata().tolist() == names["frames"]
    assert learned.get_ydata().tolist() == names["returns"]
    assert set(nothing.get_ydata()) == {names["nothing"]}
    assert capsys.readouterr().out.splitlines()[-1].startswith("   3,200 frames, greedy return ")
    plt.close("all")
