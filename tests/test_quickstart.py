"""The notebook: its code runs at a small size, and it is kept without outputs."""

import json
import sys
import tempfile
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
from PIL import Image
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
def test_it_runs_and_draws_what_it_learned(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plt, "show", lambda: None)
    watched = ModuleType("IPython.display")  # Jupyter's, which no test needs
    watched.Image = Image.open
    monkeypatch.setitem(sys.modules, "IPython.display", watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plt.switch_backend("Agg")
    code = "\n".join(code_cells())
    assert code.count(SIZES) == code.count('engine="auto"') == 1
    code = code.replace(SIZES, SIZES.replace("150, 16, 100, 100", "16, 2, 3, 4"))
    names = {}
    exec(code.replace('engine="auto"', 'engine="eager"'), names)
    assert names["frames"] == [0, 1600, 3200]
    (learned, nothing) = plt.gca().lines
    assert learned.get_xdata().tolist() == names["frames"]
    assert learned.get_ydata().tolist() == names["returns"]
    assert set(nothing.get_ydata()) == {names["nothing"]}
    assert capsys.readouterr().out.splitlines()[-1].startswith("   3,200 frames, greedy return ")
    with Image.open(tmp_path / "quickstart.gif") as film:
        assert film.n_frames == len(names["episodes"][0])  # the start and each step
    plt.close("all")
