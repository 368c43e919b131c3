"""Mutated configurations: each loads, and survives saving, or gets one line.

``QMIX_TRL_FUZZ`` sets the number of files.
"""

import os
import random
from pathlib import Path

from qmix_trl import ConfigError, load_config, save_config

CONFIGS = sorted((Path(__file__).parents[1] / "recipes" / "configs").glob("*.yaml"))
N_FILES = int(os.environ.get("QMIX_TRL_FUZZ", "1000"))
VALUES = ["many", "[1, 2]", "{a: 1}", "null", "true", "3", "1.5", "'7'", "", "~", "no", "..", "{"]
HUGE = [
    *("9" * 5000, "1e400", "9" * 19, "9" * 18, "1e18", "-" + "9" * 400, "x" * 50_000),
    *("[" * 5000, "[1" + ", 1" * 6000 + "]", "{a: " * 500, "1e-400", "'" + "é" * 20_000 + "'"),
]
SIGNS = "é🦆\u2028\u0085\x00\x07\ufeff\u200b{}[]:,#&*!|>'\"%@`-?\t\n\\"
ALIASES = [
    *("*x", "&x 1", "&x [*x]", "!!int 3", "!!python/object/apply:os.getcwd []", "!x y"),
    *("&a [&b [1, 1], *b]", "<<", "*", "&"),
]


def inserted(line: str, rng: random.Random) -> str:
    """Return a line with a random sign at a random place."""
    i = rng.randint(0, len(line))
    return line[:i] + rng.choice(SIGNS) + line[i:]


def mutated(text: str, rng: random.Random) -> str:
    """Return a configuration with a random change in a line that holds a value."""
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if ": " in line and not line.startswith("#")]
    if not places:
        return text
    i = rng.choice(places)
    key, _, value = lines[i].partition(": ")
    changes = {
        "drop": [],
        "rename": [f"{key[:-1]}{rng.choice(['', 'x', '.', ' '])}: {value}"],
        "retype": [f"{key}: {rng.choice(VALUES)}"],
        "negate": [f"{key}: -{value}"],
        "huge": [f"{key}: {rng.choice(HUGE)}"],
        "unicode": [inserted(lines[i], rng)],
        "alias": [f"{key}: {rng.choice(ALIASES)}"],
        "duplicate": [lines[i], lines[i]],
        "indent": [f" {lines[i]}"],
        "cut": [lines[i][: rng.randrange(len(lines[i]))]],
        "tenfold": [f"{lines[i]}0"],
        "comment": [f"{lines[i]} # {inserted('', rng)}"],
        "move": [lines[rng.choice(places)]],
    }
    lines[i : i + 1] = changes[rng.choice(list(changes))]
    return "\n".join(lines)


def mutation(seed: int) -> str:
    """Return one of the recipes' files with one to three random changes."""
    rng = random.Random(seed)
    text = rng.choice(CONFIGS).read_text(encoding="utf-8")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text = mutated(text, rng)
    return text


def test_a_mutated_file_loads_or_gets_one_line(tmp_path):
    path, n_loaded = tmp_path / "mutated.yaml", 0
    for seed in range(N_FILES):
        path.write_text(mutation(seed), encoding="utf-8")
        try:
            config = load_config(path)
        except ConfigError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, (seed, message)
            assert len(message) < 1200 + len(str(path)), (seed, message)
            assert message.startswith(str(path)), (seed, message)
            continue
        n_loaded += 1
        save_config(config, tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == config, seed
    assert 0.03 * N_FILES < n_loaded < 0.5 * N_FILES
