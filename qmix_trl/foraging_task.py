"""The tasks of level-based foraging: names and options, read without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qmix_trl.errors import ConfigError, nearest, shown

RULES = ("v1", "v2", "v3")  # the versions in the package's names of tasks
NUMBER = "([1-9][0-9]?)"
NAME = re.compile(f"(?:{NUMBER}s-)?{NUMBER}x{NUMBER}-{NUMBER}p-{NUMBER}f(-coop)?")
LEAST_SIDE = 3  # food never lies on the border


@dataclass(frozen=True, kw_only=True)
class ForagingTask:
    """A task of level-based foraging; all ranges of levels include both ends.

    Args:
        n_rows: of the field.
        n_columns: of the field.
        n_players: N.
        n_foods: F, the foods of a new episode; fewer if the field has no room for more.
        sight: how many cells an agent sees in each direction.
        force_coop: every food has the highest level of its range.
        rules: the version of the package whose starts are drawn.
        min_player_level: of each player.
        max_player_level: of each player.
        min_food_level: of each food.
        max_food_level: of each food; None for the sum of the three lowest levels of the players
            (in v1 and v2 one less, unless ``force_coop``).
        penalty: subtracted from the reward of each player that loads in vain.
        normalize_reward: the rewards of an episode in which all foods are loaded sum to 1.
        scale_observations: rows, columns and levels in observations and state are divided by the
            longer side of the field, so that networks read numbers of about 1. The package has raw
            ones.
    """

    n_rows: int
    n_columns: int
    n_players: int
    n_foods: int
    sight: int
    force_coop: bool
    rules: str = "v3"
    min_player_level: int = 1
    max_player_level: int = 2
    min_food_level: int = 1
    max_food_level: int | None = None
    penalty: float = 0.0
    normalize_reward: bool = True
    scale_observations: bool = False

    @property
    def unit(self) -> int:
        """The divisor of observations and state."""
        return max(self.n_rows, self.n_columns) if self.scale_observations else 1

    @property
    def start_rows(self) -> int:
        """The rows in which players start: in v1 all but the last."""
        return self.n_rows - (self.rules == "v1")

    @property
    def start_columns(self) -> int:
        """The columns in which players start: in v1 all but the last."""
        return self.n_columns - (self.rules == "v1")


NAMED = ("n_rows", "n_columns", "n_players", "n_foods", "sight", "force_coop")
OPTIONS = {f.name: f for f in fields(ForagingTask) if f.name not in NAMED}
LEVELS = tuple(name for name in OPTIONS if name.endswith("_level"))


def foraging_task(scenario: str, scenario_kwargs: Mapping[str, Any]) -> ForagingTask:
    """Return the task of a name such as ``2s-8x8-2p-2f-coop`` with the options given.

    The name is the package's, without "Foraging-" and the version: optional sight ("2s-"), field
    (rows x columns), players, foods, and "-coop" if all foods need several players.

    Raises:
        ConfigError: if the name has another form, an option is unknown or of another type, or the
            numbers do not go together.
    """
    match = NAME.fullmatch(scenario)
    if match is None:
        raise ConfigError(
            f"env.scenario: expected a foraging task [Ns-]XxY-Pp-Ff[-coop] with numbers from 1 to "
            f"99, such as 8x8-2p-2f-coop or 2s-8x8-2p-2f-coop, got {shown(scenario)!r}"
        )
    *numbers, coop = match.groups()
    sight, n_rows, n_columns, n_players, n_foods = (x and int(x) for x in numbers)
    for name, value in scenario_kwargs.items():
        _check_option(name, value)
    task = ForagingTask(
        n_rows=n_rows,
        n_columns=n_columns,
        n_players=n_players,
        n_foods=n_foods,
        sight=sight or max(n_rows, n_columns),
        force_coop=coop is not None,
        **scenario_kwargs,
    )
    _check_field(task)
    _check_levels(task, scenario_kwargs)
    return task


def _check_option(name: str, value: Any) -> None:
    """Refuse an option that is unknown, or whose value is of another type."""
    key = f"env.scenario_kwargs.{name}"
    if name not in OPTIONS:
        raise ConfigError(
            f"{key}: unknown to foraging{nearest(name, OPTIONS)}; it takes: {', '.join(OPTIONS)} "
            "(the scenario's name holds sight and coop)"
        )
    if name == "rules":
        expected, fits = f"one of {', '.join(RULES)}", value in RULES
    elif name == "penalty":
        expected = "a number of at least 0"
        fits = type(value) in (int, float) and 0 <= value < float("inf")
    elif name in LEVELS:
        may_be_none = OPTIONS[name].default is None
        expected = "a whole number from 1 to 99" + (" or null" if may_be_none else "")
        fits = (type(value) is int and 1 <= value <= 99) or (may_be_none and value is None)
    else:
        expected, fits = "true or false", type(value) is bool
    if not fits:
        raise ConfigError(f"{key}: expected {expected}, got {shown(repr(value))}")


def _check_field(task: ForagingTask) -> None:
    """Refuse fields that are too small."""
    if min(task.n_rows, task.n_columns) < LEAST_SIDE:
        raise ConfigError(
            f"env.scenario: expected a field of at least {LEAST_SIDE}x{LEAST_SIDE}, as food never "
            f"lies on its border, got {task.n_rows}x{task.n_columns}"
        )
    room = task.start_rows * task.start_columns
    if task.n_players > room:
        raise ConfigError(
            f"env.scenario: expected at most {room} players in {task.n_rows}x{task.n_columns}, got "
            f"{task.n_players}"
        )


def _check_levels(task: ForagingTask, options: Mapping[str, Any]) -> None:
    """Refuse ranges of levels that are empty, or that the rules do not know."""
    where = "env.scenario_kwargs"
    if task.rules != "v3":
        for name in ("min_player_level", "min_food_level", "max_food_level"):
            if name in options:
                raise ConfigError(
                    f"{where}.{name}: expected none with rules {task.rules}; rules: v3 has it"
                )
    if task.force_coop and "min_food_level" in options:
        raise ConfigError(
            f"{where}.min_food_level: expected none with -coop, where every food has the highest "
            "level"
        )
    highest = task.max_food_level or min(3, task.n_players) * task.min_player_level
    for kind, low, high in (
        ("player", task.min_player_level, task.max_player_level),
        ("food", task.min_food_level, highest),
    ):
        if low > high:
            raise ConfigError(
                f"{where}.min_{kind}_level ({low}) is above the highest level ({high}) of a {kind}"
            )
