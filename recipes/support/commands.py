"""The commands by name, and how one is typed in the current folder.

A recipe is run by ``qmix-trl NAME`` or as a file; the commands that it prints are of the same kind.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from qmix_trl.errors import ConfigError, nearest

RECIPES = Path(__file__).resolve().parents[1]

_PROGRAM: list[str] = []  # the command qmix-trl, if it has started the recipe


class Command(NamedTuple):
    """A recipe: its file, one line about it, and arguments that show its use."""

    file: str
    does: str
    example: str


COMMANDS = {
    "train": Command("train.py", "train QMIX or a relative of it", "balance_quick seed=1"),
    "evaluate": Command("evaluate.py", "evaluate a run greedily", "runs/balance_quick-1"),
    "render": Command("render.py", "draw episodes of a run", "runs/balance_quick-1"),
    "plot": Command("plot.py", "draw learning curves of runs", "runs/balance_quick-1"),
    "export": Command("export.py", "write one agent's policy to a file", "runs/balance_quick-1"),
    "benchmark": Command("benchmark.py", "train tasks x algorithms x seeds", "--tasks balance"),
    "games": Command("games.py", "learn games with known answers", "two_step --seeds 1"),
    "names": Command("names.py", "list scenarios, games, agents, mixers", "scenarios"),
    "copy": Command("copy_config.py", "copy a configuration, or list all", "balance_quick ."),
    "throughput": Command("throughput.py", "measure how fast it is", "--scenarios balance"),
    "doctor": Command("doctor.py", "check this machine", "--config balance_quick"),
}


def file_of(name: str) -> str:
    """Return the file of a command.

    Raises:
        ConfigError: if there is no such command.
    """
    if name not in COMMANDS:
        raise ConfigError(
            f"unknown command {name!r}{nearest(name, COMMANDS)}; known: {', '.join(COMMANDS)}"
        )
    return COMMANDS[name].file


def started_by(program: str) -> None:
    """Note the program that runs recipes by their names, ``qmix-trl``."""
    _PROGRAM[:] = [program]


def typed(name: str, *arguments: str | os.PathLike[str]) -> str:
    """Return a command as one types it in the current folder.

    Args:
        name: in ``COMMANDS``.
        *arguments: of the command; they are quoted where a shell needs it.
    """
    if _PROGRAM:
        words = [_program(_PROGRAM[0]), name]
    else:
        words = [_program(sys.executable), _relative(str(RECIPES / COMMANDS[name].file))]
    return shlex.join([*words, *map(os.fspath, arguments)])


def _program(path: str) -> str:
    """Return a program's name where the shell finds it by that, else its path."""
    name = os.path.basename(path)
    found = shutil.which(name)
    is_found = found is not None and os.path.abspath(found) == os.path.abspath(path)
    return name if is_found else _relative(path)  # a virtual environment's python is a link


def _relative(path: str) -> str:
    """Return a path, relative if it is below the current folder."""
    path = os.path.abspath(path)
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
