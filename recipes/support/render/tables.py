"""Drawings of games given as tables: the payoffs of a state, and the joint action taken."""

import numpy as np
import torch
from support.render.scenes import (
    BLACK,
    GRAY,
    WHITE,
    Color,
    Label,
    Polygon,
    Scene,
    Shape,
    Window,
    box,
)

from qmix_trl.envs.games import GameTeam

RED, BLUE = (0.80, 0.30, 0.25), (0.25, 0.45, 0.75)
MOST_CELLS = 12  # actions of a table of payoffs with numbers in it
MARGIN = 1.0  # cells around a table
TAKEN = (0.95, 0.6, 0.1, 1.0)
TAKEN_EDGE = 0.08  # cells


class TablePainter:
    """Draws the state in which a joint action was taken.

    The payoffs of two agents are a table, with a row for each action of the first; gray cells are
    not available. With any other number of agents, or many actions, each agent has a row of its
    actions.

    Args:
        env: of games.

    Attributes:
        step_seconds: the time for which a step is shown.
    """

    step_seconds = 1.0

    def __init__(self, env: GameTeam) -> None:
        self._env, self._game = env, env.game
        self._before: dict[int, int] = {}  # the state of each environment in the last drawing

    def draw(self, e: int, action: list[int] | None) -> Scene:
        """Return the drawing of environment e after the team's actions; None after a reset."""
        now = int(self._env.place[e])
        state = now if action is None else self._before[e]
        self._before[e] = now
        game = self._game
        if game.n_agents == 2 and game.n_actions <= MOST_CELLS:
            return payoffs(game.reward[state], self._mask(state), action, f"state {state}")
        return choices(self._mask(state), action, f"state {state}")

    def _mask(self, state: int) -> torch.Tensor:
        """Return the available actions in a state, bool [N, A]."""
        game = self._game
        if game.action_mask is None:
            return torch.ones(game.n_agents, game.n_actions, dtype=torch.bool)
        return game.action_mask[state]


def payoffs(
    reward: torch.Tensor, mask: torch.Tensor, action: list[int] | None, title: str
) -> Scene:
    """Return the drawing of two agents' payoffs.

    Args:
        reward: float [A, A].
        mask: bool [2, A], the available actions.
        action: of the two agents, whose cell has a frame; None for no frame.
        title: above the table.
    """
    largest = max(float(reward.abs().max()), 1e-6)
    n = len(reward)
    shapes: list[Shape] = []
    for row, column in np.ndindex(n, n):
        value = float(reward[row, column])
        is_available = bool(mask[0, row] and mask[1, column])
        color = shade(value / largest) if is_available else GRAY
        shapes += cell(row, column, color, f"{value:.3g}")
    shapes += numbers(n, of_rows="u1", of_columns="u2")
    if action is not None:
        shapes += frame(*action)
    return table_scene(shapes, n, n, title)


def choices(mask: torch.Tensor, action: list[int] | None, title: str) -> Scene:
    """Return the drawing of the actions of all agents, a row for each agent.

    Args:
        mask: bool [N, A], the available actions.
        action: of the agents, whose cells have frames; None for no frames.
        title: above the table.
    """
    n_agents, n_actions = mask.shape
    shapes: list[Shape] = []
    for row, column in np.ndindex(n_agents, n_actions):
        shapes += cell(row, column, WHITE if mask[row, column] else GRAY, str(column))
    for row in range(n_agents):
        shapes.append(Label(f"agent {row}", (-MARGIN / 2, -row - 0.5)))
    for row, column in enumerate(action or []):
        shapes += frame(row, column)
    return table_scene(shapes, n_agents, n_actions, title)


def cell(row: int, column: int, color: Color, text: str) -> list[Shape]:
    """Return a cell with its text.

    Args:
        row: 0 for the uppermost.
        column: 0 for the leftmost.
        color: of the cell.
        text: in it.
    """
    outline = Polygon(box(column, -row - 1, 1, 1), color, BLACK)
    return [outline, Label(text, (column + 0.5, -row - 0.5), size=11)]


def frame(row: int, column: int) -> list[Shape]:
    """Return a frame inside a cell, of four bars."""
    left, bottom, thick = column, -row - 1, TAKEN_EDGE
    sides = (
        box(left, bottom, 1, thick),
        box(left, bottom + 1 - thick, 1, thick),
        box(left, bottom, thick, 1),
        box(left + 1 - thick, bottom, thick, 1),
    )
    return [Polygon(side, TAKEN) for side in sides]


def numbers(n: int, *, of_rows: str, of_columns: str) -> list[Shape]:
    """Return the headings of n rows and n columns."""
    rows: list[Shape] = [Label(f"{of_rows}={i}", (-MARGIN / 2, -i - 0.5)) for i in range(n)]
    return [*rows, *(Label(f"{of_columns}={i}", (i + 0.5, MARGIN / 4)) for i in range(n))]


def table_scene(shapes: list[Shape], n_rows: int, n_columns: int, title: str) -> Scene:
    """Return a table with its title, and room around it.

    Args:
        shapes: of the table.
        n_rows: of the table.
        n_columns: of the table.
        title: above it.
    """
    heading = Label(title, (n_columns / 2, 0.75 * MARGIN), size=11)
    window = Window(-MARGIN, n_columns + MARGIN / 4, -n_rows - MARGIN / 4, MARGIN)
    return Scene([*shapes, heading], window)


def shade(value: float) -> Color:
    """Return a colour from red (-1) through white (0) to blue (1)."""
    end = BLUE if value > 0 else RED
    red, green, blue = (1 - abs(value) * (1 - channel) for channel in end)
    return red, green, blue, 1.0
